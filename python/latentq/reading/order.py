"""The order of samples: a pure function of (seed, epoch, position), computed when needed and never stored."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from math import isqrt
from operator import index
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from latentq._core import permute as permute_in_place
from latentq.reading.buckets import BucketTable
from latentq.reading.windows import ShardRuns, Window

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


class Turn(NamedTuple):
    """The positions that one of several collections takes.

    Attributes:
        collection: The collection.
        slots: Which of the given positions it takes, (n,).
        before: How many positions it takes before each of them, (n,).
    """

    collection: int
    slots: Int64Array
    before: Int64Array


def turns(shares: Sequence[int], positions: Int64Array, phases: Sequence[int] | None = None) -> Iterator[Turn]:
    """Divides [0, sum(shares)) among collections, each with its share of positions, spread evenly.

    Any stretch of positions holds each collection's share to within a position or so. Each position is computed on its
    own.

    Args:
        shares: The number of positions that each collection takes.
        positions: The positions to look up, (N,), each in [0, sum(shares)).
        phases: Where each collection's positions lie between the latest possible (0) and the earliest (2^64 - 1), by
            collection; all are the latest if it is None.
    """
    slots = np.arange(len(positions))
    remaining = sum(shares)
    for collection, share in enumerate(shares):
        if not len(slots):
            return
        if share == remaining:  # the last: the formula below would give just this
            yield Turn(collection, slots, positions)
            return
        # (p * share + phase) // remaining of the first p remaining positions belong to this collection.
        phase = 0 if phases is None else phases[collection] * remaining >> 64
        before = (positions * share + phase) // remaining
        mine = ((positions + 1) * share + phase) // remaining > before
        yield Turn(collection, slots[mine], before[mine])
        slots, positions = slots[~mine], (positions - before)[~mine]
        remaining -= share


class EpochOrder(Protocol):
    """The order of an epoch: of samples in one bucket or several, each with an order of its own."""

    @property
    def buckets(self) -> Sequence[Order]:
        """The order of each bucket's samples."""

    @property
    def shuffle(self) -> bool | Window:
        """True if samples are permuted, or the windows in which they are."""

    @property
    def seed(self) -> int:
        """The seed of the permutations."""

    def __len__(self) -> int: ...

    def in_bucket(self, bucket: int, epoch: int, positions: Int64Array) -> Int64Array:
        """Returns the indices of the samples at some positions of a bucket's epoch, each in [0, len(bucket))."""

    def facts(self) -> dict[str, Any]:
        """Returns what a loader's state says of the order."""


@dataclass(frozen=True)
class Order:
    """The order of an epoch, over one collection of samples or a mixture of several.

    Samples are numbered consecutively, those of the first collection first. Within an epoch the collections alternate
    so evenly that any stretch holds each collection's share to within a sample or so. Within a collection, each pass
    over all of its samples is a new permutation, so that no sample comes twice before every other has come once.

    Attributes:
        sizes: The number of samples in each collection.
        shares: How many samples of each collection an epoch takes; more than its size means that some are repeated.
        shuffle: True if samples are permuted, or the windows of shards in which they are; otherwise each collection's
            samples come in their stored order.
        seed: Selects the permutations; at least 0.
        first: The number of the first collection; collections of other numbers have other permutations.
        runs: For windows, the shards of each collection.
    """

    sizes: tuple[int, ...]
    shares: tuple[int, ...]
    shuffle: bool | Window = False
    seed: int = 0
    first: int = 0
    runs: tuple[ShardRuns, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "seed", index(self.seed))  # a plain int even if given NumPy's, so that JSON takes it
        if self.seed < 0:
            raise ValueError(f"seed must be at least 0, not {self.seed}")
        _check_size(sum(self.shares))

    def __len__(self) -> int:
        return sum(self.shares)

    def indices(self, epoch: int, positions: Int64Array) -> Int64Array:
        """Returns the indices of the samples at some positions of an epoch, each position in [0, len(self))."""
        out = np.empty_like(positions)
        for collection, slots, before in turns(self.shares, positions):
            size, share = self.sizes[collection], self.shares[collection]
            if len(slots):
                offset = sum(self.sizes[:collection])
                out[slots] = offset + self._within(collection, size, epoch * share + before)
        return out

    @property
    def buckets(self) -> tuple[Order]:
        """This order: all samples are in one bucket."""
        return (self,)

    def in_bucket(self, _bucket: int, epoch: int, positions: Int64Array) -> Int64Array:
        """Returns the indices of the samples at some positions: see `EpochOrder`."""
        return self.indices(epoch, positions)

    def facts(self) -> dict[str, Any]:
        """Returns what a loader's state says of the order."""
        return {
            "sizes": list(self.sizes),
            "shares": list(self.shares),
            "shuffle": shuffle_facts(self.shuffle),
            "seed": self.seed,
        }

    def _within(self, collection: int, size: int, ordinals: Int64Array) -> Int64Array:
        """Returns indices within a collection, given how many of its samples came before in this and earlier epochs.

        Args:
            collection: Index of the collection, which seeds its order.
            size: The number of its samples.
            ordinals: How many of its samples came before, (N,) int64.
        """
        first, last = int(ordinals.min()) // size, int(ordinals.max()) // size
        if first == last:
            return self._in_pass(collection, size, first, ordinals - first * size)
        passes, positions = np.divmod(ordinals, size)
        for turn in range(first, last + 1):
            current = passes == turn
            positions[current] = self._in_pass(collection, size, turn, positions[current])
        return positions

    def _in_pass(self, collection: int, size: int, turn: int, positions: Int64Array) -> Int64Array:
        """Returns indices within a collection, given positions of one pass over it, (N,)."""
        if not self.shuffle:
            return positions
        seed = (self.seed, self.first + collection, turn)
        if isinstance(self.shuffle, Window):
            return self.runs[collection].permuted(positions, self.shuffle, seed, permute)
        return permute(positions, size, seed)


