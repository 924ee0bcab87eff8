"""Compares two lists by key, in memory that does not depend on their length."""

from __future__ import annotations

import functools
import hashlib
import itertools
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from latentq.run.sample_list import SampleList
from latentq.sources import Sample

REMOVED = np.uint64(2**64 - 1)
"""In `Difference.new_of`: the sample is gone."""

SAME_FACTS = np.uint64(2**64 - 2)
"""In `Difference.new_of`: the sample is to be made again, although its facts are unchanged."""

_CACHED_UNITS = 4
_BUCKET = 1 << 19  # samples that are compared at once, on average
_DISTRIBUTED = 1 << 18  # records that are sorted by bucket at once, to open each bucket seldom
_RECORD = np.dtype([("key", "<u8", 2), ("facts", "<u8"), ("index", "<u8")])


@dataclass(frozen=True)
class Difference:
    """The difference between an old and a new list. The arrays are in files.

    Attributes:
        new_of: For each sample of the old list: 0 if the new list has it unchanged, `REMOVED` if it does not have it,
            `SAME_FACTS`, or 1 + its number in the new list if its facts changed.
        added: For each sample of the new list: True if the old list does not have it.
        changes: Numbers of added, changed and removed samples.
    """

    new_of: NDArray[np.uint64]
    added: NDArray[np.bool_]
    changes: Changes


@dataclass
class Changes:
    """Numbers of samples that are new, that changed and that are gone."""

    added: int = 0
    changed: int = 0
    removed: int = 0

    def __bool__(self) -> bool:
        return bool(self.added or self.changed or self.removed)

    def __str__(self) -> str:
        return f"{self.added} new, {self.changed} changed, {self.removed} removed"


