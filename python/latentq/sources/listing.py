"""The listing of a source, written as samples.tsv and split into units, and the protocol that sources follow."""

from __future__ import annotations

import hashlib
import itertools
import json
import operator
import stat
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Protocol

from latentq._core import FormatError, LatentqError, MismatchError
from latentq.format.tsv import tsv_line, tsv_values
from latentq.system.faults import FILE_ERRNOS, raise_machine_fault
from latentq.system.text import counted, one_line

GZIP_SUFFIXES = (".tgz", ".tar.gz")
"""Suffixes of archives that are one unit each."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One image and its facts.

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


_COLUMNS = tuple(field.name for field in fields(Sample))
_NUMBERS = ("bytes", "label", "archive_bytes", "offset", "packed")
_PATHS = ("key", "archive", "fault")  # may hold file names, which may be any bytes


@dataclass(frozen=True)
class Listing:
    """The samples of a source, in order.

    Attributes:
        samples: The samples.
        fields: The attributes of `Sample` that the source knows, without `key` and `bytes`. Some samples may lack a
            label.
        notes: Lines for the user about how the listing was made.
    """

    samples: tuple[Sample, ...]
    fields: tuple[str, ...]
    notes: tuple[str, ...] = ()

    def is_complete(self, field: str) -> bool:
        """True if every usable sample has a value of a field.

        Args:
            field: An attribute of `Sample`.
        """
        return all(getattr(sample, field) not in (None, "") for sample in self.samples if not sample.fault)

    def to_tsv(self) -> bytes:
        r"""Returns the bytes of samples.tsv: a header, then one line per sample.

        Tabs, line ends and backslashes inside a value are written `\t`, `\n`, `\r` and `\\`. A key that is not UTF-8
        (a file name may be any bytes) keeps its bytes. Several captions are a JSON list. Surrogates in other texts,
        which JSON can have, are joined to characters or replaced by U+FFFD.

        Raises:
            TypeError: A number of a sample, such as its label, is not a whole number.
        """
        columns = ("key", "bytes", *self.fields)
        lines = ["\t".join(columns)]
        lines += [tsv_line(_cell(getattr(sample, column), column) for column in columns) for sample in self.samples]
        return ("\n".join(lines) + "\n").encode("utf-8", "surrogateescape")

    @classmethod
    def from_tsv(cls, data: bytes, name: str) -> Listing:
        """Reads what `to_tsv` wrote.

        Args:
            data: The bytes of the file.
            name: The file's name, for messages.

        Raises:
            FormatError: The bytes are not a listing; the message names the file and the line.
        """
        lines = data.decode("utf-8", "surrogateescape").split("\n")
        columns = lines[0].split("\t")
        if columns[:2] != ["key", "bytes"] or not set(columns) <= set(_COLUMNS) or lines.pop() != "":
            raise FormatError(f"{name}: not a list of samples")
        samples = []
        for number, line in enumerate(lines[1:], start=2):
            cells = dict(zip(columns, tsv_values(line), strict=False))
            try:
                if len(cells) != len(columns):
                    raise ValueError
                values: dict[str, Any] = dict(cells)
                for column in _NUMBERS:
                    if column in cells:
                        values[column] = int(cells[column]) if cells[column] else None
                if "captions" in cells:
                    values["captions"] = _captions_from(cells["captions"])
                if "archive" in cells:
                    # One string for all samples of the archive.
                    values["archive"] = sys.intern(cells["archive"]) or None
                samples.append(Sample(**values))
            except ValueError:
                raise FormatError(f"{name}, line {number}: not a sample") from None
        return cls(tuple(samples), tuple(columns[2:]))

    def units(self, unit_size: int) -> list[range]:
        """Splits the samples into units, each a range of sample numbers.

        A unit has `unit_size` samples, or those that are left. A gzip tar is one unit whatever its size, because it can
        only be read from the start.

        Args:
            unit_size: The largest number of samples in a unit.
        """

        def compressed(sample: Sample) -> str | None:
            return sample.archive if sample.archive and sample.archive.lower().endswith(GZIP_SUFFIXES) else None

        units: list[range] = []
        start = 0
        for archive, run in itertools.groupby(self.samples, key=compressed):
            stop = start + sum(1 for _ in run)
            step = stop - start if archive else unit_size
            units += [range(first, min(first + step, stop)) for first in range(start, stop, step)]
            start = stop
        return units

    def sha256(self) -> str:
        """Returns the SHA-256 of samples.tsv, in hexadecimal."""
        return hashlib.sha256(self.to_tsv()).hexdigest()

    def part_sha256(self, indices: range) -> str:
        """Returns the SHA-256 of a part of samples.tsv (the header, and the lines of these samples), in hexadecimal.

        Args:
            indices: The numbers of the samples, consecutive.
        """
        return replace(self, samples=self.samples[indices.start : indices.stop]).sha256()


def _cell(value: Any, column: str) -> object:
    if value is None or column in _PATHS:
        return value
    if column in _NUMBERS:
        return operator.index(value)  # of a bool or a NumPy integer as well; raises TypeError for others
    text = json.dumps(value, ensure_ascii=False) if isinstance(value, tuple) else str(value)
    return text if text.isascii() else _without_surrogates(text)


def _without_surrogates(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def _captions_from(cell: str) -> tuple[str, ...] | None:
    """Returns several captions, from a JSON list. Raises ValueError if the cell is something else."""
    captions = json.loads(cell) if cell else None
    if captions is None:
        return None
    if not isinstance(captions, list) or not all(isinstance(caption, str) for caption in captions):
        raise ValueError
    return tuple(captions)


def unchanged_files(files: Mapping[str, Path], listing: Listing, has_no_samples: Callable[[str, Path], bool]) -> bool:
    """True if the files have the names and sizes of the listed archives.

    A listed file may be gone: its units may be done already, and if they are not, `Source.data` raises. A file that is
    not listed must hold no samples.

    Args:
        files: The files by their names in the source.
        listing: The listing.
        has_no_samples: Looks into a file; returns True if it is intact and holds no samples.
    """
    listed = {sample.archive: sample.archive_bytes for sample in listing.samples}
    return all(
        listed[name] == path.stat().st_size if name in listed else has_no_samples(name, path)
        for name, path in files.items()
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
        reads the sample on any thread, or None for a sample that must be read in order.

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


def cycled_captions(sample: Sample, count: int) -> list[str]:
    """Returns the first `count` captions, cycling if there are fewer; empty strings if there are none."""
    captions = sample.captions or (sample.caption or "",)
    return [captions[index % len(captions)] for index in range(count)]


def read_sample(
    source: Source, sample: Sample, read: Callable[[], bytes] | None = None
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
        if error.errno not in FILE_ERRNOS:
            raise
        return error.strerror
    if not stat.S_ISREG(status.st_mode):
        return "not a regular file"
    if status.st_size != sample.bytes:
        listed = "as missing" if sample.bytes is None else f"with {counted(sample.bytes, 'byte')}"
        raise MismatchError(f"{path} is listed {listed} and has {counted(status.st_size, 'byte')} now")
    return None
