"""Verifies that a dataset agrees with its card and its list: every file, every hash, every sample, every count."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from latentq import mds
from latentq._core import FormatError, LatentqError
from latentq.format import empty_caption
from latentq.format.card import CARD, Card
from latentq.format.facts import LatentFacts
from latentq.format.files import EMPTY_CAPTION, INDEX, REJECTS, SAMPLES, SHARDS, UNIT
from latentq.format.tsv import tsv_line
from latentq.run.finish import completed
from latentq.run.units import LatentSums, UnitFacts, card_hash, unit_done, unit_names
from latentq.sharding.card import ShardsCard
from latentq.sources import Listing, Sample
from latentq.sources.listing import cycled_captions
from latentq.store.local import read_regular
from latentq.system.progress import Progress
from latentq.system.text import counted

_BATCH = 1024  # samples read at once
_LISTED = ("key", "label", "label_text", "caption", "captions", "id")  # contents that come from the list


def verify(path: str | os.PathLike[str], *, progress: TextIO | None = None) -> list[mds.Finding]:
    """Finds everything that is wrong with a dataset.

    Checks the shards as `latentq.mds.verify` does and, if there is a card, that the units are those of the card and of
    their parts of the list, that stored keys, labels and captions are the list's, that rejects, counts and statistics
    agree with the card (the statistics by reading every code), and that there are no other files. A folder without a
    card is checked as shards only.

    Args:
        path: The dataset, or any folder of MDS shards.
        progress: The stream for progress, or None.

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
        done = f"{card.units - len(missing)} of {counted(card.units, 'unit')}"
        return [_finding(CARD, f"not finished: {done}; the first missing is {missing[0]}")]
    return list(_Verification(path, card, file).findings(progress))


