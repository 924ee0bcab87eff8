"""Distribution and error of each channel of a dataset's columns, measured on samples that are evenly spread."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from latentq.inspect.report.spread import in_batches, spread
from latentq.quantizer import AnyQuantizer, Quantizer

if TYPE_CHECKING:
    from latentq.inspect.originals import Originals
    from latentq.reading.dataset import LatentDataset
    from latentq.system.progress import Progress

Floats = NDArray[np.float64]

BINS = 64
"""The number of bars in a channel's histogram."""
_SAMPLES = 1024  # at most
_VALUES = 1 << 25  # at most, so that memory is bounded for any shape
_BATCH_VALUES = 1 << 22
_BATCH_PIXELS = 1 << 20  # encoded at once, so that the autoencoder fits into memory at any size
_LEVELED = ("uniform", "affine", "codebook", "trellis")
_ESTIMATED = ("uniform", "affine", "codebook")


@dataclass(frozen=True, eq=False)
class Channels:
    """The values that a column stores, channel by channel.

    Attributes:
        samples: The number of samples that were read.
        edges: (C, BINS + 1), the edges of each channel's bars; they span the quantizer's range.
        counts: (C, BINS), the number of values in each bar.
        mean: (C,), of the samples that were read, as the next three.
        std: (C,) standard deviations of the population.
        low: (C,) smallest values.
        high: (C,) largest values.
        range: (C, 2), the lowest and the highest value that the quantizer has; None for floats and a transform.
        power: (C,) mean squares of the values before quantization, each taken to be in the middle of its step; None if
            the error cannot be estimated.
        noise: (C,) mean squared errors of values that are uniformly distributed in each step; None as above.
        at_ends: The share of values at the ends of the range, by index of the sample; empty without a range.
    """

    samples: int
    edges: Floats
    counts: Floats
    mean: Floats
    std: Floats
    low: Floats
    high: Floats
    range: Floats | None
    power: Floats | None
    noise: Floats | None
    at_ends: dict[int, float]

    def __len__(self) -> int:
        return len(self.mean)


@dataclass(frozen=True, eq=False)
class Errors:
    """The error of stored latents against the same images, encoded again without quantization.

    Attributes:
        samples: The number of samples that were encoded again.
        sqnr_db: (C,), 10 log10 of the sum of squares of a channel over that of its errors, as in `Measurement`.
        psnr_db: (C,), 10 log10 of the squared span of a channel's values over its mean squared error.
        overall_sqnr_db: The SQNR over all channels.
        of_samples: The SQNR of each sample over all channels, by its index.
    """

    samples: int
    sqnr_db: Floats
    psnr_db: Floats
    overall_sqnr_db: float
    of_samples: dict[int, float]


