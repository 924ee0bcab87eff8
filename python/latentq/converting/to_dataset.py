"""Writes a latent dataset from another tool's data, several units at the same time, each read in batches."""

from __future__ import annotations

import collections
import contextlib
import threading
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cached_property
from math import prod
from pathlib import Path
from typing import Any, TextIO

import numpy as np
from numpy.typing import NDArray

from latentq import _core
from latentq._core import FormatError, LatentqError, MdsBuffers, MismatchError
from latentq.converting.buffers import Buffers
from latentq.converting.calibration import ColumnCalibration
from latentq.converting.incoming import Arrays, Incoming, Storage, latent_size_of
from latentq.format.card import CARD, Card
from latentq.format.facts import UNKNOWN, LatentFacts, TokenFacts
from latentq.format.files import LIST, PLACES, bucket_group
from latentq.format.options import FLOATS
from latentq.quantizer import Moments, Transform
from latentq.quantizer.arrays import float_array
from latentq.run.finish import finish
from latentq.run.listing import source_facts
from latentq.run.plan import plan_card
from latentq.run.sample_list import SampleList, UnitEntry, cut_into_units, list_parts, write_list
from latentq.run.unit_writer import UnitWriter, publish_unit
from latentq.run.units import LatentSums, UnitFacts, card_hash, unit_done
from latentq.sources import Sample
from latentq.store.local import make_folder, publish_once
from latentq.system.memory import fewer_collections
from latentq.system.processors import processors
from latentq.system.progress import BriefProgress, Progress
from latentq.system.text import counted

_BATCH_BYTES = 1 << 24
_MAX_BATCH = 1024
UNIT_SIZE = 4096
_WORKERS = 4  # units that are written at the same time, at most


@dataclass(frozen=True)
class _Run:
    incoming: Incoming
    card: Card
    samples: SampleList
    codes: Buffers = field(default_factory=Buffers)
    shards: MdsBuffers = field(default_factory=MdsBuffers)

    def buckets(self, samples: Sequence[Sample]) -> list[int]:
        """Returns the numbers of samples' buckets; 0 without buckets."""
        numbers = self._numbers
        return [numbers[latent_size_of(sample)] for sample in samples] if numbers else [0] * len(samples)

    @cached_property
    def _numbers(self) -> dict[tuple[int, int], int]:
        described: list[LatentFacts | TokenFacts] = [*self.card.latents.values(), *self.card.tokens.values()]
        return {(shape[-2], shape[-1]): number for number, shape in enumerate(described[0].shapes)}


