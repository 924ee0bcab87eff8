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
from latentq.card import CARD, Card, EmbeddingFacts
from latentq.collect import Collection
from latentq.plan import (
    check_folder,
    check_same,
    collection_of,
    limited,
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
from latentq.publish import EMPTY_CAPTION, HASHES, REJECTS, UNIT, publish_once, remove_dead, unit_done
from latentq.quantizer import Calibrator, Moments, Quantizer
from latentq.recipe import FLOATS, TEXT, Recipe
from latentq.sources import Captions, Listing, Sample, Source
from latentq.sources.listing import REJECTED, captions_of, fetch, reason_of
from latentq.spent import SpentArchives, all_spent
from latentq.stages import CAPTIONS, IMAGES, LIST, NETWORK, WRITE, Profile, ahead, behind
from latentq.text import TextEncoder, empty, load_text_encoder
from latentq.tokens_tsv import check_table, dataset_of, write_table
from latentq.units import LatentSums, Reject, UnitFacts, finish, unit_names, units_done

if TYPE_CHECKING:
    import torch

    from latentq.network import Encoder, Flight
    from latentq.text.encoder import CaptionEncoder, Embedded, UnitCaptions

_T = TypeVar("_T")


def encode(
    source: str | os.PathLike[str] | Source,
    out: str | os.PathLike[str],
    *,
    recipe: str | os.PathLike[str] | Recipe | None = None,
    autoencoder: str | os.PathLike[str] | Autoencoder | None = None,
    text_encoder: str | os.PathLike[str] | TextEncoder | None = None,
    like: str | os.PathLike[str] | None = None,
    class_names: str | os.PathLike[str] | None = None,
    captions: str | Captions | None = None,
    collection: str | Collection | None = None,
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
        text_encoder: Instead of the recipe's: a name, a folder, or any object that is a `latentq.text.TextEncoder`.
            To a recipe without columns of embeddings they are added.
        like: A dataset whose recipe, quantisers and classes are taken: for a validation split, say.
        class_names: A file of two columns, class folder and readable name.
        captions: Where captions are, as of `open_source`.
        collection: One of `latentq.collect.COLLECTIONS` or its name, whose limits then hold: with its archives as the
            source. They need `captions`.
        device: Where the autoencoder computes; `cuda:LOCAL_RANK` where there is one, else `cpu`; an object's own place.
        batch_size: How many images the autoencoder is given at once; half of it, again and again, where the device's
            memory is not enough.
        threads: How many threads decode images; one for each processor where None.
        rank: Which of `world_size` processes this is; from the environment (RANK) where None.
        world_size: How many processes share the work; from the environment (WORLD_SIZE) where None.
        strict: Whether the first sample that is rejected for another reason than its size ends the run.
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
    collection = collection_of(collection)
    model = autoencoder if autoencoder is None or isinstance(autoencoder, str | os.PathLike) else None
    text_model = text_encoder if isinstance(text_encoder, str | os.PathLike) else getattr(text_encoder, "name", None)
    parent = Card.load(like) if like is not None else None
    recipe = settle(recipe, model, text_model, parent, overrides)
    check_folder(out)
    if delete_archives and (out / CARD).exists() and all_spent(source, out, begun := Card.load(out)):
        return finish(out, begun)

    opened = open_for(source, out, class_names, like, limited(captions, collection), progress)
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
    text_network: Any = None
    if recipe.texts():
        text_network = text_encoder
        if text_encoder is None or isinstance(text_encoder, str | os.PathLike):
            text_network = load_text_encoder(
                text_encoder or recipe.text.model,
                device=device or _device_of(network),
                revision=recipe.text.revision,
                subfolder=recipe.text.subfolder,
                length=recipe.text.length,
            )
    plan, uncalibrated = plan_card(recipe, opened.kind, listing, network, parent, text_network)
    check_table(named, plan)
    device = device or _device_of(network)
    _check_device(device)
    from latentq.network import Encoder

    encoder = Encoder(network, plan.recipe.autoencoder, device, compiled=compiled)
    batch_size = min(batch_size, recipe.unit_size, max(1, len(listing.samples)))
    caption_encoder = None
    if plan.recipe.texts():
        from latentq.text.encoder import CaptionEncoder

        place = str(getattr(text_network, "device", None) or _device_of(text_network))
        caption_encoder = CaptionEncoder(text_network, plan.recipe.text, place, plan.recipe.texts())
    job = _Job(opened, listing, encoder, caption_encoder, plan, uncalibrated, batch_size, threads, strict, profile)

    units = listing.units(recipe.unit_size)
    spent = SpentArchives(opened, listing, units, out, unit_names(plan)) if delete_archives else None
    share = share_of(units, rank, world_size)
    with Progress(sum(map(len, share.values())), "encode", progress) as bar:
        for note in listing.notes:
            bar.note(note)
        card = _published_card(out, job, bar, frozen=parent is not None)
        job = replace(job, card=card)
        _publish_empty_caption(out, job)
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
    captions: CaptionEncoder | None
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

    @property
    def text_quantizers(self) -> dict[str, Quantizer]:
        """Of the columns of embeddings."""
        return {name: facts.quantizer for name, facts in self.card.embeddings.items()}


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
            quantizers = _halving(job, bar, _calibrate)

            def calibrated(facts: Mapping[str, Any]) -> dict[str, Any]:
                return {
                    name: replace(one, quantizer=quantizers.get(name, one.quantizer)) for name, one in facts.items()
                }

            card = replace(card, latents=calibrated(card.latents), embeddings=calibrated(card.embeddings))
        publish_listing(out, job.listing)
        if publish_once(file, card.to_toml()):
            return card
    card = Card.load(file)
    check_same(out, card, job.card, frozen=frozen)
    publish_listing(out, job.listing)
    return card


def _publish_empty_caption(out: Path, job: _Job) -> None:
    """Publishes what the columns of captions hold of an empty one, unless it is there: for training without captions.

    By column, as it is stored but for packing: (captions, tokens, width) and so on.
    """
    if job.captions is None or (out / EMPTY_CAPTION).exists():
        return
    publish_once(out / EMPTY_CAPTION, empty.to_bytes(_empty_caption(job)))


def _empty_caption(job: _Job) -> dict[str, NDArray[Any]]:
    from latentq.text.encoder import stacked

    assert job.captions is not None
    embedded = job.captions.land(job.captions.launch([""], job.text_quantizers), 0, job.text_quantizers)
    if embedded.bad:
        raise LatentqError("the embedding of the empty caption holds NaN or infinity")
    columns = stacked([[embedded] * job.card.recipe.text.captions])
    return {name: values[0] for name, values in columns.items()}


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


def _batches(job: _Job, units: Iterable[tuple[int, Sequence[int]]]) -> Iterator[_Batch]:
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
            from latentq.text.encoder import UnitCaptions

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
class _Encoded:
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


def _encoded(job: _Job, units: Iterable[tuple[int, Sequence[int]]]) -> Generator[_Encoded, None, None]:
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

    def landed(batch: _Batch, flight: Flight, rows: list[list[Any]]) -> _Encoded:
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
            from latentq.text.encoder import stacked

            kept = [embedded[place] for place in flight.places]
            codes |= stacked(kept)
            redone += sum(any(one.redone for one in of) for of in embedded.values())
            for name in job.text_quantizers:
                clipped[name] = np.array([sum(one.clipped.get(name, 0) for of in kept for one in of)], np.int64)
        return _Encoded(batch, flight.places, codes, clipped, redone)

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
    if not any(name in job.card.embeddings for name in names):
        job = replace(job, captions=None)
    total = len(job.listing.samples)
    count = min(job.card.recipe.calibration, total)
    chosen = [place * total // count for place in range(count)]
    calibrators = {}
    for name in names:
        options = job.card.recipe.columns[name].quantizer
        method = options.get("method", "lloyd-max" if options["kind"] == "codebook" else "mse")
        channels = job.card.quantizers[name].channels
        calibrators[name] = Calibrator(channels, bits=options.get("bits", 8), method=method)
    first: tuple[Sample, str, Exception] | None = None
    seen = 0
    for encoded in _encoded(job, [(0, chosen)]):
        for place, (stage, error) in sorted(encoded.batch.failed.items()):
            sample = job.listing.samples[encoded.batch.numbers[place]]
            first = first or (sample, stage, error)
            _strictly(job, sample, stage, error)
        seen += len(encoded.places)
        for name in names if encoded.places else ():
            codes = encoded.codes[name]
            # Of embeddings, each vector is a sample of its own.
            calibrators[name].update(codes.reshape(-1, codes.shape[-1]) if name in job.card.embeddings else codes)
    if seen and job.captions is not None:  # which no other caption needs to resemble
        for name, values in _empty_caption(job).items():
            if name in calibrators:
                calibrators[name].update(values.reshape(-1, values.shape[-1]))
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
        if stage != "size":
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
            elif name in job.card.embeddings:
                facts.clipped[name] = facts.clipped.get(name, 0) + int(encoded.clipped[name].sum())
                columns[name] = _packed(job.card.embeddings[name], encoded.codes[name])
            elif content in TEXT:
                columns[name] = encoded.codes[name]
            elif content == "image":
                files = [encoded.batch.images[place] for place in encoded.places]
                columns[name] = list(map(_as_jpeg, files)) if encoding == "jpeg" else files
            elif content == "captions":
                count = job.card.recipe.text.captions
                columns[name] = [captions_of(samples[place], count) for place in encoded.places]
            else:
                texts = [getattr(samples[place], content) for place in encoded.places]
                columns[name] = [str(text) for text in texts] if encoding == "str" else texts
            if encoding == "bytes" and content != "image":
                columns[name] = [value.tobytes() for value in columns[name]]
        writer.write_batch(columns)
        facts.samples += len(encoded.places)
    bar.update(len(samples), len(failed))


def _as_jpeg(data: bytes) -> bytes:
    """A picture's file where it is a JPEG; otherwise one of quality 95."""
    from latentq.shards import to_jpeg

    if image.info(data).format == "JPEG":
        return data
    return to_jpeg(data, min_size=1, max_size=1 << 30, quality=95).data


def _packed(facts: EmbeddingFacts, codes: NDArray[Any]) -> NDArray[Any]:
    """Embeddings (n, ...) as they are stored: below 8 bits each vector packed, (n, bytes)."""
    if facts.quantizer.bits >= 8:
        return codes
    packed: NDArray[Any] = facts.quantizer.pack(codes.reshape(-1, codes.shape[-1]))
    return packed.reshape(len(codes), -1)


def _stored(quantizer: Quantizer, codes: NDArray[Any], clipped: NDArray[np.int64]) -> tuple[LatentSums, NDArray[Any]]:
    """What a unit records of a batch of one column, and the values as they are stored."""
    if quantizer.kind not in FLOATS:
        stored = quantizer.pack(codes) if quantizer.bits < 8 else codes
        return LatentSums(clipped, quantizer.histogram(codes)), stored
    return LatentSums(clipped, moments=[Moments.of(sample) for sample in quantizer.dequantize(codes)]), codes


def _strictly(job: _Job, sample: Sample, stage: str, error: Exception) -> None:
    if job.strict and stage != "size":
        path = _path(job, sample)
        raise LatentqError(f"{path or sample.text}: {stage}: {reason_of(error, path)}")


def _path(job: _Job, sample: Sample) -> Path | None:
    """The file that is a sample's own."""
    if sample.archive is not None or sample.fault:
        return None
    data = job.source.data(sample)
    return data if isinstance(data, Path) else None
