"""torch's part in the groups of `quantizing.py`, over the same memory."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from latentq.benchmark.quantizing import COPY, FILL, HIGH, LOW, READ, SPAN

if TYPE_CHECKING:
    from latentq.benchmark.quantizing import Arrays, Work


@dataclass(frozen=True)
class Tensors:
    """The arrays of the same names as tensors."""

    x: torch.Tensor
    codes: torch.Tensor
    out_x: torch.Tensor
    out_codes: torch.Tensor
    scratch: torch.Tensor


@functools.cache
def tensors(d: Arrays) -> Tensors:
    """Returns tensors over the memory of arrays."""
    return Tensors(*map(torch.from_numpy, (d.x, d.codes, d.out_x, d.out_codes, d.scratch)))


def quantize(x: torch.Tensor) -> torch.Tensor:
    """Returns codes of values, by operations of torch."""
    return ((x.clamp(LOW, HIGH) / SPAN + 0.5) * 255).round().to(torch.uint8)


def dequantize(codes: torch.Tensor) -> torch.Tensor:
    """Returns values of codes, by operations of torch."""
    return (codes.float() / 255 - 0.5) * SPAN


def _quantize_into(d: Arrays) -> None:
    t = tensors(d)
    torch.clamp(t.x, LOW, HIGH, out=t.scratch)
    t.scratch.div_(SPAN).add_(0.5).mul_(255).round_()
    t.out_codes.copy_(t.scratch)


def _dequantize_into(d: Arrays) -> None:
    t = tensors(d)
    t.out_x.copy_(t.codes)
    t.out_x.div_(255).sub_(0.5).mul_(SPAN)


TORCH: dict[str, dict[str, Work]] = {
    "float32 to uint8, warm": {"torch eager": _quantize_into, READ: lambda d: tensors(d).x.max()},
    "float32 to uint8, new": {
        "torch eager": lambda d: quantize(tensors(d).x),
    },
    "uint8 to float32, warm": {
        "torch eager": _dequantize_into,
        FILL: lambda d: tensors(d).out_x.fill_(1),
        COPY: lambda d: tensors(d).out_x.copy_(tensors(d).x),
    },
    "uint8 to float32, new": {
        "torch eager": lambda d: dequantize(tensors(d).codes),
        COPY: lambda d: tensors(d).x.clone(),
    },
}


@functools.cache
def _compiled(function: Callable[..., torch.Tensor]) -> Any:
    return torch.compile(function)


def _copy_quantized(x: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
    return out.copy_(quantize(x))


def _copy_dequantized(codes: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
    return out.copy_(dequantize(codes))


COMPILED: dict[str, Work] = {
    "float32 to uint8, warm": lambda d: _compiled(_copy_quantized)(tensors(d).x, tensors(d).out_codes),
    "float32 to uint8, new": lambda d: _compiled(quantize)(tensors(d).x),
    "uint8 to float32, warm": lambda d: _compiled(_copy_dequantized)(tensors(d).codes, tensors(d).out_x),
    "uint8 to float32, new": lambda d: _compiled(dequantize)(tensors(d).codes),
}
