"""Encodes units in batches: images in, codes out."""

from __future__ import annotations

import gc
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

from latentq import image
from latentq._core import LatentqError
from latentq.encoding.run import EncodingRun
from latentq.encoding.stages import CAPTIONS, IMAGES, NETWORK, prefetched
from latentq.sources import Sample
from latentq.sources.listing import read_sample
from latentq.system.faults import raise_machine_fault
from latentq.system.progress import Progress
from latentq.system.text import size_text

if TYPE_CHECKING:
    import torch

    from latentq.encoding.captions import Embedded, QueuedCaption, UnitCaptions
    from latentq.encoding.latents import PendingLatents

_T = TypeVar("_T")
Units: TypeAlias = Iterable[tuple[int, Sequence[int]]]
"""Units to encode: each a number, and the indices of its samples in the list."""
Refusal: TypeAlias = tuple[str, Exception]
"""The stage that rejects a sample, and its error."""


READ_BYTES = 1 << 28
"""The maximum bytes of image files from archives that are in memory before they are decoded."""
STORED_BYTES = 1 << 30
"""The maximum bytes of image files of one batch that are in memory before they are stored."""


@dataclass(frozen=True)
class DecodedBatch:
    """The decoded images of a batch of samples, all of one unit.

    Attributes:
        unit: The unit's number.
        indices: Indices of the n samples in the list.
        pixels: Maps sizes to (B, 3, S, S) uint8, B >= n, in a `host_buffer` of the encoder. Rows of rejected samples,
            and rows after the first n, are zero.
        rejected: The rejected samples, by position in the batch.
        images: The image files, if the recipe stores them.
        captions: Embeds the unit's captions, if the recipe stores embeddings.
        last: True for the last batch of a unit.
    """

    unit: int
    indices: Sequence[int]
    pixels: dict[int, torch.Tensor]
    rejected: dict[int, Refusal]
    images: Sequence[bytes]
    captions: UnitCaptions | None
    last: bool


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


@dataclass(frozen=True)
class _PendingBatch:
    """A batch that the device is encoding; `captions` has those of each sample."""

    batch: DecodedBatch
    latents: PendingLatents
    captions: list[list[QueuedCaption]]


def encode_batches(run: EncodingRun, units: Units) -> Generator[EncodedBatch, None, None]:
    """Yields the encoded batches of units, in order.

    The next batch is started before the results of the last are waited for, so that a GPU always has work.
    """
    batches = prefetched(_decoded_batches(run, units), 2, run.profile, IMAGES, NETWORK)
    pending: deque[_PendingBatch] = deque()
    try:
        for batch in batches:
            pending.append(_start(run, batch))
            if len(pending) > 1:
                yield _wait(run, pending.popleft())
        while pending:
            yield _wait(run, pending.popleft())
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


def _decoded_batches(run: EncodingRun, units: Units) -> Iterator[DecodedBatch]:
    """Yields the decoded images of units, in order.

    A unit's batches follow from its length and the run's `batch_length` alone.
    """
    length = run.batch_length
    for unit, indices in units:
        captions = None
        if run.captions is not None:
            from latentq.encoding.captions import UnitCaptions

            samples = [run.listing.samples[index] for index in indices]
            captions = UnitCaptions(run.captions, run.text_quantizers, samples, length)
        for start in range(0, len(indices), length):
            chosen = indices[start : start + length]
            yield _decoded_batch(run, unit, chosen, length, captions, last=start + length >= len(indices))


