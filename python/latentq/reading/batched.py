"""The base of all datasets that read samples in batches."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import MutableMapping, Sequence
from typing import Any, Unpack

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset, get_worker_info

from latentq.reading.buffers import Allocate, private, shareable
from latentq.reading.gather import Gatherer
from latentq.reading.loader import LatentLoader, LoaderOptions
from latentq.reading.order import Order
from latentq.reading.protocol import Transform
from latentq.reading.samples import Batch, Indices, Samples, checked_indices, collate, samples_of


class BatchedDataset(Dataset[dict[str, Any]], ABC):
    """A map-style dataset that reads the samples of a batch together: a `BatchSource`.

    Attributes:
        transform: Called with each sample; its result replaces the sample. None leaves samples as they are.
    """

    transform: Transform | None = None

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def read(self, indices: Indices, *, allocate: Allocate = private) -> Batch:
        """Reads a batch with its latents as stored, for `decode_batch`.

        Args:
            indices: Indices of the samples, in any order, each from -len(self) to len(self) - 1.
            allocate: Allocates the batch's tensors on the CPU.
        """

    @abstractmethod
    def decode_batch(self, batch: Batch, *, allocate: Allocate = shareable) -> Batch:
        """Decodes the latents of a batch from `read`, on their own device.

        Args:
            batch: A batch from `read`.
            allocate: Allocates the decoded tensors on the CPU.
        """

    @abstractmethod
    def batch(self, indices: Indices, *, noise: Batch | None = None, allocate: Allocate = shareable) -> Batch:
        """Reads a batch and decodes its latents. The transform is not applied.

        Args:
            indices: The indices of its samples, in any order, each from -len(self) to len(self) - 1.
            noise: Noise from `noise_of`, to draw latents from moments; None draws it by torch's own generator.
            allocate: Allocates the batch's tensors on the CPU.

        Returns:
            Latents (N, C, h, w), labels (N,) int64, strings as lists.

        Raises:
            IndexError: An index is out of range.
        """

    @abstractmethod
    def noise_of(self, indices: NDArray[np.int64], seed: int, epoch: int, *, allocate: Allocate = private) -> Batch:
        """Returns the noise with which a loader draws latents from moments, for `decode_batch`.

        Args:
            indices: Indices of the samples, each in [0, len(self)).
            seed: The loader's seed.
            epoch: The epoch, from 0.
            allocate: Allocates the batch's tensors on the CPU.
        """

    @abstractmethod
    def native_gatherer(self, *, decoded: bool = True) -> Gatherer | None:
        """Returns the native gatherer, or None if building a batch needs Python.

        Args:
            decoded: True to dequantize latents while gathering where that is one pass over them.
        """

    def __getitem__(self, index: int | Indices | torch.Tensor) -> Any:
        """Returns a sample; or, given several indices, as from a sampler of whole batches, their batch.

        Raises:
            IndexError: An index is out of range.
        """
        if isinstance(index, torch.Tensor) and index.ndim:
            index = index.numpy(force=True)
        if isinstance(index, Sequence | np.ndarray) and np.ndim(index):
            return collate(self.__getitems__(index))
        return self.__getitems__([index])[0]  # type: ignore[list-item]  # an int, since it has no dimensions

    def __getitems__(self, indices: Indices) -> list[Any]:
        """Reads and dequantizes samples together. torch's DataLoader calls this with the indices of a batch.

        Returns:
            A list of samples, for torch's `default_collate` or, without a copy, for `collate`.
        """
        if get_worker_info() is not None:
            checked = checked_indices(indices, len(self))
            batch = self._worker_batch(checked)
            if batch is not None:
                return Samples(batch, len(checked))
        return samples_of(self.batch(indices), len(indices), self.transform)

    def _worker_batch(self, _indices: NDArray[np.int64]) -> MutableMapping[str, Any] | None:
        """Returns a DataLoader worker's batch that is decoded where it arrives, or None if it must be decoded here."""
        return None

    collate = staticmethod(collate)

    def order(self, *, shuffle: bool, seed: int) -> Order:
        """Returns the order of an epoch's samples: each sample once.

        Args:
            shuffle: True permutes the samples of each epoch.
            seed: Selects the permutations; at least 0.
        """
        return Order((len(self),), (len(self),), shuffle, seed)

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
