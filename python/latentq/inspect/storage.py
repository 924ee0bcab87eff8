"""Compares the size of a dataset with that of its images and of its latents as floats."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import TextIO

import numpy as np

from latentq import image, mds
from latentq._core import LatentqError
from latentq.format.card import Card
from latentq.format.facts import LatentFacts, TokenFacts
from latentq.inspect.jpeg import QUALITY, jpeg
from latentq.inspect.stored import StoredSamples, source_of
from latentq.sources import Source
from latentq.store.local import bytes_below
from latentq.system.progress import BriefProgress

IMAGENET = 1_281_167  # images
_TRIED = 256  # images at most


@dataclass(frozen=True)
class StorageRow:
    """The size of the samples in one form.

    Attributes:
        what: The form.
        bytes: The bytes of all samples; None if unknown.
        each: The mean bytes per sample; None if unknown.
        note: How the size was estimated, or why it is unknown.
    """

    what: str
    bytes: int | None
    each: int | None
    note: str = ""


def storage(
    path: str | os.PathLike[str],
    source: str | os.PathLike[str] | Source | None = None,
    *,
    progress: TextIO | None = None,
) -> list[StorageRow]:
    """Returns the bytes of a finished dataset's samples as images, as smaller JPEGs, as floats and as stored.

    Args:
        path: The dataset.
        source: The dataset's source, to estimate the size of its images as resized and cropped JPEGs.
        progress: The stream for progress, or None.

    Raises:
        LatentqError: The dataset is not finished, or an original cannot be read.
        OSError: A file cannot be read.
    """
    path = Path(path)
    card = Card.load(path)
    if card.counts is None:
        raise LatentqError(f"{path} is not finished")
    samples = StoredSamples(path, card)
    count = len(samples)
    if not count:
        raise LatentqError(f"{path} holds no samples")
    images = _image_bytes(samples, progress)
    floats = stored = 0
    buckets = card.counts.buckets or (count,)
    for own, members in ((card.for_bucket(bucket), members) for bucket, members in enumerate(buckets)):
        elements, nbytes = _sample_size(own.latents.values(), own.tokens.values())
        floats, stored = floats + members * elements, stored + members * nbytes
    stored += count * _varying_bytes(path, card, count)
    rows = [_row("original images", images, count, "" if images else "their sizes are not in its list")]
    sides = sorted({column.pixels for column in card.recipe.encoded().values()}) if not card.buckets else [None]
    for pixels in sides:
        name = "of its bucket" if pixels is None else f"{pixels[0]} x {pixels[1]}"
        what = f"JPEG {name}, quality {QUALITY}"
        if source is None:
            rows.append(_row(what, None, count, "no originals to try it with: --source names them"))
        else:
            total, tried = _jpegs(card, samples, pixels, source, progress)
            rows.append(_row(what, total, count, f"estimated from {tried}"))
    rows += _latent_rows(floats, stored, count)
    if card.embeddings:
        rows.append(_row("embeddings, as stored", count * sum(e.nbytes for e in card.embeddings.values()), count))
    rows.append(_row("the whole dataset", bytes_below(path), count))
    return rows


def storage_without_card(
    path: str | os.PathLike[str], latents: Iterable[LatentFacts], tokens: Iterable[TokenFacts], count: int
) -> list[StorageRow]:
    """Returns the bytes of a folder's samples as floats and as stored, as far as they are known without a card.

    Args:
        path: The folder.
        latents: Its columns of latents.
        tokens: Its columns of tokens.
        count: The number of its samples.
    """
    elements, nbytes = _sample_size(latents, tokens)
    rows = _latent_rows(count * elements, count * nbytes, count)
    return [*rows, _row("the whole dataset", bytes_below(Path(path)), count)]


def _sample_size(latents: Iterable[LatentFacts], tokens: Iterable[TokenFacts]) -> tuple[int, int]:
    """Returns the number of latents' values in a sample, and the bytes of latents and tokens as stored."""
    elements = nbytes = 0
    for latent in latents:
        elements += prod(latent.shape)
        nbytes += latent.quantizer.packed_bytes(prod(latent.shape))
    return elements, nbytes + sum(prod(facts.shape) * np.dtype(facts.dtype).itemsize for facts in tokens)


def _latent_rows(floats: int, stored: int, count: int) -> list[StorageRow]:
    """Returns the rows of latents as floats, as stored, and as stored for ImageNet.

    Args:
        floats: The number of values of all samples' latents.
        stored: The bytes of latents and tokens as stored.
        count: The number of samples.
    """
    rows = [
        _row(f"latents, {name}", floats * size or None, count, "" if floats else "it holds tokens")
        for name, size in (("float32", 4), ("float16", 2))
    ]
    imagenet = round(stored / count * IMAGENET)
    note = f"{IMAGENET:,} images of its training set: {imagenet / 1e9:.2f} GB, {imagenet / 2**30:.2f} GiB"
    return [
        *rows,
        _row("latents, as stored" if floats else "tokens, as stored", stored, count),
        _row("ImageNet would take", imagenet, IMAGENET, note),
    ]


def _varying_bytes(path: Path, card: Card, count: int) -> int:
    """Returns the mean bytes per sample of the columns whose bytes vary, of some samples, evenly spread."""
    names = [name for name, encoding in card.columns.items() if encoding == "bytes" and _varies(card, name)]
    if not names:
        return 0
    reader = mds.Reader(path)
    tried = np.linspace(0, count - 1, min(count, _TRIED)).astype(np.int64)
    return sum(round(sum(map(len, reader.gather(tried, name))) / len(tried)) for name in names)


def _varies(card: Card, name: str) -> bool:
    latent = card.latents.get(name)
    return latent is not None and not latent.quantizer.packed_bytes(prod(latent.shape))


def _row(what: str, total: int | None, count: int, note: str = "") -> StorageRow:
    return StorageRow(what, total, None if total is None else round(total / count), note)


def _image_bytes(samples: StoredSamples, progress: TextIO | None) -> int | None:
    """Returns the bytes of all original images; None if the list does not have them."""
    total = 0
    with BriefProgress(len(samples), "sizes", progress) as bar:
        for _, sample in samples:
            if sample.bytes is None:
                return None
            total += sample.bytes
            bar.update(1)
    return total


def _jpegs(
    card: Card,
    samples: StoredSamples,
    size: tuple[int, int] | None,
    source: str | os.PathLike[str] | Source,
    progress: TextIO | None,
) -> tuple[int, int]:
    """Estimates the bytes of all encoded images as JPEGs; also returns the number of evenly spread images tried.

    Args:
        card: The card.
        samples: The stored samples.
        size: The height and width that images were encoded at; None for that of each image's bucket.
        source: The source.
        progress: The stream for progress, or None.
    """
    count = min(len(samples), _TRIED)
    opened = source_of(card, source)
    total = 0
    with BriefProgress(count, "JPEG", progress) as bar:
        for position in range(count):
            index = position * len(samples) // count
            _, sample = samples.find(index)
            target = size or card.recipe.bucket_sizes()[samples.bucket(index)]
            try:
                pixels = image.load(opened.data(sample), target, **card.recipe.image.options())
            except (OSError, LatentqError) as error:
                raise LatentqError(
                    f"the original {sample.text} cannot be read: {error} (is this the source of the dataset?)"
                ) from None
            total += len(jpeg(pixels))
            bar.update(1)
    return round(total / count * len(samples)), count