def _decoded_batch(
    run: EncodingRun, unit: int, indices: Sequence[int], length: int, captions: UnitCaptions | None, *, last: bool
) -> DecodedBatch:
    recipe = run.card.recipe
    samples = [run.listing.samples[index] for index in indices]
    sizes = sorted({column.size for column in recipe.encoded().values()})
    pixels = {size: run.encoder.host_buffer((length, 3, size, size)) for size in sizes}
    keep_files = any(column.content == "image" for column in recipe.columns.values())
    rejected: dict[int, Refusal] = {}
    images: list[bytes] = []
    for start, data in _read(run, samples, rejected):
        outputs = [buffer.numpy()[start : start + len(data)] for buffer in pixels.values()]
        _, errors = image.load_sizes(data, sizes, threads=run.threads, out=outputs, **recipe.image.options())
        for position, error in enumerate(errors, start):
            if error is not None and position not in rejected:
                raise_machine_fault(error, samples[position].text)
                rejected[position] = ("read" if isinstance(error, OSError) else "decode", error)
        if keep_files:
            images += [b"" if position in rejected else _file_bytes(item) for position, item in enumerate(data, start)]
            _check_bytes(samples, images)
    labels = {column.content for column in recipe.columns.values()} & {"label", "label_text"}
    for position, sample in enumerate(samples):
        try:
            sample.key.encode()
        except UnicodeEncodeError:
            rejected[position] = ("list", LatentqError("the file's name is not UTF-8"))
        if missing := [label for label in sorted(labels) if getattr(sample, label) in (None, "")]:
            rejected.setdefault(position, ("list", LatentqError(f"no {missing[0]}")))
    return DecodedBatch(unit, indices, pixels, rejected, images, captions, last)


def _read(
    run: EncodingRun, samples: Sequence[Sample], rejected: dict[int, Refusal]
) -> Iterator[tuple[int, list[bytes | Path]]]:
    """Yields the samples' data in runs of at most `READ_BYTES` and one image, each with the position of its first.

    Args:
        run: The run.
        samples: The samples of a batch.
        rejected: Filled with the rejected samples, by position in the batch. Their data is empty.
    """
    smallest = run.card.recipe.image.min_size
    start, read_bytes = 0, 0
    data: list[bytes | Path] = []
    for position, sample in enumerate(samples):
        item, refusal = read_sample(run.source, sample)
        if refusal is None and smallest:
            refusal = _too_small(item, smallest)
        if refusal is not None:
            item, rejected[position] = b"", refusal
        data.append(item)
        read_bytes += len(item) if isinstance(item, bytes) else 0  # the decoder reads files, one per thread
        if read_bytes >= READ_BYTES:
            yield start, data
            start, read_bytes, data = position + 1, 0, []
    if data:
        yield start, data


def _check_bytes(samples: Sequence[Sample], images: Sequence[bytes]) -> None:
    """Refuses a batch whose image files, which are to be stored, take more than `STORED_BYTES` of memory."""
    total = sum(map(len, images))
    if total > STORED_BYTES:
        largest = max(range(len(images)), key=lambda position: len(images[position]))
        raise LatentqError(
            f"{samples[largest].text}: the image files of a batch of {len(samples)} take more than "
            f"{size_text(STORED_BYTES)} of memory, this one {size_text(len(images[largest]))}: "
            "use a smaller batch size, or do not store the files"
        )


def _too_small(data: bytes | Path, smallest: int) -> Refusal | None:
    """Returns the refusal of an image with a side below `smallest`. The decoder reports images that cannot be read."""
    try:
        info = image.info(data)
    except (OSError, LatentqError):
        return None
    if min(info.width, info.height) >= smallest:
        return None
    return "size", LatentqError(f"{info.width} x {info.height} pixels, below {smallest}")


def _file_bytes(data: bytes | Path) -> bytes:
    return data.read_bytes() if isinstance(data, Path) else data


def _start(run: EncodingRun, batch: DecodedBatch) -> _PendingBatch:
    rows: list[list[Any]] = []
    if batch.captions is not None:  # first, because they are waited for first
        with run.profile.timing(CAPTIONS, "worked"):
            rows = batch.captions.start(run.listing.samples[index] for index in batch.indices)
    positions = [position for position in range(len(batch.indices)) if position not in batch.rejected]
    latents = run.encoder.start(batch.pixels, run.card.recipe.encoded(), run.quantizers, batch.indices, positions)
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
