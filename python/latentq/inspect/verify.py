"""Verifies that a dataset agrees with its card and its list: every file, every hash, every sample, every count."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, TextIO, TypeAlias

import numpy as np

from latentq import mds
from latentq._core import FormatError, LatentqError
from latentq.format import empty_caption
from latentq.format.card import CARD, NEXT_CARD, Card
from latentq.format.facts import UNKNOWN, LatentFacts, TokenFacts
from latentq.format.files import (
    CONTENT_HASH_BYTES,
    CONTENT_HASHES,
    EMPTY_CAPTION,
    INDEX,
    LIST,
    NORMALIZATION,
    PICTURES,
    PLACES,
    README,
    REJECTS,
    SHARDS,
    UNIT,
)
from latentq.format.normalization import load_positions
from latentq.inspect.stored import load_places, stored_in_unit
from latentq.inspect.verify_on_ray import CheckedUnit, UnitChecker, VerifyWork, checked_on_ray
from latentq.quantizer import Moments, Quantizer, Transform
from latentq.run.finish import CardCompletion, Completion, reject_lines
from latentq.run.opened import OpenedDataset
from latentq.run.options import RayOptions
from latentq.run.ray import ClusterError
from latentq.run.sample_list import SampleList, UnitEntry
from latentq.run.units import LatentSums, UnitFacts, card_hash, list_folder, unit_done
from latentq.sharding.card import ShardsCard
from latentq.sources import Sample
from latentq.sources.listing import cycled_captions
from latentq.store.local import check_regular, holds, read_regular
from latentq.system.extras import MissingPackageError
from latentq.system.progress import BriefProgress, Progress
from latentq.system.text import counted

CheckUnits: TypeAlias = Callable[[SampleList, Progress], Generator[CheckedUnit, None, None]]
"""Yields the facts and the findings of every unit of a list, in order."""

_BATCH = 1024  # samples read at once
_UNIT = re.compile(r"\d{5,}(\.\d+)?")
_REVISED = re.compile(rf"(\d{{5,}}|{LIST})\.[1-9]\d{{0,8}}")
_BUCKET_SHARD = re.compile(r"shard\.(\d{3})\.\d{5,}\.mds")
_PART = re.compile(r"\d{5,}\.tsv")
_LISTED = ("key", "label", "label_text", "caption", "captions", "id")  # contents that come from the list


def verify(
    path: str | os.PathLike[str], *, progress: TextIO | None = None, ray: RayOptions | None = None
) -> list[mds.Finding]:
    """Finds everything that is wrong with a dataset.

    Checks the shards as `latentq.mds.verify` does and, if there is a card, that the list is the card's, that the units
    are those of the card and of their parts of the list, that stored keys, labels and captions are the list's, that
    rejects, counts and statistics agree with the card (the statistics by reading every code), and that there are no
    other files. A folder without a card is checked as shards only.

    A dataset is read unit by unit; only the names of its units are all in memory.

    Args:
        path: The dataset, or any folder of MDS shards.
        progress: The stream for progress, or None.
        ray: Read the units on a Ray cluster, whose machines share the path. A folder without a card is read here.

    Returns:
        The findings; empty if the dataset is good.

    Raises:
        FileNotFoundError: The path does not exist.
        LatentqError: The cluster cannot be used.
    """
    return verify_opened(OpenedDataset(os.fspath(path), Path(path), None, progress), progress=progress, ray=ray)


def verify_opened(
    dataset: OpenedDataset, *, progress: TextIO | None = None, ray: RayOptions | None = None
) -> list[mds.Finding]:
    """Finds everything that is wrong with a dataset that is open: see `verify`."""
    path = dataset.folder
    if ray is None:
        dataset.need_all()
    else:
        dataset.need_others()
    file = next((name for name in (CARD, SHARDS) if (path / name).exists()), None)
    if file is None:
        dataset.need_all()
        return [_finding(CARD, "missing")] if (path / LIST).exists() else mds.verify(path)
    try:
        card = _load_card(path, file)
        while True:
            checker = partial(_Verification, card=card, file=file)
            work = VerifyWork(checker, card.source.revision, dataset.absolute_name, dataset.options)
            checked = (
                partial(_checked_here, checker(path)) if ray is None else partial(checked_on_ray, work, ray, progress)
            )
            findings = list(checker(path).findings(progress, checked))
            verified, card = card, _load_card(path, file)
            if not findings or card == verified:
                return findings
            # Otherwise an update was finished in the meantime.
    except (ClusterError, MissingPackageError):
        raise
    except LatentqError as error:
        return [_finding(file, str(error).removeprefix(f"{path / file}: "))]


def _load_card(path: Path, file: str) -> Card | ShardsCard:
    return Card.load(path) if file == CARD else ShardsCard.load(path)


class _Verification:
    """The verification of one dataset.

    Args:
        path: The dataset.
        card: Its card.
        file: The card's file name.
    """

    def __init__(self, path: Path, card: Card | ShardsCard, file: str) -> None:
        self._path = path
        self._card = card
        self._file = file
        self._folder = list_folder(path, card.source.revision)

    def findings(self, progress: TextIO | None, checked: CheckUnits) -> Iterator[mds.Finding]:
        """Yields the findings.

        Args:
            progress: The stream for progress, or None.
            checked: Checks the bytes of all units.
        """
        try:
            samples = yield from self._check_list(progress)
            if samples is None:
                return
            unfinished = self._unfinished(samples)
            if unfinished is not None:
                yield unfinished
                return
            yield from self._check_folder(samples)
            totals = _UnitTotals(self._card)
            good = yield from self._check_units(samples, totals, progress, checked)
            if isinstance(self._card, Card) and self._card.recipe.texts():
                yield from _check_empty_caption(self._path, self._card)
            if isinstance(self._card, Card) and self._card.autoencoder.normalization.positions:
                yield from _check_positions(self._path, self._card)
            if good:  # otherwise these follow from what was found
                yield from self._check_totals(samples, totals, progress)
        except (ClusterError, MissingPackageError):
            raise
        except FileNotFoundError as error:
            yield _finding(os.path.relpath(error.filename or self._path, self._path), "missing")
        except (LatentqError, OSError, ValueError, LookupError, TypeError) as error:
            yield _finding(".", f"cannot be checked: {error}")

    def _check_list(self, progress: TextIO | None) -> Generator[mds.Finding, None, SampleList | None]:
        """Checks that every part of the list follows the one before, and that the last one is the card's.

        Returns:
            The list; None if its units cannot be read.
        """
        strange = list(self._strange_parts())
        yield from strange
        if strange:
            return None
        part = sum(1 for _ in self._folder.iterdir()) - 1  # the one that is read first
        try:
            samples = SampleList(self._folder)
            with BriefProgress(samples.parts, "verify the list", progress, noun="part") as bar:
                for part in range(samples.parts):
                    message = samples.check_chain(part)
                    if message is not None:
                        yield self._list_finding(part, message)
                    bar.update(1)
        except FormatError as error:
            finding = self._list_finding(part, "")
            yield replace(finding, message=str(error).removeprefix(f"{self._path / finding.file}: "))
            return None
        if samples.sha256 != self._card.source.sha256:
            yield self._list_finding(samples.parts - 1, "is not the last part of the card's list: its hash differs")
        expected = (self._card.units, self._card.source.samples)
        number = first = 0
        for unit in samples.units():
            if (unit.number, unit.first) != (number, first):
                return None  # the part does not follow the one before, which was found
            number, first = number + 1, first + unit.samples
        if (number, first) != expected:
            found, card = (f"{counted(u, 'unit')} of {counted(s, 'sample')}" for u, s in ((number, first), expected))
            message = f"has {found}, the card {card}"
            yield _finding(self._folder.name, message)
            return None
        return samples

    def _strange_parts(self) -> Iterator[mds.Finding]:
        """Finds files in the folder of the list that are no parts, and the first missing part."""
        names = {entry.name for entry in self._folder.iterdir()}
        parts = {name for name in names if _PART.fullmatch(name) and name == f"{int(name[:-4]):05}.tsv"}
        for name in sorted(names - parts):
            yield _finding(f"{self._folder.name}/{name}", "is not a part of the dataset")
        for number in range(max(1, len(parts))):
            if f"{number:05}.tsv" not in parts:
                yield self._list_finding(number, "missing")
                break

    def _list_finding(self, part: int, message: str) -> mds.Finding:
        return _finding(f"{self._folder.name}/{part:05}.tsv", message)

    def _unfinished(self, samples: SampleList) -> mds.Finding | None:
        done, first = 0, None
        for unit in samples.units():
            if unit_done(self._path, unit.name):
                done += 1
            elif first is None:
                first = unit.name
        if first is None:
            return None
        return _finding(
            self._file, f"not finished: {done} of {counted(samples.totals.units, 'unit')}; the first missing is {first}"
        )

    def _check_folder(self, samples: SampleList) -> Iterator[mds.Finding]:
        """Finds files that do not belong to the dataset.

        Ignores names that begin with a dot, and lists and units of other revisions: of earlier ones, which `latentq
        prune` removes, and of an update that is not finished.
        """
        expected = {self._file, NEXT_CARD, REJECTS, INDEX, EMPTY_CAPTION, NORMALIZATION, self._folder.name}
        expected |= {README, PICTURES}  # its page on the Hub
        units = {unit.name for unit in samples.units()}
        strange = []
        with os.scandir(self._path) as entries:
            for entry in entries:
                name = entry.name
                known = name in expected or name in units or name.startswith(".")
                if not known and not self._is_of_other_revision(name, len(units)):
                    strange.append(name)
        for name in sorted(strange):
            extra = "a unit that the card does not have" if _UNIT.fullmatch(name) else "not a part of the dataset"
            yield _finding(name, f"is {extra}")

    def _is_of_other_revision(self, name: str, units: int) -> bool:
        """True if an update can have made, or replaced, a unit or list of this name."""
        number = name.partition(".")[0]
        if name == LIST or _REVISED.fullmatch(name):
            return True
        return bool(self._card.source.revision) and number == name and number.isdecimal() and int(number) < units

    def _check_units(
        self, samples: SampleList, totals: _UnitTotals, progress: TextIO | None, checked: CheckUnits
    ) -> Generator[mds.Finding, None, bool]:
        """Checks every unit: that it was made by this card and from its samples in this list, and its bytes.

        Returns:
            True if the bytes of every unit are good.
        """
        expected = card_hash(read_regular(self._path / self._file))
        good = True
        edited, first = 0, ""
        with (
            Progress(samples.totals.samples, "verify", progress) as bar,
            contextlib.closing(checked(samples, bar)) as units,
        ):
            for unit, (facts, findings) in zip(samples.units(), units, strict=True):
                totals.add(facts)
                if facts.card not in ("", expected):
                    edited, first = edited + 1, first or unit.name
                if facts.listing not in ("", samples.unit_sha256(unit)):
                    yield _finding(f"{unit.name}/{UNIT}", "the unit was made from another part of the list")
                good = good and not findings
                yield from findings
        if edited:
            which = "the units" if edited == samples.totals.units else f"{counted(edited, 'unit')}, {first} first"
            message = f"another card made {which}: a field that decides what values mean was edited since"
            yield _finding(self._file, message)
        return good

    def check_unit(self, unit: UnitEntry, samples: SampleList) -> CheckedUnit:
        """Returns the facts of a unit, and what is wrong with its bytes.

        Raises:
            LatentqError: The facts cannot be read.
            OSError: A file cannot be read.
        """
        facts = UnitFacts.load(self._path / unit.name / UNIT)
        return facts, list(self._check_unit(unit, facts, samples))

    def _check_unit(self, unit: UnitEntry, facts: UnitFacts, samples: SampleList) -> Iterator[mds.Finding]:
        """Checks a unit's shards, and that its facts and the list agree with them."""
        name = unit.name
        path = self._path / name
        broken = [mds.Finding(f"{name}/{shard.file}", shard.offset, shard.message) for shard in mds.verify(path)]
        yield from broken
        if broken:
            return
        reader = mds.Reader(path)
        finding = self._misfit(name, reader, facts)
        if finding is not None:
            yield finding
        elif len(reader) != facts.samples:
            yield _finding(f"{name}/{UNIT}", f"says {counted(facts.samples, 'sample')}, the shards hold {len(reader)}")
        else:
            yield from self._check_listed(unit, reader, facts, samples.samples(unit))
            if isinstance(self._card, Card):
                yield from _check_codes(name, reader, self._card, facts)
        yield from _check_files(path, unit, has_places=isinstance(self._card, Card) and bool(self._card.buckets))

    def _misfit(self, name: str, reader: mds.Reader, facts: UnitFacts) -> mds.Finding | None:
        """Returns a finding if a unit's shards do not have the card's columns, or its buckets not their samples."""
        if not isinstance(self._card, Card) or not self._card.buckets:
            stored, planned = dict(reader.columns), dict(self._card.columns)
            if len(reader) and stored != planned:
                return _finding(f"{name}/{INDEX}", f"has the columns {stored}, the card {planned}")
            return None
        counts = [0] * self._card.buckets
        for shard in json.loads(read_regular(self._path / name / INDEX))["shards"]:
            file = shard["raw_data"]["basename"]
            bucket = int(match[1]) if (match := _BUCKET_SHARD.fullmatch(file)) else -1
            if not 0 <= bucket < len(counts):
                return _finding(f"{name}/{INDEX}", f"{file} is of none of the card's {len(counts)} buckets")
            counts[bucket] += shard["samples"]
            stored = dict(zip(shard["column_names"], shard["column_encodings"], strict=True))
            planned = dict(self._card.for_bucket(bucket).columns)
            if stored != planned:
                return _finding(f"{name}/{INDEX}", f"{file} has the columns {stored}, the card {planned}")
        if counts != facts.buckets:
            return _finding(f"{name}/{UNIT}", f"says buckets = {facts.buckets}, the shards hold {counts}")
        return None

    def _check_listed(
        self, unit: UnitEntry, reader: mds.Reader, facts: UnitFacts, samples: list[Sample]
    ) -> Iterator[mds.Finding]:
        """Checks that stored keys, labels and captions are those of the list."""
        name = unit.name
        buckets = self._card.buckets if isinstance(self._card, Card) else 0
        try:
            places = load_places(self._path / name, unit, buckets)
        except FormatError as error:
            yield _finding(f"{name}/{PLACES}", str(error).removeprefix(f"{self._path / name / PLACES}: "))
            return
        stored = stored_in_unit(unit, samples, facts.rejects, places)
        if stored is not None and places is not None:
            counts = np.bincount([places[number - unit.first] for number, _ in stored], minlength=buckets).tolist()
            if counts != facts.buckets:
                yield _finding(
                    f"{name}/{PLACES}", f"has {counts} stored samples in each bucket, {UNIT} {facts.buckets}"
                )
                return
        if stored is None or len(stored) != len(reader):
            held = f"{counted(len(reader), 'sample')} and {counted(len(facts.rejects), 'reject')}"
            yield _finding(name, f"holds {held}, its part of the list {len(samples)}")
            return
        for column, content in self._listed_columns().items():
            for index, value in _values(reader, column):
                expected = self._expected(stored[index][1], content)
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

    def _check_totals(self, samples: SampleList, totals: _UnitTotals, progress: TextIO | None) -> Iterator[mds.Finding]:
        """Checks that card, index and rejects follow from the units."""
        card = self._card
        if totals.completion.card() != card:
            yield _finding(self._file, "its counts or statistics are not those of the units")
        elif card.counts and card.counts.samples + card.counts.rejects != card.source.samples:
            yield _finding(self._file, "samples and rejects do not add up to the source's samples")
        with BriefProgress(samples.totals.units, "verify the index", progress, noun="unit") as bar:
            names = bar.counted(unit.name for unit in samples.units())
            if not holds(self._path / INDEX, mds.merged_index(self._path, names)):
                yield _finding(INDEX, "is not the units' indexes merged")
        # After the new index, which a killed update may have published, come the rejects.
        is_being_finished = (self._path / NEXT_CARD).exists()
        if not is_being_finished and not totals.are_rejects_of(self._path / REJECTS):
            yield _finding(REJECTS, "does not hold the units' rejects")


