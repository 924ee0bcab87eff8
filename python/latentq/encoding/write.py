"""Encodes units and publishes them."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from latentq import image
from latentq._core import LatentqError
from latentq.encoding.batches import Chosen, EncodedBatch, encode_batches, retry_with_smaller_batches
from latentq.encoding.images import DecodedBatch
from latentq.encoding.run import EncodingRun
from latentq.encoding.stages import CODEC, NETWORK, WRITE, background_consumer
from latentq.format.card import CARD
from latentq.format.facts import EmbeddingFacts
from latentq.format.files import CONTENT_HASH_BYTES, CONTENT_HASHES, PLACE_BYTES, PLACES, bucket_group
from latentq.format.options import CONDITIONING, FLOATS, TEXT
from latentq.quantizer import Moments, Quantizer
from latentq.run.queue import PendingUnits
from latentq.run.sample_list import UnitEntry
from latentq.run.share import Share
from latentq.run.unit_writer import UnitWriter, publish_unit
from latentq.run.units import LatentSums, UnitFacts, card_hash
from latentq.sources.listing import cycled_captions
from latentq.system.progress import Progress

QUEUE_BYTES = 1 << 26
"""The bytes of batches that wait to be written. The network computes them while a unit is fsynced."""


def encode_units(run: EncodingRun, share: Share, bar: Progress) -> None:
    """Encodes and publishes every unit of this process that is not published yet."""
    for pending in share.pending(bar, run.card):
        _, run = retry_with_smaller_batches(run, bar, partial(_encode_pending, share=share, pending=pending, bar=bar))


def _encode_pending(run: EncodingRun, share: Share, pending: PendingUnits, bar: Progress) -> None:
    def write_unit(unit: UnitEntry, batches: Iterator[EncodedBatch]) -> None:
        _write_encoded_unit(run, share, unit, batches, bar)
        pending.done()
        share.unit_published(unit, bar)

    def write_empty() -> None:
        """Writes units without samples, which an update may leave, and which have no batch."""
        while (unit := pending.oldest()) is not None and not unit.samples:
            write_unit(unit, iter(()))

    def write(batches: Iterator[EncodedBatch]) -> None:
        for first in batches:
            write_empty()
            unit = pending.oldest()
            assert unit is not None  # it was begun before its first batch was
            write_unit(unit, itertools.chain([first], batches))
        write_empty()

    with (
        background_consumer(write, QUEUE_BYTES, run.profile, WRITE, NETWORK, EncodedBatch.nbytes) as send,
        contextlib.closing(encode_batches(run, _with_samples(run, pending))) as batches,
    ):
        for encoded in batches:
            send(encoded)


def _with_samples(run: EncodingRun, units: PendingUnits) -> Iterator[Chosen]:
    """Yields the samples of each unit, read from the list when they are needed."""
    for unit in units:
        yield unit.indices, run.samples.samples(unit)


def _write_encoded_unit(
    run: EncodingRun, share: Share, unit: UnitEntry, batches: Iterator[EncodedBatch], bar: Progress
) -> None:
    """Takes the batches of one unit, and publishes the unit unless another process is first."""
    facts = empty_facts(run, (share.out / CARD).read_bytes(), unit)
    files = {CONTENT_HASHES: bytearray(CONTENT_HASH_BYTES * unit.samples)}
    if run.card.buckets:
        files[PLACES] = bytearray(PLACE_BYTES * unit.samples)
    remaining = _batches_of_unit(batches)

    def fill(writer: UnitWriter) -> None:
        rejected: list[int] = []
        for encoded in remaining:
            batch = write_batch(run, encoded, writer)
            positions = np.array(batch.indices, np.int64) - unit.first
            np.frombuffer(files[CONTENT_HASHES], "<u8")[positions] = batch.hashes
            rejected.extend(int(positions[position]) for position in sorted(batch.rejected))
            if batch.places:
                np.frombuffer(files[PLACES], "<u2")[positions] = [place.bucket for place in batch.places]
        # Buckets come one after the other; rejects are in the order of the list.
        in_order = sorted(zip(rejected, facts.rejects, strict=True), key=lambda pair: pair[0])
        facts.rejects[:] = [reject for _, reject in in_order]

    publish_unit(share.path(unit), run.card.columns, facts, bar, fill, files=files)
    for _ in remaining:  # if another process was first, `fill` may have been cut short
        pass


def _batches_of_unit(batches: Iterator[EncodedBatch]) -> Iterator[EncodedBatch]:
    for encoded in batches:
        yield encoded
        if encoded.batch.last:
            return


def empty_facts(run: EncodingRun, card: bytes, unit: UnitEntry) -> UnitFacts:
    """Returns the facts of a unit before its first sample.

    Args:
        run: The run.
        card: The bytes of the card's file.
        unit: The unit.
    """
    return UnitFacts(
        card=card_hash(card),
        listing=run.samples.unit_sha256(unit),
        latents={name: LatentSums.empty(quantizer) for name, quantizer in (run.quantizers | run.trellises).items()},
        buckets=[0] * run.card.buckets,
    )


def write_batch(run: EncodingRun, encoded: EncodedBatch, writer: UnitWriter) -> DecodedBatch:
    """Stores the samples of a batch, and counts its rejects. Returns the batch with all of its rejects."""
    encoded, coded = _with_transforms(run, encoded)
    for position, (stage, error) in sorted(encoded.batch.rejected.items()):
        writer.reject(run.source, encoded.batch.samples[position], stage, error, strict=run.strict)
    writer.facts.redone += encoded.redone
    if encoded.positions:
        bucket = encoded.batch.bucket
        if bucket is not None:
            if writer.group != (group := bucket_group(bucket)):
                writer.begin_group(group, run.card.for_bucket(bucket).columns)
            writer.facts.buckets[bucket] += len(encoded.positions)
        columns = {
            name: _transformed_column(run, encoded, coded[name], name, writer.facts)
            if name in coded
            else _column(run, encoded, name, writer.facts)
            for name in run.card.columns
        }
        writer.write(columns, len(encoded.positions))
    return encoded.batch


def _with_transforms(run: EncodingRun, encoded: EncodedBatch) -> tuple[EncodedBatch, dict[str, list[bytes]]]:
    """Encodes the columns that have a transform, on the run's threads.

    This is the writer's work, so that it runs while the network computes the next batches.

    Returns:
        The batch without the samples that cannot be encoded, which it rejects; and the bytes of each sample, by column.
    """
    coded: dict[str, list[bytes]] = {}
    refused: dict[int, LatentqError] = {}
    for name, transform in run.transforms.items() if encoded.positions else ():
        with run.profile.timing(CODEC, "worked"):
            samples = transform.encode_counted(encoded.codes[name], threads=run.threads)
        coded[name] = samples.rows()
        for row, reason in samples.bad.items():
            refused[row] = LatentqError(f"its latent in column {name} cannot be encoded: {reason}")
    if not refused:
        return encoded, coded
    kept = [row for row in range(len(encoded.positions)) if row not in refused]
    rejected = encoded.batch.rejected | {encoded.positions[row]: ("encode", error) for row, error in refused.items()}
    encoded = replace(
        encoded,
        batch=replace(encoded.batch, rejected=rejected),
        positions=[encoded.positions[row] for row in kept],
        codes={name: values[kept] for name, values in encoded.codes.items()},
    )
    return encoded, {name: [rows[row] for row in kept] for name, rows in coded.items()}


def _transformed_column(run: EncodingRun, encoded: EncodedBatch, rows: list[bytes], name: str, facts: UnitFacts) -> Any:
    """Returns the stored values of a column with a transform, and adds the sums over decoded values to the facts."""
    transform, shape = run.transforms[name], encoded.codes[name].shape[1:]
    values = transform.decode(rows, shape, threads=run.threads)
    moments = [Moments.of(sample) for sample in values]
    facts.latents[name].add(LatentSums(np.zeros(transform.channels, np.int64), moments=moments))
    if run.card.columns[name] == "bytes":
        return rows
    return np.frombuffer(b"".join(rows), np.uint8).reshape(len(rows), -1)


def _column(run: EncodingRun, encoded: EncodedBatch, name: str, facts: UnitFacts) -> Any:
    """Returns the stored values of one column, one per sample, and adds the column's sums to the unit's facts.

    Args:
        run: The run.
        encoded: The batch.
        name: The column's name in the shards.
        facts: The unit's facts, which are changed in place.
    """
    card, encoding = run.card, run.card.columns[name]
    content = card.recipe.columns[name].content
    samples = [encoded.batch.samples[position] for position in encoded.positions]
    values: Any
    if name in run.trellises:
        with run.profile.timing(CODEC, "worked"):
            codes, counts = run.trellises[name].quantize_counted(encoded.codes[name], threads=run.threads)
        sums, values = _quantized_column(run.trellises[name], codes, counts.clipped)
        facts.latents[name].add(sums)
    elif name in run.quantizers:
        sums, values = _quantized_column(run.quantizers[name], encoded.codes[name], encoded.clipped[name])
        facts.latents[name].add(sums)
    elif name in card.tokens:
        values = encoded.codes[name].astype(card.tokens[name].dtype)
    elif name in card.embeddings:
        codes, clipped = encoded.codes[name], int(encoded.clipped[name].sum())
        if name in run.text_trellises:
            with run.profile.timing(CODEC, "worked"):
                codes, clipped = quantize_vectors(run.text_trellises[name], codes, threads=run.threads)
        facts.clipped[name] = facts.clipped.get(name, 0) + clipped
        values = _packed_embeddings(card.embeddings[name], codes)
    elif content in TEXT:
        values = encoded.codes[name]
    elif content == "image":
        files = [encoded.batch.images[position] for position in encoded.positions]
        return [_as_jpeg(file) for file in files] if encoding == "jpeg" else files
    elif content in CONDITIONING:
        values = _conditioning(run, encoded, content)
    elif content == "captions":
        values = [cycled_captions(sample, card.recipe.text.captions) for sample in samples]
    else:
        values = [getattr(sample, content) for sample in samples]
        if encoding == "str":
            values = [str(value) for value in values]
    return [value.tobytes() for value in values] if encoding == "bytes" else values


def _conditioning(run: EncodingRun, encoded: EncodedBatch, content: str) -> NDArray[np.int32]:
    """Returns two numbers for each sample: a height and width, or a top and left."""
    recipe = run.card.recipe
    size = next(iter(recipe.sized(encoded.batch.bucket).values())).pixels
    values = []
    for position in encoded.positions:
        width, height = encoded.batch.sizes[position] or (0, 0)  # a sample without a size is rejected
        if content == "crop_top_left":
            window = image.crop_window(height, width, size, crop=recipe.image.crop)
            values.append((window.top, window.left))
        else:
            values.append((height, width) if content == "original_size" else size)
    return np.array(values, np.int32)


def _as_jpeg(data: bytes) -> bytes:
    """Returns an image file as a JPEG: as it is, or encoded with quality 95."""
    from latentq.format.shrink_jpeg import to_jpeg

    if image.info(data).format == "JPEG":
        return data
    return to_jpeg(data, min_size=1, max_size=1 << 30, quality=95).data


def _packed_embeddings(facts: EmbeddingFacts, codes: NDArray[Any]) -> NDArray[Any]:
    """Returns embeddings (n, ...) as they are stored: below 8 bits each vector is packed, giving (n, bytes)."""
    if facts.quantizer.bits >= 8:
        return codes
    packed: NDArray[Any] = facts.quantizer.pack(codes.reshape(-1, codes.shape[-1]))
    return packed.reshape(len(codes), -1)


def quantize_vectors(quantizer: Quantizer, values: NDArray[Any], *, threads: int) -> tuple[NDArray[Any], int]:
    """Returns the codes of embeddings (..., D), each vector a sample, and the number of clipped values."""
    codes, counts = quantizer.quantize_counted(values.reshape(-1, values.shape[-1]), threads=threads)
    return codes.reshape(values.shape), int(counts.clipped.sum())


def _quantized_column(
    quantizer: Quantizer, codes: NDArray[Any], clipped: NDArray[np.int64]
) -> tuple[LatentSums, NDArray[Any]]:
    """Returns the sums over a batch of one column, and its values as they are stored.

    Args:
        quantizer: The column's quantizer.
        codes: One per value, (N, C, ...); for a float kind, the values.
        clipped: The number of clipped values of each channel, (C,).
    """
    if quantizer.kind in FLOATS:
        return LatentSums(clipped, moments=[Moments.of(sample) for sample in quantizer.dequantize(codes)]), codes
    stored = quantizer.pack(codes) if quantizer.bits < 8 else codes
    return LatentSums(clipped, quantizer.histogram(codes)), stored