def measure_channels(dataset: LatentDataset, name: str, progress: Progress) -> Channels:
    """Measures the values of a column of latents, moments or embeddings as they are stored.

    At most 1,024 samples are read, and fewer of large ones, evenly spread.

    Args:
        dataset: The dataset.
        name: The column's key in samples.
        progress: Counts the samples that are read.
    """
    elements = max(math.prod(_stored(layout.encoded[name])[0]) for layout in dataset.layouts)
    indices = spread(min(_SAMPLES, max(1, _VALUES // elements)), len(dataset))
    measured = _Sums(_stored(dataset.layout.encoded[name])[1])
    for batch, bucket in in_batches(dataset, indices, max(1, _BATCH_VALUES // elements)):
        shape, _, rows = _stored(dataset.layouts[bucket].encoded[name])
        with dataset.layouts[bucket].naming(name, batch):
            measured.add(batch, dataset.read(batch, names=[name])[name].numpy(), shape, rows)
        progress.update(len(batch))
    return measured.channels(len(indices))


def estimated_errors(channels: Channels) -> Errors | None:
    """Estimates the error from the widths of the quantizer's steps; None for quantizers that have no such estimate.

    Values in a step are taken to be uniformly distributed, and clipped values are not counted.
    """
    if channels.noise is None or channels.power is None:
        return None
    overall = float(_decibels(channels.power.sum()[None], channels.noise.sum()[None])[0])
    psnr = _decibels((channels.high - channels.low) ** 2, channels.noise)
    return Errors(0, _decibels(channels.power, channels.noise), psnr, overall, {})


def measured_errors(
    dataset: LatentDataset, originals: Originals, indices: NDArray[np.int64], progress: Progress
) -> Errors:
    """Encodes samples again and compares them with the stored ones, in the autoencoder's own scale.

    Args:
        dataset: The dataset, opened with one column of latents or moments.
        originals: Its source.
        indices: The samples' indices.
        progress: Counts the samples.

    Raises:
        LatentqError: An original is missing, or cannot be decoded.
    """
    signal: Any = 0.0
    noise: Any = 0.0
    values = 0
    low, high = np.float64(np.inf), np.float64(-np.inf)
    of_samples: dict[int, float] = {}
    pixels = max(height * width for height, width in dataset.image_sizes)
    for batch, _ in in_batches(dataset, indices, max(1, _BATCH_PIXELS // pixels)):
        exact = originals.encode(batch.tolist())[1].astype(np.float64)
        exact = exact.reshape(*exact.shape[:2], -1)
        error = dataset.decodable(batch).numpy().astype(np.float64).reshape(exact.shape) - exact
        squares, errors = np.square(exact).sum(2), np.square(error).sum(2)
        signal, noise, values = signal + squares.sum(0), noise + errors.sum(0), values + len(batch) * exact.shape[2]
        low, high = np.minimum(low, exact.min((0, 2))), np.maximum(high, exact.max((0, 2)))
        of_samples.update(zip(batch.tolist(), _decibels(squares.sum(1), errors.sum(1)).tolist(), strict=True))
        progress.update(len(batch))
    overall = float(_decibels(signal.sum()[None], noise.sum()[None])[0])
    psnr = _decibels((high - low) ** 2, noise / values)
    return Errors(len(indices), _decibels(signal, noise), psnr, overall, of_samples)


def of_stored_channels(errors: Errors, channels: Channels, content: str) -> Errors:
    """Returns errors without those of single channels, unless the stored channels are the autoencoder's.

    Latents that are stored in the scale of training may have other channels, as 2 x 2 patches have. Of moments, the
    first half of the channels are means, which have errors.

    Args:
        errors: The errors of the autoencoder's channels.
        channels: The stored channels.
        content: The content of the column.
    """
    count = len(channels) // 2 if content == "moments" else len(channels)
    if len(errors.sqnr_db) == count:
        return errors
    return replace(errors, sqnr_db=np.empty(0), psnr_db=np.empty(0))


def _stored(column: Any) -> tuple[tuple[int, ...], AnyQuantizer, int]:
    """Returns the shape of a stored sample for its quantizer, the quantizer, and the number of such in a sample."""
    from latentq.reading.columns import LatentColumn

    facts = column.facts
    if isinstance(column, LatentColumn):
        return facts.shape, facts.quantizer, 1
    return facts.shape[-1:], facts.quantizer, math.prod(facts.shape[:-1])  # each vector of an embedding


class _Sums:
    """Adds up the values of a column, as counts of levels if its quantizer has levels."""

    def __init__(self, quantizer: AnyQuantizer) -> None:
        self._quantizer = quantizer
        self._counts: Any = 0
        self._values: list[NDArray[np.float32]] = []  # (C, n), without levels
        self._at_ends: dict[int, float] = {}

    def add(self, indices: NDArray[np.int64], stored: NDArray[np.uint8], shape: tuple[int, ...], rows: int) -> None:
        """Adds stored samples.

        Args:
            indices: Their indices.
            stored: Their bytes, (N, nbytes).
            shape: The shape of what the quantizer takes for a sample.
            rows: How many of those are in a sample.
        """
        quantizer, count = self._quantizer, len(stored)
        packed = stored.reshape(count * rows, -1)
        full = (count * rows, *shape)
        if not isinstance(quantizer, Quantizer) or quantizer.kind not in _LEVELED:
            values = quantizer.dequantize_packed(packed, full)
            self._values.append(values.swapaxes(0, 1).reshape(len(values[0]), -1))
            return
        codes = quantizer.unpack(packed, full)
        self._counts = self._counts + quantizer.histogram(codes)
        low, high = (np.array(ends, np.float32).reshape(-1, *[1] * (len(shape) - 1)) for ends in _ends(quantizer))
        values = quantizer.dequantize(codes)
        ended = ((values <= low) | (values >= high)) & (low < high)
        self._at_ends.update(zip(indices.tolist(), ended.reshape(count, -1).mean(1).tolist(), strict=True))

    def channels(self, samples: int) -> Channels:
        """Returns what was added up.

        Args:
            samples: The number of samples.
        """
        quantizer = self._quantizer
        if self._values:
            values = np.concatenate(self._values, axis=1)
            low, high = values.min(1).astype(np.float64), values.max(1).astype(np.float64)
            edges = _edges(low, high)
            pairs = zip(values, edges, strict=True)
            counts = np.stack([np.histogram(row, edge)[0] for row, edge in pairs]).astype(np.float64)
            mean, std = values.mean(1, dtype=np.float64), values.std(1, dtype=np.float64)
            return Channels(samples, edges, counts, mean, std, low, high, None, None, None, {})
        assert isinstance(quantizer, Quantizer)
        levels = quantizer.table().astype(np.float64)
        total = self._counts.sum(1)
        mean = (self._counts * levels).sum(1) / total
        std = np.sqrt((self._counts * (levels - mean[:, None]) ** 2).sum(1) / total)
        seen = self._counts > 0
        low, high = np.where(seen, levels, np.inf).min(1), np.where(seen, levels, -np.inf).max(1)
        cells = _cells(levels)
        edges = _edges(cells[:, 0], cells[:, -1])
        power = noise = None
        if quantizer.kind in _ESTIMATED:
            # Truncated codes decode at the lower edge of their step.
            shift = (levels[:, :1] - cells[:, :1]) if quantizer.rounding == "truncate" else 0.0
            left, right = cells[:, :-1] + shift, cells[:, 1:] + shift
            share = self._counts / total[:, None]
            power = (share * ((left + right) / 2) ** 2).sum(1)
            noise = (share * _mean_square(left - levels, right - levels)).sum(1)
        ends = np.stack([np.array(side, np.float64) for side in _ends(quantizer)], axis=1)
        counts = _spread_counts(self._counts, cells, edges)
        return Channels(samples, edges, counts, mean, std, low, high, ends, power, noise, self._at_ends)


def _ends(quantizer: Quantizer) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Returns the value of each channel's lowest level and of its highest, (C,)."""
    levels = quantizer.table()
    return levels.min(1), levels.max(1)


def _edges(low: Floats, high: Floats) -> Floats:
    """Returns (C, BINS + 1) edges of bars from low to high; one unit wide around a channel of a single value."""
    flat = high <= low
    edges: Floats = np.linspace(np.where(flat, low - 0.5, low), np.where(flat, high + 0.5, high), BINS + 1, axis=1)
    return edges


def _cells(levels: Floats) -> Floats:
    """Returns (C, L + 1) edges of the cells of (C, L) ascending levels: half way to the next level."""
    between = (levels[:, 1:] + levels[:, :-1]) / 2
    first, last = levels[:, :1] * 2 - between[:, :1], levels[:, -1:] * 2 - between[:, -1:]
    return np.concatenate([first, between, last], axis=1)


def _mean_square(left: Floats, right: Floats) -> Floats:
    """Returns the mean square of values that are uniformly distributed from left to right."""
    square: Floats = (left * left + left * right + right * right) / 3
    return square


def _spread_counts(counts: NDArray[np.int64], cells: Floats, edges: Floats) -> Floats:
    """Returns the counts of levels as counts of bars: a level's values lie evenly in its cell.

    Args:
        counts: (C, L) counts of levels.
        cells: (C, L + 1) edges of the levels' cells.
        edges: (C, BINS + 1) edges of bars, over the same span.
    """
    below = np.concatenate([np.zeros((len(counts), 1)), counts.cumsum(1)], axis=1)
    rows = zip(edges, cells, below, strict=True)
    bars = np.diff(np.stack([np.interp(edge, cell, total) for edge, cell, total in rows]), axis=1)
    flat = cells[:, -1] <= cells[:, 0]  # a channel of one value
    bars[flat] = 0
    bars[flat, BINS // 2] = counts[flat].sum(1)
    return bars


def _decibels(signal: Any, noise: Any) -> Floats:
    """Returns 10 log10(signal / noise); infinite without noise."""
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio: Floats = 10 * np.log10(np.asarray(signal, np.float64) / np.asarray(noise, np.float64))
    return np.where(np.asarray(noise) == 0, np.inf, ratio)