@dataclass(frozen=True)
class BucketOrder:
    """The order of an epoch over samples in several buckets: one order for each, all with the same seed.

    Attributes:
        buckets: The order of each bucket's samples, which it numbers from 0.
        table: Where each bucket's samples are.
    """

    buckets: tuple[Order, ...]
    table: BucketTable

    def __post_init__(self) -> None:
        _check_size(len(self))

    @classmethod
    def of(
        cls,
        sizes: Sequence[Sequence[int]],
        shares: Sequence[Sequence[int]],
        shuffle: bool | Window,
        seed: int,
        table: BucketTable,
        runs: Sequence[Sequence[ShardRuns]] = (),
    ) -> BucketOrder:
        """Returns the order over several collections in each bucket.

        Args:
            sizes: For each bucket, the number of samples in each collection.
            shares: For each bucket, how many samples of each collection an epoch takes.
            shuffle: True if samples are permuted, or the windows of shards in which they are.
            seed: Selects the permutations; at least 0.
            table: Where each bucket's samples are, those of the first collection first.
            runs: For windows, the shards of each collection in each bucket.
        """
        orders, first = [], 0
        for bucket, (mine, taken) in enumerate(zip(sizes, shares, strict=True)):
            shards = tuple(runs[bucket]) if runs else ()
            orders.append(Order(tuple(mine), tuple(taken), shuffle, seed, first, shards))
            first += len(mine)
        return cls(tuple(orders), table)

    def __len__(self) -> int:
        return sum(map(len, self.buckets))

    @property
    def shuffle(self) -> bool | Window:
        """True if samples are permuted, or the windows in which they are."""
        return self.buckets[0].shuffle

    @property
    def seed(self) -> int:
        """The seed of the permutations."""
        return self.buckets[0].seed

    def in_bucket(self, bucket: int, epoch: int, positions: Int64Array) -> Int64Array:
        """Returns the indices of the samples at some positions of a bucket: see `EpochOrder`."""
        return self.table.indices(bucket, self.buckets[bucket].indices(epoch, positions))

    def facts(self) -> dict[str, Any]:
        """Returns what a loader's state says of the order."""
        return {
            "sizes": [list(order.sizes) for order in self.buckets],
            "shares": [list(order.shares) for order in self.buckets],
            "shuffle": shuffle_facts(self.shuffle),
            "seed": self.seed,
        }


def shuffle_facts(shuffle: bool | Window) -> bool | list[Any]:
    """Returns what a loader's state says of a shuffle; JSON can hold it."""
    return ["window", shuffle.shards] if isinstance(shuffle, Window) else shuffle


def _check_size(samples: int) -> None:
    """Raises ValueError if an epoch is so long that the product of two positions could exceed int64."""
    if samples > _LARGEST_EPOCH:
        raise ValueError(f"an epoch may have at most {_LARGEST_EPOCH} samples, not {samples}")


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
