"""Units that come one by one from elsewhere, and the order in which they are made."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from typing import Any, Protocol, TextIO

from latentq.run.sample_list import UnitEntry


class UnitQueue(Protocol):
    """Gives a worker of a cluster its units, in place of those of a rank.

    Attributes:
        cpus: The processors of the worker.
        gpus: Its GPUs.
    """

    cpus: int
    gpus: float

    @property
    def notes(self) -> TextIO:
        """Takes lines for the user, until `planned`."""
        ...

    def planned(self, plan: Any) -> None:
        """Reports what the run is to do, before its first unit. The plan is pickled."""

    def waves(self) -> Iterator[Iterator[int]]:
        """Waits for units, and yields an iterator over the numbers of those that are there.

        The iterator never waits: work that reads ahead would else keep a unit unfinished until the next one comes. It
        ends for good when the run does.
        """
        ...

    def done(self, number: int, result: Any) -> None:
        """Reports a unit that is done, with a result that is pickled."""


class PendingUnits:
    """Units to make, in order. Those that were begun and are not done are yielded again by the next iteration.

    One thread may iterate while another takes what was begun: a unit is begun before it is yielded.

    Args:
        units: The units, iterated over once.
    """

    def __init__(self, units: Iterable[UnitEntry]) -> None:
        self._units = iter(units)
        self._begun: deque[UnitEntry] = deque()

    def __iter__(self) -> Iterator[UnitEntry]:
        yield from tuple(self._begun)
        for unit in self._units:
            self._begun.append(unit)
            yield unit

    def oldest(self) -> UnitEntry | None:
        """Returns the unit that was begun first and is not done; None if there is none."""
        return self._begun[0] if self._begun else None

    def done(self) -> None:
        """Removes the oldest unit."""
        self._begun.popleft()
