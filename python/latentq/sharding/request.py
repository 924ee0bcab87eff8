"""A request to `latentq.shards`, and the steps before anything is written, which a dry run shares."""

from __future__ import annotations

import importlib.metadata
import os
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from latentq._core import LatentqError, MismatchError
from latentq.collect import COLUMNS, Collection, Columns
from latentq.format.files import SHARDS
from latentq.format.options import MAX_UNIT
from latentq.run.archives import archives_of
from latentq.run.check import check_output_folder
from latentq.run.listing import RunList, collection_of, list_source, open_run_source, source_facts, with_limits
from latentq.run.options import RunSettings
from latentq.run.sample_list import SampleList, Totals
from latentq.sharding.card import ShardsCard
from latentq.sources import Captions, Source


@dataclass(frozen=True)
class ShardsRequest:
    """The arguments of `shards`, which describes them.

    Attributes:
        settings: How the run is done.
        url: The URL of the shards, if `out` is their local folder.
    """

    source: str | os.PathLike[str] | Source
    out: Path
    settings: RunSettings
    collection: str | Collection | None = None
    captions: str | Captions | None = None
    image_column: str | None = None
    min_size: int = 256
    max_size: int = 512
    quality: int = 95
    unit_size: int = 4096
    storage_options: Mapping[str, str] | None = None
    url: str | None = None


def resolve(request: ShardsRequest) -> ShardsCard | None:
    """Checks a request and its output folder, and returns the card in the folder; None if no run has begun it.

    Raises:
        MismatchError: The folder holds something else.
        FormatError: The card is not valid.
        OSError: The folder cannot be written.
        ValueError: An argument is out of range.
    """
    for name, value, most in (
        ("min_size", request.min_size, request.max_size),
        ("quality", request.quality, 100),
    ):
        if not 1 <= value <= most:
            raise ValueError(f"{name} must be from 1 to {most}, not {value}")
    if not 1 <= request.unit_size <= MAX_UNIT:
        raise ValueError(f"unit_size must be from 1 to {MAX_UNIT}, not {request.unit_size}")
    collection_of(request.collection)
    check_output_folder(request.out, SHARDS)
    return ShardsCard.load(request.out) if (request.out / SHARDS).exists() else None


def open_requested(request: ShardsRequest) -> Source:
    """Opens the source of a request.

    Raises:
        LatentqError: It cannot be understood.
        OSError: It cannot be read.
        ValueError: An argument does not fit the source.
    """
    source = open_run_source(
        request.source,
        request.url or request.out,
        captions=with_limits(request.captions, collection_of(request.collection)),
        image_column=request.image_column,
        progress=request.settings.progress,
        storage_options=request.storage_options,
    )
    if request.settings.delete_archives:
        archives_of(source)  # fails now, and not once the list is published
    return source


def list_requested(request: ShardsRequest, source: Source, folder: Path) -> RunList:
    """Lists the source of a request, or compares it with the list in a folder.

    Args:
        request: The request.
        source: The source, opened.
        folder: The output folder, or another one that a new list goes to.

    Raises:
        MismatchError: The source differs from the published list.
        LatentqError: It cannot be listed.
    """
    return list_source(source, folder, request.unit_size, compare=request.settings.rank == 0)


def planned_card(request: ShardsRequest, kind: str, samples: SampleList) -> ShardsCard:
    """Returns the card of a request.

    Args:
        request: The request.
        kind: The kind of the source.
        samples: Its list.

    Raises:
        LatentqError: The collection has a column that the source does not have.
    """
    return ShardsCard(
        source=replace(source_facts(kind, samples, request.unit_size), image_column=request.image_column),
        contents=_contents(collection_of(request.collection), samples.totals),
        min_size=request.min_size,
        max_size=request.max_size,
        quality=request.quality,
        unit_size=request.unit_size,
        versions={package: importlib.metadata.version(package) for package in ("latentq", "pillow")},
    )


def _contents(collection: Collection | None, totals: Totals) -> Columns:
    """Returns the columns to store: those of the collection, or the default ones that the source has."""
    available = {"image", "width", "height", "key", *totals.known}
    if collection is None:
        return {name: column for name, column in COLUMNS.items() if column[0] in available}
    for name, (content, _) in collection.columns.items():
        if content not in available:
            raise LatentqError(f"the collection stores {content} as {name}, which the source does not have")
    return collection.columns


def check_same_shards(out: Path, published: ShardsCard, planned: ShardsCard) -> None:
    """Refuses to continue what other options or another list began. Other versions of libraries are warned of.

    Args:
        out: The output folder.
        published: The card in it.
        planned: The card of this run.

    Raises:
        MismatchError: They differ; the message names the field and both values.
    """
    before, now = published.to_dict(), planned.to_dict()
    for key in now:
        if key != "versions" and before.get(key) != now[key]:
            raise MismatchError(
                f"{out} was made with {key} = {before[key]!r}; this run has {now[key]!r}: "
                "name another output folder, or continue with what it was made with"
            )
    if published.versions != planned.versions:
        begun, here = dict(published.versions), dict(planned.versions)
        warnings.warn(f"{out} was begun with {begun}; here are {here}", stacklevel=5)
