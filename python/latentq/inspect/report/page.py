"""The page of a report: facts as text, tables and charts, put into the template `page.html`."""

from __future__ import annotations

import base64
import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from latentq._core import __version__
from latentq.inspect.describe import quantizer_text, shape_text
from latentq.inspect.pictures import Picture
from latentq.inspect.report.columns import ColumnView, column_view
from latentq.inspect.report.data_urls import data_urls
from latentq.inspect.report.facts import DatasetFacts, SampleFacts
from latentq.inspect.report.formulas import Formula, formulas
from latentq.inspect.report.panels import (
    CAPTION,
    Panel,
    code,
    commands,
    contents,
    made_rows,
    rejects_table,
    rejects_text,
    storage_chart,
    storage_table,
)
from latentq.inspect.report.parts import Chart, Table, decibels, sides
from latentq.system.text import counted, escaped, size_text

if TYPE_CHECKING:
    from markupsafe import Markup

_FORMS = ("original", "float16", "bfloat16", "stored", "preview")  # that are shown before a sample is enlarged
_DECODED = ("stored", "preview")  # of which a dataset has one
_COMPARED_FORMS = ("jpeg", "float32", "stored")
_COMPARED_ROWS = 3


@dataclass(frozen=True)
class PictureView:
    """A picture on the page; `is_shown` is False if it is shown only when its sample is enlarged."""

    data: Markup
    width: int
    height: int
    title: str
    text: str
    alt: str
    is_shown: bool
    is_pixelated: bool


@dataclass(frozen=True)
class SampleView:
    """A sample on the page."""

    number: str
    key: str
    label: str
    caption: str
    score: str
    pictures: list[PictureView]
    across: int


@dataclass(frozen=True)
class DatasetView:
    """One dataset on the page."""

    letter: str
    path: str
    summary: str
    notes: list[str]
    columns: list[ColumnView]
    contents: list[Panel]
    rejects: Table | None
    rejects_text: str
    storage: Table | None
    storage_chart: Chart | None
    formulas: list[Formula]
    made: list[tuple[str, str]]
    code: str
    commands: str
    worst: list[SampleView]
    worst_text: str
    worst_across: int


def render(datasets: Sequence[DatasetFacts]) -> str:
    """Returns the page.

    Args:
        datasets: The facts of one dataset, or of two that are compared.
    """
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup

    folder = resources.files("latentq.inspect.report")
    template, css, script = (
        (folder / name).read_text(encoding="utf-8") for name in ("page.html", "page.css", "page.js")
    )
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=False, lstrip_blocks=False)
    script = f"\n{script}"
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    page = _Page(datasets)
    values = page.values() | {
        "css": Markup(f"\n{css}"),
        "script": Markup(script),
        "script_hash": Markup(f"sha256-{digest}"),
        "version": __version__,
    }
    return environment.from_string(template).render(report=values).rstrip() + "\n"


