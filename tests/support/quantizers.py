"""Quantizers of every kind and values for them."""

from typing import Any

import numpy as np

from latentq.quantizer import Quantizer

BITS = range(2, 9)
SHAPES = [(3, 2, 5, 7), (1, 2, 1), (2, 2), (0, 2, 4), (4, 2, 0), (2, 2, 129), (1, 2, 64, 64)]


def some_latents(shape: tuple[int, ...], dtype: Any = np.float32, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0.3, 2.5, shape).astype(dtype)


def some_quantizers(bits: int) -> list[Quantizer]:
    levels = np.sort(np.random.default_rng(bits).normal(0, 2, (2, 2**bits)), axis=1)
    return [
        Quantizer.uniform(-5.0, 6.0, channels=2, bits=bits),
        Quantizer.uniform(-5.0, 6.0, channels=2, bits=bits, rounding="truncate"),
        Quantizer.affine([-4.1, 0.7], [5.3, 0.7], bits=bits),
        Quantizer.affine([1000.0, -3.0], [1003.0, 2.2], bits=bits),
        Quantizer.codebook(levels),
    ]


def per_channel(values: Any, ndim: int) -> np.ndarray:
    return np.asarray(values, np.float64).reshape(-1, *[1] * (ndim - 2))
