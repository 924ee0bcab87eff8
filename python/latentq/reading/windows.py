"""Shuffling within windows of shards: an order that reads a few shards at a time, and still resumes anywhere.

The shards of a collection are permuted, and cut into windows of some shards each; the samples of a window are permuted.
All of it is a function of the seed, so each position of the order is computed on its own, as in the full permutation.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from operator import index
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Int64Array = NDArray[np.int64]
Permute = Callable[[Int64Array, int, Sequence[int]], Int64Array]

WINDOW = 64
"""The number of shards in a window by default."""


class Window(NamedTuple):
    """A shuffle within windows.

    Attributes:
        shards: The number of shards in a window; the last has what is left.
    """

    shards: int


@dataclass(frozen=True, eq=False)
class ShardRuns:
    """Where the samples of one collection lie: in the shards of a dataset, or those of one of its buckets.

    Attributes:
        starts: The number of the first sample of each shard, in the collection's numbering, (S,).
        lengths: The number of samples in each shard, at least 1, (S,).
    """

    starts: Int64Array
    lengths: Int64Array

    def permuted(self, positions: Int64Array, window: Window, seed: tuple[int, ...], permute: Permute) -> Int64Array:
        """Maps positions of a pass to samples.

        Args:
            positions: (N,), each in [0, the number of samples).
            window: The size of a window.
            seed: Selects the permutations.
            permute: The permutation of numbers: see `latentq.reading.order.permute`.

        Returns:
            (N,), the numbers of the samples.
        """
        order, begins = _shuffled(self, seed, permute)
        edges = begins[:: window.shards]
        which = np.searchsorted(edges, positions, side="right") - 1
        placed = np.empty_like(positions)
        sizes = np.diff(edges, append=begins[-1] + self.lengths[order[-1]])
        for number in np.unique(which).tolist():
            mine = which == number
            size = int(sizes[number])
            placed[mine] = edges[number] + permute(positions[mine] - edges[number], size, (*seed, 1, number))
        slots = np.searchsorted(begins, placed, side="right") - 1
        samples: Int64Array = self.starts[order[slots]] + placed - begins[slots]
        return samples


@lru_cache(maxsize=64)
def _shuffled(runs: ShardRuns, seed: tuple[int, ...], permute: Permute) -> tuple[Int64Array, Int64Array]:
    """Returns the shards in the order of a pass, (S,), and the position of the first sample of each, (S,)."""
    count = len(runs.starts)
    order = permute(np.arange(count), count, (*seed, 0))
    lengths = runs.lengths[order]
    return order, np.cumsum(lengths) - lengths


def checked_shuffle(shuffle: bool | str, window: int) -> bool | Window:
    """Returns a shuffle as `order` takes it.

    Raises:
        ValueError: It is neither True, False nor `window`, or a window has no shard.
    """
    if isinstance(shuffle, str):
        if shuffle != "window":
            raise ValueError(f"shuffle must be True, False or 'window', not {shuffle!r}")
        if index(window) < 1:
            raise ValueError(f"window must be at least 1 shard, not {window}")
        return Window(index(window))
    return bool(shuffle)
