"""The pipeline: a source becomes a latent dataset, unit by unit."""

from __future__ import annotations

import contextlib
import os
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO, TypeVar

import numpy as np
from numpy.typing import NDArray

from latentq import image, mds
from latentq._core import LatentqError
from latentq.autoencoders import Autoencoder, load_autoencoder, subfolder_in
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
from latentq.publish import HASHES, REJECTS, UNIT, publish_once, remove_dead, unit_done
from latentq.quantizer import Calibrator, Moments, Quantizer
from latentq.recipe import FLOATS, Recipe
from latentq.sources import Captions, Listing, Sample, Source
from latentq.sources.listing import REJECTED, fetch, reason_of
from latentq.spent import SpentArchives, all_spent
from latentq.stages import IMAGES, LIST, NETWORK, WRITE, Profile, ahead, behind
from latentq.tokens_tsv import check_table, dataset_of, write_table
from latentq.units import LatentSums, Reject, UnitFacts, finish, unit_names, units_done

if TYPE_CHECKING:
    import torch

    from latentq.network import Encoder, Flight

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
    compiled: bool = False,
    delete_archives: bool = False,
    profile: Profile | None = None,
    progress: TextIO | None = None,
    **overrides: Any,
) -> Card:
    """Encodes a source into a latent dataset, or goes on where an earlier run stopped.

    Args:
        source: A folder of images (class sub-folders become labels), a table of image paths, archives or whatever else
            `latentq.sources.open_source` takes, or any `Source`.
        out: The dataset's folder: absent, empty, or begun by a run of the same recipe, weights and source. A name that
            ends with `.tsv` gets tokens as VQGAN-f16-16384's page writes them, and the dataset is in `NAME.latentq`.
        recipe: A recipe, its name, or the path of its TOML file; `default` where there is none.
        autoencoder: Instead of the recipe's: a name, a folder, or any object that is an `Autoencoder`.
        like: A dataset whose recipe, quantisers and classes are taken: for a validation split, say.
        class_names: A file of two columns, class folder and readable name.
        captions: Where captions are, as of `open_source`.
        device: Where the autoencoder computes; `cuda:LOCAL_RANK` where there is one, else `cpu`; an object's own place.
        batch_size: How many images the autoencoder is given at once; half of it, again and again, where the device's
            memory is not enough.
        threads: How many threads decode images; one for each processor where None.
        rank: Which of `world_size` processes this is; from the environment (RANK) where None.
        world_size: How many processes share the work; from the environment (WORLD_SIZE) where None.
        strict: Whether the first sample that cannot be encoded ends the run.
        compiled: Whether torch compiles the autoencoder; latents may then differ in the last bit.
        delete_archives: Whether each archive of the source is deleted as soon as all of its units are published.
        profile: Is told how long each stage works and waits.
        progress: Where progress is told; None tells nothing.
        overrides: Fields of the recipe to change, as `Recipe.override` names them.

    Returns:
        The card; `complete` is False while other processes' units are missing.

    Raises:
        LatentqError: Nothing can be encoded; `RecipeError`, `MismatchError`, `FormatError` and `ImageError` say more.
        OSError: A folder cannot be read or written.
        ValueError: An argument is out of range.
    """
    named = Path(out)
    out = dataset_of(named)
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
    if delete_archives and (out / CARD).exists() and all_spent(source, out, begun := Card.load(out)):
        return finish(out, begun)

    opened = open_for(source, out, class_names, like, captions)
    profile = profile or Profile()
    with profile.timing(LIST, "worked"):
        listing = settle_listing(opened, out, first=rank == 0)
    network: Any = autoencoder
    if network is None or isinstance(network, str | os.PathLike):
        device = device or _device()
        _check_device(device)
        options = recipe.autoencoder
        network = network or options.model
        given = overrides.get("subfolder") is not None
        network = load_autoencoder(
            network,
            device=device,
            revision=options.revision,
            subfolder=options.subfolder if given else subfolder_in(network, options.subfolder),
            pixel_range=options.pixel_range,
        )
    plan, uncalibrated = plan_card(recipe, opened.kind, listing, network, parent)
    check_table(named, plan)
    device = device or _device_of(network)
    _check_device(device)
    from latentq.network import Encoder

    encoder = Encoder(network, plan.recipe.autoencoder, device, compiled=compiled)
    batch_size = min(batch_size, recipe.unit_size, max(1, len(listing.samples)))
    job = _Job(opened, listing, encoder, plan, uncalibrated, batch_size, threads, strict, profile)

    units = listing.units(recipe.unit_size)
    spent = SpentArchives(opened, listing, units, out, unit_names(plan)) if delete_archives else None
    share = share_of(units, rank, world_size)
    with Progress(sum(map(len, share.values())), "encode", progress) as bar:
        for note in listing.notes:
            bar.note(note)
        card = _published_card(out, job, bar, frozen=parent is not None)
        job = replace(job, card=card)
        _encode_units(out, job, share, bar, spent)
    if spent is not None:
        spent.delete()
    if units_done(out, card) < card.units:
        remove_dead(out)
        return replace(card, counts=None)
    card = finish(out, card)
    if card.counts is not None and not card.counts.samples:
        raise LatentqError(f"none of the {card.source.samples} samples could be encoded: see {out / REJECTS}")
    write_table(named)
    return card


