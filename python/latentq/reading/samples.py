"""Batches and samples: dicts of columns, the list of a batch's samples, and checked indices."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, MutableMapping, Sequence
from functools import wraps
from typing import Any, NoReturn

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils import _pytree
from torch.utils.data import default_collate

from latentq.system.text import counted

Indices = Sequence[int] | NDArray[np.int64]
Batch = dict[str, Any]


class ColumnDict(dict[str, Any]):
    """A sample or a batch: a dict whose `KeyError` names the columns there are. Copies and pickles are plain dicts."""

    def __missing__(self, name: object) -> NoReturn:
        raise KeyError(f"there is no column {name!r}: there are {', '.join(self) or 'none'}")

    def __reduce__(self) -> tuple[Any, ...]:
        return dict, (dict(self),)


# Trees of tensors are walked through plain dicts only, unless a subclass is registered.
_pytree.register_pytree_node(
    ColumnDict,
    lambda columns: (list(columns.values()), list(columns)),
    lambda values, names: ColumnDict(zip(names, values, strict=True)),
)


class Samples(list[Any]):
    """The list of a batch's samples, each a dict of views of the batch.

    The samples are made when a method of the list is first called; `collate` takes the batch without making them.
    Copies and pickles are plain lists.

    Args:
        batch: The batch.
        count: The number of its samples.
    """

    def __init__(self, batch: MutableMapping[str, Any], count: int) -> None:
        super().__init__()
        self._batch = batch
        self._length = count
        self._columns: list[Sequence[Any]] | None = None  # the values of each column in the samples, once made

    def make(self) -> None:
        """Makes the samples; does nothing the second time."""
        if self._columns is None:
            self._columns = [_items(value) for value in self._batch.values()]
            names = tuple(self._batch)
            super().extend(ColumnDict(zip(names, row, strict=True)) for row in zip(*self._columns, strict=True))

    def unchanged_batch(self) -> MutableMapping[str, Any] | None:
        """Returns the batch, or None if samples were added, removed, moved or given other values since."""
        if self._columns is None:
            return self._batch
        names = tuple(self._batch)
        if len(self) != self._length:
            return None
        for sample, *row in zip(self, *self._columns, strict=True):
            if not isinstance(sample, dict) or tuple(sample) != names:
                return None
            if any(mine is not value for mine, value in zip(sample.values(), row, strict=True)):
                return None
        return self._batch

    def __len__(self) -> int:
        return self._length if self._columns is None else super().__len__()

    def __radd__(self, other: list[Any]) -> list[Any]:
        return [*other, *self]

    def __reduce__(self) -> tuple[Any, ...]:
        return list, (list(self),)


def _after_making(method: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(method)
    def call(self: Samples, *args: Any, **options: Any) -> Any:
        self.make()
        return method(self, *args, **options)

    return call


for _name in (
    *("__add__", "__contains__", "__delitem__", "__eq__", "__ge__", "__getitem__", "__gt__", "__iadd__", "__imul__"),
    *("__iter__", "__le__", "__lt__", "__mul__", "__ne__", "__repr__", "__reversed__", "__rmul__", "__setitem__"),
    *("append", "clear", "copy", "count", "extend", "index", "insert", "pop", "remove", "reverse", "sort"),
):
    setattr(Samples, _name, _after_making(getattr(list, _name)))


def _items(values: Any) -> Sequence[Any]:
    """Splits a column of a batch into the values of its samples."""
    if isinstance(values, list):
        return values
    items: Sequence[Any] = values.unbind() if values.ndim > 1 else values.tolist()
    return items


def collate(samples: Sequence[Any] | MutableMapping[str, Any]) -> Any:
    """Returns the batch of samples from `__getitems__`, without copying it. For a DataLoader's `collate_fn`.

    Samples that were changed since, or come from elsewhere, go through torch's `default_collate`.

    Args:
        samples: The result of `__getitems__`, or a batch.
    """
    if isinstance(samples, MutableMapping):  # a sampler of whole batches gives a batch already
        return samples
    batch = samples.unchanged_batch() if isinstance(samples, Samples) else None
    if batch is not None:
        return batch
    _check_shapes(samples)
    return default_collate(list(samples))


def _check_shapes(samples: Sequence[Any]) -> None:
    """Raises ValueError if samples are of several buckets, before torch says only that sizes differ."""
    first = samples[0] if len(samples) else None
    if not isinstance(first, dict):
        return
    for name, value in first.items():
        for sample in samples:
            other = sample.get(name) if isinstance(sample, dict) else None
            if isinstance(value, torch.Tensor) and isinstance(other, torch.Tensor) and other.shape != value.shape:
                raise ValueError(
                    f"samples have {name!r} of the shapes {tuple(value.shape)} and {tuple(other.shape)}, which are no "
                    "batch: batch_sampler=dataset.batch_sampler(batch_size) makes batches of one bucket"
                )


def samples_of(batch: Batch, count: int, transform: Callable[[dict[str, Any]], Any] | None) -> list[Any]:
    """Returns the samples of a batch: views of it, or the results of a transform.

    Args:
        batch: The batch.
        count: The number of its samples.
        transform: Applied to each sample; None gives views of the batch.
    """
    samples = Samples(batch, count)
    return samples if transform is None else [transform(sample) for sample in samples]


def sample_of(batch: Batch) -> ColumnDict:
    """Returns the sample of a batch of one."""
    sample = ColumnDict()
    for name, value in batch.items():
        if isinstance(value, list):
            sample[name] = value[0]
        else:
            sample[name] = value.squeeze(0) if value.ndim > 1 else value.item()
    return sample


def checked_index(index: int, size: int) -> NDArray[np.int64]:
    """Does the work of `checked_indices` for one index, in a third of the time."""
    if not -size <= index < size:
        raise IndexError(f"index {index} is out of range for {counted(size, 'sample')}")
    return np.array([index % size], np.int64)


def checked_indices(indices: Indices, size: int) -> NDArray[np.int64]:
    """Returns indices as int64 in [0, size); negative indices count from the end.

    Raises:
        IndexError: An index is out of range.
        TypeError: An index is not an integer.
    """
    if not isinstance(indices, np.ndarray):
        indices = _index_array(indices, size)
    if indices.dtype.kind not in "iu":
        hint = ": numpy.flatnonzero(mask) gives the indices of a mask" if indices.dtype.kind == "b" else ""
        raise TypeError(f"indices must be integers, not {indices.dtype}{hint}")
    outside = (indices < -size) | (indices >= size)
    if outside.any():
        raise IndexError(f"index {indices[outside][0]} is out of range for {counted(size, 'sample')}")
    indices = indices.astype(np.int64)
    return np.where(indices < 0, indices + size, indices)


def _index_array(indices: Iterable[Any], size: int) -> NDArray[Any]:
    indices = list(indices)
    types = set(map(type, indices))
    if torch.Tensor in types:
        indices = [i.item() if isinstance(i, torch.Tensor) and i.numel() == 1 else i for i in indices]
        types = set(map(type, indices))
    if not types.isdisjoint((bool, np.bool_)):  # operator.index would take them as the indices 0 and 1
        return np.array(indices, bool)
    try:
        return np.fromiter(map(operator.index, indices), np.int64)
    except OverflowError:
        raise IndexError(f"an index is out of range for {counted(size, 'sample')}") from None
