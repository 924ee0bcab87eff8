"""Decodes stored latents to pictures, alone or on a contact sheet next to their originals."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TextIO

import numpy as np
from numpy.typing import NDArray

from latentq._core import LatentqError
from latentq.format.card import Card
from latentq.format.options import FLOATS
from latentq.inspect.originals import Originals
from latentq.inspect.psnr import psnr
from latentq.models.decode import decode_latents
from latentq.models.match import autoencoder_for
from latentq.sources import Sample
from latentq.system.progress import BriefProgress
from latentq.system.text import counted

if TYPE_CHECKING:
    import PIL.Image

    from latentq.reading.dataset import LatentDataset
    from latentq.reading.layout import Layout

_SHOWN = 8  # samples, by default
_MARGIN, _LINE, _CAPTION = 6, 15, 250  # pixels


@dataclass(frozen=True)
class Picture:
    """One picture of a contact sheet.

    Attributes:
        pixels: (H, W, 3) uint8.
        lines: The lines of text below it.
        psnr: The PSNR against the original in dB; None without an original.
    """

    pixels: NDArray[np.uint8]
    lines: tuple[str, ...]
    psnr: float | None = None


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
    source: str | os.PathLike[str] | None = None,
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
        For each sample the decoded picture or, given a source, three pictures: the original, the original encoded and
        decoded without quantization, and the stored latent decoded. For tokens the last two are the same picture.

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
        indices = [position * count // min(count, _SHOWN) for position in range(min(count, _SHOWN))]
    for index in indices:
        if not -count <= index < count:
            raise IndexError(f"index {index}: {path} has {counted(count, 'sample')}")
    if not indices:
        raise LatentqError(f"{path} holds no samples to decode")
    network = autoencoder_for(card, autoencoder, device=device)
    compared: tuple[Originals, LatentDataset] | None = None
    if source is not None:
        if not isinstance(opened, LatentDataset):
            raise LatentqError(f"{path} is a {opened.kind}: convert it to a dataset to compare it with its originals")
        compared = Originals(path, card, name, source, network, device=device), opened
    rows = []
    with BriefProgress(len(indices), "decode", progress) as bar:
        for number in [index % count for index in indices]:
            stored = decode_latents(network, opened.decodable([number]))[0]
            row = [Picture(stored, (f"#{number}",))]
            if compared is not None:
                originals, dataset = compared
                nbytes = next(iter(dataset.read([number]).values())).shape[1]
                row = _compare(originals, dataset.layouts, number, stored, nbytes)
            rows.append(row)
            bar.update(1)
    return rows


def _compare(
    originals: Originals, layouts: Sequence[Layout], index: int, stored: NDArray[np.uint8], nbytes: int
) -> list[Picture]:
    """Shows a stored sample, given decoded, next to its original and to its unquantized reconstruction.

    For tokens there are two pictures: the reconstruction is the stored one.

    Args:
        originals: The source, indexed as the dataset's samples are.
        layouts: The layout of each bucket, or of the dataset, with one column of latents or tokens.
        index: The sample's index.
        stored: The decoded sample, uint8 (H, W, 3).
        nbytes: The bytes that are stored of it.
    """
    from latentq.reading.columns import TokenColumn

    column = next(iter(layouts[originals.bucket(index)].pictures.values()))
    sample = originals.sample(index)
    pixels, latents = originals.encode([index])
    original = pixels[0].transpose(1, 2, 0)
    result = [Picture(original, (_name(sample), f"original, {_bytes(sample.bytes or 0)}"))]
    if isinstance(column, TokenColumn):
        decodings = [("tokens", stored, nbytes)]
    else:
        title = f"{'moments, ' if column.moments else ''}{_title(column.facts.quantizer)}"
        decodings = [
            ("float32", decode_latents(originals.network, latents)[0], latents[0].size * 4),
            (title, stored, nbytes),
        ]
    for title, decoded, size in decodings:
        value = psnr(decoded, original)
        result.append(Picture(decoded, (f"from {title}, {_bytes(size)}", f"PSNR {value:.2f} dB"), value))
    return result


def _title(quantizer: Any) -> str:
    if quantizer.kind == "transform":
        return "the transform"
    return str(quantizer.kind) if quantizer.kind in FLOATS else f"{quantizer.bits}-bit integers"


def _name(sample: Sample) -> str:
    name = "".join(letter if letter.isprintable() else "?" for letter in sample.text.rpartition("/")[2])
    return name if len(name) <= 34 else f"{name[:20]}...{name[-11:]}"


def _bytes(count: int) -> str:
    return counted(count, "byte")


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
