"""The quantizer against NumPy, torch and plain memory traffic.

Every contender does the same work on the same 64 MiB of float32: values to codes with rounding and clipping, or codes
to values. "Warm" writes into a buffer that was written before, "new" allocates its output. Two contenders, a plain read
and a plain write, are no rivals but bounds.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from turns import CORES

from latentq import Quantizer

SHAPE = (4096, 4, 32, 32)
VALUES = int(np.prod(SHAPE))
LOW, HIGH = -14.0, 14.0
SPAN = HIGH - LOW
ROUNDS = 21


@dataclass(frozen=True)
class Data:
    """Values and codes, as NumPy arrays and as torch tensors over the same memory, with buffers to write into."""

    threads: int
    quantizer: Quantizer
    x: Any
    codes: Any
    out_x: Any
    out_codes: Any
    scratch: Any
    t_x: Any
    t_codes: Any
    t_out_x: Any
    t_out_codes: Any
    t_scratch: Any
    t_quantized: Any  # torch's own quantized tensor


@functools.cache
def data(threads: int) -> Data:
    torch.set_num_threads(threads)
    quantizer = Quantizer.uniform(LOW, HIGH, channels=SHAPE[1])
    x = np.random.default_rng(0).normal(0, 4, SHAPE).astype(np.float32)
    codes = quantizer.quantize(x)
    arrays = x, codes, np.zeros_like(x), np.zeros_like(codes), np.zeros_like(x)
    tensors = tuple(map(torch.from_numpy, arrays))
    return Data(threads, quantizer, *arrays, *tensors, per_channel(tensors[0]))


def per_channel(x: torch.Tensor) -> torch.Tensor:
    scales, zeros = torch.full((SHAPE[1],), SPAN / 255), torch.full((SHAPE[1],), 127)
    return torch.quantize_per_channel(x, scales, zeros, 1, torch.quint8)


def numpy_quantize_into(d: Data) -> None:
    np.clip(d.x, LOW, HIGH, out=d.scratch)
    np.divide(d.scratch, SPAN, out=d.scratch)
    np.add(d.scratch, 0.5, out=d.scratch)
    np.multiply(d.scratch, 255, out=d.scratch)
    np.round(d.scratch, out=d.scratch)
    np.copyto(d.out_codes, d.scratch, casting="unsafe")


def numpy_dequantize_into(d: Data) -> None:
    np.copyto(d.out_x, d.codes)
    np.divide(d.out_x, 255, out=d.out_x)
    np.subtract(d.out_x, 0.5, out=d.out_x)
    np.multiply(d.out_x, SPAN, out=d.out_x)


def torch_quantize(x: torch.Tensor) -> torch.Tensor:
    return ((x.clamp(LOW, HIGH) / SPAN + 0.5) * 255).round().to(torch.uint8)


def torch_dequantize(codes: torch.Tensor) -> torch.Tensor:
    return (codes.float() / 255 - 0.5) * SPAN


def torch_quantize_into(d: Data) -> None:
    torch.clamp(d.t_x, LOW, HIGH, out=d.t_scratch)
    d.t_scratch.div_(SPAN).add_(0.5).mul_(255).round_()
    d.t_out_codes.copy_(d.t_scratch)


def torch_dequantize_into(d: Data) -> None:
    d.t_out_x.copy_(d.t_codes)
    d.t_out_x.div_(255).sub_(0.5).mul_(SPAN)


compiled_quantize = torch.compile(torch_quantize)
compiled_dequantize = torch.compile(torch_dequantize)
compiled_quantize_into = torch.compile(lambda x, out: out.copy_(torch_quantize(x)))
compiled_dequantize_into = torch.compile(lambda codes, out: out.copy_(torch_dequantize(codes)))

QUANTIZE_WARM = {
    "latentq": lambda d: d.quantizer.quantize(d.x, out=d.out_codes, threads=d.threads),
    "plain read (max)": lambda d: d.x.max() if d.threads == 1 else d.t_x.max(),
    "NumPy": numpy_quantize_into,
    "torch eager": torch_quantize_into,
    "torch.compile": lambda d: compiled_quantize_into(d.t_x, d.t_out_codes),
}
QUANTIZE_NEW = {
    "latentq": lambda d: d.quantizer.quantize(d.x, threads=d.threads),
    "NumPy": lambda d: ((np.clip(d.x, LOW, HIGH) / SPAN + 0.5) * 255).round().astype(np.uint8),
    "torch eager": lambda d: torch_quantize(d.t_x),
    "torch.quantize_per_channel": lambda d: per_channel(d.t_x),
    "torch.compile": lambda d: compiled_quantize(d.t_x),
}
DEQUANTIZE_WARM = {
    "latentq": lambda d: d.quantizer.dequantize(d.codes, out=d.out_x, threads=d.threads),
    "plain write (fill)": lambda d: d.out_x.fill(1) if d.threads == 1 else d.t_out_x.fill_(1),
    "memcpy of the output": lambda d: np.copyto(d.out_x, d.x) if d.threads == 1 else d.t_out_x.copy_(d.t_x),
    "NumPy": numpy_dequantize_into,
    "torch eager": torch_dequantize_into,
    "torch.compile": lambda d: compiled_dequantize_into(d.t_codes, d.t_out_x),
}
DEQUANTIZE_NEW = {
    "latentq": lambda d: d.quantizer.dequantize(d.codes, threads=d.threads),
    "memcpy of the output": lambda d: d.x.copy() if d.threads == 1 else d.t_x.clone(),
    "NumPy": lambda d: (d.codes.astype(np.float32) / 255 - 0.5) * SPAN,
    "torch eager": lambda d: torch_dequantize(d.t_codes),
    "torch quantized tensor": lambda d: d.t_quantized.dequantize(),
    "torch.compile": lambda d: compiled_dequantize(d.t_codes),
}

threads = pytest.mark.parametrize("threads", sorted({1, CORES}), ids=lambda n: f"{n} thread{'s' * (n > 1)}")


def compare(turns: Callable[..., Any], contenders: Any, title: str, threads: int) -> None:
    torch.set_num_threads(threads)
    # OpenMP's workers spin for a while after a call of torch, on the cores that the next contender needs.
    rest = 0.0 if threads == 1 else 0.02
    group = f"{title}, {threads} thread{'s' * (threads > 1)}"
    size = {"items": VALUES, "unit": "values"}
    turns(
        contenders, data(threads), group=group, reference="NumPy", rounds=ROUNDS, warmup=2, untimed_call=True,
        rest=rest, **size,
    )  # fmt: skip


@threads
@pytest.mark.parametrize("contender", QUANTIZE_WARM)
def bench_quantize_warm(turns, threads, contender):
    compare(turns, QUANTIZE_WARM, "float32 to uint8, warm", threads)


@threads
@pytest.mark.parametrize("contender", QUANTIZE_NEW)
def bench_quantize_new(turns, threads, contender):
    compare(turns, QUANTIZE_NEW, "float32 to uint8, new", threads)


@threads
@pytest.mark.parametrize("contender", DEQUANTIZE_WARM)
def bench_dequantize_warm(turns, threads, contender):
    compare(turns, DEQUANTIZE_WARM, "uint8 to float32, warm", threads)


@threads
@pytest.mark.parametrize("contender", DEQUANTIZE_NEW)
def bench_dequantize_new(turns, threads, contender):
    compare(turns, DEQUANTIZE_NEW, "uint8 to float32, new", threads)


@dataclass(frozen=True)
class Types:
    """The same values in every dtype, quantizers of every width, and buffers."""

    x: Any
    half: Any
    bfloat16: Any  # as uint16
    uniform: dict[int, Quantizer]  # by bits
    codebook: Quantizer
    codes: Any
    packed: dict[int, Any]  # by bits
    out_packed: dict[int, Any]
    out_codes: Any
    out_x: Any
    out_half: Any
    out_bfloat16: Any


@functools.cache
def types() -> Types:
    x = np.random.default_rng(0).normal(0, 4, SHAPE).astype(np.float32)
    half, bfloat16 = x.astype(np.float16), (x.view(np.uint32) >> 16).astype(np.uint16)
    uniform = {bits: Quantizer.calibrate(x[:64], bits=bits) for bits in (4, 6, 8)}
    codes, packed = uniform[8].quantize(x), {bits: uniform[bits].quantize_packed(x) for bits in uniform}
    out_packed = {bits: array.copy() for bits, array in packed.items()}
    codebook = Quantizer.calibrate(x[:64], method="lloyd-max")
    outputs = codes.copy(), x.copy(), half.copy(), bfloat16.copy()
    return Types(x, half, bfloat16, uniform, codebook, codes, packed, out_packed, *outputs)


QUANTIZE_TYPES = {
    "float32, 8 bits": lambda t: t.uniform[8].quantize(t.x, out=t.out_codes),
    "float16, 8 bits": lambda t: t.uniform[8].quantize(t.half, out=t.out_codes),
    "bfloat16, 8 bits": lambda t: t.uniform[8].quantize(t.bfloat16, out=t.out_codes),
    "float32, 6 bits packed": lambda t: t.uniform[6].quantize_packed(t.x, out=t.out_packed[6]),
    "float32, 4 bits packed": lambda t: t.uniform[4].quantize_packed(t.x, out=t.out_packed[4]),
    "float32, codebook of 8 bits": lambda t: t.codebook.quantize(t.x, out=t.out_codes),
}
DEQUANTIZE_TYPES = {
    "float32, 8 bits": lambda t: t.uniform[8].dequantize(t.codes, out=t.out_x),
    "float16, 8 bits": lambda t: t.uniform[8].dequantize(t.codes, dtype=np.float16, out=t.out_half),
    "bfloat16, 8 bits": lambda t: t.uniform[8].dequantize(t.codes, dtype="bfloat16", out=t.out_bfloat16),
    "float32, 6 bits packed": lambda t: t.uniform[6].dequantize_packed(t.packed[6], SHAPE, out=t.out_x),
    "float32, 4 bits packed": lambda t: t.uniform[4].dequantize_packed(t.packed[4], SHAPE, out=t.out_x),
    "float32, codebook of 8 bits": lambda t: t.codebook.dequantize(t.codes, out=t.out_x),
}


def compare_types(turns: Callable[..., Any], contenders: Any, title: str) -> None:
    turns(
        contenders, types(), group=title, reference="float32, 8 bits", rounds=ROUNDS, warmup=2, untimed_call=True,
        items=VALUES, unit="values",
    )  # fmt: skip


@pytest.mark.parametrize("contender", QUANTIZE_TYPES)
def bench_quantize_types(turns, contender):
    compare_types(turns, QUANTIZE_TYPES, "dtypes and bits to codes, warm, 1 thread")


@pytest.mark.parametrize("contender", DEQUANTIZE_TYPES)
def bench_dequantize_types(turns, contender):
    compare_types(turns, DEQUANTIZE_TYPES, "codes to dtypes, warm, 1 thread")


@dataclass(frozen=True)
class Small:
    """One latent of 4,096 values and 33 of them, with buffers."""

    quantizer: Quantizer
    x: tuple[Any, Any]
    codes: tuple[Any, Any]
    out_x: tuple[Any, Any]
    out_codes: tuple[Any, Any]


@functools.cache
def small() -> Small:
    quantizer = Quantizer.uniform(LOW, HIGH, channels=4)
    x = np.random.default_rng(0).normal(0, 4, (33, 4, 32, 32)).astype(np.float32)
    codes = quantizer.quantize(x)
    return Small(quantizer, *((a[:1].copy(), a.copy()) for a in (x, codes, x, codes)))


QUANTIZE_SMALL = {
    "1 latent, warm": lambda s: s.quantizer.quantize(s.x[0], out=s.out_codes[0]),
    "33 latents, warm": lambda s: s.quantizer.quantize(s.x[1], out=s.out_codes[1]),
    "1 latent, new": lambda s: s.quantizer.quantize(s.x[0]),
    "33 latents, new": lambda s: s.quantizer.quantize(s.x[1]),
}
DEQUANTIZE_SMALL = {
    "1 latent, warm": lambda s: s.quantizer.dequantize(s.codes[0], out=s.out_x[0]),
    "33 latents, warm": lambda s: s.quantizer.dequantize(s.codes[1], out=s.out_x[1]),
    "1 latent, new": lambda s: s.quantizer.dequantize(s.codes[0]),
    "33 latents, new": lambda s: s.quantizer.dequantize(s.codes[1]),
}


def compare_small(turns: Callable[..., Any], benchmark: Any, contenders: Any, title: str, contender: str) -> None:
    """The overhead of a call is the time of one latent minus what each further latent costs."""
    iterations = 100
    durations = turns(contenders, small(), group=title, rounds=201, warmup=5, iterations=iterations)
    buffer = contender.split()[-1]
    single, many = f"1 latent, {buffer}", f"33 latents, {buffer}"
    if contender == single and many in durations:
        fastest = {name: min(durations[name]) / iterations * 1e6 for name in (single, many)}
        kernel = (fastest[many] - fastest[single]) / 32
        benchmark.extra_info["columns"] = {"overhead of the call, us": round(fastest[single] - kernel, 2)}


@pytest.mark.parametrize("contender", QUANTIZE_SMALL)
def bench_quantize_small(turns, benchmark, contender):
    compare_small(turns, benchmark, QUANTIZE_SMALL, "quantize latents of 4,096 values", contender)


@pytest.mark.parametrize("contender", DEQUANTIZE_SMALL)
def bench_dequantize_small(turns, benchmark, contender):
    compare_small(turns, benchmark, DEQUANTIZE_SMALL, "dequantize latents of 4,096 values", contender)
