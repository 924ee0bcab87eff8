"""How the bytes of a stored column become values: names, shapes, quantisers and scales, resolved once for a dataset."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import prod
from typing import Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray

from latentq._core import LatentqError, MismatchError, RecipeError
from latentq.card import Card, LatentFacts
from latentq.quantizer import Quantizer
from latentq.recipe import FLOATS, Column, Recipe

Scale = Literal["raw", "scaled", "normalized"]
FloatArray = NDArray[np.float64]


@dataclass(frozen=True)
class LatentColumn:
    """One latent column, from stored bytes to values: value = (dequantised - shift) * factor, for each channel.

    Attributes:
        stored: Its name in the shards.
        shape: (C, h, w) of a sample.
        quantizer: What the codes mean, `shift` and `factor` included where the codes are integers.
        shift: Of float kinds; empty where it is 0.
        factor: Of float kinds; empty where it is 1.
    """

    stored: str
    shape: tuple[int, ...]
    quantizer: Quantizer
    shift: tuple[float, ...] = ()
    factor: tuple[float, ...] = ()

    @property
    def is_float(self) -> bool:
        """Whether the stored values are floats, not codes."""
        return self.quantizer.kind in FLOATS

    @property
    def nbytes(self) -> int:
        """The bytes of a stored sample."""
        return self.quantizer.packed_bytes(prod(self.shape))

    def decode(self, raw: torch.Tensor, dtype: torch.dtype, *, out: torch.Tensor | None = None) -> torch.Tensor:
        """The values of stored samples, on the device where these are.

        Args:
            raw: uint8 (N, nbytes).
            dtype: float32, float16 or bfloat16; or uint8, for the codes themselves.
            out: Where to put them, of the result's shape and dtype.

        Returns:
            (N, *shape) of the given dtype.
        """
        codes: torch.Tensor = self.quantizer.unpack(raw, (len(raw), *self.shape))
        if self.factor:
            channels = (-1, *(1 for _ in self.shape[1:]))
            shift, factor = (torch.tensor(x, device=raw.device).view(channels) for x in (self.shift, self.factor))
            codes = (codes.float() - shift) * factor
        elif dtype != torch.uint8 and not self.is_float:
            values: torch.Tensor = self.quantizer.dequantize(codes, dtype=dtype, out=out)
            return values
        return codes.to(dtype) if out is None else out.copy_(codes)


def sample_names(recipe: Recipe, stored: Mapping[str, str]) -> dict[str, str]:
    """The names of the columns in samples, by their names in the shards: what a column holds, if it alone holds that.

    Raises:
        MismatchError: A column that the recipe demands is not in the shards.
    """
    present = {name: column for name, column in recipe.columns.items() if name in stored}
    for name, column in recipe.columns.items():
        if name not in stored and not column.optional:
            there = ", ".join(stored)
            raise MismatchError(f"recipe {recipe.name} has a column {name!r}, and the shards have {there}")
    count = Counter(column.content for column in present.values())
    return {name: column.content if count[column.content] == 1 else name for name, column in present.items()}


def latent_facts(
    path: str | os.PathLike[str], card: Card | None, recipe: Recipe, quantizer: Quantizer | None
) -> dict[str, LatentFacts]:
    """The shape and quantiser of each latent column: the card's, or else what the recipe and the caller say."""
    if card is not None:
        return dict(card.latents)
    return {name: _without_card(path, name, column, quantizer) for name, column in recipe.latents().items()}


def _without_card(path: str | os.PathLike[str], name: str, column: Column, quantizer: Quantizer | None) -> LatentFacts:
    shape = column.shape
    if not shape and column.encoding.count(":") == 2:
        shape = tuple(int(side) for side in column.encoding.split(":")[2].split(","))
    if not shape:
        raise RecipeError(f"{path}: there is no card, and the recipe does not say the shape of column {name!r}")
    if quantizer is None:
        kind = column.quantizer["kind"]
        if kind in FLOATS:
            quantizer = Quantizer.floating(kind, channels=shape[0])
        elif kind == "uniform":
            options = {key: value for key, value in column.quantizer.items() if key != "kind"}
            quantizer = Quantizer.uniform(channels=shape[0], **options)
        else:
            raise RecipeError(f"{path}: there is no card with the range of column {name!r}: give a quantizer")
    return LatentFacts(shape=shape, quantizer=quantizer)


def latent_column(
    path: str | os.PathLike[str], name: str, facts: LatentFacts, scaled: bool, card: Card | None, scale: Scale
) -> LatentColumn:
    """A latent column that gives values in the scale asked for.

    Args:
        path: The dataset, for messages.
        name: Of the column in the shards.
        facts: Its shape, quantiser and statistics.
        scaled: Whether what is stored is already multiplied by the scaling factor.
        card: Says the scaling factor.
        scale: `raw` as the autoencoder gave them, `scaled` times its scaling factor, or `normalized` to mean 0 and
            standard deviation 1 in each channel.
    """
    if scale not in get_args(Scale):
        raise ValueError(f"scale must be one of {', '.join(get_args(Scale))}, not {scale!r}")
    if facts.quantizer.channels != facts.shape[0]:
        raise MismatchError(
            f"{path}: column {name!r} has {facts.shape[0]} channels, and its quantiser {facts.quantizer.channels}"
        )
    column = LatentColumn(name, facts.shape, facts.quantizer)
    channels = facts.shape[0]
    if scale == "normalized":
        if facts.statistics is None:
            raise LatentqError(f"{path}: scale='normalized' needs the statistics of a card")
        shift = np.array(facts.statistics.mean)
        std = np.array(facts.statistics.std)
        factor = 1 / np.where(std > 0, std, 1)
    elif scaled == (scale == "scaled"):
        return column
    elif card is None:
        raise LatentqError(f"{path}: scale={scale!r} needs the scaling factor of a card")
    else:
        sf = card.autoencoder.scaling_factor
        shift, factor = np.zeros(channels), np.full(channels, sf if scale == "scaled" else 1 / sf)
    if column.is_float:
        return replace(column, shift=tuple(shift.tolist()), factor=tuple(factor.tolist()))
    return replace(column, quantizer=_folded(facts.quantizer, shift, factor))


def _folded(quantizer: Quantizer, shift: FloatArray, factor: FloatArray) -> Quantizer:
    """A quantiser whose values are (value - shift) * factor: one pass over the codes instead of two."""
    if quantizer.kind == "codebook":
        return Quantizer.codebook((np.array(quantizer.levels) - shift[:, None]) * factor[:, None])
    low, high = ((np.array(edge) - shift) * factor for edge in (quantizer.low, quantizer.high))
    return Quantizer.affine(low.tolist(), high.tolist(), bits=quantizer.bits)
