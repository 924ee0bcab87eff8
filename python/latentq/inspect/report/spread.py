"""Evenly spread samples of a dataset, read column by column across its buckets."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from latentq.reading.dataset import LatentDataset

_BATCH = 1024


def spread(count: int, total: int) -> NDArray[np.int64]:
    """Returns the indices of at most `count` of `total` samples, evenly spread from the first on, ascending."""
    count = min(count, total)
    return np.arange(count) * total // max(count, 1)


def in_batches(
    dataset: LatentDataset, indices: NDArray[np.int64], size: int = _BATCH
) -> Iterator[tuple[NDArray[np.int64], int]]:
    """Yields batches of samples with the bucket that they share.

    Args:
        dataset: The dataset.
        indices: Indices of samples.
        size: The largest number of samples in a batch.
    """
    buckets = dataset.table.of(indices)
    for bucket in np.unique(buckets).tolist():
        members = indices[buckets == bucket]
        for start in range(0, len(members), size):
            yield members[start : start + size], bucket


def values_of(dataset: LatentDataset, name: str, indices: NDArray[np.int64]) -> dict[int, Any]:
    """Reads a column that is not encoded, such as labels or captions.

    Args:
        dataset: The dataset.
        name: The column's key in samples.
        indices: Indices of samples.

    Returns:
        The value of each sample, by its index.
    """
    values: dict[int, Any] = {}
    for batch, _ in in_batches(dataset, indices):
        column = dataset.read(batch, names=[name])[name]
        values.update(zip(batch.tolist(), column if isinstance(column, list) else column.tolist(), strict=True))
    return values
