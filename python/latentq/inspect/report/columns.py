"""Columns that an encoder made, on the page: the distribution and the error of each channel, and the use of tokens."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from latentq.inspect.describe import channel_names, quantizer_text, shape_text
from latentq.inspect.report import charts
from latentq.inspect.report.channels import Channels, Errors
from latentq.inspect.report.facts import ColumnFacts
from latentq.inspect.report.parts import Chart, Table, chart, decibels, plain, sides
from latentq.system.text import counted, escaped

_ALL_CHANNELS = 32  # columns with more channels are shown by profiles and their worst channels
_SOME_CHANNELS = 12
_BARS = 16


@dataclass(frozen=True)
class ColumnView:
    """A column whose values were measured."""

    title: str
    text: str
    legend: str
    has_range: bool
    profiles: list[Chart]
    histograms: list[Chart]
    table: Table | None
    table_text: str


def column_view(column: ColumnFacts) -> ColumnView:
    """Returns what the page shows of a column."""
    shape = shape_text(column.facts) if hasattr(column.facts, "shapes") else sides(column.facts.shape)
    title = escaped(f"{column.name}: {shape}")
    if column.tokens is not None:
        return _token_view(column, title)
    channels, errors = column.channels, column.errors
    assert channels is not None
    names = _channel_names(column)
    has_all = len(channels) <= _ALL_CHANNELS
    order = np.arange(len(channels)) if has_all else _worst_channels(column)
    has_range = channels.range is not None
    content = column.content.replace("_", " ")
    text = f"{content[:1].upper()}{content[1:]}, stored as {quantizer_text(column.facts)}."
    if errors is not None:
        how = (
            f"measured on {counted(errors.samples, 'image')}, encoded again"
            if errors.samples
            else "estimated from the widths of steps; with the source it is measured"
        )
        text += f" SQNR over all channels {decibels(errors.overall_sqnr_db)}, {how}."
    if column.clipped is not None:
        text += f" {column.clipped:.4%} of all values lie outside the range."
    some = "" if has_all else f" {len(order)} of {len(channels):,} channels: those of lowest SQNR."
    legend = f"Values of {counted(channels.samples, 'sample')}, evenly spread, channel by channel.{some}"
    return ColumnView(
        title,
        escaped(text),
        legend,
        has_range,
        [] if has_all else _profiles(column),
        [_channel_chart(channels, errors, number, names[number]) for number in order.tolist()],
        _channel_table(column, names, order),
        _table_text(column, has_all),
    )


def _table_text(column: ColumnFacts, has_all: bool) -> str:
    statistics = getattr(column.facts, "statistics", None)
    where = "of all samples" if statistics is not None else "of the samples that were read"
    text = f"Mean, deviation and extremes {where}."
    if column.errors is not None:
        text += " PSNR is taken against the span of a channel's values."
    return text if has_all else f"{text} The channels above."


def _channel_names(column: ColumnFacts) -> list[str]:
    assert column.channels is not None
    return channel_names(column.content, column.spread, len(column.channels))


def _worst_channels(column: ColumnFacts) -> NDArray[np.int64]:
    """Returns the channels of lowest SQNR, or those of largest deviation if that is not known."""
    channels, errors = column.channels, column.errors
    assert channels is not None
    key = -channels.std if errors is None or len(errors.sqnr_db) != len(channels) else errors.sqnr_db
    return np.argsort(key, kind="stable")[:_SOME_CHANNELS]


def _profiles(column: ColumnFacts) -> list[Chart]:
    """Returns charts over many channels."""
    channels, errors = column.channels, column.errors
    assert channels is not None
    last = f"{len(channels) - 1:,}"
    rows = [("Mean by channel", channels.mean, plain), ("Standard deviation by channel", channels.std, plain)]
    if errors is not None and np.isfinite(errors.sqnr_db).any():
        rows.append(("SQNR by channel", errors.sqnr_db, decibels))
    if column.clip_rate is not None and column.clip_rate.any():
        rows.append(("Clipped by channel", column.clip_rate, lambda value: f"{value:.3%}"))
    result = []
    for title, values, unit in rows:
        finite = values[np.isfinite(values)]
        text = f"from {unit(float(finite.min()))} to {unit(float(finite.max()))}" if len(finite) else ""
        result.append(chart(title, text, charts.line(values, name=f"{title}, {text}", x=("0", last))))
    return result


def _channel_chart(channels: Channels, errors: Errors | None, number: int, name: str) -> Chart:
    limits = None
    if channels.range is not None:
        low, high = channels.range[number].tolist()
        limits = (low, high)
    parts = [f"{charts.number(channels.mean[number], 2)} ± {charts.number(channels.std[number])}"]
    if errors is not None and number < len(errors.sqnr_db) and math.isfinite(errors.sqnr_db[number]):
        parts.append(f"SQNR {errors.sqnr_db[number]:.1f} dB")
    text = ", ".join(parts)
    range_text = (
        "" if limits is None else f", the quantizer's range {charts.number(limits[0])} to {charts.number(limits[1])}"
    )
    alt = f"Histogram of channel {name}: mean and standard deviation {text}{range_text}"
    svg = charts.histogram(channels.edges[number], channels.counts[number], name=alt, limits=limits, is_small=True)
    return chart(name if " " in name else f"Channel {name}", text, svg)


def _channel_table(column: ColumnFacts, names: list[str], order: NDArray[np.int64]) -> Table:
    channels, errors, statistics = column.channels, column.errors, getattr(column.facts, "statistics", None)
    assert channels is not None
    mean, std, low, high = (
        (channels.mean, channels.std, channels.low, channels.high)
        if statistics is None
        else (statistics.mean, statistics.std, statistics.min, statistics.max)
    )
    columns: dict[str, Callable[[int], str]] = {
        "mean": lambda number: plain(mean[number]),
        "std": lambda number: plain(std[number]),
        "min": lambda number: plain(low[number]),
        "max": lambda number: plain(high[number]),
    }
    if channels.range is not None:
        span = channels.range
        columns["range"] = lambda number: f"{plain(span[number, 0])} to {plain(span[number, 1])}"
    if column.clip_rate is not None:
        rates = column.clip_rate
        columns["clipped"] = lambda number: f"{rates[number]:.4%}"
    if errors is not None:
        sqnr, psnr = errors.sqnr_db, errors.psnr_db
        note = "" if errors.samples else " (est.)"
        columns[f"SQNR{note}"] = lambda number: decibels(sqnr[number]) if number < len(sqnr) else "-"
        columns[f"PSNR{note}"] = lambda number: decibels(psnr[number]) if number < len(psnr) else "-"
    rows = [(names[number], *(cell(number) for cell in columns.values())) for number in order.tolist()]
    return Table(f"Channels of {escaped(column.name)}", ("channel", *columns), rows)


def _token_view(column: ColumnFacts, title: str) -> ColumnView:
    use = column.tokens
    assert use is not None
    total = int(use.counts.sum())
    text = (
        f"Tokens of a codebook of {use.codebook_size:,}, stored as {column.facts.dtype}. In "
        f"{counted(use.samples, 'sample')}, evenly spread, {len(use.tokens):,} of the codebook's tokens occur "
        f"({len(use.tokens) / use.codebook_size:.1%}). Their entropy is {use.entropy:.2f} bits of "
        f"{math.log2(max(1, use.codebook_size)):.2f}: a perplexity of {2**use.entropy:,.0f}."
    )
    share = use.counts / total
    alt = f"Share of each token, most frequent first: from {share[0]:.3%} to {share[-1]:.3%}"
    last = f"{len(use.tokens):,}th"
    profile = charts.line(share * 100, name=alt, x=("most frequent", last), logarithmic=True)
    common = min(_BARS, len(use.tokens))
    bar = charts.bars(
        [f"token {token}" for token in use.tokens[:common].tolist()],
        (share[:common] * 100).tolist(),
        name=f"The {common} most frequent tokens and their shares in percent",
        unit=lambda value: f"{value:.2f} %",
    )
    views = [
        chart("Share of each token in percent,", "most frequent first", profile),
        chart("The most frequent tokens", "", bar),
    ]
    return ColumnView(title, text, "", False, views, [], None, "")