def compare_lists(old: SampleList, new: SampleList, folder: Path) -> Difference:
    """Compares two lists.

    A sample changed if any of its facts did. If a key is there several times, its first occurrence in one list is
    compared with the first in the other, and so on. The lists may be in any order: records of both are distributed by
    a hash of the key over buckets in files, and the buckets are compared one by one.

    Args:
        old: One list.
        new: The other list.
        folder: A folder for temporary files, which the result uses: up to 73 bytes for each sample.
    """
    buckets = max(1, -(-max(len(old), len(new)) // _BUCKET))
    difference = Difference(
        _array(folder / "new_of", np.uint64, len(old)), _array(folder / "added", np.bool_, len(new)), Changes()
    )
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        paths = {}
        for side, samples in (("old", old), ("new", new)):
            paths[side] = [Path(temporary) / f"{side}.{bucket}" for bucket in range(buckets)]
            _distribute(samples, paths[side])
        for old_path, new_path in zip(paths["old"], paths["new"], strict=True):
            _compare_bucket(np.fromfile(old_path, _RECORD), np.fromfile(new_path, _RECORD), difference)
    return difference


def _array(path: Path, dtype: Any, length: int) -> NDArray[Any]:
    """Returns zeros in a file whose space is allocated now: a full disk is an error, and not a signal later."""
    length = max(1, length)
    with path.open("xb") as file:
        os.posix_fallocate(file.fileno(), 0, length * np.dtype(dtype).itemsize)
    return np.memmap(path, dtype, "r+", shape=length)


def _distribute(samples: SampleList, paths: list[Path]) -> None:
    """Writes the records of a list to the bucket of each key."""
    for path in paths:
        path.touch()
    numbered = enumerate(samples)
    while True:
        batch = itertools.islice(numbered, _DISTRIBUTED)
        records = np.fromiter(((*_hashes(sample), number) for number, sample in batch), _RECORD)
        if not len(records):
            return
        bucket_of = records["key"][:, 0] % len(paths)
        order = np.argsort(bucket_of, kind="stable")
        records, bucket_of = records[order], bucket_of[order]
        ends = np.searchsorted(bucket_of, np.arange(len(paths)), side="right").tolist()
        for path, start, end in zip(paths, [0, *ends], ends, strict=False):
            if start < end:
                with path.open("ab") as file:
                    file.write(records[start:end].tobytes())


def _hashes(sample: Sample) -> tuple[tuple[int, int], int]:
    """Returns 128 bits of a hash of the key, and 64 bits of one of the other facts."""
    key = hashlib.blake2b(sample.key.encode("utf-8", "surrogateescape"), digest_size=16).digest()
    facts = hashlib.blake2b(repr(sample[1:]).encode("utf-8", "surrogateescape"), digest_size=8).digest()
    return (int.from_bytes(key[:8], "little"), int.from_bytes(key[8:], "little")), int.from_bytes(facts, "little")


def _compare_bucket(old: NDArray[Any], new: NDArray[Any], difference: Difference) -> None:
    """Compares the records of one bucket, and enters what differs."""
    both = np.concatenate([old, new])
    is_new = np.arange(len(both)) >= len(old)
    occurrence = np.concatenate([_occurrences(old), _occurrences(new)])
    order = np.lexsort((is_new, occurrence, both["key"][:, 1], both["key"][:, 0]))
    both, is_new, occurrence = both[order], is_new[order], occurrence[order]
    same_key = np.zeros(len(both) + 1, np.bool_)  # the record and the one before it
    same_key[1:-1] = (both["key"][1:] == both["key"][:-1]).all(1) & (occurrence[1:] == occurrence[:-1])
    only_old = both[~is_new & ~same_key[1:]]["index"]
    only_new = both[is_new & ~same_key[:-1]]["index"]
    second = np.flatnonzero(same_key[:-1])
    changed = second[both["facts"][second] != both["facts"][second - 1]]
    difference.new_of[only_old] = REMOVED
    difference.new_of[both["index"][changed - 1]] = both["index"][changed] + 1
    difference.added[only_new] = True
    difference.changes.removed += len(only_old)
    difference.changes.added += len(only_new)
    difference.changes.changed += len(changed)


def _occurrences(records: NDArray[Any]) -> NDArray[np.int64]:
    """Returns for each record how many records before it have its key; the records are in the order of the list."""
    order = np.lexsort((np.arange(len(records)), records["key"][:, 1], records["key"][:, 0]))
    keys = records["key"][order]
    starts = np.ones(len(records), np.bool_)
    starts[1:] = (keys[1:] != keys[:-1]).any(1)
    positions = np.arange(len(records))
    result = np.empty(len(records), np.int64)
    result[order] = positions - np.maximum.accumulate(np.where(starts, positions, 0))
    return result


def updated_units(
    old: SampleList, new: SampleList, difference: Difference, revision: int
) -> Iterator[tuple[list[Sample], int]]:
    """Yields the units of an updated list, each with its revision.

    Units with changed or removed samples are made again, in their place, possibly empty. Other units stay as they are.
    The new samples follow, in the order of the new list.

    Args:
        old: The list before the update.
        new: The list of the source now.
        difference: Their difference.
        revision: The revision of units that are made by this update.
    """
    samples_of = functools.lru_cache(_CACHED_UNITS)(new.samples)  # changed samples are often near each other

    def changed(index: int) -> Sample:
        unit = new.unit_of(index)
        return samples_of(unit)[index - unit.first]

    for unit in old.units():
        new_of = difference.new_of[unit.first : unit.first + unit.samples]
        samples = old.samples(unit)
        if not new_of.any():
            yield samples, unit.revision
            continue
        kept = zip(samples, new_of.tolist(), strict=True)
        same = (0, SAME_FACTS)
        yield [sample if at in same else changed(at - 1) for sample, at in kept if at != REMOVED], revision


def added_samples(new: SampleList, difference: Difference) -> Iterator[Sample]:
    """Yields the samples of a list that the other list does not have, in order."""
    for unit in new.units():
        added = difference.added[unit.first : unit.first + unit.samples]
        if added.any():
            for sample, is_added in zip(new.samples(unit), added.tolist(), strict=True):
                if is_added:
                    yield sample
