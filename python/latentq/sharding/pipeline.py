"""`latentq.shards`: a source becomes MDS shards of JPEGs and captions, filtered and shrunk, unit by unit."""

from __future__ import annotations

import importlib.metadata
import os
import warnings
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeAlias, Unpack

from latentq._core import LatentqError, MismatchError
from latentq.collect import COLUMNS, Collection, Columns
from latentq.format.files import SHARDS
from latentq.format.shrink_jpeg import Jpeg, TooSmallError, to_jpeg
from latentq.run.archives import source_is_deleted
from latentq.run.check import check_output_folder
from latentq.run.finish import Completion, finish_units
from latentq.run.listing import (
    collection_of,
    list_source,
    open_run_source,
    print_notes,
    source_facts,
    with_limits,
)
from latentq.run.options import RunOptions, run_settings
from latentq.run.sample_list import Totals
from latentq.run.share import Share
from latentq.run.unit_writer import UnitWriter, publish_unit
from latentq.run.units import UnitFacts, card_hash
from latentq.sharding.card import ShardsCard
from latentq.sources import Captions, Sample, Source
from latentq.sources.listing import read_sample
from latentq.store.local import publish_once
from latentq.system.faults import raise_machine_fault
from latentq.system.progress import Progress

SHARD_BYTES = 1 << 28
_PREFETCH = 4  # images per thread that are read ahead of their conversion
_READ_BYTES = 1 << 28  # of image files that are read ahead, and of the JPEGs that they become
_Refusal: TypeAlias = tuple[str, Exception]


def shards(
    source: str | os.PathLike[str] | Source,
    out: str | os.PathLike[str],
    *,
    collection: str | Collection | None = None,
    captions: str | Captions | None = None,
    image_column: str | None = None,
    min_size: int = 256,
    max_size: int = 512,
    quality: int = 95,
    unit_size: int = 4096,
    **options: Unpack[RunOptions],
) -> ShardsCard:
    """Converts a source to MDS shards of JPEGs and captions, or continues where an earlier run stopped.

    An image whose short side is longer than `max_size` is shrunk to it by Pillow's bicubic filter; the long side is
    rounded down. If a side is then below `min_size`, the image is rejected. A JPEG that needs no shrinking keeps its
    bytes.
    Everything else becomes a JPEG of RGB pixels; an alpha channel is dropped, as by Pillow's `convert("RGB")`. The EXIF
    orientation and the color profile are not applied but kept, for the reader to apply.

    Args:
        source: Anything that `latentq.sources.open_source` takes, or a `Source`.
        out: The folder of the shards: absent, empty, or begun by a run of the same options and source.
        collection: A `COLLECTIONS` entry or its name, which has other columns, and limits. By default the columns are
            `COLUMNS`, without the caption if the source has none.
        captions: Where captions are, for `open_source`.
        image_column: The column of images, for `open_source`. The card records it.
        min_size: Smallest side in pixels.
        max_size: Longest short side in pixels.
        quality: JPEG quality of images that are encoded again, 1 to 100.
        unit_size: Samples per unit, which is published as a whole.
        options: How the run is done: see `RunOptions`.

    Returns:
        The card. Its `counts` are None if units of other processes are missing.

    Raises:
        LatentqError: Nothing can be converted; or its subclasses `MismatchError`, `FormatError`.
        OSError: A file or folder cannot be read or written.
        TypeError: An option is unknown.
        ValueError: An argument is out of range.
    """
    out = Path(out)
    settings = run_settings(**options)
    _check_ranges(min_size, max_size, quality, unit_size)
    collection = collection_of(collection)
    check_output_folder(out, SHARDS)
    if settings.delete_archives and (out / SHARDS).exists():
        begun = ShardsCard.load(out)
        if source_is_deleted(source, out, begun):
            return finish_units(out, begun, SHARDS, Completion, settings.progress)

    opened = open_run_source(
        source,
        out,
        captions=with_limits(captions, collection),
        image_column=image_column,
        progress=settings.progress,
    )
    with list_source(opened, out, unit_size, compare=settings.rank == 0) as run_list:
        card = ShardsCard(
            source=replace(source_facts(opened.kind, run_list.samples, unit_size), image_column=image_column),
            contents=_contents(collection, run_list.samples.totals),
            min_size=min_size,
            max_size=max_size,
            quality=quality,
            unit_size=unit_size,
            versions={package: importlib.metadata.version(package) for package in ("latentq", "pillow")},
        )
        run_list.publish()
        card = _publish_card(out, card)
    samples = run_list.samples
    share = Share.for_process(out, opened, samples, settings)

    print_notes(run_list.notes, settings.progress)
    with (
        Progress(share.samples, "shards", settings.progress, totals=settings.totals) as bar,
        ThreadPoolExecutor(settings.threads) as pool,
    ):
        for unit in share.pending(bar):
            converted = _converted(card, opened, samples.samples(unit), pool, depth=_PREFETCH * settings.threads)
            facts = UnitFacts(card=card_hash((out / SHARDS).read_bytes()), listing=samples.unit_sha256(unit))
            _write_jpeg_unit(share.path(unit), card, opened, converted, facts, bar, strict=settings.strict)
            share.unit_published(unit)
    return share.finish(card, SHARDS, Completion, settings.progress)


