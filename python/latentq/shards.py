"""The conversion: images and captions of any source become MDS shards of JPEGs, filtered and shrunk, unit by unit."""

from __future__ import annotations

import importlib.metadata
import os
import tomllib
import warnings
from collections import deque
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from io import BytesIO
from pathlib import Path
from typing import Any, TextIO

import tomli_w

from latentq import image, mds
from latentq._core import FormatError, LatentqError, MismatchError
from latentq.card import Counts, SourceFacts
from latentq.collect import COLUMNS, Collection, Columns
from latentq.plan import (
    check_folder,
    collection_of,
    limited,
    open_for,
    publish_listing,
    ranks,
    settle_listing,
    share_of,
    source_facts,
)
from latentq.processors import processors
from latentq.progress import Progress
from latentq.publish import HASHES, REJECTS, SHARDS, UNIT, publish_once, remove_dead, unit_done
from latentq.sources import Captions, Sample, Source
from latentq.sources.listing import REJECTED, fetch, reason_of
from latentq.spent import SpentArchives, all_spent
from latentq.units import Reject, UnitFacts, finish_units, unit_names, units_done

SIZE_LIMIT = 1 << 28
_FORMAT = 1
_AHEAD = 4  # images read ahead for each thread
_ORIENTATION = 0x0112  # the EXIF tag


