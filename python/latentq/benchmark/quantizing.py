"""Quantizing and dequantizing: latentq, NumPy, torch where it is installed, and plain memory traffic.

All work on the same values and codes, 64 MiB as float32. "Warm" writes into a buffer that was written before, "new"
allocates its output.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from latentq.quantizer import Quantizer

SHAPE = (4096, 4, 32, 32)
VALUES = 4096 * 4 * 32 * 32
LOW, HIGH = -14.0, 14.0
SPAN = HIGH - LOW
READ, FILL, COPY = "plain read", "plain write (fill)", "memcpy of the output"
LIMITS = (READ, FILL, COPY)

Array = Any
Work = Callable[["Arrays"], object]


@dataclass(frozen=True, eq=False)
class Arrays:
    """Values and codes, with buffers to write into: codes are uint8, the others float32."""

    threads: int
    quantizer: Quantizer
    x: Array
    codes: Array
    out_x: Array
    out_codes: Array
    scratch: Array


@functools.cache
def arrays(threads: int, latents: int = SHAPE[0]) -> Arrays:
    """Returns values that are normally distributed, and their codes.

    Args:
        threads: Threads of each contender.
        latents: Number of latents (4, 32, 32).
    """
    quantizer = Quantizer.uniform(LOW, HIGH, channels=SHAPE[1])
    x = np.random.default_rng(0).normal(0, 4, (latents, *SHAPE[1:])).astype(np.float32)
    codes = quantizer.quantize(x)
    return Arrays(threads, quantizer, x, codes, np.zeros_like(x), np.zeros_like(codes), np.zeros_like(x))


def _quantize_into(d: Arrays) -> None:
    np.clip(d.x, LOW, HIGH, out=d.scratch)
    np.divide(d.scratch, SPAN, out=d.scratch)
    np.add(d.scratch, 0.5, out=d.scratch)
    np.multiply(d.scratch, 255, out=d.scratch)
    np.round(d.scratch, out=d.scratch)
    np.copyto(d.out_codes, d.scratch, casting="unsafe")


def _dequantize_into(d: Arrays) -> None:
    np.copyto(d.out_x, d.codes)
    np.divide(d.out_x, 255, out=d.out_x)
    np.subtract(d.out_x, 0.5, out=d.out_x)
    np.multiply(d.out_x, SPAN, out=d.out_x)


NUMPY: dict[str, dict[str, Work]] = {
    "float32 to uint8, warm": {
        "latentq": lambda d: d.quantizer.quantize(d.x, out=d.out_codes, threads=d.threads),
        READ: lambda d: d.x.max(),
        "NumPy": _quantize_into,
    },
    "float32 to uint8, new": {
        "latentq": lambda d: d.quantizer.quantize(d.x, threads=d.threads),
        "NumPy": lambda d: ((np.clip(d.x, LOW, HIGH) / SPAN + 0.5) * 255).round().astype(np.uint8),
    },
    "uint8 to float32, warm": {
        "latentq": lambda d: d.quantizer.dequantize(d.codes, out=d.out_x, threads=d.threads),
        FILL: lambda d: d.out_x.fill(1),
        COPY: lambda d: np.copyto(d.out_x, d.x),
        "NumPy": _dequantize_into,
    },
    "uint8 to float32, new": {
        "latentq": lambda d: d.quantizer.dequantize(d.codes, threads=d.threads),
        COPY: lambda d: d.x.copy(),
        "NumPy": lambda d: (d.codes.astype(np.float32) / 255 - 0.5) * SPAN,
    },
}
TITLES = tuple(NUMPY)


@dataclass(frozen=True, eq=False)
class Types:
    """The same values in every dtype, quantizers of every width, and buffers. bfloat16 is held as uint16."""

    x: Array
    half: Array
    bfloat16: Array
    uniform: dict[int, Quantizer]  # by bits
    codebook: Quantizer
    codes: Array
    packed: dict[int, Array]  # by bits
    out_packed: dict[int, Array]
    out_codes: Array
    out_x: Array
    out_half: Array
    out_bfloat16: Array


@functools.cache
def types(latents: int = SHAPE[0]) -> Types:
    """Returns values that are normally distributed, in every dtype, and their codes of every width.

    Args:
        latents: Number of latents (4, 32, 32).
    """
    x = arrays(1, latents).x
    half, bfloat16 = x.astype(np.float16), (x.view(np.uint32) >> 16).astype(np.uint16)
    uniform = {bits: Quantizer.calibrate(x[:64], bits=bits) for bits in (4, 6, 8)}
    codes, packed = uniform[8].quantize(x), {bits: uniform[bits].quantize_packed(x) for bits in uniform}
    out_packed = {bits: array.copy() for bits, array in packed.items()}
    codebook = Quantizer.calibrate(x[:64], method="lloyd-max")
    outputs = codes.copy(), x.copy(), half.copy(), bfloat16.copy()
    return Types(x, half, bfloat16, uniform, codebook, codes, packed, out_packed, *outputs)


QUANTIZE_TYPES: dict[str, Callable[[Types], object]] = {
    "float32, 8 bits": lambda t: t.uniform[8].quantize(t.x, out=t.out_codes),
    "float16, 8 bits": lambda t: t.uniform[8].quantize(t.half, out=t.out_codes),
    "bfloat16, 8 bits": lambda t: t.uniform[8].quantize(t.bfloat16, out=t.out_codes),
    "float32, 6 bits packed": lambda t: t.uniform[6].quantize_packed(t.x, out=t.out_packed[6]),
    "float32, 4 bits packed": lambda t: t.uniform[4].quantize_packed(t.x, out=t.out_packed[4]),
    READ: lambda t: t.x.max(),
    "float32, codebook of 8 bits": lambda t: t.codebook.quantize(t.x, out=t.out_codes),
}
DEQUANTIZE_TYPES: dict[str, Callable[[Types], object]] = {
    "float32, 8 bits": lambda t: t.uniform[8].dequantize(t.codes, out=t.out_x),
    "float16, 8 bits": lambda t: t.uniform[8].dequantize(t.codes, dtype=np.float16, out=t.out_half),
    "bfloat16, 8 bits": lambda t: t.uniform[8].dequantize(t.codes, dtype="bfloat16", out=t.out_bfloat16),
    "float32, 6 bits packed": lambda t: t.uniform[6].dequantize_packed(t.packed[6], t.x.shape, out=t.out_x),
    "float32, 4 bits packed": lambda t: t.uniform[4].dequantize_packed(t.packed[4], t.x.shape, out=t.out_x),
    FILL: lambda t: t.out_x.fill(1),
    "float32, codebook of 8 bits": lambda t: t.codebook.dequantize(t.codes, out=t.out_x),
}