def _checked_here(checker: UnitChecker, samples: SampleList, bar: Progress) -> Generator[CheckedUnit, None, None]:
    for unit in samples.units():
        yield checker.check_unit(unit, samples)
        bar.update(unit.samples)


class _UnitTotals:
    """Sums over units, from which card and rejects follow.

    Args:
        card: The card.

    Attributes:
        completion: Adds up the facts for the card.
    """

    def __init__(self, card: Card | ShardsCard) -> None:
        self.completion: Completion[Any] = CardCompletion(card) if isinstance(card, Card) else Completion(card)
        self._rejects = hashlib.sha256()

    def add(self, facts: UnitFacts) -> None:
        """Adds the unit that follows."""
        self.completion.add(facts)
        self._rejects.update(reject_lines(facts))

    def are_rejects_of(self, path: Path) -> bool:
        """True if a file holds the lines of all rejects."""
        check_regular(path)
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").digest() == self._rejects.digest()


def _check_files(path: Path, unit: UnitEntry, *, has_places: bool) -> Iterator[mds.Finding]:
    """Finds files in a unit that are neither its own nor shards, which `mds.verify` compares with the index.

    Args:
        path: The unit's folder.
        unit: The unit.
        has_places: True if the dataset has buckets, and so the file of them.
    """
    for entry in sorted(path.iterdir()):
        is_shard = entry.name.startswith("shard.") and ".mds" in entry.name
        if entry.name == CONTENT_HASHES:
            if (size := entry.stat().st_size) != CONTENT_HASH_BYTES * unit.samples:
                yield _finding(
                    f"{path.name}/{entry.name}",
                    f"has {size} bytes, not {CONTENT_HASH_BYTES} for each of {counted(unit.samples, 'sample')}",
                )
        elif (
            not is_shard
            and entry.name not in (INDEX, UNIT, *((PLACES,) * has_places))
            and not entry.name.startswith(".")
        ):
            yield _finding(f"{path.name}/{entry.name}", "is not a part of the dataset")


