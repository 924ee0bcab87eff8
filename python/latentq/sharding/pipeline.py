"""`latentq.shards`: a source becomes MDS shards of JPEGs and captions, filtered and shrunk, unit by unit."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias, Unpack

from latentq._core import LatentqError
from latentq.collect import Collection
from latentq.format.files import SHARDS
from latentq.format.shrink_jpeg import Jpeg, TooSmallError, to_jpeg
from latentq.run.archives import source_is_deleted
from latentq.run.finish import Completion, finish_units
from latentq.run.listing import print_notes
from latentq.run.mirror import Mirror, finished_on_store, mirrored
from latentq.run.options import RunOptions, run_settings
from latentq.run.share import Share
from latentq.run.unit_writer import UnitWriter, publish_unit
from latentq.run.units import UnitFacts, card_hash
from latentq.sharding.card import ShardsCard
from latentq.sharding.on_ray import shards_on_ray
from latentq.sharding.request import (
    ShardsRequest,
    check_same_shards,
    list_requested,
    open_requested,
    planned_card,
    resolve,
)
from latentq.sources import Captions, Sample, Source
from latentq.sources.listing import connections_of, deferred_read, read_sample
from latentq.store.local import publish_once
from latentq.system.faults import raise_machine_fault
from latentq.system.progress import Progress

SHARD_BYTES = 1 << 28
READ_AHEAD = 4  # images per thread that are read ahead of their conversion
_READ_BYTES = 1 << 28  # of image files that are read ahead, and of the JPEGs that they become
_Refusal: TypeAlias = tuple[str, Exception]


def shards(
    source: str | os.PathLike[str] | Source,
    out: str | os.PathLike[str],
    *,
    storage_options: Mapping[str, str] | None = None,
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
        out: The folder of the shards: absent, empty, or begun by a run of the same options and source. A URL of an
            object store (`s3://`, `gs://`, `az://`) makes the shards there.
        storage_options: For the URLs among `source`, `out` and `captions`: endpoint, credentials and the like: see
            `latentq.store.objects.ObjectStore`.
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
    settings = run_settings(**options)
    with mirrored(out, storage_options, SHARDS, inputs=(source, captions)) as (folder, mirror):
        request = ShardsRequest(
            source,
            folder,
            settings,
            collection=collection,
            captions=captions,
            image_column=image_column,
            min_size=min_size,
            max_size=max_size,
            quality=quality,
            unit_size=unit_size,
            storage_options=storage_options,
            url=None if mirror is None else mirror.store.url,
        )
        return shards_request(request, mirror)


def shards_request(request: ShardsRequest, mirror: Mirror | None = None) -> ShardsCard:
    """Does what a request asks for. Returns and raises as `shards`.

    Args:
        request: The request.
        mirror: The object store, if the shards are on one and the request's folder is its local folder.
    """
    out, settings = request.out, request.settings
    begun = resolve(request)
    if settings.delete_archives and begun is not None and source_is_deleted(request.source, out, begun):
        with finished_on_store(mirror, begun):
            return finish_units(out, begun, SHARDS, Completion, settings.progress)
    if settings.ray is not None:
        return shards_on_ray(request, mirror, shards_request)
    source = open_requested(request)
    with list_requested(request, source, out) as run_list:
        card = planned_card(request, source.kind, run_list.samples)
        run_list.publish()
        card = _publish_card(out, card)
        if mirror is not None and not mirror.publish_plan():  # another process was first
            card = _publish_card(out, card)
    samples = run_list.samples
    share = Share.for_process(out, source, samples, settings, mirror)

    print_notes(run_list.notes, settings.progress)
    with (
        Progress(share.samples, "shards", settings.progress, totals=settings.totals) as bar,
        ThreadPoolExecutor(settings.threads) as pool,
    ):
        for pending in share.pending(bar, card):
            for unit in pending:
                images = converted(card, source, samples.samples(unit), pool, depth=READ_AHEAD * settings.threads)
                facts = UnitFacts(card=card_hash((out / SHARDS).read_bytes()), listing=samples.unit_sha256(unit))
                fill = partial(write_samples, card=card, source=source, images=images, strict=settings.strict)
                publish_unit(share.path(unit), card.columns, facts, bar, fill, shard_bytes=SHARD_BYTES)
                pending.done()
                share.unit_published(unit, bar)
    return share.finish(card, SHARDS, Completion, settings.progress)


def _publish_card(out: Path, card: ShardsCard) -> ShardsCard:
    """Publishes the card, and returns the published card, which must be of the same work."""
    if publish_once(out / SHARDS, card.to_toml()):
        return card
    published = ShardsCard.load(out)
    check_same_shards(out, published, card)
    return published


def write_samples(
    writer: UnitWriter,
    card: ShardsCard,
    source: Source,
    images: Iterable[tuple[Sample, Jpeg | _Refusal]],
    *,
    strict: bool,
) -> None:
    """Stores samples, and counts those that are rejected.

    Args:
        writer: Writes the unit.
        card: The card.
        source: The source, opened.
        images: The samples with their JPEGs or refusals, see `converted`.
        strict: End the run at the first reject, unless it is for its size.
    """
    for sample, result in images:
        if isinstance(result, Jpeg):
            writer.write_sample(_stored(card, sample, result))
        else:
            writer.reject(source, sample, *result, strict=strict)


def _stored(card: ShardsCard, sample: Sample, jpeg: Jpeg) -> dict[str, Any]:
    """Returns the values of a sample's columns."""
    of_image = {"image": jpeg.data, "width": jpeg.width, "height": jpeg.height}
    return {
        name: of_image[content] if content in of_image else getattr(sample, content)
        for name, (content, _) in card.contents.items()
    }


