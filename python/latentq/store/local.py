"""Publishing on a local or shared file system: a file or unit is there complete, or not at all.

A file is published by a link or a rename, and a unit by the rename of `latentq.mds.Writer`. An object store would use
conditional puts instead.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import secrets
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path

from latentq._core import FormatError

_TEMPORARY = re.compile(
    r"\.(\d{5,}|empty_caption\.npz|latents\.toml|shards\.toml|samples\.tsv|rejects\.tsv|index\.json)\.[0-9a-f]{8}"
)
_ATTEMPTS = 10
_LINKS_UNSUPPORTED = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)


def read_regular(path: Path) -> bytes:
    """Reads a file. A FIFO or device, which could keep the reader for ever, is refused before it is read.

    Raises:
        FormatError: It is not a regular file.
        OSError: It cannot be opened or read.
    """
    # With O_NONBLOCK, opening a FIFO does not wait for a writer.
    with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise FormatError(f"{path}: not a regular file")
        return file.read()


def check_regular(path: Path) -> None:
    """Refuses a FIFO or device, which could keep a reader for ever.

    Raises:
        FormatError: It exists, and is not a regular file.
    """
    if path.exists() and not path.is_file():
        raise FormatError(f"{path}: not a regular file")


def make_folder(path: Path) -> None:
    """Makes a folder and its missing parents, durably: the folder that each one is made in is fsynced."""
    missing = []
    while not path.is_dir():
        missing.append(path)
        path = path.absolute().parent
    for folder in reversed(missing):
        folder.mkdir(exist_ok=True)
        sync(folder.absolute().parent)


def sync_published(out: Path) -> None:
    """Fsyncs a folder, so that the files and units seen in it survive a crash of the machine.

    The process that published them may have been killed before its own fsync, or the fsync may have failed. Call this
    before anything is skipped, deleted or finished because of them.

    Raises:
        OSError: The fsync failed: what is seen may be lost.
    """
    try:
        sync(out)
    except OSError as error:
        if error.errno != errno.EROFS:  # a read-only file system has nothing left to write
            raise


def publish_once(path: Path, data: bytes) -> bool:
    """Publishes a file unless it exists already. Returns True if this call published it; the first process wins."""
    if path.exists():  # without this, a run on a finished dataset would need write permission
        return False
    temporary = _write(path, data)
    try:
        os.link(temporary, path)  # unlike a rename, a link fails if the name exists
    except FileExistsError:
        return False
    except FileNotFoundError:  # another process published it and removed our temporary
        if path.exists():
            return False
        raise
    except OSError as error:
        if error.errno not in _LINKS_UNSUPPORTED:
            raise
        if path.exists():  # without links, another process can only win between this check and the rename
            return False
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    sync(path.parent)
    return True


def replace_file(path: Path, data: bytes) -> None:
    """Publishes a file, replacing any file of its name."""
    for attempt in range(_ATTEMPTS):
        temporary = _write(path, data)
        try:
            temporary.replace(path)
            break
        except FileNotFoundError:  # another process finished and removed our temporary
            if attempt + 1 == _ATTEMPTS:
                raise
        except OSError:
            temporary.unlink(missing_ok=True)
            raise
    sync(path.parent)


@contextlib.contextmanager
def published_whole(path: Path) -> Iterator[Path]:
    """Yields a temporary path next to `path`, which the body creates as a file or folder.

    The temporary is renamed to `path` if the body succeeds, and removed if it raises.

    Raises:
        FileExistsError: `path` exists.
        OSError: The parent folder cannot be fsynced; the temporary is then removed again.
    """
    if os.path.lexists(path):
        raise FileExistsError(errno.EEXIST, "is there already; choose another name", str(path))
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        yield temporary
        sync(temporary)
        if os.path.lexists(path):
            raise FileExistsError(errno.EEXIST, "is there already; choose another name", str(path))
        temporary.rename(path)
        try:
            sync(path.parent)
        except OSError:
            path.rename(temporary)
            raise
    finally:
        if temporary.is_dir():
            shutil.rmtree(temporary, ignore_errors=True)
        else:
            temporary.unlink(missing_ok=True)


def remove_dead(out: Path) -> None:
    """Removes temporaries whose file or unit is published: their writers were killed or lost the race."""
    for entry in list(os.scandir(out)):
        match = _TEMPORARY.fullmatch(entry.name)
        if not match or not (out / match[1]).exists():
            continue
        if entry.is_dir(follow_symlinks=False):
            shutil.rmtree(entry.path, ignore_errors=True)
        else:
            Path(entry.path).unlink(missing_ok=True)


def is_temporary(name: str) -> bool:
    """True if an unfinished run may have left a file or folder of this name in a dataset."""
    return _TEMPORARY.fullmatch(name) is not None


def write_synced(path: Path, data: bytes) -> None:
    """Writes and fsyncs a new file.

    Raises:
        FileExistsError: It exists.
        OSError: It cannot be written.
    """
    with path.open("xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _write(path: Path, data: bytes) -> Path:
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        write_synced(temporary, data)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        if error.filename in (None, str(temporary)):  # a failed write names no file
            error.filename = str(path)
        raise
    return temporary


def sync(path: Path) -> None:
    """Fsyncs a file or directory."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        error.filename = str(path)  # a failed fsync does not name the file
        raise
    finally:
        os.close(descriptor)
