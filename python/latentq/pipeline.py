"""The pipeline: a source becomes a latent dataset, unit by unit."""

from __future__ import annotations

import os
import queue
import threading
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TextIO, TypeVar

import numpy as np
from numpy.typing import NDArray

from latentq import image, mds
from latentq._core import LatentqError
from latentq.autoencoders import Autoencoder, load_autoencoder
from latentq.card import CARD, Card
from latentq.plan import (
    check_folder,
    check_same,
    open_for,
    plan_card,
    publish_listing,
    ranks,
    settle,
    settle_listing,
    share_of,
)
from latentq.processors import processors
from latentq.progress import Progress
from latentq.publish import REJECTS, UNIT, publish_once, remove_dead, unit_done
from latentq.quantizer import Calibrator, Counts, Moments, Quantizer
from latentq.recipe import FLOATS, Column, Recipe
from latentq.sources import Captions, Listing, Sample, Source
from latentq.sources.listing import REJECTED, fetch, reason_of
from latentq.units import LatentSums, Reject, UnitFacts, finish, unit_names, units_done

_HASHES = ("xxh3_64",)
_T = TypeVar("_T")


def encode(
    source: str | os.PathLike[str] | Source,
    out: str | os.PathLike[str],
    *,
    recipe: str | os.PathLike[str] | Recipe | None = None,
    autoencoder: str | os.PathLike[str] | Autoencoder | None = None,
    like: str | os.PathLike[str] | None = None,
    class_names: str | os.PathLike[str] | None = None,
    captions: str | Captions | None = None,
    device: str | None = None,
    batch_size: int = 64,
    threads: int | None = None,
    rank: int | None = None,
    world_size: int | None = None,
    strict: bool = False,
    progress: TextIO | None = None,
    **overrides: Any,
) -> Card:
    """Encodes a source into a latent dataset, or goes on where an earlier run stopped.

    Args:
        source: A folder of images (class sub-folders become labels), a table of image paths, archives or whatever else
            `latentq.sources.open_source` takes, or any `Source`.
        out: The dataset's folder: absent, empty, or begun by a run of the same recipe, weights and source.
        recipe: A recipe, its name, or the path of its TOML file; `default` where there is none.
        autoencoder: Instead of the recipe's: a name, a folder, or any object that is an `Autoencoder`.
        like: A dataset whose recipe, quantisers and classes are taken: for a validation split, say.
        class_names: A file of two columns, class folder and readable name.
        captions: Where captions are, as of `open_source`.
        device: Where the autoencoder computes; `cuda:LOCAL_RANK` where there is one, else `cpu`; an object's own place.
        batch_size: How many images the autoencoder is given at once.
        threads: How many threads decode images; one for each processor where None.
        rank: Which of `world_size` processes this is; from the environment (RANK) where None.
        world_size: How many processes share the work; from the environment (WORLD_SIZE) where None.
        strict: Whether the first sample that cannot be encoded ends the run.
        progress: Where progress is told; None tells nothing.
        overrides: Fields of the recipe to change, as `Recipe.override` names them.

    Returns:
        The card; `complete` is False while other processes' units are missing.

    Raises:
        LatentqError: Nothing can be encoded; `RecipeError`, `MismatchError`, `FormatError` and `ImageError` say more.
        OSError: A folder cannot be read or written.
        ValueError: An argument is out of range.
    """
    out = Path(out)
    rank, world_size = ranks(rank, world_size)
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, not {batch_size}")
    if threads is not None and threads < 1:
        raise ValueError(f"threads must be at least 1, not {threads}")
    threads = threads or processors()
    model = autoencoder if autoencoder is None or isinstance(autoencoder, str | os.PathLike) else None
    parent = Card.load(like) if like is not None else None
    recipe = settle(recipe, model, parent, overrides)
    check_folder(out)

    opened = open_for(source, out, class_names, like, captions)
    listing = settle_listing(opened, out, first=rank == 0)
    network: Any = autoencoder
    if network is None or isinstance(network, str | os.PathLike):
        device = device or _device()
        _check_device(device)
        options = recipe.autoencoder
        network = load_autoencoder(
            network or options.model,
            dtype=options.dtype,
            device=device,
            revision=options.revision,
            subfolder=options.subfolder,
        )
    plan, uncalibrated = plan_card(recipe, opened.kind, listing, network, parent)
    device = device or _device_of(network)
    _check_device(device)
    job = _Job(opened, listing, network, plan, uncalibrated, device, batch_size, threads, strict)

    share = share_of(listing.units(recipe.unit_size), rank, world_size)
    with Progress(sum(map(len, share.values())), "encode", progress) as bar:
        for note in listing.notes:
            bar.note(note)
        card = _published_card(out, job, bar, frozen=parent is not None)
        job = replace(job, card=card)
        _encode_units(out, job, share, bar)
    if units_done(out, card) < card.units:
        remove_dead(out)
        return replace(card, counts=None)
    card = finish(out, card)
    if card.counts is not None and not card.counts.samples:
        raise LatentqError(f"none of the {card.source.samples} samples could be encoded: see {out / REJECTS}")
    return card


