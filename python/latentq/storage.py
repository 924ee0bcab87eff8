"""What a dataset takes, beside what its pictures and their latents as floats would."""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path

import numpy as np

from latentq import image
from latentq._core import LatentqError
from latentq.card import Card
from latentq.originals import stored_samples
from latentq.sources import Sample, open_source

QUALITY = 95
"""Of the JPEGs that are tried."""
_TRIED = 256


@dataclass(frozen=True)
class Row:
    """One way to store the same samples.

    Attributes:
        what: The way.
        bytes: All samples together; None where it is not known.
        note: Why not, or how.
    """

    what: str
    bytes: int | None
    note: str = ""


def storage(path: str | os.PathLike[str], source: str | os.PathLike[str] | None = None) -> list[Row]:
    """The bytes of a finished dataset's samples as images, as smaller JPEGs, as floats and as stored.

    Args:
        path: The dataset.
        source: What it was made from, from which the size of resized and cropped JPEGs is estimated.

    Raises:
        LatentqError: The dataset is not finished, or an original cannot be read.
        OSError: Something cannot be read.
    """
    path = Path(path)
    card = Card.load(path)
    if card.counts is None:
        raise LatentqError(f"{path} is not finished")
    samples = [sample for _, sample in stored_samples(path)]
    sizes = [sample.bytes for sample in samples]
    known = [size for size in sizes if size is not None]
    rows = [
        Row("original images", sum(known))
        if len(known) == len(sizes)
        else Row("original images", None, "their sizes are not in its list")
    ]
    for side in sorted({column.size for column in card.recipe.encoded().values()}):
        rows.append(_jpeg(card, samples, side, source))
    numbers = sum(prod(latent.shape) for latent in card.latents.values())
    stored = sum(latent.quantizer.packed_bytes(prod(latent.shape)) for latent in card.latents.values())
    stored += sum(prod(tokens.shape) * np.dtype(tokens.dtype).itemsize for tokens in card.tokens.values())
    count = len(samples)
    for name, size in (("float32", 4), ("float16", 2)):
        rows.append(Row(f"latents, {name}", count * numbers * size if numbers else None, "" if numbers else "tokens"))
    return [
        *rows,
        Row("latents, as stored" if card.latents else "tokens, as stored", count * stored),
        Row("the whole dataset", sum(file.stat().st_size for file in path.rglob("*") if file.is_file())),
    ]


def _jpeg(card: Card, samples: Sequence[Sample], side: int, source: str | os.PathLike[str] | None) -> Row:
    """The pictures that were encoded, as JPEGs: estimated from some, spread evenly."""
    what = f"JPEG {side} x {side}, quality {QUALITY}"
    if source is None:
        return Row(what, None, "no originals to try it with: --source names them")
    from PIL import Image

    count = min(len(samples), _TRIED)
    opened = open_source(source)
    total = 0
    for place in range(count):
        sample = samples[place * len(samples) // count]
        try:
            pixels = image.load(opened.data(sample), side, **card.recipe.image.options())
        except (OSError, LatentqError) as error:
            raise LatentqError(f"the original {sample.text} cannot be read: {error}") from None
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "JPEG", quality=QUALITY)
        total += file.tell()
    return Row(what, round(total / count * len(samples)), f"estimated from {count}")