def _check_codes(name: str, reader: mds.Reader, card: Card, facts: UnitFacts) -> Iterator[mds.Finding]:
    """Checks that tokens are in the codebook, and that a unit's histograms are those of its codes.

    Args:
        name: The unit's name.
        reader: Its shards.
        card: The dataset's card.
        facts: The unit's facts.
    """
    ranges = [(card, range(len(reader)))]
    if card.buckets:
        stops = np.cumsum(facts.buckets).tolist()
        ranges = [
            (card.for_bucket(bucket), range(stop - count, stop))
            for bucket, (count, stop) in enumerate(zip(facts.buckets, stops, strict=True))
        ]
    for column, tokens in card.tokens.items():
        if not all(_are_tokens(reader, column, own.tokens[column], indices) for own, indices in ranges):
            yield _finding(name, f"column {column} holds tokens outside its codebook of {tokens.codebook_size}")
    for column, latent in card.latents.items():
        sums = facts.latents.get(column)
        if isinstance(latent.quantizer, Transform):
            shapes = [(own.latents[column].shape, indices) for own, indices in ranges]
            yield from _check_transform(name, reader, column, latent.quantizer, shapes, sums)
            continue
        if sums is None or sums.histogram is None:
            continue
        found = np.zeros((latent.quantizer.channels, latent.quantizer.level_count), np.int64)
        for own, indices in ranges:
            found += _histogram(reader, column, own.latents[column], indices)
        if not np.array_equal(found, sums.histogram):
            yield _finding(f"{name}/{UNIT}", f"its histogram of {column} is not that of the stored codes")


