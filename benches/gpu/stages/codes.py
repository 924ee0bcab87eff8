"""Codes and values of the CUDA path are those of the CPU, to the bit, for every scheme and dtype."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from gpu.harness import Run
from gpu.networks import quantizers
from latentq import Quantizer
from latentq.quantizer import tensors
from latentq.system.processors import processors

DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
CHANNELS = 4


class Device:
    """The CUDA path: torch operations on the card; in a rehearsal the same operations on the CPU, not the Rust core."""

    def __init__(self, run: Run) -> None:
        self._device = run.device

    def quantize_counted(self, q: Quantizer, x: torch.Tensor, *, channels_last: bool = False) -> list[np.ndarray]:
        """Returns codes, clipped counts and bad samples as arrays, with codes as unsigned integers."""
        x = x.to(self._device)
        if channels_last:
            x = x.to(memory_format=torch.channels_last)
        if self._device == "cpu":
            codes, *counts = tensors.quantize_counted(q, x, None)
            return [bits(codes), *(count.numpy() for count in counts)]
        codes, found = q.quantize_counted(x)
        return [bits(codes), found.clipped, found.bad]

    def call(self, q: Quantizer, method: str, *values: Any) -> np.ndarray:
        """Returns the result of a quantizer's method on tensors that are moved to the device, as unsigned integers."""
        moved = [value.to(self._device) if isinstance(value, torch.Tensor) else value for value in values]
        if self._device == "cpu":
            defaults = {"dequantize_packed": ("float32", None), "quantize_packed": (None,)}.get(method, ())
            return bits(getattr(tensors, method)(q, *moved, *defaults))
        return bits(getattr(q, method)(*moved))

    def dequantize(self, q: Quantizer, codes: torch.Tensor, dtype: str) -> np.ndarray:
        """Returns values as unsigned integers."""
        codes = codes.to(self._device)
        values = (
            tensors.dequantize(q, codes, dtype, None) if self._device == "cpu" else q.dequantize(codes, dtype=dtype)
        )
        return bits(values)


def bits(x: Any) -> np.ndarray:
    """Returns the bits of a tensor's or an array's values as unsigned integers."""
    array = tensors.to_numpy(x) if isinstance(x, torch.Tensor) else x
    return array.view(f"u{array.itemsize}")


def work(run: Run) -> None:
    """Compares the two paths."""
    device = Device(run)
    values = {dtype: latents(run.size(1 << 24, 1 << 15), dtype) for dtype in DTYPES}
    for name, q in quantizers().items():
        for dtype, x in values.items():
            with run.attempt(f"{name} {_short(dtype)}"):
                _compare(run, device, f"{name} {_short(dtype)}", q, x)
        for dtype in (torch.float16, torch.bfloat16):
            with run.attempt(f"{name} all {_short(dtype)}"):
                _compare(run, device, f"{name} all {_short(dtype)}", q, all_patterns(dtype))
        with run.attempt(f"{name} edges"):
            _compare(run, device, f"{name} edges", q, edges(q))
        with run.attempt(f"{name} channels_last"):
            _compare(run, device, f"{name} channels_last", q, values[torch.float32][:64], channels_last=True)
        with run.attempt(f"{name} values"):
            _compare_values(run, device, name, q)
    for width in range(2, 9):
        with run.attempt(f"pack {width} bits"):
            _compare_packed(run, device, width)
    for name in ("affine8", "truncate8", "codebook8"):
        with run.attempt(f"{name} random patterns"):
            _compare_patterns(run, device, name)


