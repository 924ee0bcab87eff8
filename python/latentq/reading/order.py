"""Which sample comes when: a pure function of (seed, epoch, position), computed where it is needed and never stored."""

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

Indices = NDArray[np.int64]


_ROUNDS = 6


_LARGEST = 2**62


_LARGEST_EPOCH = isqrt(2**63 - 1) - 1  # so that the product of two numbers of samples is an int64


def permute(positions: Indices, size: int, seed: Sequence[int]) -> Indices:
    """The images of some positions under a pseudorandom permutation of [0, size), each computed on its own.

    Args:
        positions: (N,) int64, each in [0, size).
        size: How many there are to permute, 1 to 2^62.
        seed: Whole numbers of at least 0; other numbers, another permutation.
    """
    images = np.array(positions)
    permute_in_place(images, size, _keys(tuple(seed)))
    return images


@lru_cache(maxsize=64)
def _keys(seed: tuple[int, ...]) -> list[int]:
    return [int(key) for key in np.random.SeedSequence(seed).generate_state(_ROUNDS, np.uint64)]


def bernoulli(indices: Indices, probability: float, seed: Sequence[int]) -> NDArray[np.bool_]:
    """For each index True with the given probability: a function of (seed, index) alone."""
    return permute(indices, _LARGEST, seed) < round(probability * _LARGEST)


@dataclass(frozen=True)
class Order:
    """The order of an epoch, over one collection of samples or over several that are mixed.

    Samples are numbered through: those of the first collection first. Within an epoch the collections alternate so
    evenly that any stretch of it holds each one's share to within a sample or so; within a collection, samples come in
    a new permutation each time all have come, so that none comes twice before every other has come once.

    Attributes:
        sizes: How many samples each collection has.
        shares: How many of them an epoch takes; more than there are means that some come again.
        shuffle: Whether samples are permuted; otherwise each collection's come as they are stored.
        seed: Another seed, another permutation.
    """

    sizes: tuple[int, ...]
    shares: tuple[int, ...]
    shuffle: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "seed", index(self.seed))  # NumPy's whole numbers are int from here on, in a state too
        if self.seed < 0:
            raise ValueError(f"seed must be at least 0, not {self.seed}")
        if sum(self.shares) > _LARGEST_EPOCH:
            raise ValueError(f"an epoch may have at most {_LARGEST_EPOCH} samples, not {sum(self.shares)}")

    def __len__(self) -> int:
        return sum(self.shares)

    def indices(self, epoch: int, positions: Indices) -> Indices:
        """The numbers of the samples at some positions of an epoch, each position in [0, len(self))."""
        out = np.empty_like(positions)
        slots = np.arange(len(positions))
        offset, left = 0, len(self)
        for which, (size, share) in enumerate(zip(self.sizes, self.shares, strict=True)):
            if not len(slots):
                break
            # Of the first p of those left, p * share // left are this collection's.
            before = positions * share // left
            mine = (positions + 1) * share // left > before
            out[slots[mine]] = offset + self._within(which, size, epoch * share + before[mine])
            slots, positions = slots[~mine], (positions - before)[~mine]
            offset, left = offset + size, left - share
        return out

    def _within(self, which: int, size: int, numbers: Indices) -> Indices:
        """Samples of one collection, by how many of it came before, in this epoch and all earlier ones."""
        passes, places = np.divmod(numbers, size)
        if self.shuffle:
            for turn in range(passes.min(initial=_LARGEST), passes.max(initial=0) + 1):
                now = passes == turn
                places[now] = permute(places[now], size, (self.seed, which, int(turn)))
        return places


def shares_of(weights: Sequence[float], total: int) -> tuple[int, ...]:
    """Whole numbers that sum to `total` in proportion to the weights: rounded down, the largest remainders one more."""
    parts = [Fraction(float(weight)) for weight in weights]  # NumPy's numbers and torch's, too
    exact = [part * total / sum(parts) for part in parts]
    shares = [int(share) for share in exact]
    by_remainder = sorted(range(len(weights)), key=lambda i: shares[i] - exact[i])
    for i in by_remainder[: total - sum(shares)]:
        shares[i] += 1
    return tuple(shares)


def slice_of(start: int, stop: int, rank: int, world_size: int) -> tuple[Indices, NDArray[np.bool_]]:
    """One rank's positions of a global batch [start, stop), and which of them are valid.

    The batch is cut into `world_size` stretches whose lengths differ by at most one. Where it has fewer samples than
    there are ranks, those that would go without repeat one, which is then not valid.
    """
    count = stop - start
    positions = np.arange(start + count * rank // world_size, start + count * (rank + 1) // world_size)
    if len(positions):
        return positions, np.ones(len(positions), bool)
    return np.array([start + rank % count]), np.zeros(1, bool)