@dataclass(frozen=True)
class _Job:
    """What every step needs to know; `uncalibrated` are the columns whose quantisers in the card are not yet right."""

    source: Source
    listing: Listing
    encoder: Encoder
    card: Card
    uncalibrated: tuple[str, ...]
    batch_size: int
    threads: int
    strict: bool
    profile: Profile

    @property
    def quantizers(self) -> dict[str, Quantizer]:
        """Of the columns of latents and moments."""
        return {name: facts.quantizer for name, facts in self.card.latents.items()}


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
            for name, quantizer in _halving(job, bar, _calibrate).items():
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
        pixels: For each size: (B, 3, S, S) uint8, B >= n, in memory of the encoder's `host`; rows of samples that
            failed, and those past n, are zero.
        failed: What the image stage refused, by place in the batch.
        last: Whether it is the unit's last.
    """

    unit: int
    numbers: Sequence[int]
    pixels: dict[int, torch.Tensor]
    failed: dict[int, tuple[str, Exception]]
    last: bool


def _batches(job: _Job, units: Iterable[tuple[int, Sequence[int]]]) -> Iterator[_Batch]:
    """The decoded images of units, in order.

    How a unit is cut into batches depends on its length and the batch size alone, and every batch of a unit has one
    shape, since a network's results may depend, in the last bit, on the shape that it is given.
    """
    options = job.card.recipe.image.options()
    sizes = sorted({column.size for column in job.card.recipe.encoded().values()})
    for unit, numbers in units:
        count = -(-len(numbers) // job.batch_size)
        length = -(-len(numbers) // count)
        for start in range(0, len(numbers), length):
            chosen = numbers[start : start + length]
            samples = [job.listing.samples[number] for number in chosen]
            failed: dict[int, tuple[str, Exception]] = {}
            pixels = {size: job.encoder.host((length, 3, size, size)) for size in sizes}
            data = []
            for place, sample in enumerate(samples):
                datum, refusal = fetch(job.source, sample)
                data.append(datum)
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
            yield _Batch(unit, chosen, pixels, failed, start + length >= len(numbers))


@dataclass(frozen=True)
class _Encoded:
    """What became of a batch.

    Attributes:
        batch: The batch; what it `failed` is complete now.
        places: The places in it of the samples to be stored, n of them.
        codes: By column, (n, C, h, w) or (n, h, w), as the quantiser gives them.
        clipped: By column with a quantiser, (C,) int64.
        redone: How many samples were encoded again in float32.
    """

    batch: _Batch
    places: Sequence[int]
    codes: Mapping[str, NDArray[Any]]
    clipped: Mapping[str, NDArray[np.int64]]
    redone: int


def _encoded(job: _Job, units: Iterable[tuple[int, Sequence[int]]]) -> Generator[_Encoded, None, None]:
    """The batches of units through the network, in order.

    A batch is launched before the one before it has landed, so that a GPU always has its next.
    """
    columns, quantizers = job.card.recipe.encoded(), job.quantizers

    def landed(batch: _Batch, flight: Flight) -> _Encoded:
        bad = job.encoder.land(flight, columns, quantizers, job.profile)
        reasons = {place: ("encode", LatentqError("its latent holds NaN or infinity")) for place in bad}
        batch = replace(batch, failed={**batch.failed, **reasons})
        clipped = {name: values.numpy() for name, values in flight.clipped.items()}
        return _Encoded(batch, flight.places, flight.arrays(), clipped, flight.redone)

    batches = ahead(_batches(job, units), 2, job.profile, IMAGES, NETWORK)
    flying: deque[tuple[_Batch, Flight]] = deque()
    try:
        for batch in batches:
            places = [place for place in range(len(batch.numbers)) if place not in batch.failed]
            flying.append((batch, job.encoder.launch(batch.pixels, columns, quantizers, batch.numbers, places)))
            if len(flying) > 1:
                yield landed(*flying.popleft())
        while flying:
            yield landed(*flying.popleft())
    finally:
        batches.close()


def _halving(job: _Job, bar: Progress, work: Callable[[_Job], _T]) -> _T:
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


def _calibrate(job: _Job) -> dict[str, Quantizer]:
    """Quantisers of the columns that need it, calibrated on samples spread evenly over the source.

    Until then the card has floats in their place, so that their codes are the latents themselves.
    """
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
    for encoded in _encoded(job, [(0, chosen)]):
        for place, (stage, error) in sorted(encoded.batch.failed.items()):
            sample = job.listing.samples[encoded.batch.numbers[place]]
            first = first or (sample, stage, error)
            _strictly(job, sample, stage, error)
        seen += len(encoded.places)
        for name in names if encoded.places else ():
            calibrators[name].update(encoded.codes[name])
    if not seen:
        reason = f"{first[0].key!r}: {first[1]}: {reason_of(first[2])}" if first else "there are none"
        raise LatentqError(f"none of {count} samples can be encoded, the first is {reason}")
    return {name: calibrator.quantizer() for name, calibrator in calibrators.items()}


# From latents to units.


def _encode_units(
    out: Path, job: _Job, share: dict[int, range], bar: Progress, spent: SpentArchives | None = None
) -> None:
    """Encodes and publishes every unit of this process that is not there yet."""
    names = unit_names(job.card)
    done = {number for number in share if unit_done(out, names[number])}
    bar.skip(sum(len(share[number]) for number in done))

    def encode_rest(job: _Job) -> None:
        todo = {n: numbers for n, numbers in share.items() if n not in done}

        def write(batches: Iterator[_Encoded]) -> None:
            for number in todo:
                _write_unit(out / names[number], job, batches, bar)
                done.add(number)
                if spent is not None:
                    spent.delete(number)

        with (
            behind(write, 2, job.profile, WRITE, NETWORK) as hand_over,
            contextlib.closing(_encoded(job, todo.items())) as batches,
        ):
            for encoded in batches:
                hand_over(encoded)

    _halving(job, bar, encode_rest)


def _write_unit(path: Path, job: _Job, batches: Iterator[_Encoded], bar: Progress) -> None:
    """Takes one unit's batches and publishes it. One that another process publishes meanwhile counts as done."""
    facts = UnitFacts(latents={name: LatentSums.of(quantizer) for name, quantizer in job.quantizers.items()})
    drained = False
    try:
        with mds.Writer(path, dict(job.card.columns), hashes=HASHES) as writer:
            for encoded in batches:
                _write_batch(writer, facts, job, encoded, bar)
                if encoded.batch.last:
                    drained = True
                    break
            writer.add_file(UNIT, facts.to_toml())
    except (FileExistsError, FileNotFoundError):
        # Another process was faster: it may also have removed our temporary at its finish.
        if not unit_done(path.parent, path.name):
            raise
        while not drained:
            drained = next(batches).batch.last
    except BaseException:
        bar.update(-facts.samples - len(facts.rejects), -len(facts.rejects))  # it is not done, and may be done anew
        raise


