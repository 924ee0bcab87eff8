"""What every source gives: a listing, written as samples.tsv and cut into units, and the bytes of a sample."""

from __future__ import annotations

import errno
import hashlib
import itertools
import json
import stat
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Protocol

from latentq._core import FormatError, LatentqError, MismatchError
from latentq.format.tsv import tsv_line, tsv_values

_COMPRESSED = (".tgz", ".tar.gz")


@dataclass(frozen=True, slots=True)
class Sample:
    """One image and what is known of it.

    Attributes:
        key: Its name, unique in a folder: the relative path with `/`; in a table the path as it stands there.
        bytes: The size of its file; None where there is no such file.
        label: Its class, a number of at least 0.
        label_text: The name of its class.
        caption: A text that describes it.
        captions: All of them, where there are several; the first is the caption.
        id: What its collection calls it, where that is not the key.
        archive: The file that holds it among others, by its name in the source; None for a file of its own.
        archive_bytes: The size of that file.
        offset: Where it begins there: in bytes (of a compressed tar, of what is in it), or as a row's number.
        packed: Its size in the archive, where it is deflated.
        fault: Why it cannot be used, where the listing knows already; empty otherwise.
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
        r"""The key as text: what of a file's name is not UTF-8 is written `\\udc80` and so on."""
        return self.key.encode("utf-8", "backslashreplace").decode()


_COLUMNS = tuple(field.name for field in fields(Sample))


_NUMBERS = ("bytes", "label", "archive_bytes", "offset", "packed")


@dataclass(frozen=True)
class Listing:
    """The samples of a source, in order.

    Attributes:
        samples: The samples.
        fields: What is known of every sample beside `key` and `bytes`: names of `Sample`'s attributes.
        notes: What a user should be told of how the listing was made, one line each.
    """

    samples: tuple[Sample, ...]
    fields: tuple[str, ...]
    notes: tuple[str, ...] = ()

    def to_tsv(self) -> bytes:
        r"""The bytes of samples.tsv: a header, then a line for each sample.

        Tabs, line ends and backslashes inside a value are written `\t`, `\n`, `\r` and `\\`. A key that is not UTF-8
        (a file's name may be any bytes) keeps its bytes. Several captions are a JSON list.
        """
        columns = ("key", "bytes", *self.fields)
        lines = ["\t".join(columns)]
        lines += [tsv_line(_cell(getattr(sample, column)) for column in columns) for sample in self.samples]
        return ("\n".join(lines) + "\n").encode("utf-8", "surrogateescape")

    @classmethod
    def from_tsv(cls, data: bytes, where: str) -> Listing:
        """The listing that `to_tsv` wrote.

        Raises:
            FormatError: The bytes are not such a listing; the message begins with `where` and names the line.
        """
        lines = data.decode("utf-8", "surrogateescape").split("\n")
        columns = lines[0].split("\t")
        if columns[:2] != ["key", "bytes"] or not set(columns) <= set(_COLUMNS) or lines.pop() != "":
            raise FormatError(f"{where}: not a list of samples")
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
                    values["captions"] = _several(cells["captions"])
                if "archive" in cells:
                    values["archive"] = sys.intern(cells["archive"]) or None  # one for all its samples
                samples.append(Sample(**values))
            except ValueError:
                raise FormatError(f"{where}, line {number}: not a sample") from None
        return cls(tuple(samples), tuple(columns[2:]))

    def units(self, unit_size: int) -> list[range]:
        """The units, each a range of samples' numbers: `unit_size` of them, or the fewer that are left.

        A compressed tar is one unit whatever its size: it can only be read from its start.
        """

        def compressed(sample: Sample) -> str | None:
            return sample.archive if sample.archive and sample.archive.lower().endswith(_COMPRESSED) else None

        units: list[range] = []
        start = 0
        for archive, run in itertools.groupby(self.samples, key=compressed):
            stop = start + sum(1 for _ in run)
            step = stop - start if archive else unit_size
            units += [range(at, min(at + step, stop)) for at in range(start, stop, step)]
            start = stop
        return units

    def sha256(self) -> str:
        """The hash of samples.tsv, by which two listings are told apart."""
        return hashlib.sha256(self.to_tsv()).hexdigest()


