"""Columns of a dataset, from stored bytes to values."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from math import prod
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol

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


class EncodedColumn(Protocol):
    """A column whose values are decoded from stored bytes: latents, tokens, embeddings or attention masks."""

    @property
    def shard_name(self) -> str:
        """The column's name in the shards."""

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of a sample's value."""

    @property
    def nbytes(self) -> int:
        """The bytes of a stored sample."""

    @property
    def is_plain(self) -> bool:
        """True if decoding is dequantizing, and nothing else."""

    def direct_quantizer(self, dtype: torch.dtype) -> Quantizer | None:
        """Returns the quantizer that turns stored bytes into values of a dtype in one pass, or None."""

    def decoded_dtype(self, dtype: torch.dtype) -> torch.dtype:
        """Returns the dtype of values in a dataset whose latents have `dtype`."""

    def decode(
        self,
        stored: torch.Tensor,
        dtype: torch.dtype,
        *,
        out: torch.Tensor | None = None,
        noise: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Decodes stored samples on their own device.

        Args:
            stored: uint8 (N, nbytes).
            dtype: The dataset's dtype: float32, float16 or bfloat16; or uint8 for the codes themselves.
            out: Where to write the result, if given: (N, *shape) of `decoded_dtype(dtype)`.
            noise: For moments: standard normal float32 (N, *shape); None draws it by torch's own generator.

        Returns:
            (N, *shape) of `decoded_dtype(dtype)`.
        """


class _IndirectColumn:
    """Shared by columns that no quantizer decodes in one pass."""

    is_plain: ClassVar[bool] = False

    def direct_quantizer(self, _dtype: torch.dtype) -> None:
        """Returns None, since decoding takes more than dequantizing."""


@dataclass(frozen=True)
class LatentColumn:
    """A latent column: value = (dequantized - shift) * factor, for each channel.

    If the column holds moments, the dequantized latent is drawn from them: mean + exp(log-variance / 2) * noise.

    Attributes:
        shard_name: The column's name in the shards.
        facts: Its shape, quantizer and statistics, of the values as stored.
        moments: True if it stores means and log-variances.
        scaled: True if the stored values are already multiplied by the scaling factor.
        quantizer: Dequantizes codes; includes `shift` and `factor` if the codes are integers.
        shift: The shift of each channel of a float or moments column; empty if it is 0.
        factor: The factor of each channel of a float or moments column; empty if it is 1.
    """

    shard_name: str
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
        """True if the stored values are floats, not codes."""
        return self.quantizer.kind in FLOATS

    @property
    def nbytes(self) -> int:
        """The bytes of a stored sample."""
        return self.quantizer.packed_bytes(prod(self.facts.shape))

    def decoded_dtype(self, dtype: torch.dtype) -> torch.dtype:
        """Returns the dataset's dtype."""
        return dtype

    @property
    def is_plain(self) -> bool:
        """True if values are dequantized codes, and nothing else."""
        return not (self.is_float or self.moments)

    def direct_quantizer(self, dtype: torch.dtype) -> Quantizer | None:
        """Returns the quantizer that turns stored bytes into values of a dtype in one pass, or None."""
        return self.quantizer if self.is_plain and dtype != torch.uint8 else None

    def decode(
        self,
        stored: torch.Tensor,
        dtype: torch.dtype,
        *,
        out: torch.Tensor | None = None,
        noise: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Decodes stored samples: see `EncodedColumn.decode`."""
        shape = (len(stored), *self.facts.shape)
        direct = self.direct_quantizer(dtype)
        if direct is not None:
            values: torch.Tensor = direct.dequantize_packed(stored, shape, dtype=dtype, out=out)
            return values
        codes: torch.Tensor
        if self.moments:  # in one step, which needs no check of codes that would wait for a GPU
            mean, logvar = self.quantizer.dequantize_packed(stored, shape, dtype=torch.float32).chunk(2, 1)
            codes = mean + (logvar / 2).exp() * (torch.randn_like(mean) if noise is None else noise)
        else:
            codes = self.quantizer.unpack(stored, shape)
        if self.factor:
            channels = (-1, *(1 for _ in self.shape[1:]))
            shift, factor = (_on_device(values, stored.device).view(channels) for values in (self.shift, self.factor))
            codes = (codes.float() - shift) * factor
        return codes.to(dtype) if out is None else out.copy_(codes)

    def in_scale(self, path: Path, card: Card | None, scale: Scale) -> LatentColumn:
        """Returns this column with its values in another scale; the stored bytes are the same.

        Args:
            path: The dataset, for messages.
            card: Holds the scaling factor and the shift factor.
            scale: `raw` for the autoencoder's own latents, `scaled` for (raw - shift factor) * scaling factor, or
                `normalized` for mean 0 and standard deviation 1 in each channel.

        Raises:
            LatentqError: The scale needs a card that is missing, or moments are to be normalized.
        """
        if scale != "normalized" and self.scaled == (scale == "scaled"):
            return replace(self, quantizer=self.facts.quantizer, shift=(), factor=())
        shift, factor = self._affine(path, card, scale)
        if self.is_float or self.moments:
            return replace(self, shift=tuple(shift.tolist()), factor=tuple(factor.tolist()))
        return replace(self, quantizer=_folded(self.facts.quantizer, shift, factor))

    def _affine(self, path: Path, card: Card | None, scale: Scale) -> tuple[FloatArray, FloatArray]:
        """Returns shift and factor of each channel, from stored values to those in a scale other than the stored."""
        if scale == "normalized":
            statistics = self.facts.statistics
            if self.moments:
                raise LatentqError(
                    f"{path}: column {self.shard_name!r} holds moments; scale='normalized' needs a column of latents"
                )
            if statistics is None:
                raise LatentqError(f"{path}: scale='normalized' needs the statistics of a card")
            std = np.array(statistics.std)
            return np.array(statistics.mean), 1 / np.where(std > 0, std, 1)
        if card is None:
            raise LatentqError(f"{path}: scale={scale!r} needs the scaling factor of a card")
        scaling, offset = card.autoencoder.scaling_factor, card.autoencoder.shift_factor
        shift, factor = (offset, scaling) if scale == "scaled" else (-offset * scaling, 1 / scaling)
        return np.full(self.shape[0], shift), np.full(self.shape[0], factor)


@lru_cache(maxsize=64)
def _on_device(values: tuple[float, ...], device: torch.device) -> torch.Tensor:
    """Returns float32 values on a device, copied once: each copy would wait for a GPU."""
    return torch.tensor(values, device=device)


@dataclass(frozen=True)
class TokenColumn(_IndirectColumn):
    """A column of tokens: indices of a codebook, decoded to int64.

    Attributes:
        shard_name: The column's name in the shards.
        facts: Its shape, stored dtype and codebook size.
    """

    shard_name: str
    facts: TokenFacts

    @property
    def shape(self) -> tuple[int, ...]:
        """(h, w) of a sample."""
        return self.facts.shape

    @property
    def nbytes(self) -> int:
        """The bytes of a stored sample."""
        return prod(self.shape) * np.dtype(self.facts.dtype).itemsize

    def decoded_dtype(self, _dtype: torch.dtype) -> torch.dtype:
        """Returns int64, whatever the dtype of latents."""
        return torch.int64

    def decode(
        self,
        stored: torch.Tensor,
        _dtype: torch.dtype = torch.int64,
        *,
        out: torch.Tensor | None = None,
        noise: torch.Tensor | None = None,  # noqa: ARG002  (EncodedColumn's signature)
    ) -> torch.Tensor:
        """Decodes stored samples, uint8 (N, nbytes), to int64 (N, *shape)."""
        if self.facts.dtype == "uint16":  # torch has few operations for uint16
            tokens = stored.view(torch.int16).to(torch.int64) & 0xFFFF
        else:
            tokens = stored.view(torch.int32).to(torch.int64)
        tokens = tokens.reshape(len(stored), *self.shape)
        return tokens if out is None else out.copy_(tokens)


@dataclass(frozen=True)
class EmbeddingColumn(_IndirectColumn):
    """A column of caption embeddings or pooled embeddings.

    Attributes:
        shard_name: The column's name in the shards.
        facts: Its shape and quantizer.
    """

    shard_name: str
    facts: EmbeddingFacts

    @property
    def shape(self) -> tuple[int, ...]:
        """(captions, tokens, width) of a sample, or (captions, width)."""
        return self.facts.shape

    @property
    def nbytes(self) -> int:
        """The bytes of a stored sample."""
        return self.facts.nbytes

    def decoded_dtype(self, dtype: torch.dtype) -> torch.dtype:
        """Returns the dataset's dtype."""
        return dtype

    def decode(
        self,
        stored: torch.Tensor,
        dtype: torch.dtype,
        *,
        out: torch.Tensor | None = None,
        noise: torch.Tensor | None = None,  # noqa: ARG002  (EncodedColumn's signature)
    ) -> torch.Tensor:
        """Decodes stored samples, uint8 (N, nbytes), to (N, *shape) of the dtype."""
        quantizer, shape = self.facts.quantizer, (len(stored), *self.shape)
        rows = (len(stored) * self.facts.rows, self.shape[-1])  # each vector is a sample of the quantizer
        flat = stored.reshape(rows[0], -1)
        if quantizer.kind in FLOATS or dtype == torch.uint8:
            values = quantizer.unpack(flat, rows).reshape(shape)
            return values.to(dtype) if out is None else out.copy_(values)
        flat_out = None if out is None else out.view(rows)
        values = quantizer.dequantize_packed(flat, rows, dtype=dtype, out=flat_out)
        return values.reshape(shape) if out is None else out

    def from_array(self, codes: NDArray[Any], dtype: torch.dtype) -> torch.Tensor:
        """Decodes one sample's codes, an array of this column's shape.

        Raises:
            ValueError: The array has another shape or dtype.
            TypeError: The same.
        """
        packed = self.facts.quantizer.pack(codes.reshape(self.facts.rows, self.shape[-1]))
        return self.decode(torch.from_numpy(packed).reshape(1, -1), dtype)[0]


@dataclass(frozen=True)
class MaskColumn(_IndirectColumn):
    """A column of attention masks: uint8, 1 for tokens of the caption, 0 for padding.

    Attributes:
        shard_name: The column's name in the shards.
        shape: (captions, tokens) of a sample.
    """

    shard_name: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """The bytes of a stored sample."""
        return prod(self.shape)

    def decoded_dtype(self, _dtype: torch.dtype) -> torch.dtype:
        """Returns uint8, whatever the dtype of latents."""
        return torch.uint8

    def decode(
        self,
        stored: torch.Tensor,
        _dtype: torch.dtype = torch.uint8,
        *,
        out: torch.Tensor | None = None,
        noise: torch.Tensor | None = None,  # noqa: ARG002  (EncodedColumn's signature)
    ) -> torch.Tensor:
        """Reshapes stored samples, uint8 (N, nbytes), to (N, *shape)."""
        values = stored.reshape(len(stored), *self.shape)
        return values if out is None else out.copy_(values)

    def from_array(self, mask: NDArray[Any], _dtype: torch.dtype) -> torch.Tensor:
        """Returns one sample's mask as a tensor.

        Raises:
            ValueError: The array has another size.
        """
        return self.decode(torch.from_numpy(mask.reshape(1, self.nbytes)))[0]


def _folded(quantizer: Quantizer, shift: FloatArray, factor: FloatArray) -> Quantizer:
    """Returns a quantizer whose values are (value - shift) * factor: one pass over the codes instead of two.

    Args:
        quantizer: A quantizer of C channels.
        shift: (C,).
        factor: (C,).
    """
    if quantizer.kind == "codebook":
        return Quantizer.codebook((np.array(quantizer.levels) - shift[:, None]) * factor[:, None])
    low, high = ((np.array(edge) - shift) * factor for edge in (quantizer.low, quantizer.high))
    return Quantizer.affine(low.tolist(), high.tolist(), bits=quantizer.bits)
