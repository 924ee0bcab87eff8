"""A group of contenders that do the same work, and what was measured of it."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from latentq.benchmark.turns import Contenders, speed_ratio, take_turns


@dataclass(frozen=True)
class Group:
    """Contenders that do the same work on the same data.

    Attributes:
        title: What they do.
        contenders: Maps each name to a function of `data`. latentq's own names begin with `latentq`.
        data: The argument of the functions.
        items: Number of items that one call handles.
        unit: The items' name, in the plural.
        ours: The contender that the others are compared with.
        limits: Names of contenders that are no rivals but limits of the machine.
        rounds: Number of timed rounds.
        options: Further options of `take_turns`.
    """

    title: str
    contenders: Contenders
    data: object
    items: int
    unit: str
    ours: str = "latentq"
    limits: tuple[str, ...] = ()
    rounds: int = 9
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Row:
    """Measurements of one contender.

    Attributes:
        name: The contender.
        seconds: Median duration of a call.
        fastest: Shortest duration of a call.
        rate: Items per second, by the median.
        latentq_is: How many times as fast latentq is, the median over the rounds; None for latentq's own rows.
        limit: True for a limit of the machine.
    """

    name: str
    seconds: float
    fastest: float
    rate: float
    latentq_is: float | None
    limit: bool


@dataclass(frozen=True)
class Result:
    """Measurements of a group."""

    title: str
    unit: str
    rows: list[Row]


def measure(group: Group, *, rounds: int | None = None, turns: Callable[..., Any] = take_turns) -> Result:
    """Measures a group.

    Args:
        group: The contenders.
        rounds: Number of timed rounds; None for the group's own.
        turns: Times the contenders, as `take_turns` does.
    """
    durations = turns(group.contenders, group.data, rounds=rounds or group.rounds, **group.options)
    iterations = group.options.get("iterations", 1)
    ours = durations[group.ours]
    rows = []
    for name, values in durations.items():
        median = statistics.median(values) / iterations
        ratio = None if name.startswith("latentq") else speed_ratio(values, ours)
        fastest = min(values) / iterations
        rows.append(Row(name, median, fastest, group.items / median, ratio, name in group.limits))
    return Result(group.title, group.unit, rows)