class _Page:
    """Builds the values of the template.

    Args:
        datasets: The facts of the datasets.
    """

    def __init__(self, datasets: Sequence[DatasetFacts]) -> None:
        self._datasets = datasets
        self._compared = len(datasets) > 1
        shown = [
            picture for facts in datasets for sample in [*facts.shown, *facts.worst] for picture in sample.pictures
        ]
        shown += [picture for _, row in self._form_rows() for picture in row]
        self._unique: dict[int, NDArray[np.uint8]] = {id(picture.pixels): picture.pixels for picture in shown}
        uses = Counter(id(picture.pixels) for picture in shown)  # a page holds a picture as often as it shows it
        urls, self._pictures_text = data_urls(list(self._unique.values()), [uses[one] for one in self._unique])
        self._urls = dict(zip(self._unique, urls, strict=True))

    def values(self) -> dict[str, Any]:
        """Returns the values of the template, except those of its style and script."""
        names = [facts.title for facts in self._datasets]
        heading = " and ".join(map(escaped, names))
        samples = self._samples()
        forms = self._forms()
        views = [self._dataset(facts, "AB"[number]) for number, facts in enumerate(self._datasets)]
        sections = [
            ("samples", "Samples", bool(samples)),
            ("forms", "Storage forms", forms is not None),
            ("worst", "Worst samples", any(view.worst for view in views)),
            ("channels", "Channels", any(view.columns for view in views)),
            ("contents", "Contents", any(view.contents for view in views)),
            ("rejects", "Rejects", True),
            ("storage", "Storage", True),
            ("normalization", "Normalization", any(view.formulas for view in views)),
            ("made", "Units and recipe", True),
            ("load", "Load it", True),
        ]
        return {
            "title": f"latentq report: {heading}",
            "heading": heading,
            "compared": self._compared,
            "datasets": views,
            "tiles": self._tiles(),
            "sections": [{"id": name, "title": title} for name, title, is_there in sections if is_there],
            "samples": samples,
            "samples_text": self._samples_text(),
            "across": max((sample.across for sample in samples), default=1),
            "forms": forms,
            "pictures_text": self._pictures_text if self._unique else "",
        }

    def _samples_text(self) -> str:
        first = self._datasets[0]
        text = f"{counted(len(first.shown), 'sample')}, evenly spread over {first.samples:,}."
        most = max((len(sample.pictures) for facts in self._datasets for sample in facts.shown), default=0)
        if not most:
            return text
        return f"{text} Select one to enlarge it{' and to see it in every form' if most > 1 else ''}."

    def _samples(self) -> list[SampleView]:
        first = self._datasets[0]
        if not self._compared:
            return [self._sample(sample, sample.pictures) for sample in first.shown]
        by_key = {sample.key or str(sample.index): sample for sample in self._datasets[1].shown}
        views = []
        for sample in first.shown:
            other = by_key.get(sample.key or str(sample.index))
            originals = [picture for picture in sample.pictures if picture.form == "original"]
            others = [picture for picture in sample.pictures if picture.form in _DECODED]
            twins = [picture for picture in (other.pictures if other else []) if picture.form in _DECODED]
            more = [picture for picture in sample.pictures if picture.form not in ("original", *_DECODED)]
            marked = [("", picture) for picture in originals]
            marked += [("A ", picture) for picture in others] + [("B ", picture) for picture in twins]
            pictures = [self._picture(picture, sample.key, f"{mark}{picture.title}", True) for mark, picture in marked]
            pictures += [self._picture(picture, sample.key, picture.title, False) for picture in more]
            views.append(self._sample_view(sample, pictures))
        return views

    def _sample(self, sample: SampleFacts, pictures: list[Picture], score: str = "") -> SampleView:
        views = [self._picture(picture, sample.key, picture.title, picture.form in _FORMS) for picture in pictures]
        return self._sample_view(sample, views, score)

    def _sample_view(self, sample: SampleFacts, pictures: list[PictureView], score: str = "") -> SampleView:
        caption = sample.caption if len(sample.caption) <= CAPTION else f"{sample.caption[:CAPTION]}..."
        across = max(1, sum(picture.is_shown for picture in pictures))
        texts = map(escaped, (f"#{sample.index}", sample.key, sample.label, caption))
        number, key, label, caption = texts
        return SampleView(number, key, label, caption, score, pictures, across)

    def _picture(self, picture: Picture, key: str, title: str, is_shown: bool) -> PictureView:
        from markupsafe import Markup

        height, width = picture.pixels.shape[:2]
        numbers = [] if picture.nbytes is None else [size_text(picture.nbytes)]
        numbers += [] if picture.psnr is None else [f"PSNR {decibels(picture.psnr)}"]
        alt = escaped(f"{key or picture.name or 'sample'}, {title}")
        data = Markup(self._urls[id(picture.pixels)])
        is_pixelated = picture.form == "preview"
        return PictureView(data, width, height, escaped(title), "\n".join(numbers), alt, is_shown, is_pixelated)

    def _forms(self) -> dict[str, Any] | None:
        """Returns the comparison of imagenet_3gb: JPEG, latents of 32 bits, and latents as stored."""
        facts = self._datasets[0]
        rows = self._form_rows()
        if not rows:
            return None
        sizes = {row.what: row.bytes for row in facts.storage}
        jpegs = next((size for what, size in sizes.items() if what.startswith("JPEG")), None)
        stored = sizes.get("latents, as stored")
        totals = (jpegs, sizes.get("latents, float32"), stored)
        first = rows[0][1]
        heads = [picture.title[:1].upper() + picture.title[1:] for picture in first]
        if facts.buckets:
            heads[0] = "JPEG of the bucket's size"
        texts = ["" if size is None else size_text(size) for size in totals]
        pictures = [self._picture(picture, sample.key, picture.title, True) for sample, row in rows for picture in row]
        return {"heads": list(zip(heads, texts, strict=True)), "pictures": pictures}

    def _form_rows(self) -> list[tuple[SampleFacts, list[Picture]]]:
        """Returns the samples that the comparison of forms shows, each with its picture in every form."""
        rows = []
        for sample in self._datasets[0].shown:
            by_form = {picture.form: picture for picture in sample.pictures}
            if all(form in by_form for form in _COMPARED_FORMS):
                rows.append((sample, [by_form[form] for form in _COMPARED_FORMS]))
        return rows[:_COMPARED_ROWS]

    def _tiles(self) -> list[dict[str, Any]]:
        rows: dict[str, list[dict[str, str]]] = {}
        values = [_tile_values(facts) for facts in self._datasets]
        for name in dict.fromkeys(name for found in values for name in found):
            pairs = [found.get(name, ("-", "")) for found in values]
            rows[name] = [{"text": text, "note": note} for text, note in pairs]
        return [{"name": name, "cells": found} for name, found in rows.items()]

    def _dataset(self, facts: DatasetFacts, letter: str) -> DatasetView:
        worst = [self._sample(sample, sample.pictures, _score_text(facts, sample)) for sample in facts.worst]
        measured = any(column.errors is not None and column.errors.samples for column in facts.columns)
        reason = "Lowest SQNR against the images, encoded again" if measured else "Most values at the ends of the range"
        return DatasetView(
            letter=letter,
            path=escaped(facts.name),
            summary=_summary(facts),
            notes=[escaped(note) for note in facts.notes],
            columns=[column_view(column) for column in facts.columns],
            contents=contents(facts),
            rejects=rejects_table(facts),
            rejects_text=rejects_text(facts),
            storage=storage_table(facts),
            storage_chart=storage_chart(facts),
            formulas=formulas(facts),
            made=made_rows(facts),
            code=code(facts),
            commands=commands(facts),
            worst=worst,
            worst_text=reason,
            worst_across=max((sample.across for sample in worst), default=1),
        )


