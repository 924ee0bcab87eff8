"""The kinds of quantizers at 4 bits a value, on latents like DC-AE's, and packed codes by NumPy."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from latentq.benchmark.quantizing import FILL, READ
from latentq.quantizer import Quantizer, Transform

SHAPE = (32, 8, 8)  # f32c32 at 256 pixels
BITS = 4
ELEMENTS = 32 * 8 * 8
BYTES = ELEMENTS * BITS // 8
COUNT = 2048  # samples of the group that decodes
_ENCODED = 128  # samples of the group that encodes: a codec takes 10 to 50 ns a value

Array = Any


@dataclass(frozen=True, eq=False)
class Codes:
    """Latents (N, 32, 8, 8) float32 and their codes by kind, with buffers."""

    x: Array
    quantizers: dict[str, Quantizer | Transform]
    packed: dict[str, Array]  # (N, 1024) uint8
    levels: Array  # (32, 16) float32, of the affine quantizer
    out: Array


@functools.cache
def codes(count: int) -> Codes:
    """Returns latents of noise, neighbors alike, whose channels differ in strength as those of real latents do."""
    noise = np.random.default_rng(0).normal(size=(count, *SHAPE))
    smooth = noise + np.roll(noise, 1, -1) + np.roll(noise, 1, -2) + np.roll(noise, (1, 1), (-1, -2))
    x = (smooth * np.geomspace(1, 0.1, SHAPE[0]).reshape(-1, 1, 1)).astype(np.float32)
    affine = Quantizer.calibrate(x, bits=BITS)
    quantizers: dict[str, Quantizer | Transform] = {
        "affine": affine,
        "codebook": Quantizer.calibrate(x, bits=BITS, method="lloyd-max"),
        "trellis": Quantizer.calibrate(x, bits=BITS, method="trellis"),
        "transform": Transform.calibrate(x, bytes=BYTES),
    }
    packed = {kind: quantizer.quantize_packed(x) for kind, quantizer in quantizers.items()}
    every = np.broadcast_to(np.arange(16, dtype=np.uint8)[None, None], (1, SHAPE[0], 16))
    levels = affine.dequantize(np.ascontiguousarray(every))[0]
    return Codes(x, quantizers, packed, levels, np.zeros_like(x))


def _decode(kind: str) -> Callable[[Codes], object]:
    return lambda c: c.quantizers[kind].dequantize_packed(c.packed[kind], c.x.shape, out=c.out)


def _encode(kind: str) -> Callable[[Codes], object]:
    return lambda c: c.quantizers[kind].quantize_packed(c.x[:_ENCODED])


def _numpy_encode(c: Codes) -> Array:
    affine, x = c.quantizers["affine"], c.x[:_ENCODED]
    assert isinstance(affine, Quantizer)
    low, high = (np.array(bounds, np.float32).reshape(-1, 1, 1) for bounds in (affine.low, affine.high))
    inverse_step = 1 / ((high - low) / np.float32(15))
    codes = np.rint((np.clip(x, low, high) - low) * inverse_step).astype(np.uint8).reshape(len(x), -1)
    return codes[:, ::2] | codes[:, 1::2] << 4


def _numpy_decode(c: Codes) -> None:
    packed = c.packed["affine"]
    unpacked = np.stack([packed & 15, packed >> 4], -1).reshape(len(packed), SHAPE[0], -1)
    np.take(c.levels.ravel(), unpacked + 16 * np.arange(SHAPE[0])[:, None], out=c.out.reshape(unpacked.shape))


KINDS = ("affine", "codebook", "trellis", "transform")
DECODE: dict[str, Callable[[Codes], object]] = {
    **{f"latentq {kind}": _decode(kind) for kind in KINDS},
    FILL: lambda c: c.out.fill(1),
    "NumPy, affine": _numpy_decode,
}
ENCODE: dict[str, Callable[[Codes], object]] = {
    **{f"latentq {kind}": _encode(kind) for kind in KINDS},
    READ: lambda c: c.x[:_ENCODED].max(),
    "NumPy, affine": _numpy_encode,
}
ENCODED = _ENCODED * ELEMENTS  # values of a call
