"""LatentMixture: several latent datasets as one, with exact shares."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import get_worker_info

from latentq._core import MismatchError
from latentq.reading.buffers import Empty, private, shareable
from latentq.reading.dataset import LatentDataset
from latentq.reading.loader import LatentLoader
from latentq.reading.order import Order, shares_of
from latentq.reading.samples import Batch, Indices, Samples, checked_indices, collate, item_or_batch, samples_of
from latentq.reading.workers import Stored


class LatentMixture(torch.utils.data.Dataset[dict[str, Any]]):
    """Several latent datasets as one, their samples numbered through: those of the first dataset first.

    Its loader takes from each dataset its exact share, spread evenly: any stretch of an epoch holds each share to
    within a sample or so. An epoch has as many samples as the datasets have together. Without weights each sample comes
    once in it; with weights some come more often than others, but none of a dataset twice before every other of it has
    come once, over all epochs.

    Latents are decoded as the first dataset's are; with scale `normalized`, by its statistics.

    Args:
        datasets: At least one. All must give the same columns, and latents that one network of one scale made.
        weights: The share of each dataset, at least 0; None for shares in proportion to their sizes.

    Raises:
        MismatchError: A dataset does not go with the first: another autoencoder or weights, shape, quantiser, scale,
            dtype or other columns; both are named.
        ValueError: There are no datasets, or the weights are not as many, negative or all 0.
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
            raise ValueError(f"weights must be one for each of {len(self.sizes)} datasets, at least 0: not {weights!r}")
        else:
            self.shares = shares_of(weights, sum(self.sizes))
        self.transform = self.datasets[0].transform
        self._edges = np.cumsum([0, *self.sizes])

    def __len__(self) -> int:
        return sum(self.sizes)

    def __repr__(self) -> str:
        parts = ", ".join(f"{share:,} of {str(d.path)!r}" for share, d in zip(self.shares, self.datasets, strict=True))
        return f"LatentMixture(an epoch is {parts})"

    def __getitem__(self, index: int | Indices) -> Any:
        """One sample, or the batch of several. Raises IndexError where there is none of that number."""
        return item_or_batch(self, index)

    def __getitems__(self, indices: Indices) -> Sequence[Any]:
        """Samples, read and dequantised together, as of `LatentDataset`."""
        indices, first = checked_indices(indices, len(self)), self.datasets[0]
        if first.is_plain and get_worker_info() is not None:
            return Samples(batch=Stored(first.layout, first.stored_bytes(len(indices)), partial(self.read, indices)))
        return samples_of(self.batch(indices), self.transform)

    collate = staticmethod(collate)

    def batch(self, indices: Indices, *, noise: Batch | None = None, empty: Empty = shareable) -> Batch:
        """A batch, as of `LatentDataset.batch`."""
        return self.decode_batch(self.read(indices) | (noise or {}), empty=empty)

    def ahead(self, **_: Any) -> None:
        """None: what the datasets give is put together by Python."""

    def read(self, indices: Indices, *, empty: Empty = private) -> Batch:
        """A batch whose latents are still as stored: what `decode_batch` takes."""
        indices = checked_indices(indices, len(self))
        which = np.searchsorted(self._edges, indices, side="right") - 1
        rows = [np.flatnonzero(which == i) for i in range(len(self.datasets))]
        parts = [
            dataset.read(indices[mine] - edge)
            for dataset, mine, edge in zip(self.datasets, rows, self._edges, strict=False)
        ]
        return {name: _joined([part[name] for part in parts], rows, empty) for name in parts[0]}

    def decode_batch(self, batch: Batch, *, empty: Empty = shareable) -> Batch:
        """The batch that `read` has begun, its latents decoded on the device where they are."""
        return self.datasets[0].decode_batch(batch, empty=empty)

    def noise_of(self, indices: NDArray[np.int64], seed: int, epoch: int, *, empty: Empty = private) -> Batch:
        """As of `LatentDataset`, by the numbers that samples have in the mixture."""
        return self.datasets[0].noise_of(indices, seed, epoch, empty=empty)

    @property
    def empty_caption(self) -> Batch:
        """As of `LatentDataset`."""
        return self.datasets[0].empty_caption

    def loader(self, batch_size: int, *, shuffle: bool = False, seed: int = 0, **options: Any) -> LatentLoader:
        """A loader of the mixture's batches: see `LatentLoader` for the options."""
        order = Order(self.sizes, self.shares, shuffle, seed)
        return LatentLoader(self, batch_size, order=order, **options)


def _joined(parts: list[Any], rows: list[NDArray[np.int64]], empty: Empty) -> Any:
    """What the datasets gave of one column, each in the rows of the batch that are its own."""
    count = sum(map(len, rows))
    if isinstance(parts[0], list):
        items = [None] * count
        for part, mine in zip(parts, rows, strict=True):
            for row, value in zip(mine, part, strict=True):
                items[row] = value
        return items
    out = empty((count, *parts[0].shape[1:]), parts[0].dtype)
    for part, mine in zip(parts, rows, strict=True):
        out.numpy()[mine] = part.numpy()
    return out