def _cell(value: object) -> object:
    return json.dumps(value, ensure_ascii=False) if isinstance(value, tuple) else value


def _several(cell: str) -> tuple[str, ...] | None:
    """The captions in a cell. Raises ValueError where they are none."""
    captions = json.loads(cell) if cell else None
    if captions is None:
        return None
    if not isinstance(captions, list) or not all(isinstance(caption, str) for caption in captions):
        raise ValueError
    return tuple(captions)


def unchanged_files(files: Mapping[str, Path], listing: Listing, bare: Callable[[str, Path], bool]) -> bool:
    """Whether all of these files are those of a listing, by their names and sizes.

    Listed ones may be gone: no matter where the units that need them are done, and elsewhere `data` says so. One that
    is not listed must be `bare` of samples, which is then looked at.
    """
    listed = {sample.archive: sample.archive_bytes for sample in listing.samples}
    return all(
        listed[name] == path.stat().st_size if name in listed else bare(name, path) for name, path in files.items()
    )


class Source(Protocol):
    """An ordered collection of samples."""

    @property
    def kind(self) -> str:
        """`folder`, `table`, `tar` and so on; the card names it."""
        ...

    def listing(self) -> Listing:
        """Looks at everything there is, in the order of the dataset."""
        ...

    def data(self, sample: Sample) -> bytes | Path:
        """What `latentq.image` decodes for a sample of the listing: its bytes, or the path of a file of its own.

        Samples are asked for in the order of the listing, by one thread at a time.

        Raises:
            MismatchError: What holds the sample is not what was listed.
            LatentqError: The sample cannot be read.
        """
        ...


def captions_of(sample: Sample, count: int) -> list[str]:
    """So many captions of a sample: its first, and again from the first where it has fewer; empty where it has none."""
    all_of_them = sample.captions or (sample.caption or "",)
    return [all_of_them[place % len(all_of_them)] for place in range(count)]


def fetch(source: Source, sample: Sample) -> tuple[bytes | Path, tuple[str, Exception] | None]:
    """A sample's data, and why it cannot be used if so: the stage that refuses it (`list` or `read`) and the error.

    Raises:
        MismatchError: What holds the sample is not what was listed: here the source is another, or not there.
        OSError: The machine cannot read.
    """
    if sample.fault:
        return b"", ("list", LatentqError(sample.fault))
    try:
        data = source.data(sample)
    except MismatchError:
        raise
    except LatentqError as error:
        return b"", ("read", error)
    reason = _unlike_listing(sample, data) if isinstance(data, Path) else None
    return (data, None) if reason is None else (b"", ("read", LatentqError(reason)))


def reason_of(error: Exception, path: Path | None = None) -> str:
    """Why a sample was refused, without its path, which is another on another machine."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    text = str(error) if path is None else str(error).removeprefix(f"{path}: ")
    return " ".join(text.split())


# What the system says of a single file; anything else is a fault of the machine, and ends the run.
REJECTED = (errno.EACCES, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG, errno.ENOENT, errno.ENOTDIR, errno.EPERM)


def _unlike_listing(sample: Sample, path: Path) -> str | None:
    """Why a file cannot be read at all. Raises MismatchError where it is not the one that was listed."""
    try:
        status = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        if sample.bytes is None:
            return "No such file or directory"
        raise MismatchError(f"{path} is listed with {sample.bytes} bytes and is not there now") from None
    except OSError as error:
        if error.errno not in REJECTED:
            raise
        return error.strerror
    if not stat.S_ISREG(status.st_mode):
        return "not a regular file"
    if status.st_size != sample.bytes:
        listed = "as missing" if sample.bytes is None else f"with {sample.bytes} bytes"
        raise MismatchError(f"{path} is listed {listed} and has {status.st_size} bytes now")
    return None
