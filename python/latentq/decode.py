"""From stored latents back to pictures, alone or on a sheet beside their originals."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from latentq._core import LatentqError, MismatchError
from latentq.autoencoders import Autoencoder, load_autoencoder, subfolder_in, weight_hash
from latentq.card import UNKNOWN, Card
from latentq.originals import Originals
from latentq.plan import shape_of
from latentq.recipe import FLOATS
from latentq.sources import Sample

if TYPE_CHECKING:
    import PIL.Image
    import torch

    from latentq.layout import Layout

_SHOWN = 8
_MARGIN, _LINE, _CAPTION = 6, 15, 250  # pixels


@dataclass(frozen=True)
class Picture:
    """One picture of a sheet.

    Attributes:
        pixels: (S, S, 3) uint8.
        lines: What stands under it.
        psnr: Against the original, in dB, where there is one.
    """

    pixels: NDArray[np.uint8]
    lines: tuple[str, ...]
    psnr: float | None = None


def autoencoder_for(
    card: Card, name: str | os.PathLike[str] | None = None, *, device: str | torch.device = "cpu"
) -> Autoencoder:
    """The autoencoder that made a dataset.

    Args:
        card: The dataset's card.
        name: Where the autoencoder is, if its name in the card is not enough (a folder's path is not kept there).
        device: Where it computes.

    Raises:
        MismatchError: Its weights are not those of the card, or where these are unknown, its latents' shape is not.
        LatentqError: It cannot be loaded.
    """
    options = card.recipe.autoencoder
    try:
        network = load_autoencoder(
            name or options.model,
            device=device,
            revision=options.revision,
            subfolder=subfolder_in(name or options.model, options.subfolder),
            pixel_range=options.pixel_range,
        )
    except LatentqError as error:
        hint = "" if name else " (the dataset was made with it: say where it is with --autoencoder)"
        raise LatentqError(f"{error}{hint}") from None
    weights = weight_hash(network)
    if card.autoencoder.weights not in (weights, UNKNOWN):
        raise MismatchError(
            f"the dataset was made by {card.autoencoder.name} with weights {card.autoencoder.weights or 'unknown'}; "
            f"those of {name or network.name} are {weights or 'unknown'}"
        )
    if card.autoencoder.weights == UNKNOWN:  # then the shape is all there is to tell another network by
        for column in card.recipe.latents().values():
            shape_of(card.recipe, column, network)
    return network


def latent_name(path: str | os.PathLike[str], card: Card, column: str | None) -> str:
    """The column of latents, moments or tokens that is meant: the first where None.

    Raises:
        LatentqError: There is none of that name.
    """
    encoded = card.recipe.encoded()
    name = column or next(iter(encoded))
    if name not in encoded:
        raise LatentqError(f"{path} has no latent column {name!r}: it has {', '.join(encoded)}")
    return name


def decode_latents(network: Autoencoder, latents: NDArray[np.float32] | torch.Tensor) -> NDArray[np.uint8]:
    """(n, C, h, w) unscaled latents, or (n, h, w) tokens, to (n, S, S, 3) uint8 pixels, rounded to nearest."""
    import torch

    low, high = network.pixel_range
    stored = torch.as_tensor(latents)
    decode: Any = network.decode if stored.is_floating_point() else getattr(network, "decode_tokens", None)
    if decode is None:
        raise LatentqError(f"{network.name} has no code book: it decodes no tokens")
    with torch.no_grad():
        pixels = decode(stored)
    levels = ((pixels.float() - low) * (255 / (high - low))).round().clamp(0, 255)
    array: NDArray[np.uint8] = levels.to(torch.uint8).permute(0, 2, 3, 1).contiguous().cpu().numpy()
    return array


def psnr(pixels: NDArray[np.uint8], original: NDArray[np.uint8]) -> float:
    """Peak signal-to-noise ratio of 8-bit pictures, in dB; infinite where they are equal."""
    error = np.mean((pixels.astype(np.float64) - original) ** 2)
    return float("inf") if error == 0 else float(10 * np.log10(255**2 / error))


def pictures(
    path: str | os.PathLike[str],
    indices: Sequence[int] | None = None,
    *,
    column: str | None = None,
    source: str | os.PathLike[str] | None = None,
    autoencoder: str | os.PathLike[str] | None = None,
    device: str = "cpu",
) -> list[list[Picture]]:
    """Samples of a dataset, or of what `latentq.convert` reads, as pictures.

    Args:
        path: The dataset, or another tool's file or folder.
        indices: Which samples; negative ones count from the end; None takes 8, evenly spread.
        column: Which latent column; the first where None.
        source: What the dataset was made from, to show beside it.
        autoencoder: Where the autoencoder is, if its name in the card is not enough.
        device: Where it computes.

    Returns:
        For each sample the decoded picture, or, given a source, three: the original, what the autoencoder makes of it,
        and what it makes of the stored latent.

    Raises:
        IndexError: There is no such sample.
        LatentqError: The dataset, the autoencoder or an original cannot be read.
    """
    from latentq.convert import open_foreign
    from latentq.dataset import LatentDataset

    foreign = open_foreign(path)
    card = Card.load(path) if foreign is None else foreign.card
    name = latent_name(path, card, column)
    opened = LatentDataset(path, columns=[name]) if foreign is None else foreign
    count = len(opened)
    if indices is None:
        indices = [place * count // min(count, _SHOWN) for place in range(min(count, _SHOWN))]
    for index in indices:
        if not -count <= index < count:
            raise IndexError(f"index {index}: {path} has {count} samples")
    if not indices:
        raise LatentqError(f"{path} holds no samples to decode")
    network = autoencoder_for(card, autoencoder, device=device)
    beside: tuple[Originals, Layout] | None = None
    if source is not None:
        if not isinstance(opened, LatentDataset):
            raise LatentqError(f"{path} is a {opened.kind}: convert it to a dataset to see its originals beside it")
        beside = Originals(path, card, name, source, network, device=device), opened.layout
    rows = []
    for number in [index % count for index in indices]:
        stored = decode_latents(network, opened.decodable([number]).to(device))[0]
        rows.append(_compare(*beside, number, stored) if beside else [Picture(stored, (f"#{number}",))])
    return rows


def _compare(originals: Originals, layout: Layout, index: int, stored: NDArray[np.uint8]) -> list[Picture]:
    """The original of a stored sample, what the autoencoder makes of it, and the stored one, which is given.

    Of tokens there are two: what the autoencoder makes of a picture is the stored one.
    """
    from latentq.layout import TokenColumn

    column = next(iter(layout.pictures.values()))
    sample = originals.sample(index)
    pixels, latents = originals.encode([index])
    original = pixels[0].transpose(1, 2, 0)
    result = [Picture(original, (_name(sample), f"original, {_bytes(sample.bytes or 0)}"))]
    if isinstance(column, TokenColumn):
        made = [("tokens", stored, column.nbytes)]
    else:
        title = f"{'moments, ' if column.moments else ''}{_title(column.facts.quantizer)}"
        made = [
            ("float32", decode_latents(originals.network, latents)[0], latents[0].size * 4),
            (title, stored, column.nbytes),
        ]
    for title, decoded, size in made:
        value = psnr(decoded, original)
        result.append(Picture(decoded, (f"from {title}, {_bytes(size)}", f"PSNR {value:.2f} dB"), value))
    return result


def _title(quantizer: Any) -> str:
    return str(quantizer.kind) if quantizer.kind in FLOATS else f"{quantizer.bits}-bit integers"


def _name(sample: Sample) -> str:
    name = "".join(letter if letter.isprintable() else "?" for letter in sample.text.rpartition("/")[2])
    return name if len(name) <= 34 else f"{name[:20]}...{name[-11:]}"


def _bytes(count: int) -> str:
    return f"{count:,} bytes"


def sheet(rows: list[list[Picture]]) -> PIL.Image.Image:
    """A contact sheet: the pictures of a sample side by side, samples in as many columns as fit well."""
    from PIL import Image, ImageDraw, ImageFont

    side = max(picture.pixels.shape[0] for row in rows for picture in row)
    across = len(rows[0])
    groups = max(1, round((len(rows) / across) ** 0.5))
    lines = max(len(picture.lines) for row in rows for picture in row)
    width, height = max(side, _CAPTION) + _MARGIN, side + lines * _LINE + 2 * _MARGIN
    canvas = Image.new("RGB", (_MARGIN + groups * across * width, _MARGIN + -(-len(rows) // groups) * height), "white")
    draw = ImageDraw.Draw(canvas)
    font = ImageFont.load_default(12)
    for index, row in enumerate(rows):
        for place, picture in enumerate(row):
            left = _MARGIN + (index % groups * across + place) * width
            top = _MARGIN + index // groups * height
            canvas.paste(Image.fromarray(np.ascontiguousarray(picture.pixels)), (left, top))
            for number, line in enumerate(picture.lines):
                draw.text((left, top + side + 2 + number * _LINE), line, fill="black", font=font)
    return canvas
