r"""The list of a source on disk, in parts: what it held when it was listed, cut into units.

A part is a file `list/00000.tsv` of at most 65,536 samples, a whole number of units. Its first line is `# ` and a JSON
object: the number of the part's first unit and first sample, the samples and bytes of each unit (and its revision, if a
later update made it again), totals up to the end of the part, and the SHA-256 of the part before. The second line names
the columns, the fields of `Sample` that any sample of the part has, and each further line is a sample. Tabs, line ends
and backslashes inside a value are written `\t`, `\n`, `\r` and `\\`; several captions are a JSON list.

No process holds more than one part: a unit's samples are read from their place in the part.
"""

from __future__ import annotations

import bisect
import functools
import hashlib
import itertools
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Self

from latentq._core import FormatError
from latentq.format.options import MAX_UNIT
from latentq.run.sample_lines import columns_of, present_columns, samples_from, to_lines, value_count
from latentq.sources.listing import GZIP_SUFFIXES, Sample
from latentq.store.local import check_regular, read_regular, sync, write_synced
from latentq.system.memory import fewer_collections
from latentq.system.text import counted

MAX_PART = MAX_UNIT
"""The largest number of samples in a part, which holds whole units."""

_MARK = b'# {"first_unit": '
_CACHED_HEADERS = 64
_MAX_COUNT = 1 << 53
_MAX_HEADER = 1 << 24  # bytes: 65,536 units of one sample each, with room


@dataclass(frozen=True, slots=True)
class UnitEntry:
    """A unit's place in the list.

    Attributes:
        number: The unit's number.
        first: The number of its first sample.
        samples: The number of samples.
        revision: How often updates made the unit again.
    """

    number: int
    first: int
    samples: int
    revision: int = 0

    @property
    def name(self) -> str:
        """The name of the unit's folder. Names have at least five digits."""
        return f"{self.number:05}" + (f".{self.revision}" if self.revision else "")

    @property
    def indices(self) -> range:
        """The numbers of its samples."""
        return range(self.first, self.first + self.samples)


@dataclass
class Totals:
    """Counts over the samples from the start of a list.

    Attributes:
        samples: The number of samples.
        units: The number of units.
        usable: The number of samples without a fault.
        known: For each field of `Sample`, the number of usable samples that have a value; fields without any are
            absent.
    """

    samples: int = 0
    units: int = 0
    usable: int = 0
    known: dict[str, int] = field(default_factory=dict)

    def add(self, samples: Sequence[Sample], columns: Iterable[str]) -> None:
        """Adds a unit.

        Args:
            samples: The samples of the unit.
            columns: The fields that any of them has.
        """
        usable = [sample for sample in samples if not sample.fault]
        self.samples += len(samples)
        self.units += 1
        self.usable += len(usable)
        values_of = columns_of(usable)
        for name in columns:
            if count := value_count(values_of.get(name, ())):
                self.known[name] = self.known.get(name, 0) + count

    def is_complete(self, name: str) -> bool:
        """True if every usable sample has a value of a field."""
        return self.known.get(name, 0) == self.usable


@dataclass(frozen=True)
class _Header:
    """The first line of a part.

    Attributes:
        first_unit: The number of the part's first unit.
        first_sample: The number of the part's first sample.
        units: For each unit: samples, bytes, revision.
        usable: Samples without a fault, up to the end of the part.
        known: `Totals.known`, up to the end of the part.
        previous: SHA-256 of the part before, in hexadecimal; empty for the first part.
    """

    first_unit: int
    first_sample: int
    units: tuple[tuple[int, int, int], ...]
    usable: int
    known: dict[str, int]
    previous: str

    def to_line(self) -> bytes:
        values = asdict(self) | {"units": [unit if unit[2] else unit[:2] for unit in self.units]}
        return b"# " + json.dumps(values).encode() + b"\n"

    @classmethod
    def from_line(cls, line: bytes) -> Self:
        values = json.loads(line.removeprefix(b"# "))
        units = tuple((unit[0], unit[1], unit[2] if len(unit) > 2 else 0) for unit in values["units"])
        header = cls(**values | {"units": units, "previous": str(values["previous"])})
        numbers = (
            header.first_unit,
            header.first_sample,
            header.usable,
            *header.known.values(),
            *itertools.chain(*units),
        )
        if not units or not all(type(number) is int and 0 <= number <= _MAX_COUNT for number in numbers):
            raise ValueError("a number is not a count")
        return header

    @functools.cached_property
    def firsts(self) -> list[int]:
        """The number of each unit's first sample, and of the first sample after the part."""
        return [*itertools.accumulate((unit[0] for unit in self.units), initial=self.first_sample)]


def cut_into_units(samples: Iterable[Sample], unit_size: int) -> Iterator[list[Sample]]:
    """Yields the samples of each unit.

    A unit has `unit_size` samples, or those that are left. A gzip tar is one unit, or several of `MAX_PART` samples,
    because it can only be read from the start.

    Args:
        samples: All samples in order.
        unit_size: The largest number of samples in a unit.
    """
    for archive, run in itertools.groupby(samples, key=_compressed_archive):
        size = MAX_PART if archive else unit_size
        while unit := list(itertools.islice(run, size)):
            yield unit


