"""Batches and samples: indices checked, a batch seen as the list of its samples."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Iterator, MutableMapping, Sequence
from functools import cached_property
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import default_collate

Batch = dict[str, Any]


Indices = Sequence[int] | NDArray[np.int64]


class Samples(Sequence[dict[str, Any]]):
    """The samples of a batch, as views of its tensors. They are made when one is asked for: `collate` asks for none.

    Args:
        samples: Or, without a batch, the samples themselves: so do torch's pinning and others make anew any sequence.
        batch: The batch.

    Attributes:
        batch: The batch, or None.
    """

    def __init__(
        self, samples: Iterable[dict[str, Any]] = (), *, batch: MutableMapping[str, Any] | None = None
    ) -> None:
        self.batch = batch
        if batch is None:
            self._samples = list(samples)

    @cached_property
    def _samples(self) -> list[dict[str, Any]]:
        batch = self.batch or {}
        columns = [_items(value) for value in batch.values()]
        return [dict(zip(batch, values, strict=True)) for values in zip(*columns, strict=True)]

    def __len__(self) -> int:
        return len(self._samples if self.batch is None else next(iter(self.batch.values())))

    @overload
    def __getitem__(self, index: int) -> dict[str, Any]: ...
    @overload
    def __getitem__(self, index: slice) -> list[dict[str, Any]]: ...
    def __getitem__(self, index: int | slice) -> Any:
        return self._samples[index]

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return iter(self._samples)


def collate(samples: Sequence[Any]) -> Any:
    """For a DataLoader's `collate_fn`: the batch whose samples `__getitems__` has given, without copying it."""
    if isinstance(samples, MutableMapping):  # a batch already, of a batch sampler in the place of a sampler
        return samples
    batch = samples.batch if isinstance(samples, Samples) else None
    return default_collate(list(samples)) if batch is None else batch


def item_or_batch(dataset: Any, index: int | Indices) -> Any:
    """What a dataset has at an index, or, of several, their batch."""
    if isinstance(index, Sequence | np.ndarray) and np.ndim(index):
        return collate(dataset.__getitems__(index))
    return dataset.__getitems__([index])[0]


def samples_of(batch: Batch, transform: Callable[[dict[str, Any]], Any] | None) -> Sequence[Any]:
    """The samples of a batch: views of it, or what the transform makes of them."""
    samples = Samples(batch=batch)
    return samples if transform is None else [transform(sample) for sample in samples]


def _items(values: Any) -> Sequence[Any]:
    if isinstance(values, list):
        return values
    items: Sequence[Any] = values.unbind() if values.ndim > 1 else values.tolist()
    return items


def checked_indices(indices: Indices, size: int) -> NDArray[np.int64]:
    """Indices as int64 in [0, size), negative ones counted from the end.

    Raises:
        IndexError: One is out of range.
        TypeError: One is not a whole number.
    """
    if not isinstance(indices, np.ndarray):
        try:
            indices = np.fromiter(map(operator.index, indices), np.int64)
        except OverflowError:
            raise IndexError(f"an index is out of range for {size} samples") from None
    if indices.dtype.kind not in "iu":
        raise TypeError(f"indices must be whole numbers, not {indices.dtype}")
    outside = (indices < -size) | (indices >= size)
    if outside.any():
        raise IndexError(f"index {indices[outside][0]} is out of range for {size} samples")
    indices = indices.astype(np.int64)
    return np.where(indices < 0, indices + size, indices)
