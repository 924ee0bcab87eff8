"""The samples that a finished dataset stores, found by their indices, without a list of all of them in memory."""

from __future__ import annotations

import bisect
import functools
import itertools
import os
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from latentq._core import FormatError
from latentq.format.card import Card
from latentq.format.files import INDEX, PLACE_BYTES, PLACES, UNIT
from latentq.mds.folder import samples_by_folder
from latentq.run.sample_list import UnitEntry
from latentq.run.units import Reject, UnitFacts, sample_list
from latentq.sources import Sample, Source, open_source
from latentq.store.local import read_regular
from latentq.system.text import counted

_CACHED_UNITS = 2

Stored: TypeAlias = tuple[int, Sample]
"""A stored sample: its number in the list, and its listing."""


def source_of(card: Card, source: str | os.PathLike[str] | Source) -> Source:
    """Opens the source of a dataset, unless it is open.

    Args:
        card: The dataset's card.
        source: A path or URL for `open_source`, or a `Source`.
    """
    if not isinstance(source, str | os.PathLike):
        return source
    return open_source(source, image_column=card.source.image_column)


def stored_in_unit(
    unit: UnitEntry, samples: Sequence[Sample], rejects: Iterable[Reject], places: NDArray[np.uint16] | None = None
) -> list[Stored] | None:
    """Returns the samples of a unit that are not rejected, in the order of the shards.

    Args:
        unit: The unit.
        samples: Its samples.
        rejects: Its rejects.
        places: With buckets, the bucket of each sample.

    Returns:
        The stored samples; None if there are rejects of other samples.
    """
    ordered = _stored_in_list(unit, samples, rejects)
    if ordered is not None and places is not None:
        ordered.sort(key=lambda stored: int(places[stored[0] - unit.first]))  # stable: by bucket, then by list
    return ordered


def load_places(folder: Path, unit: UnitEntry, buckets: int) -> NDArray[np.uint16] | None:
    """Returns the bucket of each listed sample of a unit; None without buckets.

    Args:
        folder: The unit's folder.
        unit: The unit.
        buckets: The number of buckets, 0 without.

    Raises:
        FormatError: The file does not have a bucket for each sample.
        OSError: The file cannot be read.
    """
    if not buckets:
        return None
    data = read_regular(folder / PLACES)
    places = np.frombuffer(data, "<u2") if len(data) == PLACE_BYTES * unit.samples else None
    if places is None or (places >= buckets).any():
        needed = f"one of {counted(buckets, 'bucket')} for each of {counted(unit.samples, 'sample')}"
        raise FormatError(f"{folder / PLACES}: does not hold {needed}")
    return places


def _stored_in_list(unit: UnitEntry, samples: Sequence[Sample], rejects: Iterable[Reject]) -> list[Stored] | None:
    """Does what `stored_in_unit` does, in the order of the list."""
    left = Counter(reject.key for reject in rejects)
    stored = []
    for number, sample in zip(unit.indices, samples, strict=True):
        if left[sample.text]:
            left[sample.text] -= 1
        else:
            stored.append((number, sample))
    return None if left.total() else stored


class StoredSamples:
    """The stored samples of a finished dataset, in the order of the dataset.

    In memory are the number of samples of each unit and the samples of a few units.

    Args:
        path: The dataset.
        card: Its card.

    Raises:
        OSError: The list or the index cannot be read.
        FormatError: The list or the index is broken, or the index does not name the units of the list.
    """

    def __init__(self, path: str | os.PathLike[str], card: Card) -> None:
        self._path = Path(path)
        self._buckets = card.buckets
        self._list = sample_list(self._path, card)
        self._starts = array("q", [0])  # of each unit, and the number of all samples
        counts = iter(samples_by_folder(path))
        folder, samples = next(counts, (None, 0))
        for unit in self._list.units():
            count = 0
            if unit.name == folder:  # a unit without samples may have no shards
                count = samples
                folder, samples = next(counts, (None, 0))
            self._starts.append(self._starts[-1] + count)
        if folder is not None:
            raise FormatError(f"{self._path / INDEX}: the folder {folder!r} is not the next unit of the list")
        self._unit = functools.lru_cache(_CACHED_UNITS)(self._read_unit)
        self._bucket_stops = functools.lru_cache(_CACHED_UNITS)(self._read_bucket_stops)

    def __len__(self) -> int:
        return self._starts[-1]

    def find(self, index: int) -> Stored:
        """Returns a stored sample by its index in the dataset.

        Raises:
            IndexError: There is no such sample.
            FormatError: The unit does not agree with its part of the list.
        """
        number, position = self._place(index)
        return self._unit(number)[position]

    def bucket(self, index: int) -> int:
        """Returns the bucket of a stored sample of a dataset with buckets. Raises as `find`."""
        number, position = self._place(index)
        return bisect.bisect_right(self._bucket_stops(number), position)

    def _place(self, index: int) -> tuple[int, int]:
        """Returns the number of a sample's unit, and its position there."""
        if not 0 <= index < len(self):
            raise IndexError(f"index {index}: {self._path} has {counted(len(self), 'sample')}")
        number = bisect.bisect_right(self._starts, index) - 1
        return number, index - self._starts[number]

    def _read_bucket_stops(self, number: int) -> list[int]:
        """Returns the position after the last sample of each bucket of a unit."""
        unit = self._list.unit(number)
        return [*itertools.accumulate(UnitFacts.load(self._path / unit.name / UNIT).buckets)]

    def __iter__(self) -> Iterator[Stored]:
        """Yields all stored samples."""
        for number in range(len(self._starts) - 1):
            yield from self._read_unit(number)

    def _read_unit(self, number: int) -> list[Stored]:
        unit = self._list.unit(number)
        samples = self._list.samples(unit)
        count = self._starts[number + 1] - self._starts[number]
        rejects = UnitFacts.load(self._path / unit.name / UNIT).rejects if count != unit.samples else []
        folder = self._path / unit.name
        stored = stored_in_unit(unit, samples, rejects, load_places(folder, unit, self._buckets if count else 0))
        if stored is None or len(stored) != count:
            raise FormatError(
                f"{self._path / unit.name} holds {counted(count, 'sample')} and {counted(len(rejects), 'reject')}, "
                "its part of the list "
                f"{unit.samples}"
            )
        return stored
