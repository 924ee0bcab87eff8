"""Timing of contenders in turns.

Timed one after the other, on a shared machine a busy minute would be compared with a quiet one. So the contenders of a
group run round by round, each once per round.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
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
    """Times every contender once per round, in turns.

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
            result: object = None  # or else this contender would be charged for freeing the result of the one before
            start = clock()
            for _ in range(iterations):
                result = work(argument)
            seconds = clock() - start
            durations[name].append(float(result) if isinstance(result, Measured) else seconds)
    return {name: values[warmup:] for name, values in durations.items()}


def speed_ratio(reference: Sequence[float], durations: Sequence[float]) -> float:
    """Returns how many times as fast as the reference: the median over the rounds of the ratio within a round.

    The contenders of one round met the same other work on the machine.

    Args:
        reference: Durations of the reference, in seconds.
        durations: Durations of the contender in the same rounds, in seconds.
    """
    return statistics.median(a / b for a, b in zip(reference, durations, strict=True))


def in_units(value: float, units: Sequence[tuple[float, str]]) -> str:
    """Returns the value with three digits, in the largest unit that is not above it.

    Args:
        value: The number.
        units: Size and name of each unit, from the largest to the smallest.
    """
    size, name = next(((size, name) for size, name in units if value >= size), units[-1])
    scaled = value / size
    digits = 2 if scaled < 10 else 1 if scaled < 100 else 0
    return f"{scaled:,.{digits}f} {name}".rstrip()


SECONDS = ((1.0, "s"), (1e-3, "ms"), (1e-6, "us"))
RATES = ((1e9, "* 10^9"), (1e6, "* 10^6"), (1.0, ""))
