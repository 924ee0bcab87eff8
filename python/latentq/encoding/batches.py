"""Encodes units in batches: images in, codes out."""

from __future__ import annotations

import contextlib
import gc
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import ceil
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

from latentq._core import LatentqError
from latentq.encoding.images import DecodedBatch, ImageLoader, PlannedBatch
from latentq.encoding.placing import PlacedUnit, Placing
from latentq.encoding.run import EncodingRun
from latentq.encoding.stages import CAPTIONS, IMAGES, NETWORK, prefetched
from latentq.sources import Sample
from latentq.system.progress import Progress

if TYPE_CHECKING:
    from latentq.encoding.captions import Embedded, QueuedCaption, UnitCaptions
    from latentq.encoding.latents import PendingLatents

_T = TypeVar("_T")
Chosen: TypeAlias = tuple[Sequence[int], Sequence[Sample]]
"""Samples to encode: their numbers in the list, and the samples. They are a unit, or samples to calibrate on."""


@dataclass(frozen=True)
class EncodedBatch:
    """The codes of a batch.

    Attributes:
        batch: The batch; its `rejected` is complete now.
        positions: Positions in the batch of the n samples to store.
        codes: By column: (n, C, h, w) or (n, h, w) codes, floats or tokens; (n, captions, ...) for captions.
        clipped: By column with a quantizer, (C,) int64: the number of values outside its range; for embeddings (1,),
            over all channels.
        redone: Number of samples that were encoded again in float32.
    """

    batch: DecodedBatch
    positions: Sequence[int]
    codes: Mapping[str, NDArray[Any]]
    clipped: Mapping[str, NDArray[np.int64]]
    redone: int

    def nbytes(self) -> int:
        """Returns the bytes of the codes and of the image files."""
        return sum(codes.nbytes for codes in self.codes.values()) + sum(map(len, self.batch.images))


@dataclass(frozen=True)
class _PendingBatch:
    """A batch that the device is encoding; `captions` has those of each sample."""

    batch: DecodedBatch
    latents: PendingLatents
    captions: list[list[QueuedCaption]]


def encode_batches(run: EncodingRun, units: Iterable[Chosen]) -> Generator[EncodedBatch, None, None]:
    """Yields the encoded batches of units, in order.

    The next batch is started before the results of the last are waited for, so that a GPU always has work.
    """
    pending: deque[_PendingBatch] = deque()
    with decoded_batches(run, units) as batches:
        for batch in batches:
            pending.append(_start(run, batch))
            if len(pending) > 1:
                yield _wait(run, pending.popleft())
        while pending:
            yield _wait(run, pending.popleft())


@contextlib.contextmanager
def decoded_batches(run: EncodingRun, units: Iterable[Chosen]) -> Iterator[Iterator[DecodedBatch]]:
    """Gives the block the decoded images of units, in order, and ends the threads that load them."""
    loader = ImageLoader(run)
    buckets = run.card.recipe.buckets
    placing = None
    if buckets is None:
        planned = _planned_batches(run, units)
    else:
        placing = Placing(
            run.source, buckets, orient=run.card.recipe.image.orient, threads=run.threads, folder=run.folder
        )
        planned = _planned_in_buckets(run, placing.units(units))
    batches = prefetched(loader.batches(planned), 1, run.profile, IMAGES, NETWORK)
    try:
        yield batches
    finally:
        try:
            if placing is not None:
                placing.close()
            loader.close()  # first, so that no thread waits for an image
        finally:
            batches.close()


