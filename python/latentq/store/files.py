"""Files of a source: on this machine, on an object store, or in a repository of the Hub.

A `StoredFile` has the methods of `Path` that sources use, so that most of them do not ask which of the two a file is.
"""

from __future__ import annotations

import contextlib
import errno
import os
import posixpath
import re
import tempfile
import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from functools import cached_property
from pathlib import Path
from typing import IO, Any, Protocol, TypeAlias, cast

from latentq._core import LatentqError, MismatchError
from latentq.store.blocks import BLOCK, BlockBytes, ByteStream, FileBytes, RandomBytes
from latentq.store.hub import HubDataset, is_hub_url
from latentq.store.objects import ObjectStore, StoredObject, is_url
from latentq.system.faults import DeniedError
from latentq.system.text import counted

CONNECTIONS = 32
"""Requests of a source that are made at the same time."""
_KEPT_SMALL = 4  # small blocks in memory: longer reads take just their bytes
_MAGIC = re.compile(r"[*?\[]")
_SCHEME_END = "://"


class Objects(Protocol):
    """A bucket, or the files of a repository."""

    @property
    def url(self) -> str:
        """Its URL, without a slash at the end."""

    def get(self, name: str) -> bytes:
        """Returns the bytes of an object. Raises FileNotFoundError if there is none."""

    def read(self, name: str, start: int, stop: int, version: str = "") -> bytes:
        """Returns a range of an object: see `ObjectStore.read`."""

    def find(self, name: str) -> StoredObject | None:
        """Returns what a listing says of an object, or None if there is none."""

    def list(self, prefix: str = "") -> Iterator[StoredObject]:
        """Yields the objects below a prefix of whole parts."""

    def copy(self, name: str, path: Path) -> None:
        """Writes an object of any size to a file. Raises FileNotFoundError if there is none."""


class StoredFile:
    """An object as it was when it was found.

    Args:
        place: Its bucket.
        found: What the listing says of it.

    Attributes:
        size: Its size in bytes.
        parent: The folder that it is in.
    """

    def __init__(self, place: Objects, found: StoredObject) -> None:
        self._place = place
        self._found = found
        self.size = found.size
        self.parent = StoredFolder(place, posixpath.dirname(found.name))

    def __str__(self) -> str:
        return f"{self._place.url}/{self._found.name}"

    def __repr__(self) -> str:
        return f"StoredFile({str(self)!r})"

    @property
    def name(self) -> str:
        """Its name, without folders."""
        return posixpath.basename(self._found.name)

    @property
    def suffix(self) -> str:
        """The end of its name from the last dot on."""
        return posixpath.splitext(self._found.name)[1]

    def read(self, start: int, stop: int) -> bytes:
        """Returns a range of its bytes; an empty range without asking for it.

        Raises:
            MismatchError: It was replaced or deleted since it was found.
            OSError: It cannot be read.
        """
        if stop <= start:
            return b""
        with _found_before(self, self.size):
            data = self._place.read(self._found.name, start, stop, self._found.version)
        if len(data) != stop - start:
            raise MismatchError(f"{self} is listed with {counted(self.size, 'byte')} and has fewer now")
        return data

    def open(self, mode: str = "r", encoding: str | None = None, newline: str | None = None) -> IO[Any]:
        """Opens it for reading, as `Path.open` does. It is downloaded whole the first time.

        Raises:
            MismatchError: It was replaced or deleted since it was found.
            OSError: It cannot be downloaded.
        """
        return self._copy.open(mode, encoding=encoding, newline=newline)

    def read_bytes(self) -> bytes:
        """Returns its bytes. Raises as `open`."""
        return self._copy.read_bytes()

    def read_text(self, encoding: str) -> str:
        """Returns its text. Raises as `open`."""
        return self._copy.read_text(encoding)

    @cached_property
    def _copy(self) -> Path:
        """A copy on this machine, which is gone with this object."""
        folder = tempfile.TemporaryDirectory(prefix="latentq-")
        weakref.finalize(self, folder.cleanup)
        path = Path(folder.name) / "file"
        with _found_before(self, self.size):
            self._place.copy(self._found.name, path)
        if path.stat().st_size != self.size:
            raise changed_since(self, self.size, path.stat().st_size)
        return path


