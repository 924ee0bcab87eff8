"""The parameters of a quantizer, without the code that applies them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from latentq.quantizer.floats import FLOAT_BITS, FLOAT_MAX

Kind: TypeAlias = Literal["uniform", "affine", "codebook", "trellis", "float16", "bfloat16", "float32"]
Rounding: TypeAlias = Literal["nearest", "truncate"]

LEVEL_KINDS = ("codebook", "trellis")  # their parameters are levels

_MAX_CHANNELS = 1 << 16  # more than any autoencoder has; a number read from a file can be anything


@dataclass(frozen=True, slots=True)
class Scheme:
    """The parameters of a quantizer of C channels.

    Attributes:
        kind: `uniform` (one given range for all channels), `affine` (one range per channel), `codebook`, `trellis`, or
            the float type in which values are stored unchanged: `float16`, `bfloat16` or `float32`.
        bits: Bits of one stored element: 2 to 8, or those of the float type.
        rounding: `nearest` (round half to even), or `truncate` for reproducing old data.
        low: (C,) the lowest value of each channel, exact in float32; for a float type its smallest number.
        high: (C,) the highest value of each channel; for a float type its largest number.
        levels: (C, 2^bits) the value of every code of a codebook, or (C, 2^(bits + 1)) the levels of a trellis; empty
            for other kinds.
    """

    kind: Kind
    bits: int
    rounding: Rounding
    low: tuple[float, ...]
    high: tuple[float, ...]
    levels: tuple[tuple[float, ...], ...] = ()
    # The parameters as tensors, by device: latentq.quantizer.tensors fills it.
    on_device: dict[Any, Any] = field(init=False, repr=False, compare=False, default_factory=dict)

    @property
    def channels(self) -> int:
        """The number of channels, C."""
        return len(self.low)

    @property
    def level_count(self) -> int:
        """The number of values that an element of a channel can decode to, if this is not a float type."""
        return 1 << self.bits + (self.kind == "trellis")

    def packed_bytes(self, elements: int) -> int:
        """Returns the stored size in bytes of one sample.

        Args:
            elements: The number of elements in the sample, C * h * w.
        """
        return (elements * self.bits + 7) // 8


def check_choices(scheme: Scheme) -> None:
    """Raises ValueError if kind, bits or rounding is not one that exists."""
    if scheme.kind in FLOAT_BITS:
        return
    if scheme.kind not in ("uniform", "affine", "codebook", "trellis"):
        raise ValueError(unknown_kind(scheme.kind))
    check_bits(scheme.bits)
    if scheme.kind not in LEVEL_KINDS and scheme.rounding not in ("nearest", "truncate"):
        raise ValueError(f'rounding must be "nearest" or "truncate", not {scheme.rounding!r}')


def check_fields(scheme: Scheme) -> None:
    """Raises ValueError if a field differs from what the class method of the scheme's kind sets."""
    check_channels(scheme.channels)
    if not _is_consistent(scheme):
        raise ValueError(f"these fields do not belong to a quantizer of kind {scheme.kind!r}: {scheme!r:.200}")


def check_channels(channels: int) -> None:
    """Raises ValueError if the number of channels is out of range."""
    if not 1 <= channels <= _MAX_CHANNELS:
        raise ValueError(f"channels must be 1 to {_MAX_CHANNELS}, not {channels}")


def check_bits(bits: int) -> None:
    """Raises ValueError if codes cannot have this many bits."""
    if not 2 <= bits <= 8:
        raise ValueError(f"bits must be 2 to 8, not {bits}")


def unknown_kind(kind: object) -> str:
    """Returns the message for a kind that does not exist."""
    return f"unknown kind of quantizer {kind!r}: uniform, affine, codebook, trellis, {', '.join(FLOAT_BITS)}"


def float32_values(values: Sequence[float] | npt.NDArray[Any]) -> tuple[float, ...]:
    """Returns the values rounded to float32."""
    with np.errstate(over="ignore"):
        return tuple(np.asarray(values, np.float64).astype(np.float32).tolist())


def _is_consistent(scheme: Scheme) -> bool:
    """True if every field is one that the class method of the scheme's kind sets."""
    ends = scheme.low, scheme.high
    if scheme.kind in LEVEL_KINDS:
        level_ends = tuple(row[0] for row in scheme.levels), tuple(row[-1] for row in scheme.levels)
        return scheme.rounding == "nearest" and level_ends == ends
    if scheme.levels:
        return False
    if scheme.kind in FLOAT_BITS:
        top = FLOAT_MAX[scheme.kind]
        float_ends = (-top,) * scheme.channels, (top,) * scheme.channels
        return (scheme.bits, scheme.rounding) == (FLOAT_BITS[scheme.kind], "nearest") and float_ends == ends
    is_exact = (float32_values(scheme.low), float32_values(scheme.high)) == ends
    is_one_range = len(set(zip(scheme.low, scheme.high, strict=True))) == 1
    return is_exact and (is_one_range if scheme.kind == "uniform" else scheme.rounding == "nearest")
