"""Decodes stored latents to pictures, alone or on a contact sheet next to their originals."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TextIO

import numpy as np
from numpy.typing import NDArray

from latentq._core import LatentqError
from latentq.format.card import Card
from latentq.format.options import FLOATS
from latentq.inspect.jpeg import jpeg, jpeg_pixels
from latentq.inspect.originals import Originals
from latentq.inspect.psnr import psnr
from latentq.models.decode import decode_latents
from latentq.models.match import autoencoder_for
from latentq.quantizer.floats import FLOAT_BITS, half_name
from latentq.sources import Sample, Source
from latentq.system.progress import BriefProgress
from latentq.system.text import counted

if TYPE_CHECKING:
    import PIL.Image

    from latentq.models.autoencoders import Autoencoder
    from latentq.reading.dataset import LatentDataset

_SHOWN = 8  # samples, by default
_MARGIN, _LINE, _CAPTION = 6, 15, 250  # pixels


@dataclass(frozen=True)
class Picture:
    """One picture of a sample.

    Attributes:
        pixels: (H, W, 3) uint8.
        form: What it was made from: `original`, `jpeg` (the original as a JPEG of its size), `float32`, `float16` (or
            `bfloat16`, if a latent overflows float16), or `stored`.
        title: The same in words, such as `from 8-bit integers`.
        nbytes: The bytes of the sample in this form; None if unknown.
        psnr: The PSNR against the original in dB; None for the original, or without one.
        name: The name or number of the sample; empty next to another picture of it.
    """

    pixels: NDArray[np.uint8]
    form: str
    title: str
    nbytes: int | None = None
    psnr: float | None = None
    name: str = ""

    @property
    def lines(self) -> tuple[str, ...]:
        """The lines of text below it on a contact sheet."""
        size = "" if self.nbytes is None else f", {counted(self.nbytes, 'byte')}"
        named = (self.name,) if self.name else ()
        return (*named, f"{self.title}{size}", *(() if self.psnr is None else (f"PSNR {self.psnr:.2f} dB",)))


def latent_name(path: str | os.PathLike[str], card: Card, column: str | None) -> str:
    """Returns the name of a column of latents, moments or tokens: the given one, or the first for None.

    Raises:
        LatentqError: There is no such column.
    """
    encoded = card.recipe.encoded()
    name = column or next(iter(encoded))
    if name not in encoded:
        raise LatentqError(f"{path} has no latent column {name!r}: it has {', '.join(encoded)}")
    return name


def pictures(
    path: str | os.PathLike[str],
    indices: Sequence[int] | None = None,
    *,
    column: str | None = None,
    source: str | os.PathLike[str] | Source | None = None,
    autoencoder: str | os.PathLike[str] | None = None,
    device: str = "cpu",
    progress: TextIO | None = None,
) -> list[list[Picture]]:
    """Decodes samples of a dataset, or of a file or folder that `latentq.convert` reads.

    Args:
        path: The dataset, or another tool's file or folder.
        indices: The samples' indices; negative ones count from the end; None takes 8, evenly spread.
        column: The latent column; the first by default.
        source: The dataset's source, to show the originals too.
        autoencoder: The autoencoder's name or folder, if its name in the card is not enough.
        device: The device to compute on.
        progress: The stream for progress, or None.

    Returns:
        For each sample the decoded picture or, given a source, the pictures of `compared`.

    Raises:
        IndexError: There is no such sample.
        LatentqError: The dataset, the autoencoder or an original cannot be read.
    """
    from latentq.converting.pipeline import open_foreign
    from latentq.reading.dataset import LatentDataset

    foreign = open_foreign(path)
    card = Card.load(path) if foreign is None else foreign.card
    name = latent_name(path, card, column)
    opened = LatentDataset(path, columns=[name]) if foreign is None else foreign
    count = len(opened)
    if indices is None:
        indices = spread(count)
    for index in indices:
        if not -count <= index < count:
            raise IndexError(f"index {index}: {path} has {counted(count, 'sample')}")
    if not indices:
        raise LatentqError(f"{path} holds no samples to decode")
    network = autoencoder_for(card, autoencoder, device=device)
    originals = None
    if source is not None:
        if not isinstance(opened, LatentDataset):
            raise LatentqError(f"{path} is a {opened.kind}: convert it to a dataset to compare it with its originals")
        originals = Originals(path, card, name, source, network, device=device)
    rows = []
    with BriefProgress(len(indices), "decode", progress) as bar:
        for number in [index % count for index in indices]:
            if originals is not None and isinstance(opened, LatentDataset):
                rows.append(compared(opened, number, originals, *originals.encode([number])))
            elif isinstance(opened, LatentDataset):
                rows.append([decoded(opened, number, network)])
            else:
                pixels = decode_latents(network, opened.decodable([number]))[0]
                rows.append([Picture(pixels, "stored", f"from {opened.kind}", name=f"#{number}")])
            bar.update(1)
    return rows


def spread(count: int) -> list[int]:
    """Returns the indices of the samples that are shown by default: 8 of `count`, evenly spread."""
    return [position * count // min(count, _SHOWN) for position in range(min(count, _SHOWN))]


def decoded(dataset: LatentDataset, index: int, network: Autoencoder) -> Picture:
    """Decodes a stored sample.

    Args:
        dataset: The dataset, opened with one column of latents, moments or tokens.
        index: The sample's index.
        network: The autoencoder.
    """
    from latentq.reading.columns import TokenColumn

    column = next(iter(dataset.layouts[dataset.bucket_of([index])].pictures.values()))
    title = "tokens"
    if not isinstance(column, TokenColumn):
        title = f"{'moments, ' if column.moments else ''}{_title(column.facts.quantizer)}"
    nbytes = next(iter(dataset.read([index]).values())).shape[1]
    pixels = decode_latents(network, dataset.decodable([index]))[0]
    return Picture(pixels, "stored", f"from {title}", nbytes, name=f"#{index}")


def compared(
    dataset: LatentDataset,
    index: int,
    originals: Originals,
    pixels: NDArray[np.uint8],
    latents: NDArray[Any] | None,
) -> list[Picture]:
    """Shows a sample in every form that it could be stored in.

    The forms are those of two published comparisons: imagenet.int8's (original, decoded from float16, decoded from
    the stored integers) and imagenet_3gb's (JPEG, decoded from float32, decoded from the stored integers).

    Args:
        dataset: The dataset, opened with one column of latents, moments or tokens.
        index: The sample's index.
        originals: Its source, and the autoencoder.
        pixels: The original as it was encoded, (1, 3, H, W) uint8.
        latents: The original encoded again, (1, C, h, w); None if it cannot be; not used for tokens.

    Returns:
        The original, a JPEG of it, the latent decoded from float32 and from float16 (neither for tokens, or without
        `latents`), and the stored latent or tokens decoded.
    """
    sample, original = originals.sample(index), np.ascontiguousarray(pixels[0].transpose(1, 2, 0))
    file = jpeg(original)
    height, width = original.shape[:2]
    result = [
        Picture(original, "original", "original", sample.bytes, name=_name(sample)),
        _scored(Picture(jpeg_pixels(file), "jpeg", f"{height} x {width} JPEG", len(file)), original),
    ]
    if latents is not None and latents.dtype.kind == "f":
        import torch

        half = half_name(float(np.abs(latents).max()))
        for form in ("float32", half):
            rounded = torch.from_numpy(latents).to(getattr(torch, form)).float()
            decoding = decode_latents(originals.network, rounded)[0]
            size = latents[0].size * FLOAT_BITS[form] // 8
            result.append(_scored(Picture(decoding, form, f"from {form}", size), original))
    return [*result, replace(_scored(decoded(dataset, index, originals.network), original), name="")]


def _scored(picture: Picture, original: NDArray[np.uint8]) -> Picture:
    """Returns a picture with its PSNR against the original."""
    return replace(picture, psnr=psnr(picture.pixels, original))


def _title(quantizer: Any) -> str:
    if quantizer.kind == "transform":
        return "the transform"
    return str(quantizer.kind) if quantizer.kind in FLOATS else f"{quantizer.bits}-bit integers"


def _name(sample: Sample) -> str:
    name = "".join(letter if letter.isprintable() else "?" for letter in sample.text.rpartition("/")[2])
    return name if len(name) <= 34 else f"{name[:20]}...{name[-11:]}"


def sheet(rows: list[list[Picture]]) -> PIL.Image.Image:
    """Draws a contact sheet: the pictures of a sample side by side, the samples in a grid that is about square.

    Pictures of several sizes have cells of the largest height and width.
    """
    from PIL import Image, ImageDraw, ImageFont

    tall, wide = (max(picture.pixels.shape[axis] for row in rows for picture in row) for axis in (0, 1))
    across = len(rows[0])
    groups = max(1, round((len(rows) / across) ** 0.5))
    lines = max(len(picture.lines) for row in rows for picture in row)
    width, height = max(wide, _CAPTION) + _MARGIN, tall + lines * _LINE + 2 * _MARGIN
    canvas = Image.new("RGB", (_MARGIN + groups * across * width, _MARGIN + -(-len(rows) // groups) * height), "white")
    draw = ImageDraw.Draw(canvas)
    font = ImageFont.load_default(12)
    for index, row in enumerate(rows):
        for position, picture in enumerate(row):
            left = _MARGIN + (index % groups * across + position) * width
            top = _MARGIN + index // groups * height
            canvas.paste(Image.fromarray(np.ascontiguousarray(picture.pixels)), (left, top))
            for number, line in enumerate(picture.lines):
                draw.text((left, top + tall + 2 + number * _LINE), line, fill="black", font=font)
    return canvas
