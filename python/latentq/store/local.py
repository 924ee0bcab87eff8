"""The seam between the pipeline and where a dataset lies: files are there whole or not at all, and so are units.

A file is published by link or rename here; a unit by the one rename of `latentq.mds.Writer`. An object store would have
conditional puts in their place, and nothing else would change.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

_TEMPORARY = re.compile(
    r"\.(\d{5,}|empty_caption\.npz|latents\.toml|shards\.toml|samples\.tsv|rejects\.tsv|index\.json)\.[0-9a-f]{8}"
)


_ATTEMPTS = 10


_NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)


def publish_once(path: Path, data: bytes) -> bool:
    """Publishes a file unless one of its name is there already; whoever comes first wins. True if that was us."""
    if path.exists():  # so that a finished dataset may be visited where it cannot be written
        return False
    temporary = _write(path, data)
    try:
        os.link(temporary, path)  # unlike a rename, it fails where the name exists
    except FileExistsError:
        return False
    except FileNotFoundError:  # another process has published it, and cleaned up after us
        if path.exists():
            return False
        raise
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        if path.exists():  # without links, the window between this look and the rename is all there is
            return False
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    sync(path.parent)
    return True


def replace_file(path: Path, data: bytes) -> None:
    """Publishes a file in the place of whatever is there."""
    for attempt in range(_ATTEMPTS):
        temporary = _write(path, data)
        try:
            temporary.replace(path)
            break
        except FileNotFoundError:  # another process, at its finish, has cleaned up after us
            if attempt + 1 == _ATTEMPTS:
                raise
        except OSError:
            temporary.unlink(missing_ok=True)
            raise
    sync(path.parent)


@contextlib.contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A temporary beside `path`, not there yet, for the body to make as a file or a folder.

    Published where the body ends well, and removed where it does not.

    Raises:
        FileExistsError: There is something at `path`.
    """
    if os.path.lexists(path):
        raise FileExistsError(errno.EEXIST, "is there already", str(path))
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        yield temporary
        sync(temporary)
        if os.path.lexists(path):
            raise FileExistsError(errno.EEXIST, "is there already", str(path))
        temporary.rename(path)
    finally:
        if temporary.is_dir():
            shutil.rmtree(temporary, ignore_errors=True)
        else:
            temporary.unlink(missing_ok=True)
    sync(path.parent)


def remove_dead(out: Path) -> None:
    """Removes temporaries whose file or unit is published: their writer was killed, or came second."""
    for entry in list(os.scandir(out)):
        match = _TEMPORARY.fullmatch(entry.name)
        if not match or not (out / match[1]).exists():
            continue
        if entry.is_dir(follow_symlinks=False):
            shutil.rmtree(entry.path, ignore_errors=True)
        else:
            Path(entry.path).unlink(missing_ok=True)


def is_temporary(name: str) -> bool:
    """Whether a name is one that an unfinished run may leave in a dataset's folder."""
    return _TEMPORARY.fullmatch(name) is not None


def _write(path: Path, data: bytes) -> Path:
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        with temporary.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        temporary.unlink(missing_ok=True)
        if error.filename is None:  # a failed write does not say where
            error.filename = str(path)
        raise
    return temporary


def sync(path: Path) -> None:
    """Has the system bring a file, or the names in a folder, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
