"""512 pixels at batch 64: an activation of 2^31 elements, where 32-bit indices end."""

from __future__ import annotations

import statistics

import torch

from gpu.harness import Run
from gpu.measure import in_turns, rates, wait
from gpu.networks import sdxl_sized
from latentq.models.precision import computing_in


def work(run: Run) -> None:
    """Compares batches of 64 with batches of 16."""
    network, size = sdxl_sized(run), run.size(512, 16)
    network.module.to(memory_format=torch.channels_last)
    large, small = run.size(64, 4), run.size(16, 1)
    generator = torch.Generator().manual_seed(0)
    pixels = (torch.rand(large, 3, size, size, generator=generator) * 2 - 1).to(run.device)
    pixels = pixels.contiguous(memory_format=torch.channels_last)

    def forward(batch: int, first: int = 0) -> torch.Tensor:
        with torch.no_grad(), computing_in("bfloat16", torch.device(run.device)):
            mean: torch.Tensor = network.posterior(pixels[first : first + batch])[0]
        return mean

    expected = torch.cat([forward(small, first) for first in range(0, large, small)])
    with run.attempt(f"batch {large} at {size} pixels", passes=True):
        if not run.dry:
            torch.cuda.reset_peak_memory_stats()
        found = forward(large)
        wait(run)
        if not run.dry:
            run.number(f"batch {large}: memory", torch.cuda.max_memory_allocated() / 1e9, "GB")
        for row in (0, large // 2, large - 1):
            worst = ((found[row] - expected[row]).abs().max() / expected[row].abs().max()).item()
            run.check(f"row {row} of {large} as in batches of {small}", worst <= 1e-2, worst, "<= 1e-2 of the largest")
        seconds = in_turns(run, {"large": lambda: forward(large)}, repetitions=3, warm=1)["large"]
        rates(run, f"batch {large} at {size} pixels", seconds, large, "img/s")
    seconds = in_turns(run, {"small": lambda: forward(small)}, repetitions=10, warm=1)["small"]
    rates(run, f"batch {small} at {size} pixels", seconds, small, "img/s")
    run.number("one image", statistics.median(seconds) / small, "s")
