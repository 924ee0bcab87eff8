"""Samples that half precision cannot encode are encoded again in float32, and no others are touched."""

from __future__ import annotations

import statistics
import time
from typing import Any

import numpy as np
import torch

import latentq
from gpu.harness import Run
from gpu.networks import sdxl_sized
from gpu.pictures import Repeated, encode, paint, photographs, recipe
from latentq import mds

FLOAT32 = {"kind": "float32"}


class Fragile(torch.nn.Module):
    """The mean of blocks of pixels. In half precision, bright images get NaN or infinity, and others 1 more."""

    name = family = "fragile"
    pixel_range = (0.0, 1.0)

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(1), requires_grad=False)

    def latent_shape(self, size: int) -> tuple[int, int, int]:
        """Returns (3, size / 8, size / 8)."""
        return 3, size // 8, size // 8

    def encode(self, pixels: torch.Tensor) -> torch.Tensor:
        """Encodes (B, 3, S, S) pixels."""
        latents = torch.nn.functional.avg_pool2d(pixels, 8) * self.weight
        if torch.is_autocast_enabled(latents.device.type):
            latents = latents.half().float() + 1
            bright = latents.mean((1, 2, 3)) > 1.5
            latents[:, 0, 0, 0] = latents[:, 0, 0, 0].masked_fill(bright, torch.nan)
            latents[:, 1, 0, 0] = latents[:, 1, 0, 0].masked_fill(latents[:, 1].mean((1, 2)) > 1.5, torch.inf)
        return latents

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """Decodes latents."""
        return torch.nn.functional.interpolate(latents, scale_factor=8)


def work(run: Run) -> None:
    """Checks a network that fails on purpose, then a large one that overflows."""
    files = [paint(run.folder / "painted" / f"{i:02}", i, (60, 50)) for i in range(12)]
    network = Fragile().to(run.device)
    pixels = torch.from_numpy(latentq.image.load_batch(files, 32)[0]).to(run.device).float() * (1 / 255)
    with torch.no_grad():
        exact = network.encode(pixels).cpu()
        with torch.autocast(run.device, torch.bfloat16):
            half = network.encode(pixels).cpu()
    broken = ~half.isfinite().flatten(1).all(1)
    run.check("some images are bright", 0 < int(broken.sum()) < 12, int(broken.sum()), "1 to 11 of 12")
    for dtype in ("float16", "bfloat16"):
        for batch in (1, 5, 12):
            name = f"{dtype}, batches of {batch}"
            with run.attempt(name):
                own_recipe = recipe(32, dtype=dtype, quantizer=FLOAT32)
                out = run.folder / f"{dtype}{batch}"
                card = encode(run, Repeated(files, 12), out, network, own_recipe, batch_size=batch)
                assert card.counts is not None
                run.check(f"{name}: redone", card.counts.redone == int(broken.sum()), card.counts.redone, broken.sum())
                stored = torch.from_numpy(mds.Reader(out).gather(range(12), "latent"))
                wrong = ~(stored == torch.where(broken[:, None, None, None], exact, half)).flatten(1).all(1)
                run.check(f"{name}: to the bit", not wrong.any(), f"{int(wrong.sum())} samples differ", "0")
    with run.attempt("SDXL-sized"):
        _overflow(run)


def _overflow(run: Run) -> None:
    """Encodes with a network whose first layer overflows float16 for about half of the images."""
    network, files = sdxl_sized(run), photographs(run)
    size, count = run.size(256, 16), run.size(64, 8)
    pixels = torch.from_numpy(latentq.image.load_batch(files[:count], size, threads=4)[0]).to(run.device)
    first: Any = network.module.encoder.conv_in
    with torch.no_grad():
        largest = first(pixels.float() / 127.5 - 1).abs().amax((1, 2, 3)).median()
        scale = 65504 / largest.item()
        first.weight *= scale
        first.bias *= scale
    seconds = {}
    for dtype in ("float32", "float16"):
        start = time.perf_counter()
        card = encode(
            run, Repeated(files, count), run.folder / f"large {dtype}", network, recipe(size, dtype=dtype), batch_size=8
        )
        seconds[dtype] = time.perf_counter() - start
    assert card.counts is not None
    run.check("SDXL-sized: rejects", card.counts.rejects == 0, card.counts.rejects, 0)
    run.check("SDXL-sized: redone", card.counts.redone > 0, card.counts.redone, "> 0")
    single = []
    with torch.no_grad():
        for row in range(min(count, 10)):
            start = time.perf_counter()
            network.posterior(pixels[row : row + 1].float() / 127.5 - 1)[0].cpu()
            single.append(time.perf_counter() - start)
    run.number("one image alone in float32", statistics.median(single), "s", single)
    run.number("float16 run that redoes half of its images", seconds["float16"], "s")
    both = [mds.Reader(run.folder / f"large {dtype}").gather(range(count), "latent") for dtype in seconds]
    run.number("largest difference of codes, float16 and float32", int(np.abs(both[0].astype(int) - both[1]).max()), "")
