"""LatentMixture: several latent datasets as one, with exact shares."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from latentq._core import MismatchError, Threads
from latentq.reading.ahead import ALL_THERE, Files, JointPins
from latentq.reading.batched import BatchedDataset
from latentq.reading.buckets import BucketTable, StoredBucket
from latentq.reading.buffers import Allocate, private, shareable
from latentq.reading.dataset import LatentDataset
from latentq.reading.gather import Pinned
from latentq.reading.layout import Layout
from latentq.reading.order import BucketOrder, EpochOrder, Order, shares_of
from latentq.reading.samples import Batch, Indices, checked_indices
from latentq.reading.windows import ShardRuns, Window
from latentq.reading.workers import WorkerBatch
from latentq.system.text import counted


class LatentMixture(BatchedDataset):
    """Several latent datasets as one, their samples numbered consecutively, those of the first dataset first.

    Its loader takes each dataset's exact share, spread evenly: any stretch of an epoch holds each share to within a
    sample or so. An epoch has as many samples as all datasets together. Without weights each sample comes once in an
    epoch. With weights some samples come more often than others, but over all epochs none comes twice before every
    other sample of its dataset has come once.

    Latents are decoded as the first dataset's are; with scale `normalized`, by its statistics.

    Of datasets with buckets, those whose latents have the same shape become one bucket, numbered in the order of their
    first dataset. A dataset's share is divided among its buckets in proportion to their samples.

    Args:
        datasets: At least one. All must give the same columns, and latents of the same autoencoder and scale.
        weights: The share of each dataset, at least 0; None for shares in proportion to their sizes.

    Attributes:
        datasets: The datasets.
        sizes: The number of samples in each.
        shares: The number of samples that an epoch takes from each.

    Raises:
        MismatchError: A dataset differs from the first in autoencoder, weights, shape, quantizer, scale, dtype, columns
            or transform; the message names both.
        ValueError: There are no datasets; or weights are too many, too few, negative or all 0.
    """

    def __init__(self, datasets: Iterable[LatentDataset], weights: Sequence[float] | None = None) -> None:
        self.datasets = tuple(datasets)
        if not self.datasets:
            raise ValueError("a mixture needs at least one dataset")
        with_buckets = any(len(dataset.layouts) > 1 for dataset in self.datasets)
        for other in self.datasets[1:]:
            self.datasets[0].layout.check_agreement(other.layout, shapes=not with_buckets)
            if other.transform is not self.datasets[0].transform:
                raise MismatchError(f"{other.path} has another transform than {self.datasets[0].path}")
        self.sizes = tuple(len(dataset) for dataset in self.datasets)
        if weights is None:
            self.shares = self.sizes
        elif len(weights) != len(self.sizes) or not all(0 <= weight < np.inf for weight in weights) or not any(weights):
            count = counted(len(self.sizes), "dataset")
            raise ValueError(f"weights must be one for each of {count}, at least 0: not {weights!r}")
        else:
            self.shares = shares_of(weights, sum(self.sizes))
        self.transform = self.datasets[0].transform
        self._edges = np.cumsum([0, *self.sizes])
        self._layouts, self._sources, numbers = _joint_buckets(self.datasets)
        self._numbers = numbers
        self._table = BucketTable.joined([dataset.table for dataset in self.datasets], numbers, len(self._layouts))
        self._bucket_sizes = [np.zeros(len(self._layouts), np.int64) for _ in self.datasets]
        for counts, dataset, joint in zip(self._bucket_sizes, self.datasets, numbers, strict=True):
            np.add.at(counts, joint, dataset.table.counts)

    @property
    def layouts(self) -> tuple[Layout, ...]:
        """The columns of a sample and their meaning, for each bucket; one without buckets."""
        return self._layouts

    @property
    def buckets(self) -> tuple[StoredBucket, ...]:
        """Height, width and number of samples of each bucket, by its number; empty without buckets."""
        if self._table.count == 1:
            return ()
        sizes = [dataset.image_sizes[bucket] for dataset, bucket in self._sources]
        counts = self._table.counts.tolist()
        return tuple(StoredBucket(*size, count) for size, count in zip(sizes, counts, strict=True))

    @property
    def table(self) -> BucketTable:
        """The bucket of each sample, and where the samples of a bucket are."""
        return self._table

    def __len__(self) -> int:
        return sum(self.sizes)

    def __repr__(self) -> str:
        parts = ", ".join(f"{share:,} of {str(d.path)!r}" for share, d in zip(self.shares, self.datasets, strict=True))
        return f"LatentMixture(an epoch is {parts})"

    def _worker_batch(self, indices: NDArray[np.int64], bucket: int) -> WorkerBatch | None:
        if not self.datasets[0].is_plain or not self._layouts[0].has_fixed_bytes:
            return None
        dataset, own = self._sources[bucket]
        nbytes = dataset.stored_bytes(len(indices), bucket=own)
        return WorkerBatch(self._layouts[bucket], nbytes, partial(self.read, indices))

    def batch(self, indices: Indices, *, noise: Batch | None = None, allocate: Allocate = shareable) -> Batch:
        """Reads a batch and decodes its latents: see `LatentDataset.batch`.

        Args:
            indices: Indices of the samples in the mixture.
            noise: See `LatentDataset.batch`.
            allocate: Allocates the batch's tensors on the CPU.
        """
        return self._batch(checked_indices(indices, len(self)), noise, allocate)

    def _batch(self, indices: NDArray[np.int64], noise: Batch | None, allocate: Allocate) -> Batch:
        batch = self.read(indices) | (noise or {})
        return self.decode_batch(batch, bucket=self._table.common(indices), allocate=allocate)

    def native_gatherer(self, *, decoded: bool = True, bucket: int = 0) -> None:
        """Returns None, since Python joins the datasets' parts of a batch.

        Args:
            decoded: Ignored.
            bucket: Ignored.
        """

    def read(self, indices: Indices, *, allocate: Allocate = private) -> Batch:
        """Reads a batch with its latents as stored, for `decode_batch`.

        Args:
            indices: Indices of the samples, in any order, each from -len(self) to len(self) - 1.
            allocate: Allocates the batch's tensors on the CPU.
        """
        indices = checked_indices(indices, len(self))
        self._table.common(indices)
        which = np.searchsorted(self._edges, indices, side="right") - 1
        present = np.unique(which).tolist() or [0]
        rows = [np.flatnonzero(which == i) for i in present]
        parts = [self.datasets[i].read(indices[mine] - self._edges[i]) for i, mine in zip(present, rows, strict=True)]
        return {name: _joined([part[name] for part in parts], rows, allocate) for name in parts[0]}

    def read_ahead(self, *, begin: bool, parts: int = 1) -> None:
        """Announces that all samples will be read in any order, or no longer will: see `mds.Reader.read_ahead`.

        Args:
            begin: False to end.
            parts: The number of datasets that are read together, among which memory is divided.
        """
        for dataset in self.datasets:
            dataset.read_ahead(begin=begin, parts=parts * len(self.datasets))

    @property
    def samples_ahead(self) -> int:
        """How many samples to ask for before they are read: see `LatentDataset`."""
        return max(dataset.samples_ahead for dataset in self.datasets)

    def ask(self, indices: NDArray[np.int64], threads: Threads) -> None:
        """Asks the system on a thread for samples that will be read soon: see `LatentDataset`.

        Args:
            indices: The indices of the samples, (N,).
            threads: The threads.
        """
        which = np.searchsorted(self._edges, indices, side="right") - 1
        for number, dataset in enumerate(self.datasets):
            mine = indices[which == number]
            if len(mine) and dataset.samples_ahead:
                dataset.ask(mine - self._edges[number], threads)

    @property
    def empty_caption(self) -> Batch:
        """The first dataset's `empty_caption`."""
        return self.datasets[0].empty_caption

    def order(self, *, shuffle: bool | Window, seed: int) -> EpochOrder:
        """Returns the order of an epoch's samples, each dataset's share spread evenly.

        Args:
            shuffle: True permutes the samples of each epoch; a `Window` does within windows of shards.
            seed: Selects the permutations; at least 0.

        Raises:
            ValueError: A dataset cannot be shuffled so.
        """
        runs = self.shard_runs(shuffle)
        if self._table.count == 1:
            return Order(self.sizes, self.shares, shuffle, seed, runs=tuple(*runs))
        sizes = [counts.tolist() for counts in self._bucket_sizes]
        shares = [
            counts if share == size else shares_of(counts, share)
            for counts, share, size in zip(sizes, self.shares, self.sizes, strict=True)
        ]
        return BucketOrder.of(
            list(zip(*sizes, strict=True)), list(zip(*shares, strict=True)), shuffle, seed, self._table, runs
        )

    def shard_runs(self, shuffle: bool | Window) -> list[list[ShardRuns]]:
        """Returns the shards of each dataset in each bucket: see `BatchedDataset.shard_runs`."""
        own = [dataset.shard_runs(shuffle) for dataset in self.datasets]
        if not isinstance(shuffle, Window):
            return []
        none = ShardRuns(np.empty(0, np.int64), np.empty(0, np.int64))
        runs = [[none] * len(self.datasets) for _ in self._layouts]
        for number, (joint, buckets) in enumerate(zip(self._numbers, own, strict=True)):
            for bucket, mine in zip(joint, buckets, strict=True):
                runs[bucket][number] = mine[0]
        return runs

    def files(self, shuffle: bool | Window = False, parts: int = 1) -> Files | None:
        """Returns what keeps the files of samples while they are read: see `LatentDataset.files`.

        Args:
            shuffle: The order in which they are read.
            parts: The number of datasets that are read together, among which memory is divided.
        """
        files = [dataset.files(shuffle, parts * len(self.datasets)) for dataset in self.datasets]
        return _JointFiles(files, self._edges) if any(files) else None


