"""Encodes units in batches: images in, codes out."""

from __future__ import annotations

import contextlib
import gc
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

from latentq._core import LatentqError
from latentq.encoding.images import DecodedBatch, ImageLoader, PlannedBatch
from latentq.encoding.run import EncodingRun
from latentq.encoding.stages import CAPTIONS, IMAGES, NETWORK, prefetched
from latentq.sources import Sample
from latentq.system.progress import Progress

if TYPE_CHECKING:
    from latentq.encoding.captions import Embedded, QueuedCaption
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
    batches = prefetched(loader.batches(_planned_batches(run, units)), 1, run.profile, IMAGES, NETWORK)
    try:
        yield batches
    finally:
        try:
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
        run = replace(run, batch_size=run.batch_size // 2)
        bar.note(f"out of memory on {run.encoder.device}: retrying with batch size {run.batch_size}")
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def _planned_batches(run: EncodingRun, units: Iterable[Chosen]) -> Iterator[PlannedBatch]:
    """Yields the batches of units, in order.

    A unit's batches follow from its length and the run's `batch_length` alone.
    """
    length = run.batch_length
    for indices, samples in units:
        captions = None
        if run.captions is not None:
            from latentq.encoding.captions import UnitCaptions

            captions = UnitCaptions(run.captions, run.text_quantizers, samples, length)
        for start in range(0, len(indices), length):
            batch = slice(start, start + length)
            last = start + length >= len(indices)
            yield PlannedBatch(indices[batch], samples[batch], length, captions, last)


def _start(run: EncodingRun, batch: DecodedBatch) -> _PendingBatch:
    rows: list[list[Any]] = []
    if batch.captions is not None:  # first, because they are waited for first
        with run.profile.timing(CAPTIONS, "worked"):
            rows = batch.captions.start(batch.samples)
    positions = [position for position in range(len(batch.indices)) if position not in batch.rejected]
    latents = run.encoder.start(batch.pixels, run.card.recipe.encoded(), run.quantizers, batch.indices, positions)
    batch.pixels.clear()  # torch keeps pinned memory until it is copied
    return _PendingBatch(batch, latents, rows)


def _wait(run: EncodingRun, pending: _PendingBatch) -> EncodedBatch:
    batch, latents = pending.batch, pending.latents
    embedded: dict[int, list[Embedded]] = {}
    if batch.captions is not None:
        with run.profile.timing(CAPTIONS, "worked"):
            embedded = {position: batch.captions.wait(pending.captions[position]) for position in latents.positions}
    bad_captions = [position for position, captions in embedded.items() if any(caption.bad for caption in captions)]
    bad = run.encoder.wait(latents, run.card.recipe.encoded(), run.quantizers, run.profile, bad_captions)
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
