"""The rivals of `quantizer_errors.py`: what other tools store latents as. Each gives values and the bits it stores.

Both leave a sample readable by itself, as a training loop needs it: samples are compressed one by one.
"""

from typing import Any

import numpy as np
import zstd

from latentq import Quantizer

Rival = tuple[Any, float]
"""The values as decoded, float32 of the latents' shape, and the bits per element."""

RANGE_BITS = 4
BINS = 4096
ROUNDS = 20


def zstd_of_codes(quantizer: Quantizer, latents: Any, level: int) -> Rival:
    """The codes of a quantizer, each sample compressed by zstd."""
    codes = quantizer.quantize(latents)
    sizes = [len(zstd.compress(sample.tobytes(), level)) for sample in codes]
    return quantizer.dequantize(codes), 8 * sum(sizes) / codes.size


def block_ranges(latents: Any, bits: int, *, side: int = 8) -> Rival:
    """Measures VaeZip's block codec (`lbrq_4bit` and its like, vaezip 0.2.0), by its description.

    Each channel of a sample stores its extremes as float32. Each block of side x side values stores its own range as
    two numbers of 4 bits, in steps of the channel's range. A value is a code within the block's range: an index into a
    table of levels. Each sample has a table of its own, in float16, fitted to its values by Lloyd's iteration, each
    weighted by the square of the width of its block's range.

    Args:
        latents: (N, C, h, w) floats; h and w are multiples of `side`.
        bits: Bits of a code.
        side: Side of a block.
    """
    n, channels, height, width = latents.shape
    blocks = latents.astype(np.float32).reshape(n, channels, height // side, side, width // side, side)
    blocks = blocks.transpose(0, 1, 2, 4, 3, 5).reshape(n, channels, -1, side * side)
    low, high = blocks.min((2, 3), keepdims=True), blocks.max((2, 3), keepdims=True)
    top = 2**RANGE_BITS - 1
    step = np.maximum((high - low) / np.float32(top), np.float32(1e-12))
    lower = np.floor((blocks.min(3, keepdims=True) - low) / step).clip(0, top - 1)
    upper = np.maximum(np.ceil((blocks.max(3, keepdims=True) - low) / step).clip(0, top), lower + 1)
    start, span = low + lower * step, (upper - lower) * step
    normalized = ((blocks - start) / span).clip(0, 1)
    decoded = np.empty_like(normalized)
    for values, weights, out in zip(normalized, np.broadcast_to(span**2, blocks.shape), decoded, strict=True):
        levels = lloyd_levels(values.ravel(), weights.ravel(), 2**bits)
        out[...] = levels[np.searchsorted((levels[1:] + levels[:-1]) / 2, values)]
    values = (decoded * span + start).reshape(n, channels, height // side, width // side, side, side)
    stored = 2 * 32 * channels + 2 * RANGE_BITS * lower[0].size + 16 * 2**bits
    return values.transpose(0, 1, 2, 4, 3, 5).reshape(latents.shape), bits + stored / lower[0].size / side**2


def lloyd_levels(values: Any, weights: Any, count: int) -> Any:
    """The levels of Lloyd's iteration on a weighted histogram of values in [0, 1], rounded to float16."""
    bins = np.minimum((values * BINS).astype(int), BINS - 1)
    mass = np.bincount(bins, weights, BINS)
    moment = np.bincount(bins, weights * values, BINS)
    centers = np.where(mass > 0, moment / np.maximum(mass, 1e-30), (np.arange(BINS) + 0.5) / BINS)
    # The first levels are as dense as the cube root of the density.
    dense = np.cumsum(np.cbrt(mass))
    levels = centers[np.searchsorted(dense / dense[-1], (np.arange(count) + 0.5) / count).clip(0, BINS - 1)]
    for _ in range(ROUNDS):
        nearest = np.searchsorted((levels[1:] + levels[:-1]) / 2, centers)
        total, sums = np.bincount(nearest, mass, count), np.bincount(nearest, moment, count)
        levels = np.where(total > 0, sums / np.maximum(total, 1e-30), levels)
    return np.sort(levels.astype(np.float16).astype(np.float32))