class _JointFiles:
    """The files of several datasets, whose samples are numbered consecutively: see `Files`.

    Args:
        files: Those of each dataset, or None.
        edges: The number of the first sample of each dataset, and the number of all, (D + 1,).
    """

    def __init__(self, files: Sequence[Files | None], edges: NDArray[np.int64]) -> None:
        self._files, self._edges = files, edges

    def pin(self, indices: NDArray[np.int64], *, within: bool = False) -> Pinned | None:
        which = np.searchsorted(self._edges, indices, side="right") - 1
        parts: list[Pinned] = []
        for number, files in enumerate(self._files):
            mine = indices[which == number] - self._edges[number]
            pinned = files.pin(mine, within=within) if files is not None and len(mine) else ALL_THERE
            if pinned is None:
                for part in parts:
                    part.release()
                return None
            parts.append(pinned)
        return JointPins(parts)


def _joint_buckets(
    datasets: Sequence[LatentDataset],
) -> tuple[tuple[Layout, ...], list[tuple[LatentDataset, int]], list[list[int]]]:
    """Joins the buckets whose samples have the same shapes, at most one of each dataset, which reads one at a time.

    Args:
        datasets: The datasets.

    Returns:
        The layout of each joint bucket, decoded as the first dataset's; a dataset that has the bucket, with its number
        there; and for each dataset the joint number of each of its buckets.
    """
    known: dict[Any, int] = {}
    sources: list[tuple[LatentDataset, int]] = []
    numbers = []
    for dataset in datasets:
        alike: Counter[Any] = Counter()  # buckets of this dataset; without latents and tokens all have the same shapes
        own = []
        for layout in dataset.layouts:
            own.append(known.setdefault((layout.shapes, alike[layout.shapes]), len(known)))
            alike[layout.shapes] += 1
        for bucket, joint in enumerate(own):
            if joint == len(sources):
                sources.append((dataset, bucket))
        numbers.append(own)
    first = datasets[0].layout
    layouts = tuple(first.with_shapes_of(dataset.layouts[bucket]) for dataset, bucket in sources)
    return layouts, sources, numbers


def _joined(parts: list[Any], rows: list[NDArray[np.int64]], allocate: Allocate) -> Any:
    """Joins one column's parts: each dataset's values go to its rows of the batch.

    Args:
        parts: The values from each dataset: a tensor (n, ...) or a list of n values.
        rows: The rows of the batch that each dataset's values go to, (n,).
        allocate: Allocates the tensor of all parts.
    """
    count = sum(map(len, rows))
    if isinstance(parts[0], list):
        items = [None] * count
        for part, mine in zip(parts, rows, strict=True):
            for row, value in zip(mine, part, strict=True):
                items[row] = value
        return items
    out = allocate((count, *parts[0].shape[1:]), parts[0].dtype)
    for part, mine in zip(parts, rows, strict=True):
        out.numpy()[mine] = part.numpy()
    return out
