"""The base of all datasets that read samples in batches."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import MutableMapping, Sequence
from typing import Any, Unpack

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset, get_worker_info

from latentq._core import Threads
from latentq.models.noise import noise
from latentq.reading.ahead import Files
from latentq.reading.buckets import BucketTable
from latentq.reading.buffers import Allocate, private, shareable
from latentq.reading.gather import Gatherer
from latentq.reading.layout import Layout, noise_key
from latentq.reading.loader import LatentLoader, LoaderOptions
from latentq.reading.order import BucketOrder, EpochOrder, Order
from latentq.reading.protocol import Transform
from latentq.reading.sampler import LatentBatchSampler, SamplerOptions
from latentq.reading.samples import (
    Batch,
    Indices,
    Samples,
    checked_index,
    checked_indices,
    collate,
    sample_of,
    samples_of,
)
from latentq.reading.windows import ShardRuns, Window


class BatchedDataset(Dataset[dict[str, Any]], ABC):
    """A map-style dataset that reads the samples of a batch together: a `BatchSource`.

    Attributes:
        transform: Called with each sample; its result replaces the sample. None leaves samples as they are.
    """

    transform: Transform | None = None

    @abstractmethod
    def __len__(self) -> int: ...

    @property
    @abstractmethod
    def layouts(self) -> Sequence[Layout]:
        """The columns of a sample and their meaning, for each bucket; one without buckets."""

    @property
    @abstractmethod
    def table(self) -> BucketTable:
        """The bucket of each sample, and where the samples of a bucket are."""

    @abstractmethod
    def read(self, indices: Indices, *, allocate: Allocate = private) -> Batch:
        """Reads a batch with its latents as stored, for `decode_batch`.

        Args:
            indices: Indices of the samples, in any order, each from -len(self) to len(self) - 1.
            allocate: Allocates the batch's tensors on the CPU.
        """

    def decode_batch(self, batch: Batch, *, bucket: int = 0, allocate: Allocate = shareable) -> Batch:
        """Decodes the latents of a batch from `read`, on their own device.

        Args:
            batch: A batch from `read`.
            bucket: The bucket of its samples: see `bucket_of`.
            allocate: Allocates the decoded tensors on the CPU.
        """
        return self.layouts[bucket].decode_batch(batch, allocate=allocate)

    def bucket_of(self, indices: Indices) -> int:
        """Returns the bucket of some samples; 0 without buckets.

        Args:
            indices: The indices of the samples, in any order, each from -len(self) to len(self) - 1.

        Raises:
            ValueError: They are of several buckets.
            IndexError: An index is out of range.
        """
        return self.table.common(checked_indices(indices, len(self)))

    @abstractmethod
    def batch(self, indices: Indices, *, noise: Batch | None = None, allocate: Allocate = shareable) -> Batch:
        """Reads a batch and decodes its latents. The transform is not applied.

        Args:
            indices: The indices of its samples, in any order, each from -len(self) to len(self) - 1.
            noise: Noise from `noise_of`, to draw latents from moments; None draws it by torch's own generator.
            allocate: Allocates the batch's tensors on the CPU.

        Returns:
            Latents (N, C, h, w), labels (N,) int64, strings as lists. Tensors can be written to and kept, but as with
            those of `torch.from_numpy`, `resize_` to more elements raises RuntimeError.

        Raises:
            IndexError: An index is out of range.
            ValueError: The samples are of several buckets.
        """

    def _batch(self, indices: NDArray[np.int64], noise: Batch | None, allocate: Allocate) -> Batch:
        """Does the work of `batch` for indices in [0, len(self))."""
        return self.batch(indices, noise=noise, allocate=allocate)

    def noise_of(self, indices: NDArray[np.int64], seed: int, epoch: int, *, allocate: Allocate = private) -> Batch:
        """Returns the noise with which a loader draws latents from moments, for `decode_batch`.

        Args:
            indices: Indices of the samples, each in [0, len(self)).
            seed: The loader's seed.
            epoch: The epoch, from 0.
            allocate: Allocates the batch's tensors on the CPU.
        """
        layout = self.layouts[self.table.common(indices)]
        drawn = [(name, column.shape) for name, column in layout.latents.items() if column.moments]
        return {
            noise_key(name): allocate((len(indices), *shape), torch.float32).copy_(
                torch.from_numpy(noise(seed, indices, stream, shape, epoch=epoch))
            )
            for stream, (name, shape) in enumerate(drawn)
        }

    @abstractmethod
    def native_gatherer(self, *, decoded: bool = True, bucket: int = 0) -> Gatherer | None:
        """Returns the native gatherer of a bucket, or None if building a batch needs Python.

        Args:
            decoded: True to dequantize latents while gathering where that is one pass over them.
            bucket: The bucket of the samples.
        """

    def __getitem__(self, index: int | Indices | torch.Tensor) -> Any:
        """Returns a sample; or, given several indices, as from a sampler of whole batches, their batch.

        Raises:
            IndexError: An index is out of range.
            ValueError: There are several indices, of samples in several buckets.
        """
        if type(index) is int:
            allocate = private if get_worker_info() is None else shareable
            sample = sample_of(self._batch(checked_index(index, len(self)), None, allocate))
            return sample if self.transform is None else self.transform(sample)
        if isinstance(index, torch.Tensor) and index.ndim:
            index = index.numpy(force=True)
        if isinstance(index, Sequence | np.ndarray) and np.ndim(index):
            self.bucket_of(index)
            return collate(self.__getitems__(index))
        return self.__getitems__([index])[0]  # type: ignore[list-item]  # an int, since it has no dimensions

    def __getitems__(self, indices: Indices) -> list[Any]:
        """Reads and dequantizes samples together. torch's DataLoader calls this with the indices of a batch.

        Samples of several buckets are read bucket by bucket; only the user's own `collate_fn` can make a batch of them.

        Returns:
            A list of samples, for torch's `default_collate` or, without a copy, for `collate`.
        """
        if self.table.count > 1:
            checked = checked_indices(indices, len(self))
            buckets = self.table.of(checked)
            if len(checked) and (buckets != buckets[0]).any():
                samples: list[Any] = [None] * len(checked)
                for bucket in np.unique(buckets):
                    rows = np.flatnonzero(buckets == bucket)
                    read = samples_of(self.batch(checked[rows]), len(rows), self.transform)
                    for row, sample in zip(rows.tolist(), read, strict=True):
                        samples[row] = sample
                return samples
        if get_worker_info() is not None:
            checked = checked_indices(indices, len(self))
            batch = self._worker_batch(checked, self.table.common(checked))
            if batch is not None:
                return Samples(batch, len(checked))
        return samples_of(self.batch(indices), len(indices), self.transform)

    def _worker_batch(self, _indices: NDArray[np.int64], _bucket: int) -> MutableMapping[str, Any] | None:
        """Returns a DataLoader worker's batch that is decoded where it arrives, or None if it must be decoded here."""
        return None

    collate = staticmethod(collate)

    def order(self, *, shuffle: bool | Window, seed: int) -> EpochOrder:
        """Returns the order of an epoch's samples: each sample once.

        Args:
            shuffle: True permutes the samples of each epoch; a `Window` does within windows of shards.
            seed: Selects the permutations; at least 0.

        Raises:
            ValueError: The dataset cannot be shuffled so.
        """
        runs = self.shard_runs(shuffle)
        if self.table.count == 1:
            return Order((len(self),), (len(self),), shuffle, seed, runs=tuple(*runs))
        sizes = [(size,) for size in self.table.counts.tolist()]
        return BucketOrder.of(sizes, sizes, shuffle, seed, self.table, runs)

    def shard_runs(self, shuffle: bool | Window) -> list[list[ShardRuns]]:
        """Returns the shards of each collection in each bucket if they are needed for a shuffle, else an empty list.

        Args:
            shuffle: The shuffle.

        Raises:
            ValueError: The dataset cannot be shuffled so.
        """
        if isinstance(shuffle, Window):
            raise ValueError("shuffle='window' is for datasets in shards: shuffle=True shuffles this one as a whole")
        return []

    def files(self, _shuffle: bool | Window = False, _parts: int = 1) -> Files | None:
        """Returns what keeps the files of samples while they are read; None if they need not be kept.

        Args:
            _shuffle: The order in which they are read.
            _parts: The number of datasets that are read together, among which memory is divided.
        """
        return None

    def read_ahead(self, *, begin: bool, parts: int = 1) -> None:
        """Announces that all samples will be read in any order, or no longer will: see `mds.Reader.read_ahead`.

        Args:
            begin: False to end.
            parts: The number of datasets that are read together, among which memory is divided.
        """

    @property
    def samples_ahead(self) -> int:
        """How many samples to ask for before they are read; 0 if samples are not waited for."""
        return 0

    def ask(self, indices: NDArray[np.int64], threads: Threads) -> None:
        """Asks the system on a thread for samples that will be read soon, without waiting for them.

        Args:
            indices: The indices of the samples, (N,).
            threads: The threads.
        """

    def batch_sampler(self, batch_size: int, **options: Unpack[SamplerOptions]) -> LatentBatchSampler:
        """Returns a sampler of batches for torch's DataLoader, `batch_sampler=`, in the order of `loader`.

        Each batch is of one bucket.

        Args:
            batch_size: Samples in a batch, on each rank.
            **options: See `SamplerOptions`.

        Raises:
            ValueError: An argument is out of range.
            TypeError: There is no such option.
        """
        return LatentBatchSampler(self.order, batch_size, **options)

    def loader(self, batch_size: int, **options: Unpack[LoaderOptions]) -> LatentLoader:
        """Returns a loader of this dataset's batches.

        Args:
            batch_size: Samples in a batch, on each rank.
            **options: See `LoaderOptions`.

        Raises:
            ValueError: An argument is out of range.
            TypeError: There is no such option.
        """
        return LatentLoader(self, batch_size, **options)