def _compressed_archive(sample: Sample) -> str | None:
    archive = sample.archive
    return archive if archive is not None and archive.lower().endswith(GZIP_SUFFIXES) else None


def list_parts(units: Iterable[tuple[list[Sample], int]]) -> Iterator[bytes]:
    """Yields the bytes of each part of a list, a pure function of the units.

    Args:
        units: The samples of each unit, and its revision.

    Raises:
        TypeError: A number of a sample, such as its label, is not a whole number.
        ValueError: A key or the name of an archive cannot be read back as it is.
    """
    totals = Totals()
    part = _Part(0, 0, "")
    for samples, revision in units:
        if part.units and totals.samples - part.first_sample + len(samples) > MAX_PART:
            data = part.to_bytes(totals)
            yield data
            part = _Part(totals.units, totals.samples, hashlib.sha256(data).hexdigest())
        part.units.append(_UnitColumns(len(samples), present_columns(samples), revision))
        totals.add(samples, Sample._fields[2:])
    if part.units:
        yield part.to_bytes(totals)


class _UnitColumns(NamedTuple):
    """The samples of a unit by column, which takes the garbage collector less time than the samples themselves.

    Attributes:
        samples: The number of samples.
        columns: The values of each field that any of them has, with `key` and `bytes`.
        revision: How often updates made the unit again.
    """

    samples: int
    columns: Mapping[str, tuple[Any, ...]]
    revision: int


@dataclass(frozen=True)
class _Part:
    """A part in the making.

    Attributes:
        first_unit: The number of its first unit.
        first_sample: The number of its first sample.
        previous: SHA-256 of the part before, in hexadecimal; empty for the first part.
        units: Its units so far.
    """

    first_unit: int
    first_sample: int
    previous: str
    units: list[_UnitColumns] = field(default_factory=list)

    def to_bytes(self, totals: Totals) -> bytes:
        """Returns the bytes of the part, given the totals up to its end."""
        present = {name for unit in self.units for name in unit.columns}
        names = [name for name in Sample._fields if name in present]
        bodies = [to_lines(unit.columns, unit.samples, names) for unit in self.units]
        sizes = tuple((unit.samples, len(body), unit.revision) for unit, body in zip(self.units, bodies, strict=True))
        header = _Header(self.first_unit, self.first_sample, sizes, totals.usable, dict(totals.known), self.previous)
        return b"".join([header.to_line(), "\t".join(names).encode(), b"\n", *bodies])


def write_list(folder: Path, parts: Iterable[bytes]) -> None:
    """Writes the parts of a list into a new folder, each fsynced.

    Raises:
        OSError: A part cannot be written.
    """
    folder.mkdir()
    with fewer_collections():
        for number, data in enumerate(parts):
            write_synced(folder / _part_name(number), data)
    sync(folder)


def _part_name(number: int) -> str:
    return f"{number:05}.tsv"


