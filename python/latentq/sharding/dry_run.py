"""`latentq shards --dry-run`: what a run would do. Nothing is written."""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from latentq.run.archives import source_is_deleted
from latentq.run.dry_run import DryRun, Trial, folder_of_list, planned, published, spread, temporary_folder, trial_of
from latentq.run.listing import print_notes
from latentq.run.sample_list import SampleList, UnitEntry
from latentq.run.units import UnitFacts, card_hash
from latentq.sharding.card import ShardsCard
from latentq.sharding.pipeline import READ_AHEAD, converted, write_samples
from latentq.sharding.request import (
    ShardsRequest,
    check_same_shards,
    list_requested,
    open_requested,
    planned_card,
    resolve,
)
from latentq.sources import Source
from latentq.system.progress import BriefProgress

_TRIED = 64  # images at least: many for each thread, so that the threads' start does not count


@dataclass(frozen=True)
class ShardsDryRun:
    """The work that a run of `latentq.shards` would do.

    Attributes:
        card: The published card, or the one that the run would publish.
        plan: The units, and what is expected of them.
    """

    card: ShardsCard
    plan: DryRun


def dry_run(request: ShardsRequest) -> ShardsDryRun:
    """Does what `shards_request` does until something would be written, and converts some images.

    Nothing is written but temporary files outside the output folder.

    Raises:
        LatentqError, OSError, ValueError: As `shards`.
    """
    out, settings = request.out, request.settings
    begun = resolve(request)
    if settings.delete_archives and begun is not None and source_is_deleted(request.source, out, begun):
        return ShardsDryRun(begun, published(out, begun))
    source = open_requested(request)
    with temporary_folder() as folder:
        run_list = list_requested(request, source, folder_of_list(out, 0, folder))
        samples = run_list.samples
        card = planned_card(request, source.kind, samples)
        if begun is not None:
            check_same_shards(out, begun, card)
        print_notes(run_list.notes, settings.progress)
        plan = planned(
            out, card, source, samples, settings, lambda units: _try_images(request, card, source, samples, units)
        )
    return ShardsDryRun(card, plan)


def _try_images(
    request: ShardsRequest, card: ShardsCard, source: Source, samples: SampleList, units: Sequence[UnitEntry]
) -> Trial:
    settings = request.settings
    _, chosen = spread(samples, units, max(_TRIED, READ_AHEAD * settings.threads))
    with (
        BriefProgress(len(chosen), "try", settings.progress) as bar,
        ThreadPoolExecutor(settings.threads) as pool,
    ):
        start = time.perf_counter()
        depth = READ_AHEAD * settings.threads
        results = list(bar.counted(converted(card, source, chosen, pool, depth=depth)))
        seconds = time.perf_counter() - start
    facts = UnitFacts(card=card_hash(card.to_toml()), listing=samples.unit_sha256(units[0]))
    return trial_of(
        card.columns,
        facts,
        len(chosen),
        seconds,
        lambda writer: write_samples(writer, card, source, results, strict=settings.strict),
    )