def converted(
    card: ShardsCard, source: Source, samples: Iterable[Sample], pool: ThreadPoolExecutor, *, depth: int
) -> Iterator[tuple[Sample, Jpeg | _Refusal]]:
    """Yields each sample with its JPEG or refusal, in order. Up to `depth` images, or `_READ_BYTES`, are read ahead.

    From a store as many images are read ahead as the source has connections.
    """
    connections = connections_of(source)
    fetchers = ThreadPoolExecutor(connections, "latentq: fetch") if connections else None
    try:
        yield from _converted(card, source, samples, pool, fetchers, max(depth, connections))
    finally:
        if fetchers is not None:
            fetchers.shutdown(cancel_futures=True)


def _converted(
    card: ShardsCard,
    source: Source,
    samples: Iterable[Sample],
    pool: ThreadPoolExecutor,
    fetchers: ThreadPoolExecutor | None,
    depth: int,
) -> Iterator[tuple[Sample, Jpeg | _Refusal]]:
    pending: deque[tuple[Sample, int, Future[Jpeg | _Refusal] | _Refusal]] = deque()
    read_bytes = 0

    def first() -> tuple[Sample, Jpeg | _Refusal]:
        nonlocal read_bytes
        sample, size, result = pending.popleft()
        read_bytes -= size
        return sample, result.result() if isinstance(result, Future) else result

    def fetched(sample: Sample, read: Callable[[], bytes]) -> Jpeg | _Refusal:
        data, refusal = read_sample(source, sample, read)
        return refusal if refusal is not None else pool.submit(_convert, data, sample.text, card).result()

    for sample in samples:
        read = deferred_read(source, sample) if fetchers is not None and sample.text == sample.key else None
        if fetchers is not None and read is not None:
            read_bytes += sample.bytes or 0
            pending.append((sample, sample.bytes or 0, fetchers.submit(fetched, sample, read)))
            while len(pending) > depth or read_bytes > _READ_BYTES:
                yield first()
            continue
        data, refusal = read_sample(source, sample)
        if refusal is None and sample.text != sample.key:
            refusal = ("list", LatentqError("the file's name is not UTF-8"))
        size = len(data) if isinstance(data, bytes) else 0  # a thread reads its own file
        read_bytes += size
        outcome = refusal if refusal is not None else pool.submit(_convert, data, sample.text, card)
        pending.append((sample, size, outcome))
        del data, outcome
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