class _Verification:
    """The verification of one dataset whose units are all published.

    Args:
        path: The dataset.
        card: Its card.
        file: The card's file name.
    """

    def __init__(self, path: Path, card: Card | ShardsCard, file: str) -> None:
        self._path = path
        self._card = card
        self._file = file
        self._names = unit_names(card)

    def findings(self, progress: TextIO | None) -> Iterator[mds.Finding]:
        try:
            yield from self._check_folder()
            samples = read_regular(self._path / SAMPLES)
            listing = Listing.from_tsv(samples, str(self._path / SAMPLES))
            if listing.sha256() != self._card.source.sha256:
                yield _finding(SAMPLES, "is not the card's list: its hash differs")
            facts = [UnitFacts.load(self._path / name / UNIT) for name in self._names]
            yield from self._check_origin(listing, facts)
            good = True
            with Progress(len(listing.samples), "verify", progress) as bar:
                for name, unit, indices in zip(self._names, facts, self._units(listing), strict=True):
                    for finding in self._check_unit(name, unit, listing, indices):
                        good = False
                        yield finding
                    bar.update(len(indices))
            if isinstance(self._card, Card) and self._card.recipe.texts():
                yield from _check_empty_caption(self._path, self._card)
            if good:  # otherwise these follow from what was found
                yield from self._check_totals(facts)
        except FileNotFoundError as error:
            yield _finding(os.path.relpath(error.filename or self._path, self._path), "missing")
        except (LatentqError, OSError, ValueError, LookupError, TypeError) as error:
            yield _finding(".", f"cannot be checked: {error}")

    def _units(self, listing: Listing) -> list[range]:
        recipe = self._card.recipe if isinstance(self._card, Card) else self._card
        units = listing.units(recipe.unit_size)
        if len(units) != len(self._names):
            raise FormatError(f"{SAMPLES} has {counted(len(units), 'unit')}, the card {len(self._names)}")
        return units

    def _check_folder(self) -> Iterator[mds.Finding]:
        """Finds files that do not belong to the dataset. Names that begin with a dot are ignored."""
        expected = {self._file, SAMPLES, REJECTS, INDEX, EMPTY_CAPTION, *self._names}
        for entry in sorted(self._path.iterdir()):
            if entry.name in expected or entry.name.startswith("."):
                continue
            extra = "a unit that the card does not have" if entry.name.isdigit() else "not a part of the dataset"
            yield _finding(entry.name, f"is {extra}")

    def _check_origin(self, listing: Listing, facts: list[UnitFacts]) -> Iterator[mds.Finding]:
        """Checks that the units were made by this card and from their parts of this list."""
        expected = card_hash(read_regular(self._path / self._file))
        edited = [name for name, unit in zip(self._names, facts, strict=True) if unit.card not in ("", expected)]
        if edited:
            which = "the units" if len(edited) == len(facts) else f"{counted(len(edited), 'unit')}, {edited[0]} first"
            message = f"another card made {which}: a field that decides what values mean was edited since"
            yield _finding(self._file, message)
        for name, unit, indices in zip(self._names, facts, self._units(listing), strict=True):
            if unit.listing not in ("", listing.part_sha256(indices)):
                yield _finding(f"{name}/{UNIT}", "the unit was made from another part of the list")

    def _check_unit(self, name: str, facts: UnitFacts, listing: Listing, indices: range) -> Iterator[mds.Finding]:
        """Checks a unit's shards, and that its facts and the list agree with them."""
        path = self._path / name
        broken = [mds.Finding(f"{name}/{shard.file}", shard.offset, shard.message) for shard in mds.verify(path)]
        yield from broken
        if broken:
            return
        reader = mds.Reader(path)
        stored, planned = dict(reader.columns), dict(self._card.columns)
        if len(reader) and stored != planned:
            yield _finding(f"{name}/{INDEX}", f"has the columns {stored}, the card {planned}")
        elif len(reader) != facts.samples:
            yield _finding(f"{name}/{UNIT}", f"says {counted(facts.samples, 'sample')}, the shards hold {len(reader)}")
        else:
            yield from self._check_listed(name, reader, facts, [listing.samples[index] for index in indices])
            if isinstance(self._card, Card):
                yield from _check_codes(name, reader, self._card, facts)
        yield from _check_files(path)

    def _check_listed(
        self, name: str, reader: mds.Reader, facts: UnitFacts, samples: list[Sample]
    ) -> Iterator[mds.Finding]:
        """Checks that stored keys, labels and captions are those of the list.

        Args:
            name: The unit's name.
            reader: Its shards.
            facts: Its facts.
            samples: Its part of the list, rejects included.
        """
        rejects = Counter(reject.key for reject in facts.rejects)
        kept = []
        for sample in samples:
            if rejects[sample.text]:
                rejects[sample.text] -= 1
            else:
                kept.append(sample)
        if len(kept) != len(reader) or rejects.total():
            held = f"{counted(len(reader), 'sample')} and {counted(len(facts.rejects), 'reject')}"
            yield _finding(name, f"holds {held}, its part of the list {len(samples)}")
            return
        for column, content in self._listed_columns().items():
            for index, value in _values(reader, column):
                expected = self._expected(kept[index], content)
                if expected is not None and value != expected and str(value) != str(expected):
                    message = f"sample {index}, column {column}: holds {value!r}, the list says {expected!r}"
                    yield _finding(name, message)
                    break

    def _listed_columns(self) -> dict[str, str]:
        """Returns the content of each stored column that comes from the list, by column name."""
        contents: dict[str, str]
        if isinstance(self._card, Card):
            contents = {name: self._card.recipe.columns[name].content for name in self._card.columns}
        else:
            contents = {name: content for name, (content, _) in self._card.contents.items()}
        return {name: content for name, content in contents.items() if content in _LISTED}

    def _expected(self, sample: Sample, content: str) -> Any:
        if content == "captions" and isinstance(self._card, Card):
            return cycled_captions(sample, self._card.recipe.text.captions)
        return list(sample.captions or ()) if content == "captions" else getattr(sample, content)

    def _check_totals(self, facts: list[UnitFacts]) -> Iterator[mds.Finding]:
        """Checks that card, index and rejects follow from the units."""
        card = self._card
        complete = completed(card, facts) if isinstance(card, Card) else card.completed(facts)
        if complete != card:
            yield _finding(self._file, "its counts or statistics are not those of the units")
        elif card.counts and card.counts.samples + card.counts.rejects != card.source.samples:
            yield _finding(self._file, "samples and rejects do not add up to the source's samples")
        if mds.merged_index(self._path, self._names) != read_regular(self._path / INDEX):
            yield _finding(INDEX, "is not the units' indexes merged")
        lines = [tsv_line((r.key, r.stage, r.error)) for unit in facts for r in unit.rejects]
        if "".join(f"{line}\n" for line in lines).encode() != read_regular(self._path / REJECTS):
            yield _finding(REJECTS, "does not hold the units' rejects")