class _SharedProgress(Progress):
    """A bar that several threads advance."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._lock = threading.RLock()

    def update(self, done: int) -> None:
        """Adds samples that are done."""
        with self._lock:
            super().update(done)

    def undo(self, accepted: int, rejects: Iterable[tuple[str, str]]) -> None:
        """Takes samples back that were counted."""
        with self._lock:
            super().undo(accepted, rejects)


def write_dataset(incoming: Incoming, out: Path, storage: Storage, progress: TextIO | None) -> int:
    """Writes a finished dataset, or completes one that was begun by the same work.

    Args:
        incoming: The data.
        out: The dataset's folder.
        storage: How latents and moments are stored.
        progress: The stream for progress, or None.

    Returns:
        The number of samples.

    Raises:
        FormatError: A file is broken, or not like the others; the message names it.
        LatentqError: There are no samples, or one that the codec cannot encode.
        MismatchError: What was begun had another list.
        OSError: A file cannot be read or written.
    """
    with fewer_collections():
        return _write_dataset(incoming, out, storage, progress)


def _write_dataset(incoming: Incoming, out: Path, storage: Storage, progress: TextIO | None) -> int:
    make_folder(out)
    samples, latent_sizes = _published_list(incoming, out, progress)
    recipe = incoming.planned_recipe(latent_sizes, storage)
    facts = source_facts(incoming.kind, samples, recipe.unit_size)
    card, uncalibrated = plan_card(
        recipe, facts, samples.totals, incoming.autoencoder, None, incoming.text, needs_captions=False
    )
    text = replace(card.text, weights=UNKNOWN) if card.text else None
    card = replace(card, autoencoder=replace(card.autoencoder, weights=UNKNOWN), text=text)
    run = _Run(incoming, card, samples)
    if uncalibrated:
        run = replace(run, card=_calibrated(run, uncalibrated, progress))
    if not publish_once(out / CARD, run.card.to_toml()) and (out / CARD).read_bytes() != run.card.to_toml():
        raise MismatchError(f"{out / CARD} is not the card of this conversion: versions of packages may differ")
    with _SharedProgress(len(samples), "convert", progress, noun="sample") as bar:
        _write_units(run, out, bar)
    finish(out, run.card, progress)
    return len(samples)


def _published_list(incoming: Incoming, out: Path, progress: TextIO | None) -> tuple[SampleList, set[tuple[int, int]]]:
    """Lists the samples, and publishes the list or compares it with the published one.

    Returns:
        The list, and every (h, w) of a latent, if there are several.
    """
    sizes: set[tuple[int, int]] = set()
    # The samples of a layout with a recipe of its own were read, with progress, when it was opened.
    stream = progress if incoming.recipe is None else None
    with contextlib.ExitStack() as stack:
        bar = stack.enter_context(BriefProgress(None, "list", stream, noun="sample")) if stream else None

        def listed() -> Iterator[Sample]:
            for sample in incoming.listing():
                if incoming.size is None and incoming.recipe is None:
                    sizes.add(latent_size_of(sample))
                if bar is not None:
                    bar.update(1)
                yield sample

        unit_size = incoming.recipe.unit_size if incoming.recipe else UNIT_SIZE
        parts = list_parts((unit, 0) for unit in cut_into_units(listed(), unit_size))
        place = out / LIST
        if not place.exists():
            temporary = out / f".{LIST}.new"
            _remove(temporary)
            write_list(temporary, parts)
            if not sum(1 for _ in temporary.iterdir()):
                raise LatentqError("there are no samples to convert")
            temporary.rename(place)
            return SampleList(place), sizes
        samples = SampleList(place)
        count = 0
        for number, part in enumerate(parts):
            count += 1
            if number >= samples.parts or part != samples.part_bytes(number):
                raise MismatchError(
                    f"{place} is not the list of the source any more: it has changed since the conversion began"
                )
        if count != samples.parts:
            raise MismatchError(f"{place} lists more samples than the source has now")
    return samples, sizes


def _remove(folder: Path) -> None:
    if folder.is_dir():
        for path in folder.iterdir():
            path.unlink()
        folder.rmdir()


def _write_units(run: _Run, out: Path, bar: Progress) -> None:
    """Writes the units that are not done, several at the same time: while some are fsynced, others are read."""
    workers = min(_WORKERS, processors() + 1)
    stopped = threading.Event()
    running: collections.deque[Future[None]] = collections.deque()
    with ThreadPoolExecutor(workers, "latentq: convert") as pool:
        try:
            for unit in run.samples.units():
                if unit_done(out, unit.name):
                    bar.skip(unit.samples)
                    continue
                if len(running) == workers:
                    running.popleft().result()
                running.append(pool.submit(_write_unit, run, out, unit, bar, stopped))
            while running:
                running.popleft().result()
        except BaseException:
            stopped.set()
            raise


def _calibrated(run: _Run, names: Sequence[str], progress: TextIO | None) -> Card:
    """Returns the card with quantizers calibrated on samples spread evenly, and tells their error."""
    recipe = run.card.recipe
    total = len(run.samples)
    count = min(recipe.calibration, total)
    chosen = [step * total // count for step in range(count)]
    calibrators = {}
    for name in names:
        calibrators[name] = ColumnCalibration(recipe.columns[name].quantizer, run.card.latents[name].shape)
    listed = _chosen(run.samples, chosen)
    buckets = run.buckets(listed)
    with BriefProgress(count, "calibrate", progress, noun="sample") as bar:
        for _, positions in _batches(run.card, buckets):
            values = run.incoming.read([chosen[place] for place in positions], [listed[place] for place in positions])
            for name, calibrator in calibrators.items():
                calibrator.update(_floats(run.card, name, values[name]))
            bar.update(len(positions))
    with ThreadPoolExecutor(processors(), "latentq: calibrate") as pool:
        results = list(pool.map(ColumnCalibration.result, calibrators.values()))
    quantizers = {name: result.quantizer for name, result in zip(calibrators, results, strict=True)}
    for name, result in zip(calibrators, results, strict=True):
        run.incoming.errors[name] = measured = result.error
        run.incoming.notes.append(
            f"{name}: {result.size}, signal-to-noise ratio {measured.overall_sqnr_db:.1f} dB, largest error "
            f"{measured.largest_error:.3g}, {100 * float(np.mean(measured.clip_rate)):.3g} % clipped "
            f"({counted(result.samples, 'sample')})"
        )
    latents = {
        name: replace(facts, quantizer=quantizers.get(name, facts.quantizer))
        for name, facts in run.card.latents.items()
    }
    return replace(run.card, latents=latents)


def _chosen(samples: SampleList, indices: Sequence[int]) -> list[Sample]:
    """Returns samples by their numbers, which rise. If most units have several, each unit is read once."""
    if samples.totals.units > len(indices):
        return [samples.sample(index) for index in indices]
    found = []
    for unit in samples.units():
        positions = [index - unit.first for index in indices if index in unit.indices]
        found += samples.samples(unit, positions) if positions else []
    return found


def _floats(card: Card, name: str, values: NDArray[Any]) -> NDArray[Any]:
    """Returns floats for a quantizer; bfloat16 comes as its bits."""
    if values.dtype == np.uint16 and card.recipe.columns[name].is_latent:
        return (values.astype(np.uint32) << 16).view(np.float32)
    return values


def _write_unit(run: _Run, out: Path, unit: UnitEntry, bar: Progress, stopped: threading.Event) -> None:
    card = run.card
    listed = run.samples.samples(unit)
    buckets = run.buckets(listed)
    facts = UnitFacts(
        card=card_hash(card.to_toml()),
        listing=run.samples.unit_sha256(unit, listed),
        latents={name: LatentSums.empty(latent.quantizer) for name, latent in card.latents.items()},
        clipped=dict.fromkeys(card.embeddings, 0),
        buckets=[0] * card.buckets,
    )
    files = {PLACES: bytearray(np.array(buckets, "<u2").tobytes())} if card.buckets else {}

    def fill(writer: UnitWriter) -> None:
        for bucket, positions in _batches(card, buckets):
            if stopped.is_set():
                raise LatentqError("another unit of the conversion failed")
            chosen = [listed[position] for position in positions]
            values = run.incoming.read([unit.first + position for position in positions], chosen)
            columns = card.for_bucket(bucket) if card.buckets else card
            if card.buckets:
                if writer.group != (group := bucket_group(bucket)):
                    writer.begin_group(group, columns.columns)
                facts.buckets[bucket] += len(positions)
            stored = {name: _stored(columns, name, chosen, values, facts, run.codes) for name in card.columns}
            writer.write(stored, len(positions))

    publish_unit(out / unit.name, card.columns, facts, bar, fill, files=files, buffers=run.shards)


def _batches(card: Card, buckets: Sequence[int]) -> Iterator[tuple[int, Sequence[int]]]:
    """Yields the positions of samples in batches of one bucket, with the bucket, in the order of buckets.

    Args:
        card: The card.
        buckets: The bucket of each sample.
    """
    order: Sequence[int] = range(len(buckets))
    if card.buckets:
        order = sorted(order, key=buckets.__getitem__)
    start = 0
    while start < len(order):
        bucket = buckets[order[start]]
        end = start + _batch_size(card, bucket)
        if card.buckets:
            end = start + sum(1 for position in order[start:end] if buckets[position] == bucket)
        yield bucket, order[start:end]
        start = end


def _batch_size(card: Card, bucket: int) -> int:
    """Returns the number of samples of a bucket in a batch: it follows from the card, so that sums do too."""
    described = card.for_bucket(bucket) if card.buckets else card
    shapes = [facts.shape for facts in described.latents.values()]
    shapes += [facts.shape for facts in described.tokens.values()]
    shapes += [facts.shape for facts in described.embeddings.values()]
    nbytes = sum(4 * prod(shape) for shape in shapes)
    return max(1, min(_MAX_BATCH, _BATCH_BYTES // nbytes))


def _stored(
    card: Card, name: str, samples: Sequence[Sample], values: Arrays, facts: UnitFacts, buffers: Buffers
) -> Any:
    """Returns the stored values of one column, and adds the column's sums to the unit's facts.

    Args:
        card: The card; with buckets, that of the samples' bucket.
        name: The column.
        samples: The samples.
        values: What was read.
        facts: The unit's facts, which are changed in place.
        buffers: Memory for codes.
    """
    if name in card.latents:
        found, shape = values[name], card.latents[name].shape
        _check_shape(name, found, shape, samples)
        sums, stored = _encoded(card, name, found, samples, buffers)
        facts.latents[name].add(sums)
    elif name in values:
        stored = values[name]
        if name in card.tokens:
            _check_shape(name, stored, card.tokens[name].shape, samples)
            _check_tokens(stored, card.tokens[name].codebook_size, samples)
            stored = stored.astype(card.tokens[name].dtype)
        elif name in card.embeddings:
            _check_shape(name, stored, card.embeddings[name].shape, samples)
    else:
        texts = [getattr(sample, card.recipe.columns[name].content) for sample in samples]
        return ["" if text is None else str(text) for text in texts] if card.columns[name] == "str" else texts
    return [row.tobytes() for row in stored] if card.columns[name] == "bytes" else stored


def _check_shape(name: str, values: NDArray[Any], shape: Sequence[int], samples: Sequence[Sample]) -> None:
    if values.shape != (len(samples), *shape):
        raise FormatError(f"{samples[0].text}: its {name} has the shape {values.shape[1:]}, and others {tuple(shape)}")


def _check_tokens(tokens: NDArray[Any], codebook_size: int, samples: Sequence[Sample]) -> None:
    if tokens.size and (tokens.min() < 0 or tokens.max() >= codebook_size):
        bad = int(np.argmax(((tokens < 0) | (tokens >= codebook_size)).reshape(len(tokens), -1).any(1)))
        wrong = next(token for token in tokens[bad].ravel().tolist() if not 0 <= token < codebook_size)
        raise FormatError(f"{samples[bad].text}: token {wrong} is outside the codebook of {codebook_size}")


def _encoded(
    card: Card, name: str, values: NDArray[Any], samples: Sequence[Sample], buffers: Buffers
) -> tuple[LatentSums, NDArray[Any]]:
    """Returns the sums over a batch of one column, and its values as they are stored."""
    quantizer = card.latents[name].quantizer
    if isinstance(quantizer, Transform):
        return _transformed(quantizer, _floats(card, name, values), samples)
    clipped = np.zeros(quantizer.channels, np.int64)
    if quantizer.kind in FLOATS:
        return LatentSums(clipped, moments=[_moments(values, samples)]), values
    if values.dtype == np.uint8:  # codes already
        codes = values
    else:
        out = buffers.array(name, values.shape, np.dtype(np.uint8))
        codes, counts = quantizer.quantize_counted(_floats(card, name, values), out=out)
        if counts.bad.any():
            raise _not_finite(samples[int(np.argmax(counts.bad))])
        clipped = counts.clipped
    stored = quantizer.pack(codes) if quantizer.bits < 8 else codes
    return LatentSums(clipped, quantizer.histogram(codes)), stored


def _transformed(
    transform: Transform, values: NDArray[Any], samples: Sequence[Sample]
) -> tuple[LatentSums, NDArray[np.uint8]]:
    encoded = transform.encode_counted(values)
    for index in encoded.not_finite:
        raise _not_finite(samples[index])
    for index, reason in encoded.bad.items():
        raise LatentqError(f"sample {samples[index].text}: its latent cannot be encoded by the transform: {reason}")
    stored = encoded.data.reshape(len(values), -1)
    moments = [Moments.of(sample) for sample in transform.decode(stored, values.shape)]
    return LatentSums(np.zeros(transform.channels, np.int64), moments=moments), stored


def _moments(values: NDArray[Any], samples: Sequence[Sample]) -> Moments:
    """Returns the sums over a batch (N, C, h, w), by one call of the core.

    Batches follow from the card, so the sums do not depend on how a conversion was interrupted.
    """
    count, channels = values.shape[:2]
    planes = values.reshape(count * channels, -1)
    rows = np.array(_core.moments(*float_array(planes))).reshape(count, channels, 4)
    finite = np.isfinite(rows[:, :, 1]).all(1)
    if not finite.all():
        raise _not_finite(samples[int(np.argmin(finite))])
    total, square = rows[:, :, 0].sum(0), rows[:, :, 1].sum(0)
    low, high = rows[:, :, 2].min(0), rows[:, :, 3].max(0)
    return Moments(
        (count * planes.shape[1],) * channels,
        tuple(total.tolist()),
        tuple(square.tolist()),
        tuple(low.tolist()),
        tuple(high.tolist()),
    )


def _not_finite(sample: Sample) -> FormatError:
    return FormatError(f"sample {sample.text}: its latent holds a NaN, an infinity or a number too large")