def _summary(facts: DatasetFacts) -> str:
    made = facts.card.autoencoder.name if facts.card is not None else facts.recipe.autoencoder.model
    text = f"{facts.samples:,} {'sample' if facts.samples == 1 else 'samples'} by {made}"
    return escaped(text if facts.card is not None else f"{text}, without a card: recipe {facts.recipe.name}")


def _score_text(facts: DatasetFacts, sample: SampleFacts) -> str:
    if sample.score is None:
        return ""
    measured = any(column.errors is not None and column.errors.samples for column in facts.columns)
    return f"SQNR {sample.score:.2f} dB" if measured else f"{sample.score:.3%} of values at the ends"


def _tile_values(facts: DatasetFacts) -> dict[str, tuple[str, str]]:
    """Returns the numbers at the top of the page, by name, each with a note."""
    tiles: dict[str, tuple[str, str]] = {}
    source = "" if facts.card is None else f"of {facts.card.source.samples:,} in the source ({facts.card.source.kind})"
    tiles["Samples"] = (f"{facts.samples:,}", source)
    rejects = sum(group.count for group in facts.rejects)
    if facts.card is not None:
        tiles["Rejects"] = (f"{rejects:,}", "" if not facts.rejects else counted(len(facts.rejects), "reason"))
    sizes = {row.what: row for row in facts.storage}
    for column in facts.columns[:1]:
        shape = shape_text(column.facts) if hasattr(column.facts, "shapes") else sides(column.facts.shape)
        first, _, last = shape.partition(" to ")
        others = f"to {last}; " if last else ""
        if column.tokens is None:
            note = f"{others}{column.content}, {quantizer_text(column.facts)}"
        else:
            note = f"{others}tokens of {column.tokens.codebook_size:,}, {column.facts.dtype}"
        tiles["Stored values"] = (first, escaped(note))
    stored = sizes.get("latents, as stored") or sizes.get("tokens, as stored")
    if stored is not None and stored.each is not None:
        floats = sizes["latents, float32"].each
        smaller = floats / stored.each if floats and stored.each else 1.0
        ratio = f"{smaller:.1f} times smaller than float32" if smaller > 1 else ""
        tiles["Bytes a sample"] = (size_text(stored.each), ratio)
    if "the whole dataset" in sizes:
        tiles["The whole dataset"] = (size_text(sizes["the whole dataset"].bytes or 0), "")
    errors = next((column.errors for column in facts.columns if column.errors is not None), None)
    if errors is not None:
        how = f"measured on {counted(errors.samples, 'sample')}" if errors.samples else "estimated from step sizes"
        tiles["SQNR"] = (decibels(errors.overall_sqnr_db), how)
    scores: dict[str, list[float]] = {}
    for sample in facts.shown:
        for picture in sample.pictures:
            if picture.psnr is not None:
                scores.setdefault(picture.form, []).append(picture.psnr)
    if "stored" in scores:
        halves = scores.get("float16") or scores.get("bfloat16")
        note = "" if not halves else f"from 16-bit floats {decibels(float(np.mean(halves)))}"
        tiles["PSNR of decoded"] = (decibels(float(np.mean(scores["stored"]))), note)
    clipped = next((column.clipped for column in facts.columns if column.clipped is not None), None)
    if clipped is not None:
        tiles["Clipped"] = (f"{clipped:.3%}", "of all values")
    return tiles