@dataclass(frozen=True)
class _Job:
    """What every step needs to know; `uncalibrated` are the columns whose quantisers in the card are not yet right."""

    source: Source
    listing: Listing
    network: Any
    card: Card
    uncalibrated: tuple[str, ...]
    device: str
    batch_size: int
    threads: int
    strict: bool


def _device() -> str:
    import torch

    return f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if torch.cuda.is_available() else "cpu"


def _check_device(device: str) -> None:
    """Refuses a device that is not there, before anything is published."""
    import torch

    try:
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise ValueError(f"device {device!r} cannot be used: {reason}") from None


def _device_of(network: Any) -> str:
    """Where someone's own network is: its pixels must go there."""
    parameters = getattr(network, "parameters", None)
    first = next(iter(parameters()), None) if callable(parameters) else None
    return str(first.device) if first is not None else "cpu"


def _published_card(out: Path, job: _Job, bar: Progress, *, frozen: bool) -> Card:
    """The card that all processes share: whoever publishes first decides.

    The list is published with it, not before: what fails until here leaves nothing behind. `frozen` quantisers come
    from another dataset, and a card that is there must have the same.
    """
    file = out / CARD
    if not file.exists():
        card = job.card
        if job.uncalibrated:
            bar.note(f"calibrating on {min(card.recipe.calibration, card.source.samples)} images")
            latents = dict(card.latents)
            for name, quantizer in _calibrate(job).items():
                latents[name] = replace(latents[name], quantizer=quantizer)
            card = replace(card, latents=latents)
        publish_listing(out, job.listing)
        if publish_once(file, card.to_toml()):
            return card
    card = Card.load(file)
    check_same(out, card, job.card, frozen=frozen)
    publish_listing(out, job.listing)
    return card


# From images to latents.


@dataclass(frozen=True)
class _Batch:
    """Decoded images of one unit.

    Attributes:
        unit: The unit's number.
        numbers: The samples' numbers in the source, n of them.
        pixels: For each size: (B, 3, S, S) uint8, B >= n; rows of samples that failed, and those past n, are zero.
        failed: What the image stage refused, by place in the batch.
        last: Whether it is the unit's last.
    """

    unit: int
    numbers: Sequence[int]
    pixels: dict[int, NDArray[np.uint8]]
    failed: dict[int, tuple[str, Exception]]
    last: bool


