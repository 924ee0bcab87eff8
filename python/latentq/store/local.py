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
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

from latentq._core import FormatError
from latentq.system.progress import Progress

_TEMPORARY = re.compile(
    r"\.(\d{5,}(?:\.\d+)?|empty_caption\.npz|normalization\.npy|latents(?:\.next)?\.toml|shards\.toml|list(?:\.\d+)?|rejects\.tsv|index\.json)\.[0-9a-f]{8}"
)
_ATTEMPTS = 10
_CHUNK = 1 << 20  # bytes that are compared or copied at once
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


def make_folder(path: Path) -> Sequence[Path]:
    """Makes a folder and its missing parents, durably: the folder that each one is made in is fsynced.

    Returns:
        The folders that were missing, from the inside out.
    """
    missing = []
    while not path.is_dir():
        missing.append(path)
        path = path.absolute().parent
    for folder in reversed(missing):
        folder.mkdir(exist_ok=True)
        sync(folder.absolute().parent)
    return missing


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
def replacement(path: Path) -> Iterator[BinaryIO]:
    """Yields a new file, which replaces any file called `path` once the body has written it.

    A file that has the same bytes already is not replaced. If the body raises, nothing is replaced.
    """
    temporary = _temporary_path(path)
    try:
        with temporary.open("x+b") as file:
            yield file
            file.flush()
            if not _same_bytes(file, path):
                os.fsync(file.fileno())
                _replace(temporary, path, file)
    except OSError as error:
        if error.filename in (None, str(temporary)):  # a failed write names no file
            error.filename = str(path)
        raise
    finally:
        temporary.unlink(missing_ok=True)


def _replace(temporary: Path, path: Path, file: BinaryIO) -> None:
    """Renames a temporary to `path`, and writes it again from the open file if another process has removed it."""
    for attempt in range(_ATTEMPTS):
        try:
            temporary.replace(path)
            break
        except FileNotFoundError:  # another process finished and removed our temporary
            if attempt + 1 == _ATTEMPTS:
                raise
            file.seek(0)
            with temporary.open("xb") as copy:
                shutil.copyfileobj(file, copy, _CHUNK)
                copy.flush()
                os.fsync(copy.fileno())
    sync(path.parent)


def _same_bytes(file: BinaryIO, path: Path) -> bool:
    """True if `path` is a regular file with the bytes of an open file."""
    if not path.is_file() or path.stat().st_size != os.fstat(file.fileno()).st_size:
        return False
    file.seek(0)
    with path.open("rb") as present:
        while chunk := file.read(_CHUNK):
            if present.read(len(chunk)) != chunk:
                return False
    return True


def holds(path: Path, pieces: Iterable[bytes]) -> bool:
    """True if a file has exactly the bytes of the pieces. It is read piece by piece.

    Raises:
        FormatError: It is not a regular file.
        OSError: It cannot be opened or read.
    """
    check_regular(path)
    with path.open("rb") as file:
        return all(file.read(len(piece)) == piece for piece in pieces) and not file.read(1)


def bytes_below(folder: Path, bar: Progress | None = None) -> int:
    """Returns the size of all files below a folder, in bytes. Links to folders are not followed.

    Args:
        folder: The folder.
        bar: Counts the files and folders that are directly in it; None counts nothing.
    """
    total = 0
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                total += bytes_below(Path(entry.path))
            elif entry.is_file():
                total += entry.stat().st_size
            if bar is not None:
                bar.update(1)
    return total


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
    temporary = _temporary_path(path)
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
    with os.scandir(out) as entries:
        temporaries = [(entry, match) for entry in entries if (match := _TEMPORARY.fullmatch(entry.name))]
    for entry, match in temporaries:
        if not (out / match[1]).exists():
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
    try:
        with path.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        error.filename = error.filename or str(path)  # a failed write names no file
        raise


def _write(path: Path, data: bytes) -> Path:
    temporary = _temporary_path(path)
    try:
        write_synced(temporary, data)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        if error.filename in (None, str(temporary)):  # a failed write names no file
            error.filename = str(path)
        raise
    return temporary


def _temporary_path(path: Path) -> Path:
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}")


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
