"""LatentMixture: several latent datasets as one, with exact shares."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from latentq._core import MismatchError
from latentq.reading.batched import BatchedDataset
from latentq.reading.buffers import Allocate, private, shareable
from latentq.reading.dataset import LatentDataset
from latentq.reading.order import Order, shares_of
from latentq.reading.samples import Batch, Indices, checked_indices
from latentq.reading.workers import WorkerBatch
from latentq.system.text import counted


class LatentMixture(BatchedDataset):
    """Several latent datasets as one, their samples numbered consecutively, those of the first dataset first.

    Its loader takes each dataset's exact share, spread evenly: any stretch of an epoch holds each share to within a
    sample or so. An epoch has as many samples as all datasets together. Without weights each sample comes once in an
    epoch. With weights some samples come more often than others, but over all epochs none comes twice before every
    other sample of its dataset has come once.

    Latents are decoded as the first dataset's are; with scale `normalized`, by its statistics.

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
        for other in self.datasets[1:]:
            self.datasets[0].layout.check_agreement(other.layout)
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

    def __len__(self) -> int:
        return sum(self.sizes)

    def __repr__(self) -> str:
        parts = ", ".join(f"{share:,} of {str(d.path)!r}" for share, d in zip(self.shares, self.datasets, strict=True))
        return f"LatentMixture(an epoch is {parts})"

    def _worker_batch(self, indices: NDArray[np.int64]) -> WorkerBatch | None:
        first = self.datasets[0]
        if not first.is_plain:
            return None
        return WorkerBatch(first.layout, first.stored_bytes(len(indices)), partial(self.read, indices))

    def batch(self, indices: Indices, *, noise: Batch | None = None, allocate: Allocate = shareable) -> Batch:
        """Reads a batch and decodes its latents: see `LatentDataset.batch`.

        Args:
            indices: Indices of the samples in the mixture.
            noise: See `LatentDataset.batch`.
            allocate: Allocates the batch's tensors on the CPU.
        """
        return self.decode_batch(self.read(indices) | (noise or {}), allocate=allocate)

    def native_gatherer(self, *, decoded: bool = True) -> None:
        """Returns None, since Python joins the datasets' parts of a batch.

        Args:
            decoded: Ignored.
        """

    def read(self, indices: Indices, *, allocate: Allocate = private) -> Batch:
        """Reads a batch with its latents as stored, for `decode_batch`.

        Args:
            indices: Indices of the samples, in any order, each from -len(self) to len(self) - 1.
            allocate: Allocates the batch's tensors on the CPU.
        """
        indices = checked_indices(indices, len(self))
        which = np.searchsorted(self._edges, indices, side="right") - 1
        rows = [np.flatnonzero(which == i) for i in range(len(self.datasets))]
        parts = [
            dataset.read(indices[mine] - edge)
            for dataset, mine, edge in zip(self.datasets, rows, self._edges, strict=False)
        ]
        return {name: _joined([part[name] for part in parts], rows, allocate) for name in parts[0]}

    def decode_batch(self, batch: Batch, *, allocate: Allocate = shareable) -> Batch:
        """Decodes the latents of a batch from `read`, on their own device.

        Args:
            batch: A batch from `read`.
            allocate: Allocates the decoded tensors on the CPU.
        """
        return self.datasets[0].decode_batch(batch, allocate=allocate)

    def noise_of(self, indices: NDArray[np.int64], seed: int, epoch: int, *, allocate: Allocate = private) -> Batch:
        """Returns the noise of samples for `decode_batch`, a function of their indices in the mixture.

        Args:
            indices: Indices of the samples, each in [0, len(self)).
            seed: The loader's seed.
            epoch: The epoch, from 0.
            allocate: Allocates the batch's tensors on the CPU.
        """
        return self.datasets[0].noise_of(indices, seed, epoch, allocate=allocate)

    @property
    def empty_caption(self) -> Batch:
        """The first dataset's `empty_caption`."""
        return self.datasets[0].empty_caption

    def order(self, *, shuffle: bool, seed: int) -> Order:
        """Returns the order of an epoch's samples, each dataset's share spread evenly.

        Args:
            shuffle: True permutes the samples of each epoch.
            seed: Selects the permutations; at least 0.
        """
        return Order(self.sizes, self.shares, shuffle, seed)


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