def latents(count: int, dtype: torch.dtype) -> torch.Tensor:
    """Returns normal values (N, 4, 32, 32) with outliers, zeros of both signs and subnormals; some samples are bad."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn((count // (CHANNELS * 1024), CHANNELS, 32, 32), generator=generator, dtype=torch.float64) * 3
    flat = x.view(-1)
    flat[::97] *= 20
    flat[1::1009], flat[2::1009] = 0.0, -0.0
    smallest = {torch.float16: 6e-8, torch.float64: 5e-324}.get(dtype, 1e-40)
    flat[3::1009], flat[4::1009] = smallest, -3 * smallest
    for sample, value in ((3, torch.nan), (5, torch.inf), (7, -torch.inf)):
        x[sample, sample % CHANNELS, 1, 2] = value
    return x.to(dtype)


def all_patterns(dtype: torch.dtype) -> torch.Tensor:
    """Returns every value of a 16-bit dtype in each channel: (256, 4, 16, 16). Those without a code fill samples."""
    patterns = np.arange(1 << 16, dtype=np.uint16).reshape(256, 1, 16, 16).repeat(CHANNELS, 1)
    return torch.from_numpy(patterns).view(dtype)


def edges(q: Quantizer) -> torch.Tensor:
    """Returns the middle of every two neighboring levels and its neighbors in float32: (3, 4, levels - 1)."""
    if q.kind in ("float16", "bfloat16", "float32"):
        levels = np.sort(np.random.default_rng(0).normal(0, 3, (CHANNELS, 257)).astype(np.float16), axis=1)
    else:
        levels = q.table()
    middle = ((levels[:, :-1].astype(np.float64) + levels[:, 1:]) / 2).astype(np.float32)
    sides = [np.nextafter(middle, np.float32(side)) for side in (-np.inf, np.inf)]
    return torch.from_numpy(np.stack([middle, *sides]))


def _compare(
    run: Run, device: Device, name: str, q: Quantizer, x: torch.Tensor, *, channels_last: bool = False
) -> None:
    """Checks that codes, clipped values and bad samples are the same."""
    codes, counts = q.quantize_counted(tensors.to_numpy(x), threads=processors())
    mine = [bits(codes), counts.clipped, counts.bad]
    theirs = device.quantize_counted(q, x, channels_last=channels_last)
    found, first = differences(mine, theirs, bits(x))
    run.check(name, found == 0, found, 0, first)


def differences(mine: list[np.ndarray], theirs: list[np.ndarray], x: np.ndarray) -> tuple[int, str]:
    """Returns the number of differences in codes and counts, and the first: bits of x, and both codes."""
    wrong = np.flatnonzero(mine[0].reshape(-1) != theirs[0].reshape(-1))
    others = sum(int(np.count_nonzero(a != b)) for a, b in zip(mine[1:], theirs[1:], strict=True))
    first = ""
    if len(wrong):
        value, a, b = (array.reshape(-1)[wrong[0]] for array in (x, mine[0], theirs[0]))
        first = f"first: x 0x{int(value):x}, CPU {a}, CUDA {b}"
    elif others:
        first = "counts of clipped values or bad samples"
    return len(wrong) + others, first


def _compare_values(run: Run, device: Device, name: str, q: Quantizer) -> None:
    """Checks that every code has the same value in every float dtype."""
    if q.kind in ("float16", "bfloat16", "float32"):
        finite = torch.randn((1, CHANNELS, 1 << 14), generator=torch.Generator().manual_seed(1)) * 100
        codes = finite.to(getattr(torch, q.kind))
    else:
        codes = torch.arange(2**q.bits, dtype=torch.uint8).expand(1, CHANNELS, -1).contiguous()
    for dtype in ("float32", "float16", "bfloat16"):
        mine, theirs = bits(q.dequantize(codes, dtype=dtype)), device.dequantize(q, codes, dtype)
        found, first = differences([mine], [theirs], bits(codes))
        run.check(f"{name} to {dtype}", found == 0, found, 0, first)


def _compare_packed(run: Run, device: Device, width: int) -> None:
    """Checks packing, for samples of an odd number of codes."""
    q = Quantizer.affine([-3.0, -2.0, -1.0], [4.0, 3.0, 2.0], bits=width)
    x = torch.randn((13, 3, 5, 7), generator=torch.Generator().manual_seed(2)) * 2
    codes = q.quantize(x)
    packed = q.pack(codes)
    calls: dict[str, tuple[Any, ...]] = {
        "pack": (codes,), "unpack": (packed, tuple(x.shape)), "quantize_packed": (x,),
        "dequantize_packed": (packed, tuple(x.shape)),
    }  # fmt: skip
    found = {
        method: int(np.count_nonzero(bits(getattr(q, method)(*values)) != device.call(q, method, *values)))
        for method, values in calls.items()
    }
    run.check(f"pack {width} bits", not any(found.values()), found, "0 each")


def _compare_patterns(run: Run, device: Device, name: str) -> None:
    """Checks the codes of 2^28 random bit patterns, in 16 pieces."""
    q = quantizers()[name] if name != "affine8" else Quantizer.affine([-5, -4, -1e-3, -900], [5, 6, 2e-3, 3])
    generator, total, first = torch.Generator().manual_seed(3), 0, ""
    pieces, count = run.size(16, 2), run.size(1 << 24, 1 << 15)
    for _ in range(pieces):
        patterns = torch.randint(-(2**31), 2**31, (count // CHANNELS // 64, CHANNELS, 64), generator=generator)
        x = patterns.to(torch.int32).view(torch.float32)
        x = torch.where(x.isfinite(), x, torch.zeros_like(x))
        codes, counts = q.quantize_counted(tensors.to_numpy(x), threads=processors())
        mine = [bits(codes), counts.clipped, counts.bad]
        found, where = differences(mine, device.quantize_counted(q, x), bits(x))
        total, first = total + found, first or where
    run.check(f"{name}, {pieces * count} random patterns", total == 0, total, 0, first)


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
