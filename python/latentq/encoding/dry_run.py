"""`latentq encode --dry-run`: what a run would do. Nothing is written."""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from latentq.encoding.batches import Chosen, EncodedBatch, encode_batches, retry_with_smaller_batches
from latentq.encoding.calibrate import with_quantizers
from latentq.encoding.request import EncodeRequest, list_requested, open_requested, plan_requested, resolve
from latentq.encoding.run import EncodingRun
from latentq.encoding.stages import CAPTIONS, COPY, IMAGES, NETWORK, QUANTIZE, Profile
from latentq.encoding.update import complete_plan, planned_update
from latentq.encoding.write import empty_facts, write_batch
from latentq.format.card import Card
from latentq.format.encodings import transform_bytes
from latentq.format.files import CONTENT_HASH_BYTES, PLACE_BYTES
from latentq.models.device import current_device
from latentq.quantizer import AnyQuantizer, Quantizer, Transform, TransformCalibrator
from latentq.run.archives import source_is_deleted
from latentq.run.check import check_same_work
from latentq.run.dry_run import DryRun, Trial, folder_of_list, planned, published, spread, temporary_folder, trial_of
from latentq.run.join import Changes
from latentq.run.listing import print_notes
from latentq.run.sample_list import UnitEntry
from latentq.run.unit_writer import UnitWriter
from latentq.run.update import UpdatePlan
from latentq.sources import Source
from latentq.system.progress import BriefProgress

_BRIEF = 10.0  # seconds: a trial that takes less is done again, because the first batch also warms everything up
_BATCHES = 4  # tried if there are buckets
_HIGHEST = math.pi  # stands in for a range that is not calibrated yet; its numbers have all digits, too


@dataclass(frozen=True)
class EncodeDryRun:
    """The work that a run of `latentq.encode` would do.

    Attributes:
        card: The published card, or the one that the run would publish; quantizers that are not calibrated yet have a
            made-up range.
        plan: The units, and what is expected of them.
    """

    card: Card
    plan: DryRun


def dry_run(request: EncodeRequest) -> EncodeDryRun:
    """Does what `encode_request` does until something would be written, and tries one batch.

    Nothing is written but temporary files outside the dataset, and weights that are downloaded.

    Raises:
        LatentqError, OSError, ValueError: As `encode`.
    """
    resolved = resolve(request)
    out, card = request.out, resolved.published
    if request.settings.delete_archives and card is not None and source_is_deleted(request.source, out, card):
        return EncodeDryRun(card, published(out, card))
    source = open_requested(resolved)
    with temporary_folder() as folder:
        if resolved.updated is not None:
            return _dry_update(request, resolved.updated, source, folder)
        run_list = list_requested(resolved, source, folder_of_list(out, resolved.revision, folder))
        run, _ = plan_requested(resolved, source, run_list)
        print_notes(run_list.notes, request.settings.progress)
        if card is not None:
            check_same_work(out, card, run.card, frozen=resolved.parent is not None)
            run = replace(run, card=card, uncalibrated=())
        return _dry_run(request, run)


def _dry_update(request: EncodeRequest, card: Card, source: Source, folder: Path) -> EncodeDryRun:
    with UpdatePlan(source, request.out, card, card.recipe.unit_size, folder) as plan:
        complete_plan(request, plan, source)
        print_notes(plan.notes, request.settings.progress)
        if not plan.changes:
            return EncodeDryRun(card, published(request.out, card, plan.changes))
        run, _ = planned_update(request, card, plan, source)
        return _dry_run(request, run, plan.changes)


def _dry_run(request: EncodeRequest, run: EncodingRun, changes: Changes | None = None) -> EncodeDryRun:
    calibration = min(run.card.recipe.calibration, len(run.samples)) if run.uncalibrated else 0
    run = replace(_with_ranges(run), folder=Path(tempfile.gettempdir()))
    plan = planned(
        request.out,
        run.card,
        run.source,
        run.samples,
        request.settings,
        lambda units: _try_batch(request, run, units),
        extra_samples=calibration,
        listed_bytes=CONTENT_HASH_BYTES + (PLACE_BYTES if run.card.buckets else 0),
        changes=changes,
    )
    return EncodeDryRun(run.card, plan)


def _with_ranges(run: EncodingRun) -> EncodingRun:
    """Returns a run in which quantizers that are not calibrated yet have a range, and so codes of the final size."""
    quantizers: dict[str, AnyQuantizer] = {}
    for name in run.uncalibrated:
        options = run.card.recipe.columns[name].quantizer
        channels, bits = run.card.quantizers[name].channels, options.get("bits", 8)
        if options["kind"] == "transform":
            quantizers[name] = _some_transform(options, run.card.latents[name].shape)
            continue
        if options["kind"] == "codebook":
            levels = np.linspace(-_HIGHEST, _HIGHEST, 1 << bits, dtype=np.float32)
            quantizers[name] = Quantizer.codebook(np.tile(levels, (channels, 1)))
        elif options["kind"] == "trellis":
            levels = np.linspace(-_HIGHEST, _HIGHEST, 2 << bits, dtype=np.float32)
            quantizers[name] = Quantizer.trellis(np.tile(levels, (channels, 1)))
        else:
            quantizers[name] = Quantizer.affine([-_HIGHEST] * channels, [_HIGHEST] * channels, bits=bits)
    return replace(run, card=with_quantizers(run.card, quantizers), uncalibrated=())


def _some_transform(options: Mapping[str, Any], shape: tuple[int, ...]) -> Transform:
    """Returns a transform with tables of noise, whose samples have the size of calibrated ones.

    Args:
        options: The quantizer of the recipe's column.
        shape: (C, h, w) of a sample.
    """
    noise = np.random.default_rng(0).normal(0, 1, (64, *shape)).astype(np.float32)
    calibrator = TransformCalibrator(shape[0])
    calibrator.update(noise[: max(1, 2**22 // noise[0].size)])
    return calibrator.transform(rate=options.get("rate"), bytes=transform_bytes(options, shape))


def _try_batch(request: EncodeRequest, run: EncodingRun, units: Sequence[UnitEntry]) -> Trial:
    # Several buckets have several batches, the last of each almost empty.
    chosen = spread(run.samples, units, _BATCHES * run.batch_size if run.card.buckets else run.batch_length)
    count = len(chosen[0])
    with (
        current_device(run.encoder.device),
        BriefProgress(count, "try", request.settings.progress) as bar,
    ):
        (batches, seconds), run = retry_with_smaller_batches(run, bar, lambda run: _timed(run, chosen))
        if seconds < _BRIEF or request.settings.compiled:
            batches, seconds = _timed(run, chosen)
        bar.update(count)

    def fill(writer: UnitWriter) -> None:
        for encoded in batches:
            write_batch(run, encoded, writer)

    return trial_of(run.card.columns, empty_facts(run, run.card.to_toml(), units[0]), count, seconds, fill)


def _timed(run: EncodingRun, chosen: Chosen) -> tuple[list[EncodedBatch], float]:
    """Encodes samples, and returns their batches and the time that as many samples of a long run take.

    On a GPU, the images of the next batch are decoded while the device computes; on the CPU, both need the processors.
    """
    run = replace(run, profile=Profile())
    start = time.perf_counter()
    batches = list(encode_batches(run, [chosen]))
    seconds = time.perf_counter() - start
    if run.encoder.device.type == "cuda":
        worked = {stage: run.profile.seconds[stage, "worked"] for stage in (IMAGES, COPY, NETWORK, QUANTIZE, CAPTIONS)}
        seconds = max(worked[IMAGES], sum(worked.values()) - worked[IMAGES])
    return batches, seconds
