"""Panels of the page: buckets, classes, captions, rejects, sizes, how a dataset was made, and how to load it."""

from __future__ import annotations

import shlex
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from latentq.inspect.describe import buckets_text, image_text, model_rows
from latentq.inspect.report import charts
from latentq.inspect.report.facts import DatasetFacts
from latentq.inspect.report.parts import Chart, Table, chart, escaped_lines, listed
from latentq.system.text import counted, escaped, size_text

_BARS = 16
CAPTION = 300  # characters of a caption


@dataclass(frozen=True)
class Panel:
    """Charts with a title: buckets, classes or captions."""

    title: str
    text: str
    charts: list[Chart] = field(default_factory=list)
    table: Table | None = None
    quotes: tuple[str, ...] = ()


def contents(facts: DatasetFacts) -> list[Panel]:
    """Returns panels of buckets, classes and captions, of those that a dataset has."""
    panels = [_buckets_panel(facts), _classes_panel(facts), *_caption_panels(facts)]
    return [panel for panel in panels if panel is not None]


def _buckets_panel(facts: DatasetFacts) -> Panel | None:
    if not facts.buckets:
        return None
    filled = sorted((bucket for bucket in facts.buckets if bucket.samples), key=lambda b: b.width / b.height)
    shown = sorted(sorted(filled, key=lambda b: -b.samples)[:_BARS], key=lambda b: b.width / b.height)
    names = [f"{bucket.height} x {bucket.width}" for bucket in shown]
    svg = charts.bars(
        names,
        [bucket.samples for bucket in shown],
        name=f"Samples in each bucket, height x width: {listed(names, [b.samples for b in shown])}",
        unit=lambda value: f"{value:,.0f}",
    )
    rows = [
        (f"{b.height} x {b.width}", f"{b.width / b.height:.3f}", f"{b.samples:,}", f"{b.samples / facts.samples:.1%}")
        for b in facts.buckets
    ]
    text = (
        f"{buckets_text(facts.recipe, facts.card)}. {counted(len(filled), 'bucket')} with samples, as height x width."
    )
    more = "" if len(shown) == len(filled) else f" The {len(shown)} largest are drawn."
    table = Table("All buckets", ("height x width", "width / height", "samples", "share"), rows)
    return Panel("Buckets", escaped(text + more), [chart("", "", svg)], table)


def _classes_panel(facts: DatasetFacts) -> Panel | None:
    classes = facts.classes
    if classes is None:
        return None
    counts = classes.counts
    names = [escaped(name) for name in classes.names]
    text = (
        f"{len(counts):,} {'class' if len(counts) == 1 else 'classes'} in {counted(classes.samples, 'sample')}: from "
        f"{counts[-1]:,} to {counts[0]:,} samples each."
    )
    shown = counts[: len(names)].tolist()
    views = [
        chart(
            "",
            "" if len(names) == len(counts) else f"The {len(names)} largest of {len(counts):,} classes",
            charts.bars(
                names,
                shown,
                name=f"Samples of the largest classes: {listed(names, shown)}",
                unit=lambda value: f"{value:,.0f}",
            ),
        )
    ]
    if len(counts) > len(names):
        alt = f"Samples of each class, largest first: from {counts[0]:,} to {counts[-1]:,}"
        svg = charts.line(counts, name=alt, x=("largest", f"{len(counts):,}th"))
        views.append(chart("", "Samples of each class, largest first", svg))
    table = Table("As a table", ("class", "samples"), [(n, f"{c:,}") for n, c in zip(names, shown, strict=True)], (0,))
    return Panel("Classes", text, views, table)


def _caption_panels(facts: DatasetFacts) -> list[Panel]:
    captions = facts.captions
    if captions is None:
        return []
    panels = []
    if len(captions.words):
        empty = int((captions.words == 0).sum())
        number = f"{counted(len(captions.words), 'caption')} of {counted(captions.samples, 'sample')}"
        text = f"{number}: {_spread_text(captions.words)} words."
        text += f" {counted(empty, 'caption')} without words." if empty else ""
        quotes = tuple(
            escaped(quote if len(quote) <= CAPTION else f"{quote[:CAPTION]}...") for quote in captions.examples if quote
        )
        views = [_length_chart(captions.words, "words", None)]
        panels.append(Panel("Lengths of captions", text, views, quotes=quotes))
    if captions.tokens is not None and len(captions.tokens):
        full = float((captions.tokens >= captions.limit).mean())
        text = (
            f"As the text encoder counts them, of {captions.limit} at most: {_spread_text(captions.tokens)} tokens. "
            f"{full:.1%} fill all {captions.limit}, and may be cut."
        )
        views = [_length_chart(captions.tokens, "tokens", captions.limit)]
        panels.append(Panel("Tokens of captions", text, views))
    return panels