def _are_tokens(reader: mds.Reader, name: str, tokens: TokenFacts, indices: range) -> bool:
    """True if all tokens of samples of one shape are in the codebook."""
    for _, part in _parts(reader, name, int(np.prod(tokens.shape)) * np.dtype(tokens.dtype).itemsize, indices):
        ids = part.view(tokens.dtype)
        if ids.min() < 0 or ids.max() >= tokens.codebook_size:
            return False
    return True


def _check_transform(
    name: str,
    reader: mds.Reader,
    column: str,
    transform: Transform,
    shapes: list[tuple[tuple[int, ...], range]],
    sums: LatentSums | None,
) -> Iterator[mds.Finding]:
    """Checks that all samples of a column with a transform decode, and that a unit's sums are those of their values.

    Args:
        name: The unit's name.
        reader: Its shards.
        column: The column.
        transform: The column's codec.
        shapes: The shape of the samples in each range of indices.
        sums: The sums in the unit's facts; None if it has none.
    """
    total: Moments | None = None
    for shape, indices in ((shape, batch) for shape, samples in shapes for batch in _batches(samples)):
        rows = [bytes(row) for row in reader.gather(indices, column)]
        damaged = transform.damaged(rows, shape)
        for row, reason in damaged.items():
            yield _finding(name, f"sample {indices[row]}, column {column}: cannot be decoded: {reason}")
        if damaged:
            return
        for sample in transform.decode(rows, shape):
            moments = Moments.of(sample)
            total = moments if total is None else total.merge(moments)
    if sums is not None and total is not None and sums.moments != [total]:
        yield _finding(f"{name}/{UNIT}", f"its sums of {column} are not those of the stored latents")


