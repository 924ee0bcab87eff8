"""Timing of contenders in turns.

pytest-benchmark times one test after the other. On a shared machine that compares a busy minute with a quiet one, so
here the contenders of a group run round by round, each once per round, and pytest-benchmark is given the durations.
"""

import os
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
Contenders = Mapping[str, Callable[[Any], object]]


class Measured(float):
    """Returned by work that another process does and times itself: the duration in seconds."""


def take_turns(
    contenders: Contenders,
    argument: object,
    *,
    rounds: int,
    warmup: int = 1,
    untimed_call: bool = False,
    iterations: int = 1,
    rest: float = 0.0,
    setup: Callable[[Any], object] | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
    """Time every contender once per round, in turns.

    Args:
        contenders: Maps a name to a function that does the work.
        argument: Passed to every contender and to `setup`.
        rounds: Number of timed rounds.
        warmup: Number of rounds before them whose durations are dropped.
        untimed_call: Call each contender once, untimed, right before its timed call. Then no contender pays for
            writing back what the one before it left in the caches.
        iterations: Calls per duration, for work of a few microseconds.
        rest: Seconds to sleep before each turn, for thread pools that spin after a call to come to rest.
        setup: Called before each turn, untimed.
        clock: Returns seconds; `time.process_time` for single-threaded work on a shared machine.

    Returns:
        For each name the durations of its timed rounds, in order, in seconds (of all `iterations` together).
    """
    durations: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(warmup + rounds):
        for name, work in contenders.items():
            if setup is not None:
                setup(argument)
            if rest:
                time.sleep(rest)
            if untimed_call:
                work(argument)
            start = clock()
            for _ in range(iterations):
                result = work(argument)
            seconds = clock() - start
            durations[name].append(float(result) if isinstance(result, Measured) else seconds)
    return {name: values[warmup:] for name, values in durations.items()}


class ReplayTimer:
    """A timer for pytest-benchmark that replays durations measured earlier.

    pytest-benchmark reads its timer twice per round, before and after the work, and subtracts.
    """

    __name__ = "take_turns"

    def __init__(self) -> None:
        self._readings: Iterator[float] = iter(())

    def load(self, durations: list[float]) -> None:
        """Set the durations to replay, in seconds."""
        self._readings = iter([reading for duration in durations for reading in (0.0, duration)])

    def __call__(self) -> float:
        return next(self._readings)
