"""The command `latentq info`."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

from latentq._core import LatentqError
from latentq.cli.common import (
    UsageError,
    add_command,
    add_url_options,
    check_source,
    no_dataset,
    opened_dataset,
    original_source,
    print_rows,
    progress_stream,
)
from latentq.inspect.describe import (
    LEVELED,
    buckets_text,
    image_text,
    model_rows,
    quantizer_text,
    shape_text,
    spread_text,
)
from latentq.system.text import counted, escaped, size_text

if TYPE_CHECKING:
    from latentq.cli.common import Commands
    from latentq.format.card import Card
    from latentq.format.facts import EmbeddingFacts, LatentFacts
    from latentq.format.options import Column
    from latentq.run.opened import OpenedDataset

_BAR = 40  # characters of the longest bar


def add(commands: Commands) -> None:
    """Adds the command."""
    parser = add_command(
        commands,
        "info",
        _run,
        "show a dataset's card",
        "  latentq info out/\n  latentq info out/ --json\n"
        "  latentq info out/ --storage --source photos/     its size, compared with images and floats",
    )
    parser.add_argument("dataset", metavar="DATASET", help="a dataset's folder or URL")
    parser.add_argument("--storage", action="store_true", help="compare its size with images, JPEGs and floats")
    parser.add_argument("--source", metavar="SRC", help="with --storage: the dataset's source, to try JPEGs with")
    add_url_options(parser)


def _run(options: argparse.Namespace) -> int:
    from latentq.format.card import CARD, Card

    if options.source is not None and not options.storage:
        raise UsageError("--source needs --storage")
    with opened_dataset(options, options.dataset) as dataset:
        path = dataset.folder
        if not (path / CARD).exists():
            if options.storage:
                raise LatentqError(f"{path} has no card ({CARD}), so nothing says what its columns are")
            return _print_shards(dataset, as_json=options.json)
        card = Card.load(path)
        if options.storage:
            dataset.need_all()
            _print_storage(path, options)
        elif options.json:
            print(json.dumps({**card.to_dict(), "bytes": dataset.nbytes()}))
        else:
            _print_card(dataset, card)
    return 0


def _print_card(dataset: OpenedDataset, card: Card) -> None:
    print_rows([("dataset", dataset.name), *_count_rows(dataset.folder, card), *_recipe_rows(dataset, card)])
    if card.buckets:
        _print_buckets(card)
    for name, latent in card.latents.items():
        _print_latent(name, latent, card.recipe.columns[name])
    for name, embedding in card.embeddings.items():
        _print_embedding(name, embedding)
    for name, tokens in card.tokens.items():
        print(f"\n{escaped(name)}: {shape_text(tokens)}, tokens of {tokens.codebook_size}, {tokens.dtype}")


def _count_rows(path: Path, card: Card) -> list[tuple[str, str]]:
    from latentq.run.units import units_done

    if card.counts is None:
        return [("state", f"not finished: {units_done(path, card)} of {counted(card.units, 'unit')}")]
    return [
        ("samples", f"{card.counts.samples} of {card.source.samples} in the source ({card.source.kind})"),
        ("rejects", f"{card.counts.rejects}"),
        *([("redone", f"{card.counts.redone} in float32")] if card.counts.redone else ()),
        ("units", f"{card.units}, each of up to {counted(card.recipe.unit_size, 'sample')}"),
    ]


def _recipe_rows(dataset: OpenedDataset, card: Card) -> list[tuple[str, str]]:
    changed = f", changed: {', '.join(card.recipe.changed)}" if card.recipe.changed else ""
    return [
        ("bytes", size_text(dataset.nbytes())),
        ("recipe", f"{card.recipe.name}{changed}"),
        *model_rows(card),
        *_normalization_rows(card),
        ("image", image_text(card.recipe, card)),
        *((f"column {name}", encoding + _first_bucket(card, name)) for name, encoding in card.columns.items()),
        ("versions", ", ".join(f"{package} {version}" for package, version in card.versions.items())),
    ]


def _first_bucket(card: Card, column: str) -> str:
    """Returns what to add to a column's encoding if it is that of the first bucket only."""
    from latentq.quantizer import Transform

    latent = card.latents.get(column)
    if latent is not None and isinstance(latent.quantizer, Transform):
        return ""  # a sample has as many bytes in every bucket, or "bytes" stands for any
    facts = latent or card.tokens.get(column)
    return " in the first bucket" if facts is not None and len(facts.shapes) > 1 else ""


def _normalization_rows(card: Card) -> list[tuple[str, str]]:
    """Returns rows for `print_rows` with the formula from raw latents `z` to scaled ones, and its numbers."""
    from latentq.format.files import NORMALIZATION

    if not card.latents:
        return []
    normalization = card.autoencoder.normalization
    rows = [("scaled", normalization.formula)]
    if normalization.positions:
        return [*rows, ("mean, std", f"of each position: {NORMALIZATION}, float32 (2, C, h, w)")]
    for name, values in (("mean", normalization.mean), ("std", normalization.std)):
        if len(values) > 1:
            rows.append((name, ", ".join(f"{value:.5g}" for value in values)))  # --json has all digits
    return rows