def retry_with_smaller_batches(
    run: EncodingRun, bar: Progress, work: Callable[[EncodingRun], _T]
) -> tuple[_T, EncodingRun]:
    """Calls `work`, again with half the batch size each time that the device runs out of memory.

    Returns:
        The result of `work`, and the run with the batch size that it took.

    Raises:
        RuntimeError: The memory is not enough for a single image, e.g. a `torch.OutOfMemoryError`.
    """
    import torch

    from latentq.models.device import is_out_of_memory

    while True:
        try:
            return work(run), run
        except Exception as error:
            if run.batch_size == 1 or not is_out_of_memory(error):
                raise
        # Outside the handler, where the exception's frames no longer hold the tensors of the failed attempt; those of
        # the stopped stages may be in reference cycles.
        gc.collect()
        run = replace(run, batch_sizes=tuple(max(1, size // 2) for size in run.batch_sizes))
        bar.note(f"out of memory on {run.encoder.device}: retrying with batch size {run.batch_size}")
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def _planned_batches(run: EncodingRun, units: Iterable[Chosen]) -> Iterator[PlannedBatch]:
    """Yields the batches of units, in order.

    A unit's batches follow from its length and the run's `batch_length` alone.
    """
    length = run.batch_length
    for indices, samples in units:
        captions = _unit_captions(run, samples, length)
        for start in range(0, len(indices), length):
            batch = slice(start, start + length)
            last = start + length >= len(indices)
            yield PlannedBatch(indices[batch], samples[batch], length, captions, last, None, ())


def _planned_in_buckets(run: EncodingRun, units: Iterable[PlacedUnit]) -> Iterator[PlannedBatch]:
    """Yields the batches of units, in order: in a unit by bucket, then by list; last those rejected for their size.

    A unit's batches follow from its list, the sizes of its images and the run's batch sizes alone.
    """
    for unit in units:
        batches = _batches_of_buckets(run, unit)
        length = run.batch_size
        ordered = [position for _, positions, rows in batches if rows for position in positions]
        captions = _unit_captions(run, [unit.samples[position] for position in ordered], length)
        for number, (bucket, positions, rows) in enumerate(batches):
            yield PlannedBatch(
                [unit.indices[position] for position in positions],
                [unit.samples[position] for position in positions],
                rows,
                captions if rows else None,
                number == len(batches) - 1,
                bucket,
                [unit.places[position] for position in positions],
            )


def _batches_of_buckets(run: EncodingRun, unit: PlacedUnit) -> list[tuple[int, list[int], int]]:
    """Returns for each batch of a unit its bucket, the positions of its samples in the unit, and its number of rows.

    The samples that are rejected for their size are the last batch, which has no rows.
    """
    members: dict[int, list[int]] = {}
    too_small = []
    for position, place in enumerate(unit.places):
        if place.refusal is not None and place.refusal[0] == "size":
            too_small.append(position)
        else:
            members.setdefault(place.bucket, []).append(position)
    batches = []
    for bucket, positions in sorted(members.items()):
        most = run.batch_sizes[bucket]
        # A compiled network is compiled for one shape alone.
        rows = most if run.encoder.is_compiled else ceil(len(positions) / ceil(len(positions) / most))
        for start in range(0, len(positions), rows):
            part = positions[start : start + rows]
            batches.append((bucket, part, rows))
    if too_small:
        batches.append((0, too_small, 0))
    return batches


def _unit_captions(run: EncodingRun, samples: Sequence[Sample], length: int) -> UnitCaptions | None:
    """Returns what embeds a unit's captions, given its samples in the order of encoding; None without embeddings."""
    if run.captions is None:
        return None
    from latentq.encoding.captions import UnitCaptions

    return UnitCaptions(run.captions, run.text_quantizers, samples, length)


def _start(run: EncodingRun, batch: DecodedBatch) -> _PendingBatch:
    rows: list[list[Any]] = []
    if batch.captions is not None:  # first, because they are waited for first
        with run.profile.timing(CAPTIONS, "worked"):
            rows = batch.captions.start(batch.samples)
    positions = [position for position in range(len(batch.indices)) if position not in batch.rejected]
    columns = run.card.recipe.sized(batch.bucket)
    latents = run.encoder.start(batch.pixels, columns, run.quantizers, batch.indices, positions)
    batch.pixels.clear()  # torch keeps pinned memory until it is copied
    return _PendingBatch(batch, latents, rows)


def _wait(run: EncodingRun, pending: _PendingBatch) -> EncodedBatch:
    batch, latents = pending.batch, pending.latents
    embedded: dict[int, list[Embedded]] = {}
    if batch.captions is not None:
        with run.profile.timing(CAPTIONS, "worked"):
            embedded = {position: batch.captions.wait(pending.captions[position]) for position in latents.positions}
    bad_captions = [position for position, captions in embedded.items() if any(caption.bad for caption in captions)]
    columns = run.card.recipe.sized(batch.bucket)
    bad = run.encoder.wait(latents, columns, run.quantizers, run.profile, bad_captions)
    rejected = dict(batch.rejected)
    for position in bad:
        name = "its caption's embedding" if position in bad_captions else "its latent"
        rejected[position] = ("encode", LatentqError(f"{name} holds NaN or infinity"))
    clipped = {name: values.numpy() for name, values in latents.clipped.items()}
    codes, redone = latents.arrays(), latents.redone
    if embedded:
        from latentq.encoding.captions import stacked

        kept = [embedded[position] for position in latents.positions]
        codes |= stacked(kept)
        redone += sum(any(caption.redone for caption in captions) for captions in embedded.values())
        for name in run.text_quantizers:
            total = sum(caption.clipped.get(name, 0) for captions in kept for caption in captions)
            clipped[name] = np.array([total], np.int64)
    return EncodedBatch(replace(batch, rejected=rejected), latents.positions, codes, clipped, redone)