def _histogram(
    reader: mds.Reader, name: str, latent: LatentFacts, indices: range
) -> np.ndarray[tuple[int, ...], np.dtype[np.int64]]:
    quantizer = latent.quantizer
    assert isinstance(quantizer, Quantizer)
    total = LatentSums.empty(quantizer)
    size = quantizer.packed_bytes(int(np.prod(latent.shape)))
    for count, packed in _parts(reader, name, size, indices):
        codes = quantizer.unpack(packed, (count, *latent.shape))
        total.add(LatentSums(np.zeros(quantizer.channels, np.int64), quantizer.histogram(codes)))
    if total.histogram is None:
        return np.zeros((quantizer.channels, quantizer.level_count), np.int64)
    return total.histogram


def _parts(
    reader: mds.Reader, name: str, size: int, indices: range
) -> Iterator[tuple[int, np.ndarray[Any, np.dtype[np.uint8]]]]:
    """Reads a column of `size` bytes per sample in batches: yields n and (n, size) uint8."""
    for batch in _batches(indices):
        part = np.empty((len(batch), size), np.uint8)
        reader.gather(batch, name, out=part)
        yield len(batch), part


def _values(reader: mds.Reader, name: str) -> Iterator[tuple[int, Any]]:
    """Reads a column of single values: yields index and value."""
    for indices in _batches(range(len(reader))):
        values: Iterable[Any] = reader.gather(indices, name)
        yield from zip(indices.tolist(), values, strict=True)


