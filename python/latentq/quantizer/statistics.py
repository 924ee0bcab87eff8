"""Exact statistics of columns: from histograms of codes, or from sums over floats."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt

from latentq import _core
from latentq.quantizer.arrays import float_array, torch_of
from latentq.quantizer.floats import NotFiniteError
from latentq.quantizer.quantizer import Quantizer


@dataclass(frozen=True, slots=True)
class Statistics:
    """Of a column, by channel. The standard deviation is that of the population.

    Attributes:
        count: the values in each channel.
        mean: NaN in a channel without values, as are the others.
        std: in the unit of the values.
        min: the smallest.
        max: the largest.
    """

    count: tuple[int, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    min: tuple[float, ...]
    max: tuple[float, ...]

    @classmethod
    def from_histogram(cls, quantizer: Quantizer, histogram: npt.NDArray[np.int64]) -> Statistics:
        """Of the values that a reader sees, from how often each code occurs.

        Computed in rational numbers and rounded once, so it depends on the counts alone.

        Args:
            quantizer: the one that made the codes.
            histogram: (C, 2^bits) counts, as the sum of any number of `Quantizer.histogram`.
        """
        levels = quantizer.table()
        if histogram.shape != levels.shape:
            raise ValueError(f"the histogram has the shape {histogram.shape}, not {levels.shape}")
        rows = []
        for counts, values in zip(histogram.tolist(), levels.tolist(), strict=True):
            seen = [(n, Fraction(value)) for n, value in zip(counts, values, strict=True) if n]
            total = sum(n for n, _ in seen)
            if not total:
                rows.append((0, math.nan, math.nan, math.nan, math.nan))
                continue
            mean = sum((n * value for n, value in seen), Fraction()) / total
            variance = sum((n * (value - mean) ** 2 for n, value in seen), Fraction()) / total
            extremes = [float(value) for _, value in seen]
            rows.append((total, float(mean), math.sqrt(variance), min(extremes), max(extremes)))
        return cls(*zip(*rows, strict=True))


@dataclass(frozen=True, slots=True)
class Moments:
    """Sums of a float column, by channel, in float64: merged in the order of the samples, always the same.

    Attributes:
        count: the values in each channel.
        sum: of the values.
        square: the sum of their squares.
        min: the smallest; infinity where there is none.
        max: the largest; minus infinity where there is none.
    """

    count: tuple[int, ...]
    sum: tuple[float, ...]
    square: tuple[float, ...]
    min: tuple[float, ...]
    max: tuple[float, ...]

    @classmethod
    def of(cls, sample: Any) -> Moments:
        """The sums of one sample (C, ...) of floats: an array (bfloat16 as its bits in uint16) or a tensor.

        Raises:
            NotFiniteError: a value is NaN or infinite, or its square is more than float64 can hold.
            ValueError: the sample has no channels.
        """
        if type(sample) is not np.ndarray and (torch := torch_of(sample)):
            sample = torch.to_numpy(sample)
        if sample.ndim == 0 or sample.shape[0] == 0:
            raise ValueError(f"a sample must be (C, ...), not of shape {sample.shape}")
        rows = _core.moments(*float_array(sample)) or [(0.0, 0.0, math.inf, -math.inf)] * sample.shape[0]
        for channel, (_, square, *_) in enumerate(rows):
            if not math.isfinite(square):
                raise NotFiniteError(f"channel {channel} holds a NaN, an infinity or a number too large")
        return cls((math.prod(sample.shape[1:]),) * sample.shape[0], *zip(*rows, strict=True))

    def merge(self, other: Moments) -> Moments:
        """The sums of both together."""
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
        """Mean, standard deviation and extremes."""
        rows = []
        for count, total, square, low, high in zip(self.count, self.sum, self.square, self.min, self.max, strict=True):
            if not count:
                rows.append((0, math.nan, math.nan, math.nan, math.nan))
                continue
            mean = Fraction(total) / count
            variance = max(Fraction(square) / count - mean**2, Fraction())
            rows.append((count, float(mean), math.sqrt(variance), low, high))
        return Statistics(*zip(*rows, strict=True))

    def to_dict(self) -> dict[str, Any]:
        """A plain dictionary of lists, which survives TOML exactly."""
        return {name: list(getattr(self, name)) for name in ("count", "sum", "square", "min", "max")}

    @classmethod
    def from_dict(cls, d: Mapping[str, Any]) -> Moments:
        """The sums that `to_dict` described."""
        count = tuple(int(n) for n in d["count"])
        rows = (tuple(float(x) for x in d[name]) for name in ("sum", "square", "min", "max"))
        return cls(count, *rows)
