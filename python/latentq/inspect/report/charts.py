"""Charts as inline SVG, drawn by pygal; colors and fonts come from the page's style sheet, so that themes apply.

pygal puts a style sheet, a script, today's date and invisible text for its tooltips into each chart. All of that is
removed: the page has one style sheet for all charts, and equal facts give equal bytes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

_WIDTH = 360  # in the unit of the fonts, so that text is readable on a phone
_SMALL = (230, 112)  # width and height of one of many charts
_NAME = 22  # characters of a bar's name, at most
_POINTS = 256  # of a line, at most
_DROPPED = ("defs", "title", "desc")


def number(value: float, digits: int = 3) -> str:
    """Returns a number with at least some significant digits, without an exponent below a million."""
    return f"{value:,.0f}" if 10**digits <= abs(value) < 1e6 else f"{value:.{digits}g}"


def histogram(
    edges: Sequence[float] | NDArray[Any],
    counts: Sequence[float] | NDArray[Any],
    *,
    name: str,
    limits: tuple[float, float] | None = None,
    is_small: bool = False,
) -> str:
    """Draws a histogram as an area.

    Args:
        edges: The edges of the bars, one more than bars.
        counts: The height of each bar.
        name: What the chart shows, for readers who do not see it.
        limits: Values that are marked by lines: the quantizer's range.
        is_small: True for one of many, drawn smaller with larger text.
    """
    import pygal

    edges, counts = np.asarray(edges, np.float64).tolist(), np.asarray(counts, np.float64).tolist()
    top = max(counts, default=0.0) or 1.0
    outline = [(edges[0], 0.0)]
    for left, right, count in zip(edges, edges[1:], counts, strict=False):
        outline += [(left, count), (right, count)]
    chart = _chart(
        pygal.XY,
        _SMALL[1] if is_small else 150,
        width=_SMALL[0] if is_small else _WIDTH,
        show_y_labels=False,
        show_y_guides=False,
        xrange=(edges[0], edges[-1]),
        range=(0, top),
    )
    chart.x_labels = [edges[0], *([0] if _has_room_for_zero(edges[0], edges[-1], is_small) else ()), edges[-1]]
    chart.x_value_formatter = number
    chart.add("values", [*outline, (edges[-1], 0.0)], fill=True, show_dots=False)
    for limit in limits or ():
        chart.add("range", [(limit, 0), (limit, top)], show_dots=False)
    return _svg(chart, name)


def _has_room_for_zero(low: float, high: float, is_small: bool) -> bool:
    """True if a label 0 on an axis from `low` to `high` is a character away from the labels of both ends."""
    if not low < 0 < high:
        return False
    character, width = (9, _SMALL[0]) if is_small else (7, _WIDTH)  # in the page's largest font for the chart
    left = width * low / (low - high)
    needed = [character * (len(number(end)) + 1.5) for end in (low, high)]
    return left >= needed[0] and width - left >= needed[1]


def bars(names: Sequence[str], values: Sequence[float], *, name: str, unit: Callable[[float], str] = number) -> str:
    """Draws one horizontal bar for each name, from the top.

    Args:
        names: The names.
        values: Their values, not negative.
        name: What the chart shows, for readers who do not see it.
        unit: Returns a value as text, which is printed next to its bar.
    """
    import pygal

    chart = _chart(pygal.HorizontalBar, 16 + 24 * len(names), show_x_guides=False, margin_bottom=0)
    short = [text if len(text) <= _NAME else f"{text[: _NAME - 3]}..." for text in names]
    chart.x_labels = list(reversed(short))
    chart.show_x_labels = chart.show_y_labels = True
    chart.print_values, chart.print_values_position = True, "top"
    chart.value_formatter = unit
    top = max(values, default=0) or 1
    chart.range = (0, top * 1.4)  # room for the values
    chart.y_labels = [0]
    chart.add("values", list(reversed(values)), rounded_bars=2)
    return _svg(chart, name, drop_axis=True)


def line(
    values: Sequence[float] | NDArray[Any],
    *,
    name: str,
    x: tuple[str, str] = ("", ""),
    logarithmic: bool = False,
    height: int = 190,
) -> str:
    """Draws values in their order as a line: of many, the mean of each run, or with logarithmic axes some of them.

    Args:
        values: The values; those that are not finite are left out.
        name: What the chart shows, for readers who do not see it.
        x: The labels of the first and of the last value.
        logarithmic: True for logarithmic axes of ranks and values, which must be positive.
        height: The chart's height; its width is 360.
    """
    import pygal

    array = np.asarray(values, np.float64)
    if logarithmic:
        ranks = np.unique(np.geomspace(1, len(array), min(_POINTS, len(array))).round().astype(int))
        pairs = [(int(rank), float(array[rank - 1])) for rank in ranks]
    else:
        runs = np.array_split(array, min(_POINTS, len(array)))
        means = [float(run[np.isfinite(run)].mean()) if np.isfinite(run).any() else math.nan for run in runs]
        pairs = list(enumerate(means, 1))
    points = [pair for pair in pairs if math.isfinite(pair[1])]
    last = max(2, pairs[-1][0])
    chart = _chart(pygal.XY, height, xrange=(1, last), logarithmic=logarithmic, max_scale=6)
    chart.x_labels = [{"value": 1, "label": x[0]}, {"value": last, "label": x[1]}]
    chart.value_formatter = number
    chart.add("values", points if len(points) > 1 else points * 2, show_dots=False)
    return _svg(chart, name)


def _chart(kind: Any, height: int, *, width: int = _WIDTH, **options: Any) -> Any:
    from pygal.style import Style

    style = Style(font_family="inherit", label_font_size=12, major_label_font_size=12, value_font_size=11)
    return kind(
        width=width,
        height=height,
        css=(),
        js=(),
        style=style,
        show_legend=False,
        margin=6,
        spacing=6,
        disable_xml_declaration=True,
        no_prefix=True,
        **options,
    )


def _svg(chart: Any, name: str, *, drop_axis: bool = False) -> str:
    """Returns a chart as an SVG element that says its name, without what pygal adds for a page of its own."""

    def cleaned(root: Any) -> Any:
        for parent in [*root.iter()]:
            for child in [*parent]:
                tag = child.tag if isinstance(child.tag, str) else ""
                if not tag or tag.rpartition("}")[2] in _DROPPED or _is_unused(child, drop_axis):
                    parent.remove(child)
            for key, value in [*parent.attrib.items()]:
                if "." in value and key != "class":
                    parent.attrib[key] = _rounded(value)
        root.attrib.pop("id", None)
        root.attrib.update({"role": "img", "aria-label": name, "width": str(chart.width), "height": str(chart.height)})
        return root

    chart.add_xml_filter(cleaned)
    return str(chart.render(is_unicode=True))


def _is_unused(node: Any, drop_axis: bool) -> bool:
    """True if a node draws nothing: the text of tooltips, the background, and the axis of values if it is dropped."""
    kind = node.attrib.get("class", "")
    is_axis = drop_axis and kind.startswith("axis x")
    return "tooltip" in kind.split() or kind == "background" or is_axis


def _rounded(text: str) -> str:
    """Returns coordinates with one decimal, which is a tenth of a pixel."""
    parts = []
    for word in text.split(" "):
        head = word.lstrip("MLZmlz")
        prefix = word[: len(word) - len(head)]
        try:
            parts.append(f"{prefix}{float(head):.1f}" if head else prefix)
        except ValueError:
            parts.append(word)
    return " ".join(parts)
