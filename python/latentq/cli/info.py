"""The command `latentq info`."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from latentq._core import LatentqError
from latentq.system.progress import size_text as _size

if TYPE_CHECKING:
    from latentq.format.card import Card, EmbeddingFacts
from latentq.cli.common import UsageError, bytes_of, check_source, command, dataset, table


def add_info(commands: Any) -> None:
    parser = command(
        commands,
        "info",
        _info,
        "show what a dataset says of itself",
        "  latentq info out/\n  latentq info out/ --json\n"
        "  latentq info out/ --storage --source photos/     what it takes, beside images and floats",
    )
    parser.add_argument("dataset", metavar="DATASET", help="a dataset's folder")
    parser.add_argument("--json", action="store_true", help="the whole card as JSON")
    parser.add_argument("--storage", action="store_true", help="what it takes, beside images, JPEGs and floats")
    parser.add_argument("--source", metavar="SRC", help="with --storage: what it was made from, to try JPEGs with")


def _info(options: argparse.Namespace) -> int:
    from latentq.format.card import CARD, Card
    from latentq.run.units import units_done

    path = dataset(options.dataset)
    if options.source is not None and not options.storage:
        raise UsageError("--source goes with --storage")
    if not (path / CARD).exists():
        if options.storage:
            raise LatentqError(f"{path} has no card ({CARD}), so nothing says what its columns are")
        return _info_of_shards(path, options.json)
    card = Card.load(path)
    if options.storage:
        _storage(path, options)
        return 0
    if options.json:
        print(json.dumps({**card.to_dict(), "bytes": bytes_of(path)}))
        return 0
    rows = [("dataset", str(path))]
    if card.counts is None:
        rows.append(("state", f"not finished: {units_done(path, card)} of {card.units} units"))
    else:
        rows += [
            ("samples", f"{card.counts.samples} of {card.source.samples} in the {card.source.kind}"),
            ("rejects", f"{card.counts.rejects}"),
            *([("redone", f"{card.counts.redone} in float32")] if card.counts.redone else ()),
            ("units", f"{card.units} of {card.recipe.unit_size} samples"),
        ]
    changed = f", changed: {', '.join(card.recipe.changed)}" if card.recipe.changed else ""
    image = card.recipe.image
    rows += [
        ("bytes", _size(bytes_of(path))),
        ("recipe", f"{card.recipe.name}{changed}"),
        ("autoencoder", f"{card.autoencoder.name} ({card.autoencoder.family}, {card.recipe.autoencoder.dtype})"),
        ("weights", card.autoencoder.weights or "none"),
        *_text_rows(card),
        ("image", f"crop {image.crop}, filter {image.filter}, alpha {image.alpha}, icc {image.icc}"
                  f"{', EXIF orientation applied' if image.orient else ''}"),
        *((f"column {name}", encoding) for name, encoding in card.columns.items()),
        ("versions", ", ".join(f"{package} {version}" for package, version in card.versions.items())),
    ]  # fmt: skip
    table(rows)
    for name, latent in card.latents.items():
        _print_latent(name, latent)
    for name, embedding in card.embeddings.items():
        _print_embedding(name, embedding)
    for name, tokens in card.tokens.items():
        print(f"\n{name}: {' x '.join(map(str, tokens.shape))}, tokens of {tokens.codebook_size}, {tokens.dtype}")
    return 0


def _storage(path: Path, options: argparse.Namespace) -> None:
    from latentq.inspect.storage import storage

    if options.source is not None:
        check_source(options.source)
    rows = storage(path, options.source)
    if options.json:
        print(json.dumps([vars(row) for row in rows]))
        return
    width = max(len(row.what) for row in rows)
    print(f"{'':<{width}} {'total':>10} {'a sample':>12}")
    for row in rows:
        total, each = ("-" if value is None else _size(value) for value in (row.bytes, row.each))
        print(f"{row.what:<{width}} {total:>10} {each:>12}  {row.note}".rstrip())


def _info_of_shards(path: Path, as_json: bool) -> int:
    from latentq import mds

    reader = mds.Reader(path)
    if as_json:
        print(json.dumps({"samples": len(reader), "columns": reader.columns, "bytes": bytes_of(path)}))
        return 0
    columns = [(f"column {name}", encoding) for name, encoding in reader.columns.items()]
    table([("shards", f"{path} (no card)"), ("samples", str(len(reader))), ("bytes", _size(bytes_of(path))), *columns])
    return 0


def _text_rows(card: Card) -> list[tuple[str, str]]:
    if card.text is None:
        return []
    several = f", {card.recipe.text.captions} captions an image" if card.recipe.text.captions > 1 else ""
    told = f"{card.text.family}, {card.recipe.text.dtype}, {card.text.length} tokens{several}"
    return [("text encoder", f"{card.text.name} ({told})"), ("text weights", card.text.weights or "none")]


def _print_embedding(name: str, embedding: EmbeddingFacts) -> None:
    quantizer = embedding.quantizer
    has_range = quantizer.kind in ("uniform", "affine", "codebook")
    clipped = f", {embedding.clipped} values clipped" if has_range and embedding.clipped is not None else ""
    bits = f", {quantizer.bits} bits" if has_range else ""
    print(f"\n{name}: {' x '.join(map(str, embedding.shape))}, {quantizer.kind}{bits}{clipped}")


def _print_latent(name: str, latent: Any) -> None:
    quantizer = latent.quantizer
    bits = f", {quantizer.bits} bits" if quantizer.kind in ("uniform", "affine", "codebook") else ""
    print(f"\n{name}: {' x '.join(map(str, latent.shape))}, {quantizer.kind}{bits}")
    if latent.statistics is None:
        return
    print(f"{'channel':>7} {'mean':>10} {'std':>10} {'min':>10} {'max':>10} {'clipped':>9}")
    for channel, (mean, std, low, high) in enumerate(
        zip(latent.statistics.mean, latent.statistics.std, latent.statistics.min, latent.statistics.max, strict=True)
    ):
        share = latent.clipped[channel] / latent.statistics.count[channel] if latent.clipped else 0.0
        print(f"{channel:>7} {mean:>10.4f} {std:>10.4f} {low:>10.4f} {high:>10.4f} {share:>9.4%}")
