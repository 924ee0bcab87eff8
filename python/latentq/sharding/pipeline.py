"""The conversion: images and captions of any source become MDS shards of JPEGs, filtered and shrunk, unit by unit."""

from __future__ import annotations

import importlib.metadata
import os
import warnings
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import TextIO

from latentq import mds
from latentq._core import LatentqError, MismatchError
from latentq.collect import COLUMNS, Collection, Columns
from latentq.format.files import HASHES, REJECTS, SHARDS, UNIT
from latentq.format.jpeg import Jpeg, TooSmallError, to_jpeg
from latentq.run.archives import SpentArchives, all_spent
from latentq.run.listing import collection_of, limited, open_for, publish_listing, settle_listing, source_facts
from latentq.run.plan import check_folder
from latentq.run.share import ranks, share_of
from latentq.run.units import Reject, UnitFacts, finish_units, unit_done, unit_names, units_done
from latentq.sharding.card import ShardsCard
from latentq.sources import Captions, Sample, Source
from latentq.sources.listing import REJECTED, fetch, reason_of
from latentq.store.local import publish_once, remove_dead
from latentq.system.processors import processors
from latentq.system.progress import Progress

SIZE_LIMIT = 1 << 28


_AHEAD = 4  # images read ahead for each thread


def shards(
    source: str | os.PathLike[str] | Source,
    out: str | os.PathLike[str],
    *,
    collection: str | Collection | None = None,
    captions: str | Captions | None = None,
    min_size: int = 256,
    max_size: int = 512,
    quality: int = 95,
    unit_size: int = 4096,
    threads: int | None = None,
    rank: int | None = None,
    world_size: int | None = None,
    strict: bool = False,
    delete_archives: bool = False,
    progress: TextIO | None = None,
) -> ShardsCard:
    """Converts a source into MDS shards of JPEGs and captions, or goes on where an earlier run stopped.

    An image whose short side is longer than `max_size` is shrunk to it, its long side rounded down, by Pillow's bicubic
    filter; one that then has a side below `min_size` is rejected. A JPEG that needs no shrinking keeps its bytes. All
    else becomes a JPEG of RGB pixels, an alpha channel left out, as Pillow's `convert("RGB")` does. Orientation and
    colour profile are neither applied nor lost: what is stored carries those of the original, for the reader to heed.

    Args:
        source: What `latentq.sources.open_source` takes, or any `Source`.
        out: The folder of the shards: absent, empty, or begun by a run of the same options and source.
        collection: One of `COLLECTIONS` or its name: other columns, and limits; by default `COLUMNS`, without the
            caption where the source has none.
        captions: As of `open_source`.
        min_size: Pixels that both sides must have at least.
        max_size: Pixels that the short side has at most.
        quality: Of JPEGs that are made anew, 1 to 100.
        unit_size: Samples in a unit, which is done or not done.
        threads: How many threads convert images; one for each processor where None.
        rank: Which of `world_size` processes this is; from the environment (RANK) where None.
        world_size: How many processes share the work; from the environment (WORLD_SIZE) where None.
        strict: Whether the first sample that is rejected for another reason than its size ends the run.
        delete_archives: Whether each archive of the source is deleted as soon as all of its units are published.
        progress: Where progress is told; None tells nothing.

    Returns:
        The card; its counts are None while other processes' units are missing.

    Raises:
        LatentqError: Nothing can be converted; `MismatchError` and `FormatError` say more.
        OSError: A folder cannot be read or written.
        ValueError: An argument is out of range.
    """
    out = Path(out)
    rank, world_size = ranks(rank, world_size)
    for name, value, most in (("min_size", min_size, max_size), ("quality", quality, 100)):
        if not 1 <= value <= most:
            raise ValueError(f"{name} must be from 1 to {most}, not {value}")
    if unit_size < 1 or (threads is not None and threads < 1):
        raise ValueError("unit_size and threads must be at least 1")
    collection = collection_of(collection)
    check_folder(out, SHARDS)
    if delete_archives and (out / SHARDS).exists() and all_spent(source, out, begun := ShardsCard.load(out)):
        return finish_units(out, begun, SHARDS, ShardsCard.completed)
    opened = open_for(source, out, captions=limited(captions, collection), progress=progress)
    listing = settle_listing(opened, out, first=rank == 0)
    card = ShardsCard(
        source=source_facts(opened.kind, listing, unit_size),
        contents=_contents(collection, listing.fields),
        min_size=min_size,
        max_size=max_size,
        quality=quality,
        unit_size=unit_size,
        versions={package: importlib.metadata.version(package) for package in ("latentq", "pillow")},
    )
    publish_listing(out, listing)
    if not publish_once(out / SHARDS, card.to_toml()):
        card = _same(out, card)
    names = unit_names(card)
    units = listing.units(unit_size)
    spent = SpentArchives(opened, listing, units, out, names) if delete_archives else None
    share = share_of(units, rank, world_size)
    with Progress(sum(map(len, share.values())), "shards", progress) as bar:
        for note in listing.notes:
            bar.note(note)
        todo = {number: numbers for number, numbers in share.items() if not unit_done(out, names[number])}
        bar.skip(sum(len(numbers) for number, numbers in share.items() if number not in todo))
        threads = threads or processors()
        with ThreadPoolExecutor(threads) as pool:
            for number, numbers in todo.items():
                samples = [listing.samples[index] for index in numbers]
                converted = _converted(card, opened, samples, pool, _AHEAD * threads)
                _write_unit(out / names[number], card, converted, bar, strict=strict)
                if spent is not None:
                    spent.delete(number)
    if spent is not None:
        spent.delete()
    if units_done(out, card) < card.units:
        remove_dead(out)
        return replace(card, counts=None)
    card = finish_units(out, card, SHARDS, ShardsCard.completed)
    if card.counts is not None and not card.counts.samples:
        raise LatentqError(f"none of the {card.source.samples} samples was kept: see {out / REJECTS}")
    return card