def _check_ranges(min_size: int, max_size: int, quality: int, unit_size: int) -> None:
    for name, value, most in (("min_size", min_size, max_size), ("quality", quality, 100)):
        if not 1 <= value <= most:
            raise ValueError(f"{name} must be from 1 to {most}, not {value}")
    if unit_size < 1:
        raise ValueError(f"unit_size must be at least 1, not {unit_size}")


def _contents(collection: Collection | None, totals: Totals) -> Columns:
    """Returns the columns to store: those of the collection, or the default ones that the source has."""
    available = {"image", "width", "height", "key", *totals.known}
    if collection is None:
        return {name: column for name, column in COLUMNS.items() if column[0] in available}
    for name, (content, _) in collection.columns.items():
        if content not in available:
            raise LatentqError(f"the collection stores {content} as {name}, which the source does not have")
    return collection.columns


def _publish_card(out: Path, card: ShardsCard) -> ShardsCard:
    """Publishes the card, and returns the published card, which must be of the same work."""
    if publish_once(out / SHARDS, card.to_toml()):
        return card
    published = ShardsCard.load(out)
    before, now = published.to_dict(), card.to_dict()
    for key in now:
        if key != "versions" and before.get(key) != now[key]:
            raise MismatchError(
                f"{out} was made with {key} = {before[key]!r}; this run has {now[key]!r}: "
                "name another output folder, or continue with what it was made with"
            )
    if published.versions != card.versions:
        begun, here = dict(published.versions), dict(card.versions)
        warnings.warn(f"{out} was begun with {begun}; here are {here}", stacklevel=3)
    return published


def _write_jpeg_unit(
    path: Path,
    card: ShardsCard,
    source: Source,
    converted: Iterable[tuple[Sample, Jpeg | _Refusal]],
    facts: UnitFacts,
    bar: Progress,
    *,
    strict: bool,
) -> None:
    def fill(writer: UnitWriter) -> None:
        for sample, result in converted:
            if isinstance(result, Jpeg):
                writer.write_sample(_stored(card, sample, result))
            else:
                writer.reject(source, sample, *result, strict=strict)

    publish_unit(path, card.columns, facts, bar, fill, shard_bytes=SHARD_BYTES)


def _stored(card: ShardsCard, sample: Sample, jpeg: Jpeg) -> dict[str, Any]:
    """Returns the values of a sample's columns."""
    of_image = {"image": jpeg.data, "width": jpeg.width, "height": jpeg.height}
    return {
        name: of_image[content] if content in of_image else getattr(sample, content)
        for name, (content, _) in card.contents.items()
    }


def _converted(
    card: ShardsCard, source: Source, samples: Iterable[Sample], pool: ThreadPoolExecutor, *, depth: int
) -> Iterator[tuple[Sample, Jpeg | _Refusal]]:
    """Yields each sample with its JPEG or refusal, in order. Up to `depth` images, or `_READ_BYTES`, are read ahead."""
    pending: deque[tuple[Sample, int, Future[Jpeg | _Refusal] | _Refusal]] = deque()
    read_bytes = 0

    def first() -> tuple[Sample, Jpeg | _Refusal]:
        nonlocal read_bytes
        sample, size, result = pending.popleft()
        read_bytes -= size
        return sample, result.result() if isinstance(result, Future) else result

    for sample in samples:
        data, refusal = read_sample(source, sample)
        if refusal is None and sample.text != sample.key:
            refusal = ("list", LatentqError("the file's name is not UTF-8"))
        size = len(data) if isinstance(data, bytes) else 0  # a thread reads its own file
        read_bytes += size
        converted = refusal if refusal is not None else pool.submit(_convert, data, sample.text, card)
        pending.append((sample, size, converted))
        del data, converted
        while pending and (len(pending) > depth or read_bytes > _READ_BYTES):
            yield first()
    while pending:
        yield first()


def _convert(data: bytes | Path, name: str, card: ShardsCard) -> Jpeg | _Refusal:
    """Returns the JPEG that is stored of an image, or the reason that none is."""
    try:
        content = data.read_bytes() if isinstance(data, Path) else data
        return to_jpeg(content, min_size=card.min_size, max_size=card.max_size, quality=card.quality)
    except TooSmallError as error:
        return "size", error
    except LatentqError as error:
        raise_machine_fault(error, name)
        return "decode", error
    except OSError as error:
        if not isinstance(data, Path):
            raise
        raise_machine_fault(error, name)
        return "read", error
