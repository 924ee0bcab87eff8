"""Columns of a dataset, from stored bytes to values."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from latentq._core import LatentqError
from latentq.format.card import Card
from latentq.format.facts import EmbeddingFacts, LatentFacts, TokenFacts
from latentq.format.options import FLOATS
from latentq.quantizer import Quantizer

Scale = Literal["raw", "scaled", "normalized"]


FloatArray = NDArray[np.float64]


class StoredColumn:
    """What columns are unless they say otherwise: their bytes are not dequantised in one pass, by the core alone."""

    is_plain: ClassVar[bool] = False

    def direct(self, _dtype: torch.dtype) -> None:
        """None: there is no quantiser that makes values of that type of stored samples in one pass."""


@dataclass(frozen=True)
class LatentColumn:
    """One latent column, from stored bytes to values: value = (dequantised - shift) * factor, for each channel.

    Where it holds moments, the dequantised are drawn from them: mean + exp(log-variance / 2) * noise.

    Attributes:
        stored: Its name in the shards.
        facts: Its shape, and the quantiser and statistics of what is stored.
        moments: Whether that is means and log-variances.
        scaled: Whether what is stored is already multiplied by the scaling factor.
        quantizer: What the codes mean, `shift` and `factor` included where the codes are integers.
        shift: Of float kinds; empty where it is 0.
        factor: Of float kinds; empty where it is 1.
    """

    stored: str
    facts: LatentFacts
    moments: bool
    scaled: bool
    quantizer: Quantizer
    shift: tuple[float, ...] = ()
    factor: tuple[float, ...] = ()

    @property
    def shape(self) -> tuple[int, ...]:
        """(C, h, w) of a sample."""
        channels, height, width = self.facts.shape
        return (channels // 2 if self.moments else channels), height, width

    @property
    def is_float(self) -> bool:
        """Whether the stored values are floats, not codes."""
        return self.quantizer.kind in FLOATS

    @property
    def nbytes(self) -> int:
        """The bytes of a stored sample."""
        return self.quantizer.packed_bytes(prod(self.facts.shape))

    def decoded_type(self, dtype: torch.dtype) -> torch.dtype:
        """The type of its values in a dataset of a dtype."""
        return dtype

    @property
    def is_plain(self) -> bool:
        """Whether its values are made of codes, and nothing but dequantised."""
        return not (self.is_float or self.moments)

    def direct(self, dtype: torch.dtype) -> Quantizer | None:
        """What makes values of that type of stored samples in one pass; None where there is no such thing."""
        return self.quantizer if self.is_plain and dtype != torch.uint8 else None

    def decode(
        self,
        raw: torch.Tensor,
        dtype: torch.dtype,
        *,
        out: torch.Tensor | None = None,
        noise: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """The values of stored samples, on the device where these are.

        Args:
            raw: uint8 (N, nbytes).
            dtype: float32, float16 or bfloat16; or uint8, for the codes themselves.
            out: Where to put them, of the result's shape and dtype.
            noise: For moments: float32 (N, *shape), standard normal; None draws it by torch's own generator.

        Returns:
            (N, *shape) of the given dtype.
        """
        shape = (len(raw), *self.facts.shape)
        direct = self.direct(dtype)
        if direct is not None:
            values: torch.Tensor = direct.dequantize_packed(raw, shape, dtype=dtype, out=out)
            return values
        codes: torch.Tensor = self.quantizer.unpack(raw, shape)
        if self.moments:
            mean, logvar = self.quantizer.dequantize(codes, dtype=torch.float32).chunk(2, 1)
            codes = mean + (logvar / 2).exp() * (torch.randn_like(mean) if noise is None else noise)
        if self.factor:
            channels = (-1, *(1 for _ in self.shape[1:]))
            shift, factor = (torch.tensor(x, device=raw.device).view(channels) for x in (self.shift, self.factor))
            codes = (codes.float() - shift) * factor
        return codes.to(dtype) if out is None else out.copy_(codes)

    def in_scale(self, path: Path, card: Card | None, scale: Scale) -> LatentColumn:
        """This column with values in the scale asked for; what is stored stays as it is.

        Args:
            path: The dataset, for messages.
            card: Says the scaling factor and the shift factor.
            scale: `raw` as the autoencoder gave them, `scaled` as (raw - shift factor) * scaling factor, or
                `normalized` to mean 0 and standard deviation 1 in each channel.
        """
        channels = self.shape[0]
        if scale == "normalized":
            statistics = self.facts.statistics
            if self.moments:
                raise LatentqError(f"{path}: column {self.stored!r} holds moments, and 'normalized' is for latents")
            if statistics is None:
                raise LatentqError(f"{path}: scale='normalized' needs the statistics of a card")
            std = np.array(statistics.std)
            shift, factor = np.array(statistics.mean), 1 / np.where(std > 0, std, 1)
        elif self.scaled == (scale == "scaled"):
            return replace(self, quantizer=self.facts.quantizer, shift=(), factor=())
        elif card is None:
            raise LatentqError(f"{path}: scale={scale!r} needs the scaling factor of a card")
        else:
            by, less = card.autoencoder.scaling_factor, card.autoencoder.shift_factor
            one_shift, one_factor = (less, by) if scale == "scaled" else (-less * by, 1 / by)
            shift, factor = np.full(channels, one_shift), np.full(channels, one_factor)
        if self.is_float or self.moments:
            return replace(self, shift=tuple(shift.tolist()), factor=tuple(factor.tolist()))
        return replace(self, quantizer=_folded(self.facts.quantizer, shift, factor))


@dataclass(frozen=True)
class TokenColumn(StoredColumn):
    """One column of tokens, from stored bytes to int64.

    Attributes:
        stored: Its name in the shards.
        facts: Its shape, stored type and code book.
    """

    stored: str
    facts: TokenFacts

    @property
    def shape(self) -> tuple[int, ...]:
        """(h, w) of a sample."""
        return self.facts.shape

    @property
    def nbytes(self) -> int:
        """The bytes of a stored sample."""
        return prod(self.shape) * np.dtype(self.facts.dtype).itemsize

    def decoded_type(self, _dtype: torch.dtype) -> torch.dtype:
        """int64, whatever the dtype of latents."""
        return torch.int64

    def decode(self, raw: torch.Tensor, _dtype: torch.dtype, *, out: torch.Tensor | None = None) -> torch.Tensor:
        """The tokens of stored samples, uint8 (N, nbytes), on the device where these are: (N, *shape) int64."""
        if self.facts.dtype == "uint16":  # of which torch can do little
            tokens = raw.view(torch.int16).to(torch.int64) & 0xFFFF
        else:
            tokens = raw.view(torch.int32).to(torch.int64)
        tokens = tokens.reshape(len(raw), *self.shape)
        return tokens if out is None else out.copy_(tokens)


@dataclass(frozen=True)
class EmbeddingColumn(StoredColumn):
    """One column of caption or pooled embeddings, from stored bytes to values.

    Attributes:
        stored: Its name in the shards.
        facts: Its shape and quantiser.
    """

    stored: str
    facts: EmbeddingFacts

    @property
    def shape(self) -> tuple[int, ...]:
        """(captions, tokens, width) of a sample, or (captions, width)."""
        return self.facts.shape

    @property
    def nbytes(self) -> int:
        """The bytes of a stored sample."""
        return self.facts.nbytes

    def decoded_type(self, dtype: torch.dtype) -> torch.dtype:
        """The type of its values in a dataset of a dtype."""
        return dtype

    def decode(self, raw: torch.Tensor, dtype: torch.dtype, *, out: torch.Tensor | None = None) -> torch.Tensor:
        """The values of stored samples, uint8 (N, nbytes), on the device where these are: (N, *shape) of the dtype."""
        quantizer, shape = self.facts.quantizer, (len(raw), *self.shape)
        rows = (len(raw) * self.facts.rows, self.shape[-1])  # each vector is a sample of the quantiser
        flat = raw.reshape(rows[0], -1)
        if quantizer.kind in FLOATS or dtype == torch.uint8:
            values = quantizer.unpack(flat, rows).reshape(shape)
            return values.to(dtype) if out is None else out.copy_(values)
        flat_out = None if out is None else out.view(rows)
        values = quantizer.dequantize_packed(flat, rows, dtype=dtype, out=flat_out)
        return values.reshape(shape) if out is None else out

    def of_array(self, codes: NDArray[Any], dtype: torch.dtype) -> torch.Tensor:
        """The values of one sample's codes, of this shape. Raises ValueError or TypeError where it is another's."""
        packed = self.facts.quantizer.pack(codes.reshape(self.facts.rows, self.shape[-1]))
        return self.decode(torch.from_numpy(packed).reshape(1, -1), dtype)[0]


@dataclass(frozen=True)
class MaskColumn(StoredColumn):
    """One column of attention masks: uint8, 1 where a token is the caption's.

    Attributes:
        stored: Its name in the shards.
        shape: (captions, tokens) of a sample.
    """

    stored: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """The bytes of a stored sample."""
        return prod(self.shape)

    def decoded_type(self, _dtype: torch.dtype) -> torch.dtype:
        """uint8, whatever the dtype of latents."""
        return torch.uint8

    def decode(self, raw: torch.Tensor, _dtype: torch.dtype, *, out: torch.Tensor | None = None) -> torch.Tensor:
        """The masks of stored samples, uint8 (N, nbytes): (N, *shape)."""
        values = raw.reshape(len(raw), *self.shape)
        return values if out is None else out.copy_(values)

    def of_array(self, mask: NDArray[Any], dtype: torch.dtype) -> torch.Tensor:
        """One sample's mask. Raises ValueError where it is another's."""
        return self.decode(torch.from_numpy(mask.reshape(1, self.nbytes)), dtype)[0]


EncodedColumn = LatentColumn | TokenColumn | EmbeddingColumn | MaskColumn


def _folded(quantizer: Quantizer, shift: FloatArray, factor: FloatArray) -> Quantizer:
    """A quantiser whose values are (value - shift) * factor: one pass over the codes instead of two."""
    if quantizer.kind == "codebook":
        return Quantizer.codebook((np.array(quantizer.levels) - shift[:, None]) * factor[:, None])
    low, high = ((np.array(edge) - shift) * factor for edge in (quantizer.low, quantizer.high))
    return Quantizer.affine(low.tolist(), high.tolist(), bits=quantizer.bits)
