"""Verify that a dataset agrees with its card: every hash, every sample, every count."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from latentq import mds
from latentq._core import LatentqError
from latentq.format.card import CARD, Card
from latentq.format.facts import LatentFacts
from latentq.format.files import EMPTY_CAPTION, INDEX, REJECTS, SAMPLES, SHARDS, UNIT
from latentq.format.tsv import tsv_line
from latentq.run.finish import completed
from latentq.run.units import LatentSums, UnitFacts, unit_done, unit_names
from latentq.sharding.card import ShardsCard
from latentq.sources.listing import Listing

_BATCH = 1024  # samples read at once


def verify(path: str | os.PathLike[str]) -> list[mds.Finding]:
    """Find everything that is wrong with a dataset.

    Checks the shards as `latentq.mds.verify` does and, if there is a card, that list, units, rejects, counts and
    statistics agree with it; the statistics by reading every code. A folder without a card is checked as shards only.

    Returns:
        The findings; empty if the dataset is good.

    Raises:
        FileNotFoundError: The path does not exist.
    """
    path = Path(path)
    file = next((name for name in (CARD, SHARDS) if (path / name).exists()), None)
    if file is None:
        return [_finding(CARD, "missing")] if (path / SAMPLES).exists() else mds.verify(path)
    card: Card | ShardsCard
    try:
        card = Card.load(path) if file == CARD else ShardsCard.load(path)
    except LatentqError as error:
        return [_finding(file, str(error))]
    missing = [name for name in unit_names(card) if not unit_done(path, name)]
    if missing:
        done = card.units - len(missing)
        return [_finding(CARD, f"not finished: {done} of {card.units} units; the first missing is {missing[0]}")]
    findings = mds.verify(path) if (path / INDEX).exists() else [_finding(INDEX, "missing")]
    return findings or list(_check_card(path, card))


def _check_card(path: Path, card: Card | ShardsCard) -> Iterator[mds.Finding]:
    file = CARD if isinstance(card, Card) else SHARDS
    try:
        samples = (path / SAMPLES).read_bytes()
        listing = Listing.from_tsv(samples, str(path / SAMPLES))
        if listing.sha256() != card.source.sha256:
            yield _finding(SAMPLES, "is not the card's list: its hash differs")
        names = unit_names(card)
        units = [UnitFacts.load(path / name / UNIT) for name in names]
        for name, unit in zip(names, units, strict=True):
            yield from _check_unit(path / name, card, unit)
        if isinstance(card, Card) and card.recipe.texts():
            yield from _check_empty_caption(path, card)
        complete = completed(card, units) if isinstance(card, Card) else card.completed(units)
        if complete != card:
            yield _finding(file, "its counts or statistics are not those of the units")
        elif card.counts and card.counts.samples + card.counts.rejects != card.source.samples:
            yield _finding(file, "samples and rejects do not add up to the source's samples")
        if mds.merged_index(path, names) != (path / INDEX).read_bytes():
            yield _finding(INDEX, "is not the units' indexes merged")
        lines = [tsv_line((r.key, r.stage, r.error)) for unit in units for r in unit.rejects]
        if "".join(f"{line}\n" for line in lines).encode() != (path / REJECTS).read_bytes():
            yield _finding(REJECTS, "does not hold the units' rejects")
    except FileNotFoundError as error:
        yield _finding(os.path.relpath(error.filename or path, path), "missing")
    except (LatentqError, OSError, ValueError, LookupError, TypeError) as error:
        yield _finding(".", f"cannot be checked: {error}")


def _check_empty_caption(path: Path, card: Card) -> Iterator[mds.Finding]:
    from latentq.format import empty_caption as empty

    arrays = empty.load(path / EMPTY_CAPTION)
    shapes = {name: arrays[name].shape for name in card.recipe.texts() if name in arrays}
    for name in card.recipe.texts():
        expected = (
            card.embeddings[name].shape if name in card.embeddings else (card.recipe.text.captions, _length(card))
        )
        if shapes.get(name) != expected:
            yield _finding(EMPTY_CAPTION, f"has {name} of shape {shapes.get(name)}, the card {expected}")


def _length(card: Card) -> int:
    return 0 if card.text is None else card.text.length


def _check_unit(path: Path, card: Card | ShardsCard, facts: UnitFacts) -> Iterator[mds.Finding]:
    """Check that a unit's facts agree with its shards."""
    reader = mds.Reader(path)
    if len(reader) and dict(reader.columns) != dict(card.columns):
        yield _finding(f"{path.name}/{INDEX}", f"has the columns {dict(reader.columns)}, the card {dict(card.columns)}")
        return
    if len(reader) != facts.samples:
        yield _finding(f"{path.name}/{UNIT}", f"says {facts.samples} samples, the shards hold {len(reader)}")
        return
    if isinstance(card, ShardsCard):
        return
    for name, tokens in card.tokens.items():
        parts = _parts(reader, name, int(np.prod(tokens.shape)) * np.dtype(tokens.dtype).itemsize)
        for _, part in parts:
            ids = part.view(tokens.dtype)
            if ids.min() < 0 or ids.max() >= tokens.codebook_size:
                message = f"column {name} holds tokens outside its codebook of {tokens.codebook_size}"
                yield _finding(path.name, message)
                break
    for name, latent in card.latents.items():
        sums = facts.latents.get(name)
        if sums is None or sums.histogram is None:
            continue
        found = _histogram(reader, name, latent)
        if not np.array_equal(found, sums.histogram):
            yield _finding(f"{path.name}/{UNIT}", f"its histogram of {name} is not that of the stored codes")


def _histogram(reader: mds.Reader, name: str, latent: LatentFacts) -> np.ndarray[tuple[int, ...], np.dtype[np.int64]]:
    quantizer = latent.quantizer
    total = LatentSums.of(quantizer)
    size = quantizer.packed_bytes(int(np.prod(latent.shape)))
    for count, packed in _parts(reader, name, size):
        codes = quantizer.unpack(packed, (count, *latent.shape))
        total.add(LatentSums(np.zeros(quantizer.channels, np.int64), quantizer.histogram(codes)))
    if total.histogram is None:
        return np.zeros((quantizer.channels, 2**quantizer.bits), np.int64)
    return total.histogram


def _parts(reader: mds.Reader, name: str, size: int) -> Iterator[tuple[int, np.ndarray[Any, np.dtype[np.uint8]]]]:
    """Read a column of `size` bytes per sample in batches: yields n and (n, size) uint8."""
    for start in range(0, len(reader), _BATCH):
        indices = np.arange(start, min(start + _BATCH, len(reader)))
        part = np.empty((len(indices), size), np.uint8)
        reader.gather(indices, name, out=part)
        yield len(indices), part


def _finding(file: str, message: str) -> mds.Finding:
    return mds.Finding(file, 0, message)
