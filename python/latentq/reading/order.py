"""The order of samples: a pure function of (seed, epoch, position), computed when needed and never stored."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from math import isqrt
from operator import index

import numpy as np
from numpy.typing import NDArray

from latentq._core import permute as permute_in_place

Int64Array = NDArray[np.int64]

_ROUNDS = 6
_LARGEST = 2**62
_LARGEST_EPOCH = isqrt(2**63 - 1) - 1  # so that the product of two counts of samples is an int64


def permute(positions: Int64Array, size: int, seed: Sequence[int]) -> Int64Array:
    """Maps positions through a pseudorandom permutation of [0, size), each computed on its own.

    Args:
        positions: (N,) int64, each in [0, size).
        size: The number of permuted items, 1 to 2^62.
        seed: Integers of at least 0 that select the permutation.

    Returns:
        (N,) int64, each in [0, size).
    """
    permuted = np.array(positions)
    permute_in_place(permuted, size, _keys(tuple(seed)))
    return permuted


@lru_cache(maxsize=64)
def _keys(seed: tuple[int, ...]) -> list[int]:
    return [int(key) for key in np.random.SeedSequence(seed).generate_state(_ROUNDS, np.uint64)]


def bernoulli(indices: Int64Array, probability: float, seed: Sequence[int]) -> NDArray[np.bool_]:
    """Draws True with the given probability for each of (N,) indices: a function of (seed, index) alone.

    Args:
        indices: Indices of the samples, (N,) int64.
        probability: From 0 to 1.
        seed: Numbers that select the function.
    """
    return permute(indices, _LARGEST, seed) < round(probability * _LARGEST)


@dataclass(frozen=True)
class Order:
    """The order of an epoch, over one collection of samples or a mixture of several.

    Samples are numbered consecutively, those of the first collection first. Within an epoch the collections alternate
    so evenly that any stretch holds each collection's share to within a sample or so. Within a collection, each pass
    over all of its samples is a new permutation, so that no sample comes twice before every other has come once.

    Attributes:
        sizes: The number of samples in each collection.
        shares: How many samples of each collection an epoch takes; more than its size means that some are repeated.
        shuffle: True if samples are permuted; otherwise each collection's samples come in their stored order.
        seed: Selects the permutations; at least 0.
    """

    sizes: tuple[int, ...]
    shares: tuple[int, ...]
    shuffle: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "seed", index(self.seed))  # a plain int even if given NumPy's, so that JSON takes it
        if self.seed < 0:
            raise ValueError(f"seed must be at least 0, not {self.seed}")
        if sum(self.shares) > _LARGEST_EPOCH:
            raise ValueError(f"an epoch may have at most {_LARGEST_EPOCH} samples, not {sum(self.shares)}")

    def __len__(self) -> int:
        return sum(self.shares)

    def indices(self, epoch: int, positions: Int64Array) -> Int64Array:
        """Returns the indices of the samples at some positions of an epoch, each position in [0, len(self))."""
        out = np.empty_like(positions)
        slots = np.arange(len(positions))
        offset, remaining = 0, len(self)
        for collection, (size, share) in enumerate(zip(self.sizes, self.shares, strict=True)):
            if not len(slots):
                break
            # p * share // remaining of the first p remaining positions belong to this collection.
            before = positions * share // remaining
            mine = (positions + 1) * share // remaining > before
            out[slots[mine]] = offset + self._within(collection, size, epoch * share + before[mine])
            slots, positions = slots[~mine], (positions - before)[~mine]
            offset, remaining = offset + size, remaining - share
        return out

    def _within(self, collection: int, size: int, ordinals: Int64Array) -> Int64Array:
        """Returns indices within a collection, given how many of its samples came before in this and earlier epochs.

        Args:
            collection: Index of the collection, which seeds its order.
            size: The number of its samples.
            ordinals: How many of its samples came before, (N,) int64.
        """
        passes, positions = np.divmod(ordinals, size)
        if self.shuffle:
            for turn in range(passes.min(initial=_LARGEST), passes.max(initial=0) + 1):
                current = passes == turn
                positions[current] = permute(positions[current], size, (self.seed, collection, int(turn)))
        return positions


def shares_of(weights: Sequence[float], total: int) -> tuple[int, ...]:
    """Splits `total` in proportion to weights, in whole numbers: rounded down, the largest remainders get one more."""
    parts = [Fraction(float(weight)) for weight in weights]  # float() takes NumPy's and torch's numbers too
    exact = [part * total / sum(parts) for part in parts]
    shares = [int(share) for share in exact]
    by_remainder = sorted(range(len(weights)), key=lambda i: shares[i] - exact[i])
    for i in by_remainder[: total - sum(shares)]:
        shares[i] += 1
    return tuple(shares)


def rank_slice(start: int, stop: int, rank: int, world_size: int) -> tuple[Int64Array, NDArray[np.bool_]]:
    """Returns one rank's positions of a global batch [start, stop), and a mask of those that are valid.

    The batch is cut into `world_size` stretches whose lengths differ by at most one. If it has fewer samples than
    ranks, each rank without a sample repeats one, marked as not valid.

    Args:
        start: The first position of the batch.
        stop: The position after its last.
        rank: The rank.
        world_size: The number of ranks.

    Returns:
        (n,) int64 positions, at least one; and (n,) bool, True for those that are valid.
    """
    count = stop - start
    positions = np.arange(start + count * rank // world_size, start + count * (rank + 1) // world_size)
    if len(positions):
        return positions, np.ones(len(positions), bool)
    return np.array([start + rank % count]), np.zeros(1, bool)
