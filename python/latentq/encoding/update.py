"""Takes the changes of a source into its dataset: `latentq.encode(..., update=True)`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from math import prod
from pathlib import Path
from typing import TextIO

import numpy as np
from numpy.typing import NDArray

from latentq._core import FormatError, LatentqError, MismatchError, RecipeError, image_hash
from latentq.encoding.calibrate import publish_empty_caption
from latentq.encoding.models import load_models
from latentq.encoding.request import EncodeRequest
from latentq.encoding.run import EncodingRun
from latentq.encoding.write import encode_units
from latentq.format.card import Card
from latentq.format.files import CONTENT_HASH_BYTES, CONTENT_HASHES, UNIT
from latentq.format.recipe import Recipe
from latentq.models.device import current_device
from latentq.run.check import check_same_work
from latentq.run.finish import finish_update
from latentq.run.listing import RunList, print_notes
from latentq.run.plan import plan_card
from latentq.run.sample_list import SampleList, UnitEntry
from latentq.run.share import PlannedUnits, Share
from latentq.run.units import UnitFacts, unit_names
from latentq.run.update import UpdatePlan
from latentq.sources import Sample, Source
from latentq.sources.listing import connections_of, deferred_read, read_sample
from latentq.store.local import read_regular
from latentq.system.faults import is_file_fault
from latentq.system.progress import Progress
from latentq.system.text import counted
from latentq.system.threads import in_order

_CLIP_RATE, _CLIP_FACTOR = 0.001, 3.0  # the share of new values outside the range that is warned of
_NOT_READ = 0  # the hash of a sample whose file was not read when its unit was made


def update_dataset(request: EncodeRequest, card: Card, source: Source) -> Card:
    """Encodes what is new or changed in a source, and publishes the dataset without what is gone.

    Until the new index is published, the dataset is as it was.

    Args:
        request: The request, whose models must be the dataset's.
        card: The card of the dataset, which is finished.
        source: The source, opened.

    Returns:
        The card; its `complete` is False if units of other processes are missing.

    Raises:
        MismatchError: The models are not those of the dataset, or another update is being finished.
        LatentqError: Nothing can be encoded.
    """
    try:
        return _update(request, card, source)
    except MismatchError:
        # Another process may have finished an update in the meantime, perhaps the same one: then from there, once.
        now = Card.load(request.out)
        if now.source.revision == card.source.revision:
            raise
        return _update(request, now, source)


def _update(request: EncodeRequest, card: Card, source: Source) -> Card:
    out, settings, mirror = request.out, request.settings, request.mirror
    if mirror is not None and settings.check_content:
        mirror.fetch_units(unit_names(out, card))
    with UpdatePlan(source, out, card, card.recipe.unit_size) as plan:
        complete_plan(request, plan, source)
        print_notes([*plan.notes, f"update: {plan.changes}"], settings.progress)
        if not plan.changes:
            if settings.queue is not None:
                settings.queue.planned(PlannedUnits(card, card.source.samples, {}))
            return card
        run, run_list = planned_update(request, card, plan, source)
        run_list.publish()
        if mirror is not None:
            mirror.publish_list()
    run = replace(run, samples=run_list.samples)
    share = Share.for_process(out, source, run.samples, settings, mirror)
    with (
        current_device(run.encoder.device),
        Progress(share.samples, "encode", settings.progress, totals=settings.totals, detail=run.busy_text()) as bar,
    ):
        publish_empty_caption(out, run)
        encode_units(run, share, bar)
    if settings.queue is not None or share.missing(run.card):  # nothing is removed: other processes may still plan
        return run.card
    return finish_updated(request, card, run.card, run.samples)


def finish_updated(request: EncodeRequest, before: Card, card: Card, samples: SampleList) -> Card:
    """Publishes an update whose units are all published.

    Args:
        request: The request.
        before: The card of the dataset before the update.
        card: That of the update, without counts and statistics.
        samples: The list of the update.

    Returns:
        The completed card.

    Raises:
        MismatchError: Another update is being finished, or a later one was.
    """
    out, mirror, progress = request.out, request.mirror, request.settings.progress
    if mirror is not None:
        mirror.fetch_units(unit_names(out, card))
    completed = finish_update(out, card, progress)
    if mirror is not None:
        mirror.publish_update()
    print_notes(_range_notes(out, before, samples, card.source.revision), progress)
    return completed


def complete_plan(request: EncodeRequest, plan: UpdatePlan, source: Source) -> None:
    """Adds samples whose content changed to the plan, if the request asks for it."""
    if request.settings.check_content:
        _check_content(plan, source, request.out, request.settings.progress)


def planned_update(request: EncodeRequest, card: Card, plan: UpdatePlan, source: Source) -> tuple[EncodingRun, RunList]:
    """Loads the models, and returns the run of an update and the list that the dataset will have.

    Args:
        request: The request.
        card: The card of the dataset before the update.
        plan: The plan, complete.
        source: The source, opened.

    Raises:
        MismatchError: The models are not those of the dataset.
        LatentqError: A model cannot be loaded.
    """
    recipe = _stored_recipe(card)
    run_list, facts = plan.listed()
    models = load_models(
        recipe, request.autoencoder, request.text_encoder, device=request.settings.device, keep_subfolder=True
    )
    totals = run_list.samples.totals
    try:
        planned, _ = plan_card(recipe, facts, totals, models.autoencoder, card, models.text_encoder)
    except RecipeError as error:
        hint = "give the options of the source, such as --captions or --label-column, as in the first run"
        raise RecipeError(f"{error} ({plan.changes}): {hint}") from None
    planned = replace(planned, recipe=replace(planned.recipe, columns=card.recipe.columns))
    check_same_work(request.out, replace(card, source=facts), planned, frozen=True)
    planned = replace(card, source=facts, counts=None)
    return EncodingRun.planned(source, run_list.samples, planned, (), models, request.settings, request.out), run_list


def _stored_recipe(card: Card) -> Recipe:
    """Returns the recipe of a card; its columns, which are stored, are no longer optional."""
    columns = {name: replace(column, optional=False) for name, column in card.recipe.columns.items()}
    return replace(card.recipe, columns=columns)


def _check_content(plan: UpdatePlan, source: Source, out: Path, progress: TextIO | None) -> None:
    """Marks samples whose files have other content than when their unit was made, although the size is the same.

    Raises:
        LatentqError: A unit has no hashes, or not one for each sample.
    """
    with Progress(plan.compared, "compare", progress, noun="file", leave=False) as bar:
        for unit, samples in plan.unchanged():
            hashes = _recorded_hashes(out / unit.name / CONTENT_HASHES, unit)
            for position, content_hash in _content_hashes(source, samples):
                if content_hash is not None and content_hash != hashes[position]:
                    plan.mark_changed(unit.first + position)
                bar.update(1)


def _recorded_hashes(path: Path, unit: UnitEntry) -> NDArray[np.uint64]:
    try:
        data = read_regular(path)
    except FileNotFoundError:
        raise LatentqError(f"{path} is missing: without it the content of files cannot be compared") from None
    if len(data) != CONTENT_HASH_BYTES * unit.samples:
        needed = f"{CONTENT_HASH_BYTES} for each of {counted(unit.samples, 'sample')}"
        raise FormatError(f"{path}: {counted(len(data), 'byte')}, not {needed}")
    return np.frombuffer(data, "<u8")


def _content_hashes(source: Source, samples: Iterable[tuple[int, Sample]]) -> Iterator[tuple[int, int | None]]:
    """Yields the hash of each sample's file, `_NOT_READ` if it cannot be read and None if the list says why.

    Args:
        source: The source. If it is on a store, many samples are read at the same time.
        samples: The samples by their positions.

    Raises:
        OSError: The machine cannot read.
    """
    connections = connections_of(source)
    if not connections:
        for position, sample in samples:
            yield position, None if sample.fault else _content_hash(source, sample, None)
        return

    def begun() -> Iterator[Callable[[], tuple[int, int | None]]]:
        for position, sample in samples:
            read = deferred_read(source, sample)
            if read is not None:
                yield lambda p=position, s=sample, r=read: (p, _content_hash(source, s, r))  # type: ignore[misc]
            else:  # in order, on this thread
                known = None if sample.fault else _content_hash(source, sample, None)
                yield lambda p=position, k=known: (p, k)  # type: ignore[misc]

    yield from in_order(lambda work: work(), begun(), connections)


def _content_hash(source: Source, sample: Sample, read: Callable[[], bytes] | None) -> int:
    data, refusal = read_sample(source, sample, read)
    if refusal is not None:
        return _NOT_READ
    try:
        return image_hash(data if isinstance(data, bytes) else str(data))
    except OSError as error:
        if not is_file_fault(error):
            raise
        return _NOT_READ


def _range_notes(out: Path, before: Card, samples: SampleList, revision: int) -> list[str]:
    """Returns a line for each column whose new values are outside the calibrated range much more often than the old.

    Args:
        out: The dataset.
        before: The card before the update.
        samples: The list after the update.
        revision: The number of the update.
    """
    clipped = dict.fromkeys((*before.latents, *before.embeddings), 0)
    count, counts = 0, [0] * before.buckets
    for unit in samples.units():
        if unit.revision == revision:
            facts = UnitFacts.load(out / unit.name / UNIT)
            count += facts.samples
            counts = list(map(sum, zip(counts, facts.buckets, strict=True)))
            for name, sums in facts.latents.items():
                clipped[name] += int(sums.clipped.sum())
            for name, number in facts.clipped.items():
                clipped[name] += number
    notes = []
    old = before.counts
    columns = {
        name: (latent.shapes, latent.shape, sum(latent.clipped or ())) for name, latent in before.latents.items()
    }
    columns |= {name: ((), embedding.shape, embedding.clipped or 0) for name, embedding in before.embeddings.items()}
    for name, (shapes, shape, old_clipped) in columns.items():
        if not count or old is None or not old.samples:
            continue
        old_rate = old_clipped / _values(shapes or (shape,), old.buckets if shapes else [old.samples])
        new_rate = clipped[name] / _values(shapes or (shape,), counts if shapes else [count])
        if new_rate > max(_CLIP_RATE, _CLIP_FACTOR * old_rate):
            notes.append(
                f"{name}: {new_rate:.3%} of the new values are outside the calibrated range, {old_rate:.3%} of the old "
                "ones: the range no longer fits; to calibrate on the whole source, encode it to another folder"
            )
    return notes


def _values(shapes: Iterable[tuple[int, ...]], counts: Iterable[int]) -> int:
    """Returns the number of values of samples, given the number of samples of each shape."""
    return sum(prod(shape) * count for shape, count in zip(shapes, counts, strict=True))