def _print_buckets(card: Card) -> None:
    """Prints a line for each bucket that has samples, with a bar as long as its share of the largest."""
    sizes, counts = card.recipe.bucket_sizes(), card.counts and card.counts.buckets
    print(f"\nbuckets: {buckets_text(card.recipe, card)}")
    print(f"{'bucket':>6} {'height x width':>15} {'ratio':>6} {'samples':>10} {'share':>7}".rstrip())
    for bucket, (height, width) in enumerate(sizes):
        line = f"{bucket:>6} {height:>7} x {width:<5} {width / height:>6.3f}"
        if counts:
            bar = "#" * round(_BAR * counts[bucket] / max(1, max(counts)))
            line += f" {counts[bucket]:>10} {counts[bucket] / max(1, sum(counts)):>7.1%}  {bar}"
        if not counts or counts[bucket]:
            print(line.rstrip())
    if counts and (empty := counts.count(0)):
        print(f"{counted(empty, 'bucket')} without samples")


def _print_embedding(name: str, embedding: EmbeddingFacts) -> None:
    has_range = embedding.quantizer.kind in LEVELED
    clipped = f", {counted(embedding.clipped, 'value')} clipped" if has_range and embedding.clipped is not None else ""
    print(f"\n{escaped(name)}: {' x '.join(map(str, embedding.shape))}, {quantizer_text(embedding)}{clipped}")


def _print_latent(name: str, latent: LatentFacts, column: Column) -> None:
    halves = f"; means, then {spread_text(column.spread)}s" if column.content == "moments" else ""
    print(f"\n{escaped(name)}: {shape_text(latent)}, {quantizer_text(latent)}{halves}")
    if latent.statistics is None:
        return
    statistics = latent.statistics
    least, most = min(statistics.min, default=0.0), max(statistics.max, default=0.0)
    key = f"{least:.4g} to {most:.4g}: - min to max, = mean - std to mean + std, | mean"
    print(f"{'channel':>7} {'mean':>10} {'std':>10} {'min':>10} {'max':>10} {'clipped':>9}  {key}")
    for channel, (mean, std, low, high) in enumerate(
        zip(statistics.mean, statistics.std, statistics.min, statistics.max, strict=True)
    ):
        share = latent.clipped[channel] / statistics.count[channel] if latent.clipped else 0.0
        chart = _range_chart((least, most), (low, high), (mean - std, mean + std), mean)
        print(f"{channel:>7} {mean:>10.4f} {std:>10.4f} {low:>10.4f} {high:>10.4f} {share:>9.4%}  {chart}")


def _range_chart(axis: tuple[float, float], full: tuple[float, float], usual: tuple[float, float], mean: float) -> str:
    """Returns a line that draws two ranges and a value on an axis of `_BAR` characters."""
    width = axis[1] - axis[0]

    def place(value: float) -> int:
        return min(_BAR - 1, max(0, int(_BAR * (value - axis[0]) / width))) if width > 0 else 0

    line = [" "] * _BAR
    for (low, high), mark in ((full, "-"), (usual, "=")):
        first, last = place(max(low, full[0])), place(min(high, full[1]))
        line[first : last + 1] = mark * (last + 1 - first)
    line[place(mean)] = "|"
    return "".join(line).rstrip()


def _print_storage(path: Path, options: argparse.Namespace) -> None:
    if options.source is not None:
        check_source(options.source)
    from latentq.inspect.storage import storage

    rows = storage(path, original_source(options, path), progress=progress_stream(options))
    if options.json:
        print(json.dumps([vars(row) for row in rows]))
        return
    width = max(len(row.what) for row in rows)
    print(f"{'':<{width}} {'total':>10} {'a sample':>12}")
    for row in rows:
        total, each = ("-" if value is None else size_text(value) for value in (row.bytes, row.each))
        print(escaped(f"{row.what:<{width}} {total:>10} {each:>12}  {row.note}".rstrip()))


def _print_shards(dataset: OpenedDataset, *, as_json: bool) -> int:
    from latentq import mds
    from latentq.format.files import INDEX

    path = dataset.folder
    if not (path / INDEX).exists():
        raise no_dataset(path)
    reader = mds.Reader(path)
    if as_json:
        print(json.dumps({"samples": len(reader), "columns": reader.columns, "bytes": dataset.nbytes()}))
        return 0
    columns = [(f"column {name}", encoding) for name, encoding in reader.columns.items()]
    size = size_text(dataset.nbytes())
    print_rows([("shards", f"{dataset.name} (no card)"), ("samples", str(len(reader))), ("bytes", size), *columns])
    return 0
