"""Results of quantizing other than codes: counts, errors, and the exception for values that have no code."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from latentq._core import FormatError, LatentqError


class NotFiniteError(LatentqError, ValueError):
    """A NaN or an infinity where a number is needed; the message names the sample and the channel."""


class DamagedSampleError(FormatError):
    """Bytes that a codec cannot decode.

    Attributes:
        sample: The index of the sample among those that were decoded together.
        reason: What is wrong with its bytes.
    """

    def __init__(self, message: str, sample: int = 0, reason: str = "") -> None:  # a DataLoader gives the message alone
        super().__init__(message)
        self.sample, self.reason = sample, reason


@dataclass(frozen=True, slots=True)
class ValueCounts:
    """Counts made while quantizing an array (N, C, ...).

    Attributes:
        clipped: (C,) int64, the number of values outside [low, high] in each channel. Bad samples are not counted.
        bad: (N,) bool, True for a sample that holds a NaN or an infinity. Its codes are 0.
    """

    clipped: npt.NDArray[np.int64]
    bad: npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Measurement:
    """The error of a quantizer on given values.

    Attributes:
        sqnr_db: (C,) floats, the signal-to-quantization-noise ratio of each channel in decibels: 10 log10 of the sum of
            squares of the values over the sum of squares of the errors. Infinite if there is no error.
        overall_sqnr_db: The same ratio over all channels together, in decibels.
        clip_rate: (C,) floats in [0, 1], the fraction of values outside [low, high] in each channel.
        largest_error: The largest absolute difference between a value and its dequantized code, over all channels.
    """

    sqnr_db: tuple[float, ...]
    overall_sqnr_db: float
    clip_rate: tuple[float, ...]
    largest_error: float

    @classmethod
    def from_sums(
        cls, signal: Sequence[float], noise: Sequence[float], clip_rate: Sequence[float], largest_error: float
    ) -> Measurement:
        """Computes the ratios from sums of squares.

        Args:
            signal: (C,) sums of squares of the values.
            noise: (C,) sums of squares of the errors.
            clip_rate: (C,) fractions of clipped values.
            largest_error: The largest absolute error.
        """
        ratios = tuple(_decibels(s, n) for s, n in zip(signal, noise, strict=True))
        return cls(ratios, _decibels(math.fsum(signal), math.fsum(noise)), tuple(clip_rate), largest_error)


def not_finite(sample: int, channel: int) -> NotFiniteError:
    """Returns the exception for a value without a code, at these positions in an array (N, C, ...)."""
    return NotFiniteError(f"sample {sample}, channel {channel} holds a NaN, an infinity or a number too large")


def damaged_sample(sample: int, reason: str) -> DamagedSampleError:
    """Returns the exception for a sample that cannot be decoded, at this position among those decoded together."""
    return DamagedSampleError(f"encoded sample {sample} cannot be decoded: {reason}", sample, reason)


def _decibels(signal: float, noise: float) -> float:
    if noise == 0.0:
        return math.inf
    return 10.0 * math.log10(signal / noise) if signal else -math.inf