def _batches(indices: range) -> Iterator[np.ndarray[tuple[int], np.dtype[np.int64]]]:
    for start in range(indices.start, indices.stop, _BATCH):
        yield np.arange(start, min(start + _BATCH, indices.stop))


def _check_empty_caption(path: Path, card: Card) -> Iterator[mds.Finding]:
    if card.text is not None and card.text.weights == UNKNOWN and not (path / EMPTY_CAPTION).exists():
        return  # other tools' embeddings come without it
    arrays = empty_caption.load(path / EMPTY_CAPTION)
    shapes = {name: arrays[name].shape for name in card.recipe.texts() if name in arrays}
    length = 0 if card.text is None else card.text.length
    for name in card.recipe.texts():
        mask_shape = (card.recipe.text.captions, length)
        expected = card.embeddings[name].shape if name in card.embeddings else mask_shape
        if shapes.get(name) != expected:
            yield _finding(EMPTY_CAPTION, f"has {name} of shape {shapes.get(name)}, the card {expected}")


def _check_positions(path: Path, card: Card) -> Iterator[mds.Finding]:
    try:
        load_positions(path, card.autoencoder.normalization)
    except (LatentqError, OSError) as error:
        yield _finding(NORMALIZATION, str(error).removeprefix(f"{path / NORMALIZATION}: "))


def _finding(file: str, message: str) -> mds.Finding:
    return mds.Finding(file, 0, message)