@dataclass(frozen=True)
class ShardsCard:
    """`shards.toml`: what a folder of converted shards says of itself.

    Attributes:
        source: Where the samples came from.
        contents: The columns: what each holds, and its encoding.
        min_size: Both sides have at least so many pixels.
        max_size: The short side has at most so many.
        quality: Of the JPEGs that were made anew.
        unit_size: Samples in a unit.
        counts: What became of the samples; None until all units are there.
        versions: Of what made the bytes.
    """

    source: SourceFacts
    contents: Columns
    min_size: int
    max_size: int
    quality: int
    unit_size: int
    counts: Counts | None = None
    versions: Mapping[str, str] = field(default_factory=dict)

    @property
    def units(self) -> int:
        """How many units the source is cut into."""
        return self.source.units or -(-self.source.samples // self.unit_size)

    @property
    def columns(self) -> dict[str, str]:
        """The MDS encoding of every column."""
        return {name: encoding for name, (_, encoding) in self.contents.items()}

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> ShardsCard:
        """The card in a folder.

        Raises:
            FileNotFoundError: There is none.
            FormatError: It cannot be understood.
        """
        file = Path(path) / SHARDS
        try:
            data = tomllib.loads(file.read_bytes().decode())
            if data.pop("format") != _FORMAT:
                raise ValueError("another format")
            columns = {name: (column["from"], column["encoding"]) for name, column in data.pop("columns").items()}
            counts = Counts(**data.pop("counts")) if "counts" in data else None
            return cls(**{**data, "source": SourceFacts(**data["source"])}, contents=columns, counts=counts)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise FormatError(f"{file}: not the card of converted shards: {error}") from None

    def to_dict(self) -> dict[str, Any]:
        """As TOML has it."""
        data: dict[str, Any] = {"format": _FORMAT}
        for name in ("min_size", "max_size", "quality", "unit_size"):
            data[name] = getattr(self, name)
        if self.counts is not None:
            data["counts"] = vars(self.counts).copy()
        data["source"] = self.source.to_dict()
        columns = self.contents.items()
        data["columns"] = {name: {"from": content, "encoding": encoding} for name, (content, encoding) in columns}
        data["versions"] = dict(self.versions)
        return data

    def to_toml(self) -> bytes:
        """The bytes of `shards.toml`: a pure function of the card."""
        return ("# Shards made by `latentq shards`.\n" + tomli_w.dumps(self.to_dict())).encode()

    def completed(self, units: list[UnitFacts]) -> ShardsCard:
        """The card with counts."""
        counts = Counts(samples=sum(unit.samples for unit in units), rejects=sum(len(unit.rejects) for unit in units))
        return replace(self, counts=counts)


def shards(
    source: str | os.PathLike[str] | Source,
    out: str | os.PathLike[str],
    *,
    collection: str | Collection | None = None,
    captions: str | Captions | None = None,
    min_size: int = 256,
    max_size: int = 512,
    quality: int = 95,
    unit_size: int = 4096,
    threads: int | None = None,
    rank: int | None = None,
    world_size: int | None = None,
    strict: bool = False,
    delete_archives: bool = False,
    progress: TextIO | None = None,
) -> ShardsCard:
    """Converts a source into MDS shards of JPEGs and captions, or goes on where an earlier run stopped.

    An image whose short side is longer than `max_size` is shrunk to it, its long side rounded down, by Pillow's bicubic
    filter; one that then has a side below `min_size` is rejected. A JPEG that needs no shrinking keeps its bytes. All
    else becomes a JPEG of RGB pixels, an alpha channel left out, as Pillow's `convert("RGB")` does. Orientation and
    colour profile are neither applied nor lost: what is stored carries those of the original, for the reader to heed.

    Args:
        source: What `latentq.sources.open_source` takes, or any `Source`.
        out: The folder of the shards: absent, empty, or begun by a run of the same options and source.
        collection: One of `COLLECTIONS` or its name: other columns, and limits; by default `COLUMNS`, without the
            caption where the source has none.
        captions: As of `open_source`.
        min_size: Pixels that both sides must have at least.
        max_size: Pixels that the short side has at most.
        quality: Of JPEGs that are made anew, 1 to 100.
        unit_size: Samples in a unit, which is done or not done.
        threads: How many threads convert images; one for each processor where None.
        rank: Which of `world_size` processes this is; from the environment (RANK) where None.
        world_size: How many processes share the work; from the environment (WORLD_SIZE) where None.
        strict: Whether the first sample that is rejected for another reason than its size ends the run.
        delete_archives: Whether each archive of the source is deleted as soon as all of its units are published.
        progress: Where progress is told; None tells nothing.

    Returns:
        The card; its counts are None while other processes' units are missing.

    Raises:
        LatentqError: Nothing can be converted; `MismatchError` and `FormatError` say more.
        OSError: A folder cannot be read or written.
        ValueError: An argument is out of range.
    """
    out = Path(out)
    rank, world_size = ranks(rank, world_size)
    for name, value, most in (("min_size", min_size, max_size), ("quality", quality, 100)):
        if not 1 <= value <= most:
            raise ValueError(f"{name} must be from 1 to {most}, not {value}")
    if unit_size < 1 or (threads is not None and threads < 1):
        raise ValueError("unit_size and threads must be at least 1")
    collection = collection_of(collection)
    check_folder(out, SHARDS)
    if delete_archives and (out / SHARDS).exists() and all_spent(source, out, begun := ShardsCard.load(out)):
        return finish_units(out, begun, SHARDS, ShardsCard.completed)
    opened = open_for(source, out, captions=limited(captions, collection), progress=progress)
    listing = settle_listing(opened, out, first=rank == 0)
    card = ShardsCard(
        source=source_facts(opened.kind, listing, unit_size),
        contents=_contents(collection, listing.fields),
        min_size=min_size,
        max_size=max_size,
        quality=quality,
        unit_size=unit_size,
        versions={package: importlib.metadata.version(package) for package in ("latentq", "pillow")},
    )
    publish_listing(out, listing)
    if not publish_once(out / SHARDS, card.to_toml()):
        card = _same(out, card)
    names = unit_names(card)
    units = listing.units(unit_size)
    spent = SpentArchives(opened, listing, units, out, names) if delete_archives else None
    share = share_of(units, rank, world_size)
    with Progress(sum(map(len, share.values())), "shards", progress) as bar:
        for note in listing.notes:
            bar.note(note)
        todo = {number: numbers for number, numbers in share.items() if not unit_done(out, names[number])}
        bar.skip(sum(len(numbers) for number, numbers in share.items() if number not in todo))
        threads = threads or processors()
        with ThreadPoolExecutor(threads) as pool:
            for number, numbers in todo.items():
                samples = [listing.samples[index] for index in numbers]
                converted = _converted(card, opened, samples, pool, _AHEAD * threads)
                _write_unit(out / names[number], card, converted, bar, strict=strict)
                if spent is not None:
                    spent.delete(number)
    if spent is not None:
        spent.delete()
    if units_done(out, card) < card.units:
        remove_dead(out)
        return replace(card, counts=None)
    card = finish_units(out, card, SHARDS, ShardsCard.completed)
    if card.counts is not None and not card.counts.samples:
        raise LatentqError(f"none of the {card.source.samples} samples was kept: see {out / REJECTS}")
    return card


def _contents(collection: Collection | None, fields: tuple[str, ...]) -> Columns:
    have = {"image", "width", "height", "key", *fields}
    if collection is None:
        return {name: column for name, column in COLUMNS.items() if column[0] in have}
    for name, (content, _) in collection.columns.items():
        if content not in have:
            raise LatentqError(f"the collection stores {content} as {name}, which the source does not have")
    return collection.columns


def _same(out: Path, card: ShardsCard) -> ShardsCard:
    """The card that is published already, which must be of the same work."""
    old = ShardsCard.load(out)
    before, now = old.to_dict(), card.to_dict()
    for key in now:
        if key != "versions" and before.get(key) != now[key]:
            raise MismatchError(f"{out} was made with {key} = {before[key]!r}; this run has {now[key]!r}")
    if old.versions != card.versions:
        warnings.warn(f"{out} was begun with {dict(old.versions)}; here are {dict(card.versions)}", stacklevel=3)
    return old


@dataclass(frozen=True)
class _Jpeg:
    data: bytes
    width: int
    height: int


class _TooSmallError(LatentqError):
    """An image below the smallest size."""


def _write_unit(
    path: Path,
    card: ShardsCard,
    converted: Iterator[tuple[Sample, _Jpeg | _Refusal]],
    bar: Progress,
    *,
    strict: bool,
) -> None:
    """Writes one unit and publishes it. One that another process publishes meanwhile counts as done."""
    facts = UnitFacts()
    try:
        with mds.Writer(path, card.columns, hashes=HASHES, size_limit=SIZE_LIMIT) as writer:
            for sample, result in converted:
                if isinstance(result, _Jpeg):
                    own = {"image": result.data, "width": result.width, "height": result.height}
                    values = {
                        name: own[content] if content in own else getattr(sample, content)
                        for name, (content, _) in card.contents.items()
                    }
                    writer.write(values)
                    facts.samples += 1
                else:
                    stage, error, data = result
                    reason = reason_of(error, data if isinstance(data, Path) else None)
                    if strict and stage != "size":
                        raise LatentqError(f"{sample.text}: {stage}: {reason}")
                    facts.rejects.append(Reject(sample.text, stage, reason))
                    if stage != "size":
                        bar.note(f"rejected: {sample.text}: {stage}: {reason}")
                bar.update(1, 0 if isinstance(result, _Jpeg) else 1)
            writer.add_file(UNIT, facts.to_toml())
    except (FileExistsError, FileNotFoundError):
        if not unit_done(path.parent, path.name):
            raise


_Refusal = tuple[str, Exception, bytes | Path]


def _converted(
    card: ShardsCard, source: Source, samples: list[Sample], pool: ThreadPoolExecutor, depth: int
) -> Iterator[tuple[Sample, _Jpeg | _Refusal]]:
    """The samples in order and what became of each; read here, converted by the pool up to `depth` ahead."""
    waiting: deque[tuple[Sample, Future[_Jpeg | _Refusal] | _Refusal]] = deque()

    def first() -> tuple[Sample, _Jpeg | _Refusal]:
        sample, result = waiting.popleft()
        return sample, result.result() if isinstance(result, Future) else result

    for sample in samples:
        data, refusal = fetch(source, sample)
        if refusal is None and _not_text(sample):
            refusal = ("list", LatentqError("the file's name is not UTF-8"))
        waiting.append((sample, (*refusal, data) if refusal is not None else pool.submit(_jpeg, data, card)))
        if len(waiting) > depth:
            yield first()
    while waiting:
        yield first()


def _not_text(sample: Sample) -> bool:
    return sample.text != sample.key


def _jpeg(data: bytes | Path, card: ShardsCard) -> _Jpeg | _Refusal:
    """The JPEG that is stored of an image, or why none is."""
    try:
        content = data.read_bytes() if isinstance(data, Path) else data
        return to_jpeg(content, min_size=card.min_size, max_size=card.max_size, quality=card.quality)
    except _TooSmallError as error:
        return "size", error, data
    except LatentqError as error:
        return "decode", error, data
    except OSError as error:
        if not isinstance(data, Path) or error.errno not in REJECTED:
            raise  # of the machine, not of the file
        return "read", error, data


def to_jpeg(data: bytes, *, min_size: int, max_size: int, quality: int) -> _Jpeg:
    """An image as it is stored: see `shards`."""
    info = image.info(data)
    width, height = info.width, info.height
    short = min(width, height)
    if short > max_size:  # as torchvision's Resize: the long side is truncated
        width, height = (max_size if side == short else max_size * side // short for side in (width, height))
    if min(width, height) < min_size:
        raise _TooSmallError(f"{info.width} x {info.height} pixels, below {min_size}")
    # Decoded also where the bytes are kept: a broken one is found here and not in training.
    pixels = image.decode(data, orient=False, alpha="drop", icc="ignore")
    if short <= max_size and info.format == "JPEG":
        return _Jpeg(data, width, height)
    if short > max_size:
        pixels = image.resize(pixels, height, width)
    from PIL import Image

    options: dict[str, Any] = {}
    with Image.open(BytesIO(data)) as original:
        if original.mode == "RGB" and original.info.get("icc_profile"):
            options["icc_profile"] = original.info["icc_profile"]
    if info.orientation != 1:
        exif = Image.Exif()
        exif[_ORIENTATION] = info.orientation
        options["exif"] = exif.tobytes()
    file = BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=quality, **options)
    return _Jpeg(file.getvalue(), width, height)