def _check_files(path: Path) -> Iterator[mds.Finding]:
    """Finds files in a unit that are neither its own nor shards, which `mds.verify` compares with the index."""
    for entry in sorted(path.iterdir()):
        is_shard = entry.name.startswith("shard.") and ".mds" in entry.name
        if not is_shard and entry.name not in (INDEX, UNIT) and not entry.name.startswith("."):
            yield _finding(f"{path.name}/{entry.name}", "is not a part of the dataset")


def _check_codes(name: str, reader: mds.Reader, card: Card, facts: UnitFacts) -> Iterator[mds.Finding]:
    """Checks that tokens are in the codebook, and that a unit's histograms are those of its codes.

    Args:
        name: The unit's name.
        reader: Its shards.
        card: The dataset's card.
        facts: The unit's facts.
    """
    for column, tokens in card.tokens.items():
        for _, part in _parts(reader, column, int(np.prod(tokens.shape)) * np.dtype(tokens.dtype).itemsize):
            ids = part.view(tokens.dtype)
            if ids.min() < 0 or ids.max() >= tokens.codebook_size:
                message = f"column {column} holds tokens outside its codebook of {tokens.codebook_size}"
                yield _finding(name, message)
                break
    for column, latent in card.latents.items():
        sums = facts.latents.get(column)
        if sums is None or sums.histogram is None:
            continue
        if not np.array_equal(_histogram(reader, column, latent), sums.histogram):
            yield _finding(f"{name}/{UNIT}", f"its histogram of {column} is not that of the stored codes")


def _histogram(reader: mds.Reader, name: str, latent: LatentFacts) -> np.ndarray[tuple[int, ...], np.dtype[np.int64]]:
    quantizer = latent.quantizer
    total = LatentSums.empty(quantizer)
    size = quantizer.packed_bytes(int(np.prod(latent.shape)))
    for count, packed in _parts(reader, name, size):
        codes = quantizer.unpack(packed, (count, *latent.shape))
        total.add(LatentSums(np.zeros(quantizer.channels, np.int64), quantizer.histogram(codes)))
    if total.histogram is None:
        return np.zeros((quantizer.channels, 2**quantizer.bits), np.int64)
    return total.histogram


def _parts(reader: mds.Reader, name: str, size: int) -> Iterator[tuple[int, np.ndarray[Any, np.dtype[np.uint8]]]]:
    """Reads a column of `size` bytes per sample in batches: yields n and (n, size) uint8."""
    for indices in _batches(len(reader)):
        part = np.empty((len(indices), size), np.uint8)
        reader.gather(indices, name, out=part)
        yield len(indices), part


def _values(reader: mds.Reader, name: str) -> Iterator[tuple[int, Any]]:
    """Reads a column of single values: yields index and value."""
    for indices in _batches(len(reader)):
        values: Iterable[Any] = reader.gather(indices, name)
        yield from zip(indices.tolist(), values, strict=True)


def _batches(count: int) -> Iterator[np.ndarray[tuple[int], np.dtype[np.int64]]]:
    for start in range(0, count, _BATCH):
        yield np.arange(start, min(start + _BATCH, count))


def _check_empty_caption(path: Path, card: Card) -> Iterator[mds.Finding]:
    arrays = empty_caption.load(path / EMPTY_CAPTION)
    shapes = {name: arrays[name].shape for name in card.recipe.texts() if name in arrays}
    length = 0 if card.text is None else card.text.length
    for name in card.recipe.texts():
        mask_shape = (card.recipe.text.captions, length)
        expected = card.embeddings[name].shape if name in card.embeddings else mask_shape
        if shapes.get(name) != expected:
            yield _finding(EMPTY_CAPTION, f"has {name} of shape {shapes.get(name)}, the card {expected}")


def _finding(file: str, message: str) -> mds.Finding:
    return mds.Finding(file, 0, message)