def _batches(job: _Job, units: Iterable[tuple[int, Sequence[int]]]) -> Iterator[_Batch]:
    """The decoded images of units, in order.

    How a unit is cut into batches depends on its length and the batch size alone, and every batch of a unit has one
    shape, since a network's results may depend, in the last bit, on the shape that it is given.
    """
    options = job.card.recipe.image.options()
    sizes = sorted({column.size for column in job.card.recipe.latents().values()})
    for unit, numbers in units:
        count = -(-len(numbers) // job.batch_size)
        length = -(-len(numbers) // count)
        for start in range(0, len(numbers), length):
            chosen = numbers[start : start + length]
            samples = [job.listing.samples[number] for number in chosen]
            failed: dict[int, tuple[str, Exception]] = {}
            pixels = {}
            data = []
            for place, sample in enumerate(samples):
                datum, refusal = fetch(job.source, sample)
                data.append(datum)
                if refusal is not None:
                    failed[place] = refusal
            for size in sizes:
                pixels[size] = np.zeros((length, 3, size, size), np.uint8)
                _, errors = image.load_batch(data, size, threads=job.threads, out=pixels[size][: len(data)], **options)
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
            yield _Batch(unit, chosen, pixels, failed, start + length >= len(numbers))


def _ahead(items: Iterable[_T], depth: int) -> Generator[_T, None, None]:
    """The items, made by a thread that is up to `depth` ahead."""
    waiting: queue.Queue[tuple[str, Any]] = queue.Queue(depth)
    stop = threading.Event()

    def put(kind: str, value: Any) -> bool:
        while not stop.is_set():
            try:
                waiting.put((kind, value), timeout=0.1)
            except queue.Full:
                continue
            return True
        return False

    def make() -> None:
        try:
            for item in items:
                if not put("item", item):
                    return
            put("end", None)
        except BaseException as error:  # the consumer raises it
            put("error", error)

    thread = threading.Thread(target=make, name="latentq-images", daemon=True)
    thread.start()
    try:
        while True:
            kind, value = waiting.get()
            if kind == "item":
                yield value
            elif kind == "error":
                raise value
            else:
                return
    finally:
        stop.set()
        thread.join()


def _latents(job: _Job, batch: _Batch) -> dict[str, NDArray[np.float32]]:
    """What the network makes of a batch: (n, C, h, w) float32 for each latent column."""
    numbers = batch.numbers
    result = {}
    for place, (name, column) in enumerate(job.card.recipe.latents().items()):
        latents = encode_pixels(
            job.network,
            batch.pixels[column.size],
            column,
            numbers=numbers,
            seed=job.card.recipe.autoencoder.seed,
            stream=place,
            device=job.device,
        )
        result[name] = latents[: len(numbers)]
    return result


def encode_pixels(
    network: Autoencoder,
    pixels: NDArray[np.uint8],
    column: Column,
    *,
    numbers: Sequence[int],
    seed: int,
    stream: int,
    device: str,
) -> NDArray[np.float32]:
    """Latents as a column holds them, before they are quantised.

    Args:
        network: The autoencoder.
        pixels: (B, 3, S, S) uint8.
        column: Says whether they are mirrored, sampled or scaled.
        numbers: The samples' numbers in the source; the noise of a sample depends on nothing else but `seed`, `stream`.
        seed: The recipe's seed.
        stream: Which of the recipe's latent columns this is.
        device: Where the network computes.

    Returns:
        (B, C, h, w) float32; rows beyond `numbers` are of no use.
    """
    import torch

    low, high = network.pixel_range
    scale = (high - low) / 255
    # float32 is to mean float32: on CUDA convolutions would otherwise take TF32, by an algorithm chosen by timing.
    exact = torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False)
    with torch.no_grad(), exact:
        floats = torch.from_numpy(pixels).to(device).float() * scale + low
        if column.flip:
            floats = floats.flip(-1)
        posterior = getattr(network, "posterior", None)
        if posterior is not None and column.store == "sample":
            mean, std = posterior(floats)
            drawn = noise(seed, numbers, stream, tuple(mean.shape[1:]))
            padded = torch.zeros_like(mean)
            padded[: len(numbers)] = torch.from_numpy(drawn).to(mean)
            latents = mean + std * padded
        else:
            latents = network.encode(floats)
        if column.scaled:
            latents = latents * network.scaling_factor
        values: NDArray[np.float32] = latents.float().cpu().numpy()
    return values


def noise(seed: int, numbers: Iterable[int], stream: int, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Standard normal noise, (len(numbers), *shape) float32: a function of (seed, number, stream), drawn by counter.

    The generator is Philox (Salmon et al. 2011), keyed by seed and sample, so that neither batches nor processes nor
    their order matter.
    """
    rows = [
        np.random.Generator(
            np.random.Philox(key=np.array([seed % 2**64, number], np.uint64), counter=[0, 0, 0, stream])
        ).standard_normal(shape, np.float32)
        for number in numbers
    ]
    return np.stack(rows)


def _calibrate(job: _Job) -> dict[str, Quantizer]:
    """Quantisers of the columns that need it, calibrated on samples spread evenly over the source."""
    names = job.uncalibrated
    total = len(job.listing.samples)
    count = min(job.card.recipe.calibration, total)
    chosen = [place * total // count for place in range(count)]
    calibrators = {}
    for name in names:
        options = job.card.recipe.columns[name].quantizer
        method = options.get("method", "lloyd-max" if options["kind"] == "codebook" else "mse")
        calibrators[name] = Calibrator(job.card.latents[name].shape[0], bits=options.get("bits", 8), method=method)
    first: tuple[Sample, str, Exception] | None = None
    seen = 0
    for batch in _ahead(_batches(job, [(0, chosen)]), 2):
        latents = _latents(job, batch)
        good = np.ones(len(batch.numbers), bool)
        for name in names:
            good &= np.isfinite(latents[name]).reshape(len(good), -1).all(axis=1)
        for place, (stage, error) in sorted(batch.failed.items()):
            good[place] = False
            sample = job.listing.samples[batch.numbers[place]]
            first = first or (sample, stage, error)
            _strictly(job, sample, stage, error)
        seen += int(good.sum())
        if good.any():
            for name in names:
                calibrators[name].update(latents[name][good])
    if not seen:
        reason = f"{first[0].key!r}: {first[1]}: {reason_of(first[2])}" if first else "its latents are not finite"
        raise LatentqError(f"none of {count} samples can be encoded, the first is {reason}")
    return {name: calibrator.quantizer() for name, calibrator in calibrators.items()}


# From latents to units.


def _encode_units(out: Path, job: _Job, share: dict[int, range], bar: Progress) -> None:
    """Encodes and publishes every unit of this process that is not there yet."""
    names = unit_names(job.card)
    todo = {number: numbers for number, numbers in share.items() if not unit_done(out, names[number])}
    bar.skip(sum(len(numbers) for number, numbers in share.items() if number not in todo))
    batches = _ahead(_batches(job, todo.items()), 2)
    try:
        for number in todo:
            _encode_unit(out / names[number], job, batches, bar)
    finally:
        batches.close()


def _encode_unit(path: Path, job: _Job, batches: Iterator[_Batch], bar: Progress) -> None:
    """Takes one unit's batches and publishes it. One that another process publishes meanwhile counts as done."""
    facts = UnitFacts(latents={name: LatentSums.of(latent.quantizer) for name, latent in job.card.latents.items()})
    drained = False
    try:
        with mds.Writer(path, dict(job.card.columns), hashes=_HASHES) as writer:
            for batch in batches:
                _write_batch(writer, facts, job, batch, bar)
                if batch.last:
                    drained = True
                    break
            writer.add_file(UNIT, facts.to_toml())
    except (FileExistsError, FileNotFoundError):
        # Another process was faster: it may also have removed our temporary at its finish.
        if not unit_done(path.parent, path.name):
            raise
        while not drained:
            drained = next(batches).last


def _write_batch(writer: mds.Writer, facts: UnitFacts, job: _Job, batch: _Batch, bar: Progress) -> None:
    samples = [job.listing.samples[number] for number in batch.numbers]
    failed = dict(batch.failed)
    latents = _latents(job, batch) if len(failed) < len(samples) else {}
    columns: dict[str, Any] = {}
    while True:
        good = [place for place in range(len(samples)) if place not in failed]
        bad: set[int] = set()
        sums = {}
        for name, values in latents.items() if good else ():
            quantizer = job.card.latents[name].quantizer
            codes, counts = quantizer.quantize_counted(values[good] if failed else values)
            bad.update(good[place] for place in np.flatnonzero(counts.bad).tolist())
            sums[name], columns[name] = _stored(quantizer, codes, counts)
        if not bad:
            break
        failed.update((place, ("encode", LatentqError("its latent holds NaN or infinity"))) for place in bad)
    for place, (stage, error) in sorted(failed.items()):
        path = _path(job, samples[place])
        _strictly(job, samples[place], stage, error)
        facts.rejects.append(Reject(samples[place].text, stage, reason_of(error, path)))
        bar.note(f"rejected: {samples[place].text}: {stage}: {facts.rejects[-1].error}")
    if good:
        for name, encoding in job.card.columns.items():
            content = job.card.recipe.columns[name].content
            if content == "latent":
                facts.latents[name].add(sums[name])
            else:
                texts = [getattr(samples[place], content) for place in good]
                columns[name] = [str(text) for text in texts] if encoding == "str" else texts
        writer.write_batch(columns)
        facts.samples += len(good)
    bar.update(len(samples), len(failed))


def _stored(quantizer: Quantizer, codes: NDArray[Any], counts: Counts) -> tuple[LatentSums, NDArray[Any]]:
    """What a unit records of a batch of one column, and the values as they are stored."""
    if quantizer.kind not in FLOATS:
        stored = quantizer.pack(codes) if quantizer.bits < 8 else codes
        return LatentSums(counts.clipped, quantizer.histogram(codes)), stored
    return LatentSums(counts.clipped, moments=[Moments.of(sample) for sample in quantizer.dequantize(codes)]), codes


def _strictly(job: _Job, sample: Sample, stage: str, error: Exception) -> None:
    if job.strict:
        path = _path(job, sample)
        raise LatentqError(f"{path or sample.text}: {stage}: {reason_of(error, path)}")


def _path(job: _Job, sample: Sample) -> Path | None:
    """The file that is a sample's own."""
    if sample.archive is not None or sample.fault:
        return None
    data = job.source.data(sample)
    return data if isinstance(data, Path) else None
