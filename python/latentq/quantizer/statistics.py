"""Exact statistics of columns, from histograms of codes or from sums over floats."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from latentq import _core
from latentq.quantizer.arrays import as_array, float_array
from latentq.quantizer.quantizer import Quantizer
from latentq.quantizer.results import NotFiniteError

if TYPE_CHECKING:
    import torch

_NO_VALUES = (0, math.nan, math.nan, math.nan, math.nan)


@dataclass(frozen=True, slots=True)
class Statistics:
    """Statistics of a column for each of its C channels. In a channel without values all but the count are NaN.

    Attributes:
        count: (C,) ints, the number of values.
        mean: (C,) floats.
        std: (C,) floats, the standard deviation of the population, in the unit of the values.
        min: (C,) floats, the smallest value.
        max: (C,) floats, the largest value.
    """

    count: tuple[int, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    min: tuple[float, ...]
    max: tuple[float, ...]

    @classmethod
    def from_histogram(cls, quantizer: Quantizer, histogram: npt.NDArray[np.int64]) -> Statistics:
        """Computes the statistics of dequantized values from how often each code occurs.

        Computed in rational numbers and rounded once, so the result depends on the counts alone.

        Args:
            quantizer: The quantizer that made the codes.
            histogram: (C, level_count) int64 counts: the sum of any number of results of `Quantizer.histogram`.

        Raises:
            ValueError: `histogram` has another shape.
        """
        levels = quantizer.table()
        if histogram.shape != levels.shape:
            raise ValueError(f"the histogram has the shape {histogram.shape}, not {levels.shape}")
        rows = []
        for counts, values in zip(histogram.tolist(), levels.tolist(), strict=True):
            seen = [(n, Fraction(value)) for n, value in zip(counts, values, strict=True) if n]
            total = sum(n for n, _ in seen)
            if not total:
                rows.append(_NO_VALUES)
                continue
            mean = sum((n * value for n, value in seen), Fraction()) / total
            variance = sum((n * (value - mean) ** 2 for n, value in seen), Fraction()) / total
            extremes = [float(value) for _, value in seen]
            rows.append((total, float(mean), math.sqrt(variance), min(extremes), max(extremes)))
        return cls(*zip(*rows, strict=True))


@dataclass(frozen=True, slots=True)
class Moments:
    """Sums over a float column for each of its C channels, in float64. Merged in sample order they are deterministic.

    Attributes:
        count: (C,) ints, the number of values.
        sum: (C,) floats, the sum of the values.
        square: (C,) floats, the sum of their squares.
        min: (C,) floats, the smallest value; infinity if there is none.
        max: (C,) floats, the largest value; minus infinity if there is none.
    """

    count: tuple[int, ...]
    sum: tuple[float, ...]
    square: tuple[float, ...]
    min: tuple[float, ...]
    max: tuple[float, ...]

    @classmethod
    def of(cls, sample: npt.NDArray[Any] | torch.Tensor) -> Moments:
        """Computes the sums over one sample.

        Args:
            sample: (C, ...) floats: an array (bfloat16 as its bits in uint16) or a tensor.

        Raises:
            NotFiniteError: A value is NaN or infinite, or its square is too large for float64.
            ValueError: The sample has no channels.
        """
        array = as_array(sample)
        if array.ndim == 0 or array.shape[0] == 0:
            raise ValueError(f"a sample must be (C, ...), not of shape {array.shape}")
        rows = _core.moments(*float_array(array)) or [(0.0, 0.0, math.inf, -math.inf)] * array.shape[0]
        for channel, (_, square, *_) in enumerate(rows):
            if not math.isfinite(square):
                raise NotFiniteError(f"channel {channel} holds a NaN, an infinity or a number too large")
        return cls((math.prod(array.shape[1:]),) * array.shape[0], *zip(*rows, strict=True))

    def merge(self, other: Moments) -> Moments:
        """Returns the sums over both.

        Args:
            other: The sums over samples that follow.

        Raises:
            ValueError: They have different numbers of channels.
        """
        if len(self.count) != len(other.count):
            raise ValueError(f"{len(self.count)} and {len(other.count)} channels cannot be merged")

        def add(a: Sequence[Any], b: Sequence[Any]) -> tuple[Any, ...]:
            return tuple(x + y for x, y in zip(a, b, strict=True))

        return Moments(
            add(self.count, other.count),
            add(self.sum, other.sum),
            add(self.square, other.square),
            tuple(map(min, self.min, other.min)),
            tuple(map(max, self.max, other.max)),
        )

    def statistics(self) -> Statistics:
        """Computes mean, standard deviation and extremes from the sums."""
        rows = []
        for count, total, square, low, high in zip(self.count, self.sum, self.square, self.min, self.max, strict=True):
            if not count:
                rows.append(_NO_VALUES)
                continue
            mean = Fraction(total) / count
            variance = max(Fraction(square) / count - mean**2, Fraction())
            rows.append((count, float(mean), math.sqrt(variance), low, high))
        return Statistics(*zip(*rows, strict=True))

    def to_dict(self) -> dict[str, Any]:
        """Returns a dictionary of lists that TOML stores exactly."""
        return {name: list(getattr(self, name)) for name in ("count", "sum", "square", "min", "max")}

    @classmethod
    def from_dict(cls, d: Mapping[str, Any]) -> Moments:
        """Makes the sums that `to_dict` described.

        Args:
            d: A result of `to_dict`.
        """
        count = tuple(int(n) for n in d["count"])
        rows = (tuple(float(x) for x in d[name]) for name in ("sum", "square", "min", "max"))
        return cls(count, *rows)
