"""The buckets of a dataset: which bucket a sample belongs to, and where a bucket's samples are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from latentq._core import FormatError

Int64Array = NDArray[np.int64]


class StoredBucket(NamedTuple):
    """A bucket of a dataset.

    Attributes:
        height: The height of its images in pixels.
        width: Their width.
        samples: The number of its samples.
    """

    height: int
    width: int
    samples: int


@dataclass(frozen=True, eq=False)
class BucketTable:
    """The buckets of a dataset's samples, as runs of consecutive samples of one bucket.

    Attributes:
        starts: The index of the first sample of each run, (R,), ascending from 0.
        which: The bucket of each run, (R,).
        size: The number of samples.
        count: The number of buckets, those without samples included; 1 for a dataset without buckets.
    """

    starts: Int64Array
    which: NDArray[np.int32]
    size: int
    count: int = 1

    @classmethod
    def single(cls, size: int) -> BucketTable:
        """Returns the table of a dataset without buckets."""
        return cls(np.zeros(1, np.int64), np.zeros(1, np.int32), size)

    @classmethod
    def from_groups(
        cls, path: object, groups: tuple[list[str], Int64Array, NDArray[np.int32]], counts: Sequence[int]
    ) -> BucketTable:
        """Returns the table of a dataset whose shards are named by their buckets.

        Args:
            path: The dataset, for messages.
            groups: The groups of its shards: see `latentq.mds.Reader.groups`.
            counts: The card's number of samples in each bucket.

        Raises:
            FormatError: A shard's name has no such bucket, or the numbers of samples differ.
        """
        names, starts, which = groups
        for name in names:
            if not name.isdecimal() or int(name) >= len(counts):
                shard = f"shard.{name}.*.mds" if name else "a shard without a bucket in its name"
                raise FormatError(f"{path}: there is {shard}, and the card has the buckets 000 to {len(counts) - 1:03}")
        numbers = np.array([int(name) for name in names], np.int32)
        table = cls(starts, numbers[which], sum(counts), len(counts))
        if table.counts.tolist() != list(counts):
            raise FormatError(
                f"{path}: the card counts {list(counts)} samples in its buckets, the index {table.counts}"
            )
        return table

    @classmethod
    def joined(cls, tables: Sequence[BucketTable], numbers: Sequence[Sequence[int]], count: int) -> BucketTable:
        """Returns the table of several datasets, one after the other.

        Args:
            tables: Their tables.
            numbers: For each dataset, the joint number of each of its buckets.
            count: The number of joint buckets.
        """
        edges = np.cumsum([0, *(table.size for table in tables)])
        starts = np.concatenate([table.starts + edge for table, edge in zip(tables, edges, strict=False)])
        which = [np.array(joint, np.int32)[table.which] for table, joint in zip(tables, numbers, strict=True)]
        return cls(starts, np.concatenate(which), int(edges[-1]), count)

    @cached_property
    def counts(self) -> Int64Array:
        """The number of samples in each bucket, (count,)."""
        return np.bincount(self.which, self._lengths, self.count).astype(np.int64)

    def of(self, indices: Int64Array) -> NDArray[np.int32]:
        """Returns the bucket of each sample, (N,).

        Args:
            indices: Indices of the samples, (N,), each in [0, size).
        """
        if self.count == 1:
            return np.zeros(len(indices), np.int32)
        buckets: NDArray[np.int32] = self.which[np.searchsorted(self.starts, indices, side="right") - 1]
        return buckets

    def common(self, indices: Int64Array) -> int:
        """Returns the bucket of all samples; the first bucket if there are none.

        Args:
            indices: Indices of the samples, (N,), each in [0, size).

        Raises:
            ValueError: The samples are of several buckets.
        """
        if self.count == 1 or not len(indices):
            return 0
        buckets = self.of(indices)
        first = int(buckets[0])
        if (buckets != first).any():
            other = int(buckets[buckets != first][0])
            raise ValueError(
                f"samples {indices[0]} and {indices[buckets == other][0]} are of the buckets {first} and {other}: a "
                "batch is of one bucket, as batch_sampler(batch_size) and loader(batch_size) make them"
            )
        return first

    def ordinals(self, indices: Int64Array) -> Int64Array:
        """Returns how many samples of the same bucket come before each sample, (N,).

        Args:
            indices: Indices of the samples, (N,), each in [0, size).
        """
        if self.count == 1:
            return indices
        runs = np.searchsorted(self.starts, indices, side="right") - 1
        ordinals: Int64Array = self._before[runs] + indices - self.starts[runs]
        return ordinals

    def indices(self, bucket: int, ordinals: Int64Array) -> Int64Array:
        """Returns the samples of a bucket, given how many of its samples come before them, (N,).

        Args:
            bucket: The bucket's number.
            ordinals: (N,), each in [0, counts[bucket]).
        """
        if self.count == 1:
            return ordinals
        runs = self._runs[bucket]
        before = self._before[runs]
        mine = np.searchsorted(before, ordinals, side="right") - 1
        indices: Int64Array = self.starts[runs[mine]] + ordinals - before[mine]
        return indices

    @cached_property
    def _lengths(self) -> Int64Array:
        """The number of samples in each run, (R,)."""
        return np.diff(self.starts, append=self.size)

    @cached_property
    def _runs(self) -> list[Int64Array]:
        """The runs of each bucket, in their order."""
        order = np.argsort(self.which, kind="stable")
        return np.split(order, np.cumsum(np.bincount(self.which, minlength=self.count))[:-1])

    @cached_property
    def _before(self) -> Int64Array:
        """The number of samples of the same bucket before each run, (R,)."""
        before = np.empty(len(self.starts), np.int64)
        for runs in self._runs:
            before[runs] = np.cumsum(self._lengths[runs]) - self._lengths[runs]
        return before