def _contents(collection: Collection | None, fields: tuple[str, ...]) -> Columns:
    have = {"image", "width", "height", "key", *fields}
    if collection is None:
        return {name: column for name, column in COLUMNS.items() if column[0] in have}
    for name, (content, _) in collection.columns.items():
        if content not in have:
            raise LatentqError(f"the collection stores {content} as {name}, which the source does not have")
    return collection.columns


def _same(out: Path, card: ShardsCard) -> ShardsCard:
    """The card that is published already, which must be of the same work."""
    old = ShardsCard.load(out)
    before, now = old.to_dict(), card.to_dict()
    for key in now:
        if key != "versions" and before.get(key) != now[key]:
            raise MismatchError(f"{out} was made with {key} = {before[key]!r}; this run has {now[key]!r}")
    if old.versions != card.versions:
        warnings.warn(f"{out} was begun with {dict(old.versions)}; here are {dict(card.versions)}", stacklevel=3)
    return old


def _write_unit(
    path: Path,
    card: ShardsCard,
    converted: Iterator[tuple[Sample, Jpeg | _Refusal]],
    bar: Progress,
    *,
    strict: bool,
) -> None:
    """Writes one unit and publishes it. One that another process publishes meanwhile counts as done."""
    facts = UnitFacts()
    try:
        with mds.Writer(path, card.columns, hashes=HASHES, size_limit=SIZE_LIMIT) as writer:
            for sample, result in converted:
                if isinstance(result, Jpeg):
                    own = {"image": result.data, "width": result.width, "height": result.height}
                    values = {
                        name: own[content] if content in own else getattr(sample, content)
                        for name, (content, _) in card.contents.items()
                    }
                    writer.write(values)
                    facts.samples += 1
                else:
                    stage, error, data = result
                    reason = reason_of(error, data if isinstance(data, Path) else None)
                    if strict and stage != "size":
                        raise LatentqError(f"{sample.text}: {stage}: {reason}")
                    facts.rejects.append(Reject(sample.text, stage, reason))
                    if stage != "size":
                        bar.note(f"rejected: {sample.text}: {stage}: {reason}")
                bar.update(1, 0 if isinstance(result, Jpeg) else 1)
            writer.add_file(UNIT, facts.to_toml())
    except (FileExistsError, FileNotFoundError):
        if not unit_done(path.parent, path.name):
            raise


_Refusal = tuple[str, Exception, bytes | Path]


def _converted(
    card: ShardsCard, source: Source, samples: list[Sample], pool: ThreadPoolExecutor, depth: int
) -> Iterator[tuple[Sample, Jpeg | _Refusal]]:
    """The samples in order and what became of each; read here, converted by the pool up to `depth` ahead."""
    waiting: deque[tuple[Sample, Future[Jpeg | _Refusal] | _Refusal]] = deque()

    def first() -> tuple[Sample, Jpeg | _Refusal]:
        sample, result = waiting.popleft()
        return sample, result.result() if isinstance(result, Future) else result

    for sample in samples:
        data, refusal = fetch(source, sample)
        if refusal is None and _not_text(sample):
            refusal = ("list", LatentqError("the file's name is not UTF-8"))
        waiting.append((sample, (*refusal, data) if refusal is not None else pool.submit(_jpeg, data, card)))
        if len(waiting) > depth:
            yield first()
    while waiting:
        yield first()


def _not_text(sample: Sample) -> bool:
    return sample.text != sample.key


def _jpeg(data: bytes | Path, card: ShardsCard) -> Jpeg | _Refusal:
    """The JPEG that is stored of an image, or why none is."""
    try:
        content = data.read_bytes() if isinstance(data, Path) else data
        return to_jpeg(content, min_size=card.min_size, max_size=card.max_size, quality=card.quality)
    except TooSmallError as error:
        return "size", error, data
    except LatentqError as error:
        return "decode", error, data
    except OSError as error:
        if not isinstance(data, Path) or error.errno not in REJECTED:
            raise  # of the machine, not of the file
        return "read", error, data
