"""The quantizer against NumPy, torch and plain memory traffic.

The contenders are those of `latentq bench` (`latentq.benchmark.quantizing`): all do the same work on the same 64 MiB of
float32, values to codes with rounding and clipping, or codes to values. A plain read, a plain write and memcpy are no
rivals but bounds.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch

from latentq import Quantizer
from latentq.benchmark.installed import quantizers
from latentq.benchmark.quantizing import (
    DEQUANTIZE_TYPES,
    HIGH,
    LOW,
    QUANTIZE_TYPES,
    SPAN,
    TITLES,
    VALUES,
    Arrays,
    arrays,
    types,
)
from latentq.benchmark.turns import CORES

ROUNDS = 21


def per_channel(x: torch.Tensor) -> torch.Tensor:
    """Values quantized by torch's own scheme, each channel with the same range."""
    scales, zeros = torch.full((x.shape[1],), SPAN / 255), torch.full((x.shape[1],), 127)
    return torch.quantize_per_channel(x, scales, zeros, 1, torch.quint8)


@functools.cache
def torch_codes(data: Arrays) -> torch.Tensor:
    return per_channel(torch.from_numpy(data.x))


CONTENDERS = {title: dict(quantizers(title)) for title in TITLES}
CONTENDERS["float32 to uint8, new"]["torch.quantize_per_channel"] = lambda d: per_channel(torch.from_numpy(d.x))
CONTENDERS["uint8 to float32, new"]["torch quantized tensor"] = lambda d: torch_codes(d).dequantize()

threads = pytest.mark.parametrize("threads", sorted({1, CORES}), ids=lambda n: f"{n} thread{'s' * (n > 1)}")


@threads
@pytest.mark.parametrize(("title", "contender"), [(title, name) for title in TITLES for name in CONTENDERS[title]])
def bench_quantizer(turns, threads, title, contender):
    torch.set_num_threads(threads)
    # OpenMP's workers spin for a while after a call of torch, on the cores that the next contender needs.
    rest = 0.0 if threads == 1 else 0.02
    turns(
        CONTENDERS[title], arrays(threads), group=f"{title}, {threads} thread{'s' * (threads > 1)}", reference="NumPy",
        rounds=ROUNDS, warmup=2, untimed_call=True, rest=rest, items=VALUES, unit="values",
    )  # fmt: skip


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