class StoredFolder:
    """The objects below a prefix.

    Args:
        place: Their bucket.
        prefix: The prefix, of whole parts, without a slash at its end; empty for the whole bucket.

    Attributes:
        place: The bucket.
        prefix: The prefix.
    """

    def __init__(self, place: Objects, prefix: str) -> None:
        self.place = place
        self.prefix = prefix

    def __str__(self) -> str:
        return f"{self.place.url}/{self.prefix}".rstrip("/")

    def objects(self) -> Iterator[StoredObject]:
        """Yields its objects by their names below the prefix, in the order that the store lists them in.

        Raises:
            OSError: The store cannot be read.
        """
        skip = len(self.prefix) + 1 if self.prefix else 0
        for entry in self.place.list(self.prefix):
            if len(entry.name) > skip:  # some tools put an object of the folder's own name
                yield entry._replace(name=entry.name[skip:])

    def file(self, entry: StoredObject) -> StoredFile:
        """Returns an object of `objects` as a file."""
        return StoredFile(self.place, entry._replace(name=self.key(entry.name)))

    def find(self, name: str) -> StoredFile | None:
        """Returns the object of a name below the prefix, or None if there is none.

        Raises:
            OSError: The store cannot be read.
        """
        key = self.key(name)
        if key in (".", "..") or key.startswith(("/", "../")):  # outside the bucket, or the bucket itself
            return None
        found = self.place.find(key)
        return None if found is None else StoredFile(self.place, found)

    def read(self, name: str, size: int) -> bytes:
        """Returns the bytes of an object.

        Args:
            name: Its name below the prefix.
            size: The size that it was listed with.

        Raises:
            MismatchError: It is gone, or has another size.
            OSError: It cannot be read.
        """
        key = self.key(name)
        with _found_before(f"{self.place.url}/{key}", size):
            data = self.place.get(key)
        if len(data) != size:
            raise changed_since(f"{self.place.url}/{key}", size, len(data))
        return data

    def key(self, name: str) -> str:
        """Returns the key of a name below the prefix, which may lead out of it by `..`."""
        return posixpath.normpath(posixpath.join(self.prefix, name))


File: TypeAlias = Path | StoredFile


def changed_since(file: object, listed: int, size: int) -> MismatchError:
    """Returns the error that a file has another size than it was listed with."""
    return MismatchError(f"{file} is listed with {counted(listed, 'byte')} and has {counted(size, 'byte')} now")


@contextlib.contextmanager
def _found_before(file: object, size: int) -> Iterator[None]:
    """Turns FileNotFoundError for an object that was there into MismatchError, and refusals into errors of the machine.

    A LatentqError would be taken for a fault of the object.
    """
    try:
        yield
    except FileNotFoundError:
        raise MismatchError(f"{file} is listed with {counted(size, 'byte')} and is not there now") from None
    except MismatchError:
        raise
    except LatentqError as error:
        raise DeniedError(errno.EACCES, str(error), str(file)) from None


def is_stored(path: object) -> bool:
    """True if a path is a URL of an object store or of the Hub."""
    return is_url(path) or is_hub_url(path)