class SampleList:
    """The list of a source on disk, read part by part.

    Args:
        folder: The folder of the parts.

    Raises:
        FileNotFoundError: There is no list.
        FormatError: The folder holds anything else, or its last part is broken.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        names = sorted((entry.name for entry in folder.iterdir()), key=lambda name: (len(name), name))
        if not names or names != [_part_name(number) for number in range(len(names))]:
            raise FormatError(f"{folder}: not the parts of a list: {', '.join(names[:3]) or 'it is empty'}")
        self.parts = len(names)
        self._header = functools.lru_cache(_CACHED_HEADERS)(self._read_header)
        last, _ = self._header(self.parts - 1)
        self.totals = Totals(last.firsts[-1], last.first_unit + len(last.units), last.usable, last.known)

    @functools.cached_property
    def sha256(self) -> str:
        """The SHA-256 of the last part, which depends on all parts, in hexadecimal."""
        return hashlib.sha256(self.part_bytes(self.parts - 1)).hexdigest()

    def units(self) -> Iterator[UnitEntry]:
        """Yields every unit."""
        for part in range(self.parts):
            header, _ = self._header(part)
            for position in range(len(header.units)):
                yield _entry(header, position)

    def unit(self, number: int) -> UnitEntry:
        """Returns a unit.

        Raises:
            IndexError: There is no such unit.
        """
        header, _, position = self._find_unit(number)
        return _entry(header, position)

    def unit_of(self, index: int) -> UnitEntry:
        """Returns the unit of a sample by the sample's number."""
        if not 0 <= index < self.totals.samples:
            raise IndexError(
                f"{self.folder} lists {counted(self.totals.samples, 'sample')}: there is no sample {index}"
            )
        part = self._find_part(lambda header: header.first_sample, index)
        header, _ = self._header(part)
        return _entry(header, bisect.bisect_right(header.firsts, index) - 1)

    def samples(self, unit: UnitEntry, positions: Sequence[int] | None = None) -> list[Sample]:
        """Returns samples of a unit.

        Args:
            unit: The unit.
            positions: The positions of the samples in the unit; None for all of them.

        Raises:
            FormatError: The part is broken; the message names it and the line.
        """
        path = self._part_of(unit)
        header, columns, _ = self._find_unit(unit.number)
        lines = self._unit_bytes(unit).decode("utf-8", "surrogateescape").split("\n")
        if lines.pop() or len(lines) != unit.samples:
            raise FormatError(f"{path}: unit {unit.number} does not have {unit.samples} lines")
        first_line = 3 + unit.first - header.first_sample
        if positions is None:
            positions = range(unit.samples)
        else:
            lines = [lines[at] for at in positions]
        return samples_from(str(path), columns, lines, [first_line + at for at in positions])

    def unit_sha256(self, unit: UnitEntry, samples: Sequence[Sample] | None = None) -> str:
        """Returns the SHA-256 of a unit's lines, as they are in a part of this unit alone, in hexadecimal.

        Args:
            unit: The unit.
            samples: Its samples, if they were read before.
        """
        columns = present_columns(self.samples(unit) if samples is None else samples)
        _, in_part, _ = self._find_unit(unit.number)
        # The lines of a part have the columns that any of its units has.
        lines = self._unit_bytes(unit) if (*columns,) == in_part else to_lines(columns, unit.samples, [*columns])
        return hashlib.sha256("\t".join(columns).encode() + b"\n" + lines).hexdigest()

    def sample(self, index: int) -> Sample:
        """Returns a sample by its number.

        Raises:
            FormatError: The part is broken; the message names it and the line.
        """
        unit = self.unit_of(index)
        return self.samples(unit, [index - unit.first])[0]

    def __iter__(self) -> Iterator[Sample]:
        """Yields every sample in order."""
        for unit in self.units():
            yield from self.samples(unit)

    def __len__(self) -> int:
        return self.totals.samples

    def part_bytes(self, part: int) -> bytes:
        """Returns the bytes of a part."""
        return read_regular(self.folder / _part_name(part))

    def check_chain(self, part: int) -> str | None:
        """Returns why a part cannot follow the one before, or None. Parts are checked in order, from the first."""
        header, _ = self._header(part)
        if part == 0:
            first = (header.first_unit, header.first_sample, header.previous)
            return None if first == (0, 0, "") else "its header is not that of a first part"
        before, _ = self._header(part - 1)
        if header.previous != hashlib.sha256(self.part_bytes(part - 1)).hexdigest():
            return "the part before it has another hash"
        follows = (before.first_unit + len(before.units), before.firsts[-1])
        return None if (header.first_unit, header.first_sample) == follows else "it does not follow the part before it"

    def _part_of(self, unit: UnitEntry) -> Path:
        return self.folder / _part_name(self._find_part(lambda header: header.first_unit, unit.number))

    def _find_part(self, first: Callable[[_Header], int], number: int) -> int:
        return bisect.bisect_right(range(self.parts), number, key=lambda part: first(self._header(part)[0])) - 1

    def _find_unit(self, number: int) -> tuple[_Header, tuple[str, ...], int]:
        """Returns the header and columns of the unit's part, and the unit's position in the part."""
        if not 0 <= number < self.totals.units:
            raise IndexError(f"{self.folder} has {counted(self.totals.units, 'unit')}: there is no unit {number}")
        header, columns = self._header(self._find_part(lambda header: header.first_unit, number))
        position = number - header.first_unit
        if position >= len(header.units):
            raise FormatError(f"{self.folder}: no part has unit {number}")
        return header, columns, position

    def _unit_bytes(self, unit: UnitEntry) -> bytes:
        path = self._part_of(unit)
        header, _, position = self._find_unit(unit.number)
        size = header.units[position][1]
        behind = sum(entry[1] for entry in header.units[position:])
        with path.open("rb") as file:
            file.seek(-behind, os.SEEK_END)
            data = file.read(size)
        if len(data) != size:
            raise FormatError(f"{path}: it is truncated")
        return data

    def _read_header(self, part: int) -> tuple[_Header, tuple[str, ...]]:
        """Returns the header and the columns of a part."""
        path = self.folder / _part_name(part)
        check_regular(path)
        with path.open("rb") as file:
            line = file.readline(_MAX_HEADER)
            columns = tuple(file.readline(_MAX_HEADER).decode("utf-8", "replace").rstrip("\n").split("\t"))
            body, size = file.tell(), path.stat().st_size
        try:
            header = _Header.from_line(line) if line.startswith(_MARK) else None
        except (ValueError, KeyError, TypeError, AttributeError, IndexError):
            header = None
        if header is None or columns[:2] != ("key", "bytes") or not set(columns) <= set(Sample._fields):
            raise FormatError(f"{path}: not a part of a list of samples")
        if body + sum(unit[1] for unit in header.units) != size:
            raise FormatError(f"{path}: has {size} bytes, not those that its first line says")
        return header, columns


def _entry(header: _Header, position: int) -> UnitEntry:
    samples, _, revision = header.units[position]
    return UnitEntry(header.first_unit + position, header.firsts[position], samples, revision)