def _write_batch(writer: mds.Writer, facts: UnitFacts, job: _Job, encoded: _Encoded, bar: Progress) -> None:
    samples = [job.listing.samples[number] for number in encoded.batch.numbers]
    failed = encoded.batch.failed
    for place, (stage, error) in sorted(failed.items()):
        path = _path(job, samples[place])
        _strictly(job, samples[place], stage, error)
        facts.rejects.append(Reject(samples[place].text, stage, reason_of(error, path)))
        bar.note(f"rejected: {samples[place].text}: {stage}: {facts.rejects[-1].error}")
    facts.redone += encoded.redone
    if encoded.places:
        columns: dict[str, Any] = {}
        for name, encoding in job.card.columns.items():
            content = job.card.recipe.columns[name].content
            if name in job.quantizers:
                sums, columns[name] = _stored(job.quantizers[name], encoded.codes[name], encoded.clipped[name])
                facts.latents[name].add(sums)
            elif name in job.card.tokens:
                columns[name] = encoded.codes[name].astype(job.card.tokens[name].dtype)
            else:
                texts = [getattr(samples[place], content) for place in encoded.places]
                columns[name] = [str(text) for text in texts] if encoding == "str" else texts
            if encoding == "bytes":
                columns[name] = [value.tobytes() for value in columns[name]]
        writer.write_batch(columns)
        facts.samples += len(encoded.places)
    bar.update(len(samples), len(failed))


def _stored(quantizer: Quantizer, codes: NDArray[Any], clipped: NDArray[np.int64]) -> tuple[LatentSums, NDArray[Any]]:
    """What a unit records of a batch of one column, and the values as they are stored."""
    if quantizer.kind not in FLOATS:
        stored = quantizer.pack(codes) if quantizer.bits < 8 else codes
        return LatentSums(clipped, quantizer.histogram(codes)), stored
    return LatentSums(clipped, moments=[Moments.of(sample) for sample in quantizer.dequantize(codes)]), codes


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