class Stores:
    """The buckets of a source, each opened when one of its URLs is first asked for.

    Args:
        options: For object stores: see `ObjectStore`.

    Attributes:
        options: The options.
    """

    def __init__(self, options: Mapping[str, str] | None = None) -> None:
        self.options = dict(options or {})
        self._opened: dict[str, Objects] = {}

    def folder(self, url: str) -> StoredFolder:
        """Returns the objects below a URL.

        Raises:
            ValueError: The URL or an option is not valid.
            MissingPackageError: The package for it is not installed.
        """
        place, key = _split(url)
        opened = self._opened.get(place)
        if opened is None:
            opened = HubDataset(place) if is_hub_url(place) else ObjectStore(place, self.options)
            self._opened[place] = opened
        return StoredFolder(opened, key)

    def place(self, url: str) -> tuple[StoredFolder, str]:
        """Returns the bucket of a URL and the name in it. Raises as `folder`."""
        folder = self.folder(url)
        return StoredFolder(folder.place, ""), folder.prefix

    def find(self, url: str) -> StoredFile | None:
        """Returns the object at a URL, or None if there is none. Raises as `folder`, or OSError."""
        bucket, name = self.place(url)
        return bucket.find(name)

    def file(self, path: str | os.PathLike[str]) -> File:
        """Returns a file by its path or URL.

        Raises:
            FileNotFoundError: There is no object at the URL.
            OSError: The store cannot be read.
        """
        if not is_stored(path):
            return Path(path)
        if (found := self.find(str(path))) is None:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
        return found

    def get(self, url: str) -> bytes:
        """Returns the bytes of the object at a URL.

        Raises:
            FileNotFoundError: There is none.
            OSError: It cannot be read.
        """
        bucket, name = self.place(url)
        return bucket.place.get(name)

    def matching(self, url: str) -> list[tuple[str, StoredFile]]:
        """Returns the objects that a pattern of a URL matches, by `*`, `?`, `[...]` and `**` as `glob` does.

        They are named as below the folder above the first part with a wildcard.
        """
        above = self.folder(url)
        parts = above.prefix.split("/")
        fixed = next((n for n, part in enumerate(parts) if _MAGIC.search(part)), len(parts) - 1)
        folder = StoredFolder(above.place, "/".join(parts[:fixed]))
        found = (entry for entry in folder.objects() if _matches(entry.name.split("/"), parts[fixed:]))
        return [(entry.name, folder.file(entry)) for entry in found]


def has_wildcard(url: str) -> bool:
    """True if a URL is a pattern."""
    return _MAGIC.search(url) is not None


def _split(url: str) -> tuple[str, str]:
    """Splits a URL into that of its bucket, or of its repository, and the key."""
    scheme, _, rest = url.partition(_SCHEME_END)
    parts = rest.strip("/").split("/")
    place = 3 if is_hub_url(url) else 1  # datasets/OWNER/NAME, or the bucket
    return f"{scheme}{_SCHEME_END}{'/'.join(parts[:place])}", "/".join(parts[place:])


def _matches(parts: Sequence[str], pattern: Sequence[str]) -> bool:
    """True if the parts of a name match those of a pattern. A wildcard matches no dot at the beginning."""
    if not pattern:
        return not parts
    if pattern[0] == "**":
        visible = next((n for n, part in enumerate(parts) if part.startswith(".")), len(parts))
        return any(_matches(parts[count:], pattern[1:]) for count in range(visible + 1))
    if not parts or (parts[0].startswith(".") and not pattern[0].startswith(".")):
        return False
    return fnmatchcase(parts[0], pattern[0]) and _matches(parts[1:], pattern[1:])


def open_bytes(file: File, *, block: int | None = None) -> RandomBytes:
    """Opens a file to read at any offset.

    Args:
        file: The file.
        block: For an object: the bytes of a small request, see `BlockBytes`, if it is not read in order; by default
            `BLOCK`.

    Raises:
        OSError: It cannot be opened.
    """
    if isinstance(file, Path):
        return FileBytes(file)
    if block is None:
        return BlockBytes(file.read, file.size, block=BLOCK)
    return BlockBytes(file.read, file.size, block=block, kept=_KEPT_SMALL)


def head_of(file: File, opened: RandomBytes, count: int) -> bytes:
    """Returns the first bytes of an open file; of an object by a request for these alone, not for a block."""
    return opened.read(0, count) if isinstance(file, Path) else file.read(0, min(count, file.size))


def open_stream(file: File, *, block: int | None = None) -> IO[bytes]:
    """Opens a file to read in order: see `open_bytes`."""
    if isinstance(file, Path):
        return file.open("rb")
    return cast("IO[bytes]", ByteStream(open_bytes(file, block=block)))


def connections_of(files: Iterable[File]) -> int:
    """Returns the number of requests that a source makes at the same time; 0 if its files are on this machine."""
    return CONNECTIONS if any(isinstance(file, StoredFile) for file in files) else 0


def size_of(file: File) -> int:
    """Returns the size of a file in bytes. Raises OSError if it cannot be read."""
    return file.stat().st_size if isinstance(file, Path) else file.size
