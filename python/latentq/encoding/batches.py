"""Batches of a unit: images in, codes out."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from latentq import image
from latentq._core import LatentqError
from latentq.encoding.stages import CAPTIONS, IMAGES, NETWORK, ahead
from latentq.sources.listing import REJECTED, fetch
from latentq.system.progress import Progress

if TYPE_CHECKING:
    import torch

    from latentq.encoding.captions import Embedded, UnitCaptions
    from latentq.encoding.latents import Flight
from latentq.encoding.job import Job

_T = TypeVar("_T")


# From images to latents.


@dataclass(frozen=True)
class _Batch:
    """Decoded images of one unit.

    Attributes:
        unit: The unit's number.
        numbers: The samples' numbers in the source, n of them.
        pixels: For each size: (B, 3, S, S) uint8, B >= n, in memory of the encoder's `host`; rows of samples that
            failed, and those past n, are zero.
        failed: What the image stage refused, by place in the batch.
        images: The pictures' files, where they are stored.
        captions: Those of the unit, where they are embedded.
        last: Whether it is the unit's last.
    """

    unit: int
    numbers: Sequence[int]
    pixels: dict[int, torch.Tensor]
    failed: dict[int, tuple[str, Exception]]
    images: Sequence[bytes]
    captions: UnitCaptions | None
    last: bool


def _batches(job: Job, units: Iterable[tuple[int, Sequence[int]]]) -> Iterator[_Batch]:
    """The decoded images of units, in order.

    How a unit is cut into batches depends on its length and the batch size alone, and every batch of a unit has one
    shape, since a network's results may depend, in the last bit, on the shape that it is given.
    """
    options = job.card.recipe.image.options()
    smallest = job.card.recipe.image.min_size
    sizes = sorted({column.size for column in job.card.recipe.encoded().values()})
    keeps_images = any(column.content == "image" for column in job.card.recipe.columns.values())
    for unit, numbers in units:
        count = -(-len(numbers) // job.batch_size)
        length = -(-len(numbers) // count)
        captions = None
        if job.captions is not None:
            from latentq.encoding.captions import UnitCaptions

            of_unit = [job.listing.samples[number] for number in numbers]
            captions = UnitCaptions(job.captions, job.text_quantizers, of_unit, length)
        for start in range(0, len(numbers), length):
            chosen = numbers[start : start + length]
            samples = [job.listing.samples[number] for number in chosen]
            failed: dict[int, tuple[str, Exception]] = {}
            pixels = {size: job.encoder.host((length, 3, size, size)) for size in sizes}
            data = []
            for place, sample in enumerate(samples):
                datum, refusal = fetch(job.source, sample)
                if refusal is None and smallest:
                    refusal = _too_small(datum, smallest)
                data.append(datum if refusal is None else b"")
                if refusal is not None:
                    failed[place] = refusal
            out = [of_size.numpy()[: len(data)] for of_size in pixels.values()]
            _, errors = image.load_sizes(data, sizes, threads=job.threads, out=out, **options)
            for place, error in enumerate(errors):
                if isinstance(error, OSError) and error.errno not in REJECTED:
                    raise error  # of the machine, not of the file: the unit can be encoded another time
                if error is not None:
                    failed.setdefault(place, ("read" if isinstance(error, OSError) else "decode", error))
            for place, sample in enumerate(samples):
                try:
                    sample.key.encode()
                except UnicodeEncodeError:
                    failed[place] = ("list", LatentqError("the file's name is not UTF-8"))
            images = []
            if keeps_images:
                images = [b"" if place in failed else _bytes_of(datum) for place, datum in enumerate(data)]
            yield _Batch(unit, chosen, pixels, failed, images, captions, start + length >= len(numbers))


def _too_small(data: bytes | Path, smallest: int) -> tuple[str, Exception] | None:
    """Why a picture is rejected for its size; one that cannot be read is left to the decoder."""
    try:
        info = image.info(data)
    except (OSError, LatentqError):
        return None
    if min(info.width, info.height) >= smallest:
        return None
    return "size", LatentqError(f"{info.width} x {info.height} pixels, below {smallest}")


def _bytes_of(data: bytes | Path) -> bytes:
    return data.read_bytes() if isinstance(data, Path) else data


@dataclass(frozen=True)
class Encoded:
    """What became of a batch.

    Attributes:
        batch: The batch; what it `failed` is complete now.
        places: The places in it of the samples to be stored, n of them.
        codes: By column, (n, C, h, w) or (n, h, w), as the quantiser gives them; (n, captions, ...) of captions.
        clipped: By column with a quantiser, (C,) int64; of embeddings, of all channels together.
        redone: How many samples were encoded again in float32.
    """

    batch: _Batch
    places: Sequence[int]
    codes: Mapping[str, NDArray[Any]]
    clipped: Mapping[str, NDArray[np.int64]]
    redone: int


def encode_batches(job: Job, units: Iterable[tuple[int, Sequence[int]]]) -> Generator[Encoded, None, None]:
    """The batches of units through the network, in order.

    A batch is launched before the one before it has landed, so that a GPU always has its next.
    """
    columns, quantizers = job.card.recipe.encoded(), job.quantizers

    def launched(batch: _Batch) -> tuple[_Batch, Flight, list[list[Any]]]:
        rows: list[list[Any]] = []
        if batch.captions is not None:  # before the pictures: what is asked for first has landed first
            with job.profile.timing(CAPTIONS, "worked"):
                rows = batch.captions.launch(job.listing.samples[number] for number in batch.numbers)
        places = [place for place in range(len(batch.numbers)) if place not in batch.failed]
        return batch, job.encoder.launch(batch.pixels, columns, quantizers, batch.numbers, places), rows

    def landed(batch: _Batch, flight: Flight, rows: list[list[Any]]) -> Encoded:
        embedded: dict[int, list[Embedded]] = {}
        if batch.captions is not None:
            with job.profile.timing(CAPTIONS, "worked"):
                embedded = {place: batch.captions.land(rows[place]) for place in flight.places}
        refused = [place for place, of in embedded.items() if any(one.bad for one in of)]
        bad = job.encoder.land(flight, columns, quantizers, job.profile, refused)
        what = {place: "its caption's embedding" if place in refused else "its latent" for place in bad}
        reasons = {place: ("encode", LatentqError(f"{name} holds NaN or infinity")) for place, name in what.items()}
        batch = replace(batch, failed={**batch.failed, **reasons})
        clipped = {name: values.numpy() for name, values in flight.clipped.items()}
        codes, redone = flight.arrays(), flight.redone
        if embedded:
            from latentq.encoding.captions import stacked

            kept = [embedded[place] for place in flight.places]
            codes |= stacked(kept)
            redone += sum(any(one.redone for one in of) for of in embedded.values())
            for name in job.text_quantizers:
                clipped[name] = np.array([sum(one.clipped.get(name, 0) for of in kept for one in of)], np.int64)
        return Encoded(batch, flight.places, codes, clipped, redone)

    batches = ahead(_batches(job, units), 2, job.profile, IMAGES, NETWORK)
    flying: deque[tuple[_Batch, Flight, list[list[Any]]]] = deque()
    try:
        for batch in batches:
            flying.append(launched(batch))
            if len(flying) > 1:
                yield landed(*flying.popleft())
        while flying:
            yield landed(*flying.popleft())
    finally:
        batches.close()


def halving(job: Job, bar: Progress, work: Callable[[Job], _T]) -> _T:
    """Does a piece of work, anew with half the batch as often as the device's memory is not enough for it."""
    import torch

    while True:
        try:
            return work(job)
        except torch.OutOfMemoryError:
            if job.batch_size == 1:
                raise
        # Not in the handler: the exception's frames hold what the failed attempt had allocated.
        job = replace(job, batch_size=job.batch_size // 2)
        bar.note(f"out of memory on {job.encoder.device}: going on with batches of {job.batch_size}")
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