def _length_chart(lengths: NDArray[np.int64], noun: str, limit: int | None) -> Chart:
    top = max(int(lengths.max()), limit or 0, 1)
    width = -(-(top + 1) // 48)  # whole numbers of words in each bar
    edges = np.arange(0, top + 1 + width, width)
    counts = np.histogram(lengths, edges - 0.5)[0]
    alt = f"Histogram of the number of {noun} in a caption: {_spread_text(lengths)}"
    svg = charts.histogram(edges, counts, name=alt)
    return chart("", f"Number of {noun} in a caption", svg)


def _spread_text(values: NDArray[np.int64]) -> str:
    low, middle, high = (f"{value:,.0f}" for value in np.quantile(values, (0, 0.5, 1)))
    return f"{low} to {high}, median {middle}"


def rejects_table(facts: DatasetFacts) -> Table | None:
    """Returns the rejects by reason; None if there are none."""
    if not facts.rejects:
        return None
    rows = [
        (escaped(group.stage), escaped(group.reason), f"{group.count:,}", escaped(", ".join(group.keys)))
        for group in facts.rejects
    ]
    return Table("Rejects by reason", ("stage", "reason, of the first", "images", "for example"), rows, (0, 1, 3))


def rejects_text(facts: DatasetFacts) -> str:
    """Returns a sentence on the rejects."""
    total = sum(group.count for group in facts.rejects)
    if facts.card is None:
        return "A folder without a card has no list of rejects."
    if not total:
        return "No image was rejected."
    images = facts.card.source.samples
    reasons = counted(len(facts.rejects), "reason")
    share = f"{total:,} of {images:,} images ({total / max(1, images):.2%})"
    return f"{share} were rejected for {reasons}; rejects.tsv lists all."


def storage_table(facts: DatasetFacts) -> Table | None:
    """Returns the size of the samples in several forms; None without samples."""
    if not facts.storage:
        return None
    rows = [
        (
            escaped(row.what),
            "-" if row.bytes is None else size_text(row.bytes),
            "-" if row.each is None else size_text(row.each),
            escaped(row.note),
        )
        for row in facts.storage
    ]
    return Table("Storage", ("form", "total", "a sample", "note"), rows, (0, 3))


def storage_chart(facts: DatasetFacts) -> Chart | None:
    """Returns the same as bars; None if fewer than two sizes are known."""
    known = [row for row in facts.storage if row.bytes is not None and row.what != "ImageNet would take"]
    if len(known) < 2:
        return None
    names = [escaped(row.what.partition(", quality")[0]) for row in known]
    sizes = [row.bytes or 0 for row in known]
    alt = "; ".join(f"{name}: {size_text(size)}" for name, size in zip(names, sizes, strict=True))
    svg = charts.bars(
        names, sizes, name=f"Bytes of all samples in several forms. {alt}", unit=lambda v: size_text(round(v))
    )
    return chart("", "All samples in each form", svg)


def made_rows(facts: DatasetFacts) -> list[tuple[str, str]]:
    """Returns names and values: units, throughput, recipe, models and versions."""
    recipe, card = facts.recipe, facts.card
    rows = []
    if card is not None:
        unit = counted(card.recipe.unit_size, "sample")
        rows.append(("units", f"{card.units:,}, each of up to {unit}"))
    if facts.rates is not None:
        rows.append(
            ("reading", f"{facts.rates.read:,.0f} samples/s, all columns, read and dequantized now by one thread")
        )
        if facts.rates.encoded is not None:
            rows.append(("encoding", f"{facts.rates.encoded:,.1f} images/s, loaded and encoded again now"))
        if facts.rates.published is not None:
            note = "by the times of its units' files, which copying changes"
            rows.append(("made at", f"{facts.rates.published:,.1f} samples/s, {note}"))
    changed = f", changed: {', '.join(recipe.changed)}" if recipe.changed else ""
    rows.append(("recipe", f"{recipe.name}{changed}"))
    rows += model_rows(card) if card is not None else [("autoencoder", recipe.autoencoder.model)]
    rows.append(("image", image_text(recipe, card)))
    if card is not None:
        rows += [(f"column {name}", encoding) for name, encoding in card.columns.items()]
        if card.counts is not None and card.counts.redone:
            rows.append(("redone", f"{card.counts.redone} in float32"))
        rows.append(("versions", ", ".join(f"{package} {version}" for package, version in card.versions.items())))
    return [(escaped(name), escaped(value)) for name, value in rows if value]


def code(facts: DatasetFacts) -> str:
    """Returns Python code that loads a dataset."""
    options = "" if facts.card is not None else f", recipe={facts.recipe.name!r}"
    options += ', cache="cache"' if facts.is_remote else ""
    names = [column for column in facts.columns if column.content in ("latent", "moments", "tokens")]
    shape = ""
    if names and not getattr(names[0].facts, "shapes", ()):
        sides = list(names[0].facts.shape)
        if names[0].content == "moments":
            sides[0] //= 2
        kind = "int64" if names[0].tokens is not None else "float32"
        shape = f"  # (64, {', '.join(map(str, sides))}) {kind}"
    key = names[0].content.replace("moments", "latent") if len(names) == 1 else (names[0].name if names else "")
    use = f'    batch["{key}"]{shape}' if key else "    batch"
    lines = [
        "import latentq",
        "",
        f"dataset = latentq.LatentDataset({facts.name!r}{options})",
        "for batch in dataset.loader(batch_size=64, shuffle=True, seed=0):",
        use,
    ]
    return escaped_lines("\n".join(lines))


def commands(facts: DatasetFacts) -> str:
    """Returns command lines for a dataset."""
    path = shlex.quote(facts.name)
    lines = [f"latentq info {path}", f"latentq verify {path}", f"latentq decode {path} --index 0 -o 0.png"]
    return escaped_lines("\n".join(lines))
