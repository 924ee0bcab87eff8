"""The steps of an epoch: which batch each rank takes, and a position among them that resumes anywhere."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from operator import index
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from latentq.reading.order import EpochOrder, Int64Array, rank_slice, turns
from latentq.system.text import counted

_STRETCH = 1 << 14  # samples of each bucket whose order is computed at a time
_FIRST_STRETCH = 1 << 10  # samples at first, so that the first batch comes soon; then twice as many each time
_LONGEST_STRETCH = 1 << 18  # samples of all buckets


@dataclass(frozen=True)
class Schedule:
    """The steps of what is left of an epoch: each takes the next samples of one bucket, as many on every rank.

    The steps of the buckets alternate so evenly that any stretch has each bucket's share to within a step or so.

    Attributes:
        left: The number of samples that are left in each bucket.
        batch: The samples of a step, on all ranks together.
        drop_last: True if a bucket's last samples are skipped if they do not fill a step.
        seeds: Seeds of the turns of the buckets; None if they are the same in every epoch.
    """

    left: tuple[int, ...]
    batch: int
    drop_last: bool
    seeds: tuple[int, int] | None = None

    @cached_property
    def counts(self) -> tuple[int, ...]:
        """The number of steps of each bucket."""
        return tuple(left // self.batch if self.drop_last else -(-left // self.batch) for left in self.left)

    def __len__(self) -> int:
        return sum(self.counts)

    def turns(self, steps: Int64Array) -> Iterator[StepTurn]:
        """Divides steps among the buckets.

        Args:
            steps: The steps, (N,) ascending, each in [0, len(self)).
        """
        for bucket, slots, before in turns(self.counts, steps, self._phases):
            if len(slots):
                starts = before * self.batch
                yield StepTurn(bucket, slots, starts, np.minimum(starts + self.batch, self.left[bucket]))

    def given(self, step: int) -> tuple[int, ...]:
        """Returns how many samples of each bucket the first steps give; samples that the last steps skip count too.

        Args:
            step: The number of steps, at most len(self).
        """
        if step and step == len(self):
            return self.left
        given, remaining = [], len(self)
        for bucket, (count, left) in enumerate(zip(self.counts, self.left, strict=True)):
            phase = 0 if self._phases is None else self._phases[bucket] * remaining >> 64
            before = (step * count + phase) // remaining if remaining else 0
            given.append(min(before * self.batch, left))
            step, remaining = step - before, remaining - count
        return tuple(given)

    @cached_property
    def _phases(self) -> list[int] | None:
        return None if self.seeds is None or len(self.left) == 1 else _phases(self.seeds, len(self.left))


@lru_cache(maxsize=4)
def _phases(seeds: tuple[int, int], count: int) -> list[int]:
    """Returns random phases of some buckets, from 0 to 2^64 - 1."""
    return [int(phase) for phase in np.random.SeedSequence((*seeds, 1)).generate_state(count, np.uint64)]


class StepTurn(NamedTuple):
    """The steps that one bucket takes.

    Attributes:
        bucket: The bucket.
        slots: Which of the given steps it takes, (n,), at least one.
        starts: The start of each step's samples among those left in the bucket, (n,).
        ends: Their end, (n,). Only the bucket's last step may have fewer samples than a batch.
    """

    bucket: int
    slots: Int64Array
    starts: Int64Array
    ends: Int64Array


class Cursor(NamedTuple):
    """A position in an epoch.

    Attributes:
        start: How many samples of each bucket had been given where the schedule was made.
        step: The number of its steps that were given since.
    """

    start: tuple[int, ...]
    step: int


class Step(NamedTuple):
    """One step of an epoch, on one rank.

    Attributes:
        cursor: The position after the step.
        bucket: The bucket of its samples.
        indices: The indices of this rank's samples.
        masks: The batch's masks: `valid` and the dropouts.
    """

    cursor: Cursor
    bucket: int
    indices: Int64Array
    masks: dict[str, NDArray[Any]]


class Steps:
    """The steps of one epoch after the other, on one rank, with a position that can be saved.

    Args:
        order: The order of samples.
        batch_size: Samples in a batch, on each rank.
        drop_last: True skips a bucket's last batch if it is not full on every rank.
        rank: This process's rank.
        world_size: The number of processes.

    Attributes:
        order: The order of samples.
        batch_size: Samples in a batch, on each rank.
        drop_last: True if a last batch is skipped that is not full on every rank.
        rank: This process's rank.
        world_size: The number of processes.
    """

    def __init__(self, order: EpochOrder, batch_size: int, *, drop_last: bool, rank: int, world_size: int) -> None:
        self.order = order
        self.batch_size = index(batch_size)  # a plain int even if given NumPy's, so that a state can be saved as JSON
        self.drop_last = drop_last
        self.rank, self.world_size = rank, world_size
        if self.batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, not {self.batch_size}")
        self._sizes = tuple(map(len, order.buckets))
        self._first = Cursor((0,) * len(self._sizes), 0)
        self._epoch = 0
        self._position = self._first  # after the batches that were given
        self._start = self._first  # where the next iteration begins

    @property
    def epoch(self) -> int:
        """The epoch of the next batch, from 0."""
        return self._epoch

    def __len__(self) -> int:
        """Returns the number of batches in a whole epoch."""
        return len(self._schedule(0, self._first.start))

    def set_epoch(self, epoch: int) -> None:
        """Goes to the start of an epoch; in the middle of that same epoch, as after `load_state_dict`, it does nothing.

        Args:
            epoch: The epoch, from 0.

        Raises:
            ValueError: The epoch is below 0.
        """
        if epoch < 0:
            raise ValueError(f"an epoch is at least 0, not {epoch}")
        if epoch != self._epoch or self._is_given:
            self._epoch, self._position, self._start = index(epoch), self._first, self._first

    def state_dict(self) -> dict[str, Any]:
        """Returns the position: the batches given so far.

        It is the same on all ranks, and JSON can hold it.
        """
        return self._state(self._epoch, self._position)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Makes the next iteration resume at another's position, whatever its batch size and number of ranks.

        With buckets, the batches are those that would have come if `drop_last` and batch size times ranks are the same;
        otherwise the samples that are left come in other batches.

        Args:
            state: A result of `state_dict`.

        Raises:
            ValueError: The state's sizes, shares, shuffle or seed differ from these, or it is no valid state.
            TypeError: The state is no mapping.
        """
        if not isinstance(state, Mapping):
            raise TypeError(f"the state of a loader is a dict from state_dict(), not {type(state).__name__}")
        mine = self.state_dict()
        if state.keys() != mine.keys():
            differ = {"start", "position"} <= mine.keys() | state.keys()
            hint = ": one of the two datasets has buckets, and the other has not" if differ else ""
            raise ValueError(
                f"the state of a loader has {', '.join(mine)}, not {', '.join(map(str, state)) or 'nothing'}{hint}"
            )
        for key in mine.keys() & {"epoch", "position", "step", "batch"}:
            if type(state[key]) is not int or state[key] < (key == "batch"):
                least = int(key == "batch")
                raise ValueError(f"the state's {key} must be a whole number of at least {least}, not {state[key]!r}")
        for key in ("sizes", "shares", "shuffle", "seed"):
            if state[key] != mine[key]:
                raise ValueError(f"the state is of a loader with {key} {state[key]}, and this loader has {mine[key]}")
        self._epoch, self._position = state["epoch"], self._cursor(state)
        self._start = self._position

    def _state(self, epoch: int, cursor: Cursor) -> dict[str, Any]:
        """Returns the state at a position."""
        if len(self._sizes) == 1:
            position: dict[str, Any] = {"position": self._given(epoch, cursor)[0]}
        else:
            position = {
                "start": list(cursor.start),
                "step": cursor.step,
                "batch": self.batch_size * self.world_size,
                "drop_last": self.drop_last,
            }
        return {"epoch": epoch, **position, **self.order.facts()}

    def _cursor(self, state: Mapping[str, Any]) -> Cursor:
        """Returns the position of a state, in the steps of this batch size and number of ranks."""
        if "position" in state:
            if state["position"] > len(self.order):
                samples = counted(len(self.order), "sample")
                raise ValueError(f"the state's position is {state['position']}, of {samples} in an epoch")
            return Cursor((state["position"],), 0)
        start, step, drop_last = state["start"], state["step"], state["drop_last"]
        if type(drop_last) is not bool:
            raise ValueError(f"the state's drop_last must be True or False, not {drop_last!r}")
        if not isinstance(start, Sequence) or len(start) != len(self._sizes) or not all(type(n) is int for n in start):
            raise ValueError(f"the state's start must be {len(self._sizes)} whole numbers, not {start!r}")
        if not all(0 <= given <= size for given, size in zip(start, self._sizes, strict=True)):
            raise ValueError(f"the state's start is {start}, of {list(self._sizes)} samples in the buckets")
        cursor = Cursor(tuple(start), step)
        schedule = self._schedule(state["epoch"], cursor.start, state["batch"], drop_last)
        if step > len(schedule):
            raise ValueError(f"the state's step is {step}, of {counted(len(schedule), 'step')}")
        if (state["batch"], drop_last) == (self.batch_size * self.world_size, self.drop_last):
            return cursor
        given = schedule.given(step)
        return Cursor(tuple(before + now for before, now in zip(cursor.start, given, strict=True)), 0)

    def _schedule(
        self, epoch: int, start: tuple[int, ...], batch: int | None = None, drop_last: bool | None = None
    ) -> Schedule:
        """Returns the steps of an epoch after some samples of each bucket, by default in this size of batches."""
        return Schedule(
            tuple(size - given for size, given in zip(self._sizes, start, strict=True)),
            self.batch_size * self.world_size if batch is None else batch,
            self.drop_last if drop_last is None else drop_last,
            (self.order.seed, epoch) if self.order.shuffle else None,
        )

    def _given(self, epoch: int, cursor: Cursor) -> tuple[int, ...]:
        """Returns how many samples of each bucket had been given at a position."""
        given = self._schedule(epoch, cursor.start).given(cursor.step)
        return tuple(before + now for before, now in zip(cursor.start, given, strict=True))

    @property
    def _is_given(self) -> bool:
        """True if an iteration has given its whole epoch, but was not asked for more, as `zip` does not."""
        has_given = self._start == self._first != self._position
        return has_given and sum(self._given(self._epoch, self._position)) == len(self.order)

    def _begin(self) -> Iterator[Step]:
        """Begins an iteration: through one epoch, from its start or from the position that was set."""
        if self._is_given:
            self._epoch += 1
        self._position, self._start = self._start, self._first
        return self._steps(self._epoch, self._position)

    def _end(self, epoch: int) -> None:
        """Goes to the start of the next epoch."""
        self._epoch, self._position = epoch + 1, self._first

    def _steps(self, epoch: int, cursor: Cursor) -> Iterator[Step]:
        """Yields the steps of an epoch from a position on. The order of many steps is computed at once."""
        schedule = self._schedule(epoch, cursor.start)
        first, samples = cursor.step, min(_FIRST_STRETCH * len(self._sizes), _LONGEST_STRETCH)
        while first < len(schedule):
            numbers = np.arange(first, min(first - (-samples // self.batch_size), len(schedule)))
            steps: list[Step | None] = [None] * len(numbers)
            for bucket, rows, starts, ends in schedule.turns(numbers):
                given, is_ragged = cursor.start[bucket], ends[-1] - starts[-1] < schedule.batch
                full = len(rows) - int(is_ragged)
                own = self._own_slots(schedule.batch) if full else np.empty(0, np.int64)
                slots = [(given + starts[:full, None] + own).ravel()]
                valid = [np.ones(slots[0].shape, bool)]
                if is_ragged:
                    span = given + int(starts[-1]), given + int(ends[-1])
                    for parts, part in zip((slots, valid), rank_slice(*span, self.rank, self.world_size), strict=True):
                        parts.append(part)
                indices = self.order.in_bucket(bucket, epoch, np.concatenate(slots))
                masks = {"valid": np.concatenate(valid)} | self._more_masks(epoch, indices)
                for number, row in enumerate(rows.tolist()):
                    mine = slice(number * len(own), (number + 1) * len(own) if number < full else None)
                    cut = {name: mask[mine] for name, mask in masks.items()}
                    steps[row] = Step(Cursor(cursor.start, first + row + 1), bucket, indices[mine], cut)
            for ready in steps:
                assert ready is not None
                yield ready
            first += len(numbers)
            samples = min(2 * samples, _STRETCH * len(self._sizes), _LONGEST_STRETCH)

    def _own_slots(self, batch: int) -> Int64Array:
        """Returns this rank's places in a full step."""
        return np.arange(batch * self.rank // self.world_size, batch * (self.rank + 1) // self.world_size)

    def _more_masks(self, _epoch: int, _indices: Int64Array) -> dict[str, NDArray[Any]]:
        """Returns masks of some samples, (N,), by name; none here.

        Args:
            _epoch: The number of the epoch.
            _indices: Indices of the samples, (N,).
        """
        return {}
