"""Parts of the page: charts, tables, and numbers as text."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from latentq.inspect.report.charts import number
from latentq.system.text import escaped

if TYPE_CHECKING:
    from markupsafe import Markup


@dataclass(frozen=True)
class Chart:
    """A chart.

    Attributes:
        title: Its title.
        text: Numbers that belong to it.
        svg: The chart.
    """

    title: str
    text: str
    svg: Markup


@dataclass(frozen=True)
class Table:
    """A table.

    Attributes:
        title: What it holds.
        head: The names of its columns.
        rows: Its cells; the first of a row names it.
        texts: The columns, counted from 0, that hold text and not numbers.
    """

    title: str
    head: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]
    texts: tuple[int, ...] = ()


def escaped_lines(text: str) -> str:
    """Returns lines of text with their control characters escaped."""
    return "\n".join(map(escaped, text.split("\n")))


def chart(title: str, text: str, svg: str) -> Chart:
    """Returns a chart with a title and text."""
    from markupsafe import Markup

    return Chart(title, text, Markup(svg))


def listed(names: Sequence[str], values: Sequence[float]) -> str:
    """Returns names with their values, for readers who do not see a chart."""
    return ", ".join(f"{name} {value:,}" for name, value in zip(names, values, strict=True))


def sides(shape: Sequence[int]) -> str:
    """Returns a shape as text, such as `4 x 32 x 32`."""
    return " x ".join(map(str, shape))


def plain(value: float) -> str:
    """Returns a number with at least four significant digits; a hyphen if it is not finite."""
    return number(value, 4) if math.isfinite(value) else "-"


def decibels(value: float) -> str:
    """Returns a ratio in decibels as text."""
    if math.isnan(value):
        return "-"
    return f"{value:.2f} dB" if math.isfinite(value) else "no error" if value > 0 else "-"
