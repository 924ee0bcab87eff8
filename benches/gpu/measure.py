"""Times: of the device by CUDA events, of the host by its clock; medians of repetitions in turns."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping

import torch

from gpu.harness import Run


def in_turns(
    run: Run, works: Mapping[str, Callable[[], object]], *, repetitions: int = 10, warm: int = 3
) -> dict[str, list[float]]:
    """Times each work once per round, A B A B, by the device's clock.

    Args:
        run: The run; a rehearsal has one round after one warm one.
        works: By name.
        repetitions: Timed rounds.
        warm: Rounds before them.

    Returns:
        By name, the seconds of each timed round.
    """
    if run.dry:
        repetitions = warm = 1
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for timed in [False] * warm + [True] * repetitions:
        for name, work in works.items():
            elapsed = _time_once(run, work)
            if timed:
                seconds[name].append(elapsed)
    return seconds


def _time_once(run: Run, work: Callable[[], object]) -> float:
    if run.dry:
        start = time.perf_counter()
        work()
        return time.perf_counter() - start
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    begin.record()
    work()
    end.record()
    end.synchronize()
    return float(begin.elapsed_time(end)) / 1000


def rates(run: Run, name: str, seconds: list[float], items: float, unit: str) -> float:
    """Records items per second of the median time, and returns it."""
    rate = items / statistics.median(seconds)
    run.number(name, rate, unit, [items / value for value in seconds])
    return rate


def ratio(first: list[float], second: list[float]) -> float:
    """Returns the median over the rounds of the ratio of two times in one round."""
    return statistics.median(a / b for a, b in zip(first, second, strict=True))


def wait(run: Run) -> None:
    """Waits for the device."""
    if not run.dry:
        torch.cuda.synchronize()


def hold(run: Run, cycles: float) -> None:
    """Keeps the device busy for a number of cycles, without waiting for it."""
    if not run.dry:
        torch.cuda._sleep(int(cycles))
