"""Ingredients of a faster forward pass: convolutions, normalization, and JPEGs decoded on the card."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

import latentq
from gpu import standins
from gpu.harness import Run
from gpu.measure import in_turns, rates, wait
from gpu.networks import fused_group_norm_silu
from gpu.pictures import compiling, paint, photographs

CONVOLUTIONS = ((128, 256), (256, 128), (512, 64), (512, 32))  # channels, side: 237 of the 273 GFLOP


def work(run: Run) -> None:
    """Measures each idea; one that does not run here costs no other."""
    for channels, side in CONVOLUTIONS:
        with run.attempt(f"convolution {channels} at {side}"), torch.no_grad():
            _convolution(run, channels, side)
    with run.attempt("GroupNorm and SiLU"), torch.no_grad():
        _normalization(run)
    with run.attempt("JPEGs on the card"):
        _jpegs(run)


def _convolution(run: Run, channels: int, side: int) -> None:
    """Measures a 3 x 3 convolution by cudnn's heuristics, deterministic, and by its own search."""
    batch, channels, side = run.size(64, 2), run.size(channels, 8), run.size(side, 16)
    x = torch.randn(batch, channels, side, side, device=run.device).bfloat16().to(memory_format=torch.channels_last)
    weight = torch.randn(channels, channels, 3, 3, device=run.device).bfloat16().to(memory_format=torch.channels_last)

    def by(**flags: bool) -> Callable[[], object]:
        def call() -> object:
            before = {name: getattr(torch.backends.cudnn, name) for name in flags}
            try:
                for name, value in flags.items():
                    setattr(torch.backends.cudnn, name, value)
                return torch.nn.functional.conv2d(x, weight, padding=1)
            finally:
                for name, value in before.items():
                    setattr(torch.backends.cudnn, name, value)

        return call

    ways = {
        "heuristics": by(benchmark=False, deterministic=False),
        "deterministic": by(benchmark=False, deterministic=True),
        "benchmark": by(benchmark=True, deterministic=False),
    }
    for name, seconds in in_turns(run, ways).items():
        flop = 2 * 9 * batch * channels**2 * side**2
        rates(run, f"convolution {channels} at {side}, {name}", seconds, flop / 1e12, "TFLOP/s")


def _normalization(run: Run) -> None:
    """Measures GroupNorm(32) and SiLU on the largest activation, in ways that a network could use."""
    shape = (run.size(64, 2), run.size(128, 32), run.size(256, 16), run.size(256, 16))
    x = torch.randn(shape, device=run.device).bfloat16().to(memory_format=torch.channels_last)
    norm = torch.nn.GroupNorm(32, shape[1], eps=1e-6).to(run.device)
    half = torch.nn.GroupNorm(32, shape[1], eps=1e-6).to(run.device).bfloat16()
    silu = torch.nn.functional.silu

    def autocast() -> object:
        with torch.autocast(run.device, torch.bfloat16):
            return silu(norm(x))

    with compiling(run):
        compiled = torch.compile(lambda values: silu(half(values)), dynamic=False)
    ways: dict[str, Callable[[], object]] = {
        "eager, autocast": autocast, "eager, bf16": lambda: silu(half(x)), "inductor, bf16": lambda: compiled(x),
    }  # fmt: skip
    if standins.has("triton"):
        ways["fused"] = lambda: fused_group_norm_silu(x, half)
        _same(run, x, half)
    else:
        run.not_run("GroupNorm and SiLU, fused", "Triton is missing")
    for name, seconds in in_turns(run, ways).items():
        rates(run, f"GroupNorm and SiLU, {name}", seconds, 3 * x.nbytes / 1e12, "TB/s of 3 passes")


def _same(run: Run, x: torch.Tensor, norm: torch.nn.GroupNorm) -> None:
    """Checks the fused kernel: the same bits at each call, and torch's values within a unit in the last place."""
    first = fused_group_norm_silu(x, norm)
    again = all(torch.equal(first, fused_group_norm_silu(x, norm)) for _ in range(3))
    run.check("fused GroupNorm: the same bits again", again, again, True)
    assert norm.weight is not None
    assert norm.bias is not None
    exact = torch.nn.functional.group_norm(x.float(), 32, norm.weight.float(), norm.bias.float(), norm.eps)
    expected = torch.nn.functional.silu(exact)
    unit = torch.ldexp(torch.tensor(2.0**-7, device=x.device), expected.abs().log2().floor()).clamp(min=2.0**-20)
    error = ((first.float() - expected).abs() / unit).max().item()
    run.check("fused GroupNorm: error in units of the last place", error <= 1.0, error, "<= 1", card_only=True)


def _jpegs(run: Run) -> None:
    """Measures torchvision's decoder on the card against the threads of latentq, for small and large pictures."""
    if not standins.has("torchvision"):
        run.not_run("JPEGs on the card", "torchvision is missing")
        return
    small = [file for file in photographs(run) if file.suffix.lower() in (".jpeg", ".jpg")][: run.size(64, 4)]
    large = [paint(run.folder / f"large{i}", i, (2250, 1500) if not run.dry else (90, 60)) for i in range(8)]
    large = [file for file in large if file.suffix == ".jpg"] * run.size(8, 1)
    if not small or not large:
        run.not_run("JPEGs on the card", "Pillow is missing, and so no JPEG is here")
        return
    for name, files in (("0.2 megapixels", small), ("3 megapixels", large)):
        with run.attempt(f"JPEGs of {name}"):
            _decode(run, name, files)


def _decode(run: Run, name: str, files: list[Path]) -> None:
    from torchvision.io import ImageReadMode, decode_jpeg

    data = [torch.from_numpy(np.fromfile(file, np.uint8)) for file in files]
    pixels: list[Any] = []

    def on_card() -> None:
        pixels[:] = decode_jpeg(data, mode=ImageReadMode.RGB, device=run.device)
        wait(run)

    size = run.size(256, 32)
    times: dict[str, list[float]] = {"nvJPEG": [], "latentq, decode and resize": []}
    for turn in range(4):
        for label, work in (
            ("nvJPEG", on_card),
            ("latentq, decode and resize", lambda: latentq.image.load_batch(files, size, threads=16)),
        ):
            start = time.perf_counter()
            work()
            if turn:
                times[label].append(time.perf_counter() - start)
    for label, seconds in times.items():
        run.number(f"{name}, {label}", len(files) / statistics.median(seconds), "img/s")
    worst = 0
    for file, found in zip(files[:16], pixels, strict=False):
        mine = latentq.image.decode(file, orient=False, icc="ignore").astype(int)
        worst = max(worst, int(np.abs(mine - found.permute(1, 2, 0).cpu().numpy()).max()))
    run.number(f"{name}, largest difference of nvJPEG's pixels", worst, "of 255")
