"""Columns of a dataset, from stored bytes to values."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from latentq._core import LatentqError, MismatchError
from latentq.format.card import Card
from latentq.format.facts import EmbeddingFacts, LatentFacts, TokenFacts
from latentq.format.normalization import load_positions
from latentq.format.options import FLOATS
from latentq.models.scale import ScaleChange
from latentq.quantizer import AnyQuantizer, Quantizer, Transform
from latentq.system.processors import processors

Scale = Literal["raw", "scaled", "normalized"]


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
        """The bytes of a stored sample; 0 if they vary."""

    @property
    def is_plain(self) -> bool:
        """True if decoding is dequantizing, and nothing else."""

    def direct_quantizer(self, dtype: torch.dtype) -> AnyQuantizer | None:
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
            stored: uint8 (N, nbytes); if the bytes of a sample vary, padded with zeros.
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
    """A column of latents, or of moments that they are drawn from: mean + std * noise.

    Attributes:
        shard_name: The column's name in the shards.
        facts: Its shape, quantizer and statistics, of the values as stored.
        moments: True if it stores means, and log-variances or standard deviations.
        scaled: True if the stored values are in the scale that models are trained on.
        quantizer: Dequantizes codes; includes the change of scale where it is per channel and the codes are integers.
        change: The change of scale that follows; None if there is none, or the quantizer includes it.
        stores_std: True if moments hold standard deviations instead of log-variances.
    """

    shard_name: str
    facts: LatentFacts
    moments: bool
    scaled: bool
    quantizer: AnyQuantizer
    change: ScaleChange | None = None
    stores_std: bool = False

    @property
    def shape(self) -> tuple[int, ...]:
        """(C, h, w) of a sample."""
        return self._stored_shape if self.change is None else self.change.shape(self._stored_shape)

    @property
    def _stored_shape(self) -> tuple[int, int, int]:
        """(C, h, w) of a sample in the stored scale."""
        channels, height, width = self.facts.shape
        return (channels // 2 if self.moments else channels), height, width

    def with_shape(self, shape: tuple[int, ...]) -> LatentColumn:
        """Returns this column for latents of another stored shape, as those of another bucket."""
        return replace(self, facts=replace(self.facts, shape=shape))

    @property
    def is_float(self) -> bool:
        """True if the stored values are floats, not codes."""
        return self.quantizer.kind in FLOATS

    @property
    def nbytes(self) -> int:
        """The bytes of a stored sample; 0 if they vary."""
        return self.quantizer.packed_bytes(prod(self.facts.shape))

    def decoded_dtype(self, dtype: torch.dtype) -> torch.dtype:
        """Returns the dataset's dtype."""
        return dtype

    @property
    def is_plain(self) -> bool:
        """True if values are dequantized codes, and nothing else."""
        return not (self.is_float or self.moments or self.change is not None)

    def direct_quantizer(self, dtype: torch.dtype) -> AnyQuantizer | None:
        """Returns the quantizer that turns stored bytes into values of a dtype in one pass, or None."""
        return self.quantizer if self.is_plain and dtype != torch.uint8 else None

    @property
    def is_on_host(self) -> bool:
        """True if decoding begins on the CPU, whatever the device: the column has a transform."""
        return isinstance(self.quantizer, Transform)

    def numbers(self, stored: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Decodes stored samples of a column with a transform on the CPU, before the part that any device does.

        Args:
            stored: uint8 (N, bytes), on the CPU.

        Returns:
            int16 or int32 (N, *shape), and float32 (N,): what `from_numbers` takes.
        """
        assert isinstance(self.quantizer, Transform)
        numbers, steps = self.quantizer.numbers(stored, self.facts.shape, threads=min(4, processors()))
        return torch.from_numpy(numbers), torch.from_numpy(steps)

    def from_numbers(self, numbers: torch.Tensor, steps: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """Returns the values of what `numbers` returned, (N, *shape) of a dtype, on its device."""
        assert isinstance(self.quantizer, Transform)
        direct = dtype if self.change is None else torch.float32
        values = self.quantizer.from_numbers(numbers, steps, dtype=direct)
        return values if self.change is None else self.change(values).to(dtype)

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
            mean, spread = self.quantizer.dequantize_packed(stored, shape, dtype=torch.float32).chunk(2, 1)
            std = spread if self.stores_std else (spread / 2).exp()
            codes = mean + std * (torch.randn_like(mean) if noise is None else noise)
        elif isinstance(self.quantizer, Transform) or (self.change is not None and not self.is_float):
            codes = self.quantizer.dequantize_packed(stored, shape, dtype=torch.float32)
        else:
            codes = self.quantizer.unpack(stored, shape)
        if self.change is not None:
            codes = self.change(codes.float())
        return codes.to(dtype) if out is None else out.copy_(codes)

    def in_scale(self, path: Path, card: Card | None, scale: Scale) -> LatentColumn:
        """Returns this column with its values in another scale; the stored bytes are the same.

        Args:
            path: The dataset, for messages.
            card: Holds the normalization.
            scale: `raw` for the autoencoder's own latents, `scaled` for the scale that models are trained on, or
                `normalized` for mean 0 and standard deviation 1 in each channel.

        Raises:
            LatentqError: The scale needs a card that is missing, or a file next to it; or moments are to be normalized.
            MismatchError: The normalization is for latents of another shape.
        """
        stored = replace(self, quantizer=self.facts.quantizer, change=None)
        if scale != "normalized" and self.scaled == (scale == "scaled"):
            return stored
        change = self._change(path, card, scale)
        try:
            change.shape(self._stored_shape)
        except ValueError as error:
            raise MismatchError(f"{path}: column {self.shard_name!r}, scale={scale!r}: {error}") from None
        if self.is_float or self.moments or not change.is_per_channel:
            return replace(stored, change=change)
        return replace(stored, quantizer=_folded(self.facts.quantizer, change))

    def _change(self, path: Path, card: Card | None, scale: Scale) -> ScaleChange:
        """Returns the change from the stored scale to another one."""
        if scale == "normalized":
            statistics = self.facts.statistics
            if self.moments:
                raise LatentqError(
                    f"{path}: column {self.shard_name!r} holds moments; scale='normalized' needs a column of latents"
                )
            if statistics is None:
                raise LatentqError(f"{path}: scale='normalized' needs the statistics of a card")
            std = np.array(statistics.std)
            mean, factor = np.array(statistics.mean), 1 / np.where(std > 0, std, 1)
            return ScaleChange(mean.reshape(-1, 1, 1), factor.reshape(-1, 1, 1))
        if card is None:
            raise LatentqError(f"{path}: scale={scale!r} needs the normalization of a card")
        normalization = card.autoencoder.normalization
        positions = load_positions(path, normalization) if normalization.positions else None
        change = ScaleChange.to_scaled(normalization, positions)
        return change if scale == "scaled" else change.inverse()


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

    def with_shape(self, shape: tuple[int, ...]) -> TokenColumn:
        """Returns this column for tokens of another shape, as those of another bucket."""
        return replace(self, facts=replace(self.facts, shape=shape))

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


def _folded(quantizer: AnyQuantizer, change: ScaleChange) -> AnyQuantizer:
    """Returns a quantizer whose values are changed ones: one pass over the codes instead of two.

    Args:
        quantizer: The quantizer.
        change: A change of each channel.
    """
    shift, factor = (np.broadcast_to(values.ravel(), quantizer.channels) for values in (change.shift, change.factor))
    if isinstance(quantizer, Transform):
        return quantizer.changed(shift, factor)
    if quantizer.levels:
        levels = (np.array(quantizer.levels) - shift[:, None]) * factor[:, None]
        return Quantizer.trellis(levels) if quantizer.kind == "trellis" else Quantizer.codebook(levels)
    low, high = ((np.array(edge) - shift) * factor for edge in (quantizer.low, quantizer.high))
    return Quantizer.affine(low.tolist(), high.tolist(), bits=quantizer.bits)
