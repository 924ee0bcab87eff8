"""Samples as a source lists them, the protocol that sources follow, and how a sample is read."""

from __future__ import annotations

import stat
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol

from latentq._core import LatentqError, MismatchError
from latentq.store.files import File, size_of
from latentq.system.faults import is_file_fault, raise_machine_fault
from latentq.system.text import counted, one_line

GZIP_SUFFIXES = (".tgz", ".tar.gz")
"""Suffixes of archives that can only be read from the start."""


class Sample(NamedTuple):
    """One image and its facts. A named tuple, because millions are made, and making a frozen dataclass is slow.

    Attributes:
        key: The name, unique in a folder: the relative path with `/`; in a table the path as the table gives it.
        bytes: The size of the file, or None if there is no such file.
        label: The class, a number of at least 0.
        label_text: The name of the class.
        caption: A text that describes the image.
        captions: All captions, if there are several; the first is `caption`.
        id: The image's name in its collection, if that is not the key.
        archive: The archive or table that holds the image, by its name in the source; None for a file of its own.
        archive_bytes: The size of that archive.
        offset: Where the image begins in the archive: in bytes (uncompressed, in a gzip tar), or as a row number.
        packed: Deflated size in bytes, if the image is deflated.
        fault: Why the image cannot be used, if the listing already knows; otherwise empty.
    """

    key: str
    bytes: int | None
    label: int | None = None
    label_text: str | None = None
    caption: str | None = None
    captions: tuple[str, ...] | None = None
    id: str | None = None
    archive: str | None = None
    archive_bytes: int | None = None
    offset: int | None = None
    packed: int | None = None
    fault: str = ""

    @property
    def text(self) -> str:
        r"""The key as text; bytes of a file name that are not UTF-8 are written `\\udc80` and so on."""
        return self.key.encode("utf-8", "backslashreplace").decode()


@dataclass(frozen=True)
class Listing:
    """The samples of a source as a stream.

    Attributes:
        samples: The samples, in the order of the dataset. They are iterated over once, and only as many are in memory
            as the consumer keeps.
        notes: Lines for the user about how the listing was made; complete once the samples are exhausted.
    """

    samples: Iterable[Sample]
    notes: Collection[str] = ()


def unchanged_files(
    files: Mapping[str, File], samples: Iterable[Sample], has_no_samples: Callable[[str, File], bool]
) -> bool:
    """True if the files have the names and sizes of the listed archives.

    A listed file may be gone: its units may be done already, and if they are not, `Source.data` raises. A file that is
    not listed must hold no samples.

    Args:
        files: The files by their names in the source.
        samples: The listed samples.
        has_no_samples: Looks into a file; returns True if it is intact and holds no samples.
    """
    listed = {sample.archive: sample.archive_bytes for sample in samples}
    return all(
        listed[name] == size_of(path) if name in listed else has_no_samples(name, path) for name, path in files.items()
    )


class Source(Protocol):
    """An ordered collection of samples."""

    @property
    def kind(self) -> str:
        """The kind that the card names: `folder`, `table`, `tar`, ..."""
        ...

    def listing(self) -> Listing:
        """Lists every sample, in the order of the dataset."""
        ...

    def data(self, sample: Sample) -> bytes | Path:
        """Returns a sample's image file, as bytes or as the path of a file of its own.

        Samples are asked for in the order of the listing, by one thread at a time. A source whose samples can be read
        at the same time may also have `deferred(sample)`, which is called in that order and returns a function that
        reads the sample on any thread, or None for a sample that must be read in order. It may have the number
        `connections`: if it is not 0, as many of these functions are called at the same time, since they wait for
        another machine.

        Args:
            sample: A sample of the listing.

        Raises:
            MismatchError: The file or archive is not the one that was listed.
            LatentqError: The sample cannot be read.
        """
        ...


def deferred_read(source: Source, sample: Sample) -> Callable[[], bytes] | None:
    """Returns a function that reads a sample, for any thread to call; None if the source must read in order.

    Raises:
        MismatchError: The archive is not the one that was listed.
    """
    deferred = getattr(source, "deferred", None)
    return None if deferred is None or sample.fault or sample.bytes is None else deferred(sample)


def connections_of(source: Source) -> int:
    """Returns how many samples of a source are read at the same time; 0 if it says nothing: see `Source.data`."""
    return int(getattr(source, "connections", 0))


def cycled_captions(sample: Sample, count: int) -> list[str]:
    """Returns the first `count` captions, cycling if there are fewer; empty strings if there are none."""
    captions = sample.captions or (sample.caption or "",)
    return [captions[index % len(captions)] for index in range(count)]


def read_sample(
    source: Source, sample: Sample, read: Callable[[], bytes | Path] | None = None
) -> tuple[bytes | Path, tuple[str, Exception] | None]:
    """Reads a sample.

    Args:
        source: The source.
        sample: The sample.
        read: Reads it; by default `source.data` does.

    Returns:
        The sample's data; and None, or the stage that rejects the sample (`list` or `read`) with its error.

    Raises:
        MismatchError: The file or archive is not the one that was listed, or is gone.
        MemoryError: There is too little memory.
        OSError: The machine cannot read.
    """
    if sample.fault:
        return b"", ("list", LatentqError(sample.fault))
    try:
        data = source.data(sample) if read is None else read()
    except MismatchError:
        raise
    except LatentqError as error:
        raise_machine_fault(error, sample.text)
        return b"", ("read", error)
    reason = _unreadable(sample, data) if isinstance(data, Path) else None
    return (data, None) if reason is None else (b"", ("read", LatentqError(reason)))


def reason_of(error: Exception, path: Path | None = None) -> str:
    """Returns why a sample was rejected, in one line, without its path, which differs between machines."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    text = str(error) if path is None else str(error).removeprefix(f"{path}: ")
    return one_line(text) or type(error).__name__


def _unreadable(sample: Sample, path: Path) -> str | None:
    """Returns why a file cannot be read, or None. Raises MismatchError if it is not the file that was listed."""
    try:
        status = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        if sample.bytes is None:
            return "No such file or directory"
        raise MismatchError(f"{path} is listed with {counted(sample.bytes, 'byte')} and is not there now") from None
    except OSError as error:
        if not is_file_fault(error):
            raise
        return error.strerror
    if not stat.S_ISREG(status.st_mode):
        return "not a regular file"
    if status.st_size != sample.bytes:
        listed = "as missing" if sample.bytes is None else f"with {counted(sample.bytes, 'byte')}"
        raise MismatchError(f"{path} is listed {listed} and has {counted(status.st_size, 'byte')} now")
    return None
