"""The bare network in every arithmetic that could run it: images per second and memory, side by side."""

from __future__ import annotations

import contextlib
import copy
import time
from collections.abc import Callable
from typing import Any

import torch

from gpu import standins
from gpu.harness import Run
from gpu.measure import in_turns, rates, ratio, wait
from gpu.networks import GFLOP, bare, sdxl_sized
from gpu.pictures import compiling
from gpu.stages.env import PRODUCT
from latentq.models.group_norm import with_fused_norms
from latentq.models.precision import computing_in

Work = Callable[[], object]
BATCH = 64
BARE = "f compiled bf16"
CHOSEN = "g compiled bf16, deterministic convolutions"


def work(run: Run) -> None:
    """Measures all ways in turns, those that work here."""
    network = sdxl_sized(run)
    size, batch = run.size(256, 16), run.size(BATCH, 2)
    pixels = torch.rand(batch, 3, size, size, device=run.device) * 2 - 1
    with compiling(run), torch.no_grad():
        ways: dict[str, Work] = {}
        for name, way in _ways(run, network, pixels).items():
            with run.attempt(name):
                _warm(run, name, way)
                ways[name] = way
        seconds = in_turns(run, ways, warm=2)
        for name, values in seconds.items():
            rates(run, name, values, batch, "img/s")
        if {BARE, CHOSEN} <= seconds.keys():
            cost = ratio(seconds[BARE], seconds[CHOSEN])
            run.check("determinism costs little (g / f)", cost >= 0.98, cost, ">= 0.98", card_only=True)
        for name in ("c bf16 autocast", BARE):
            if name in ways:
                with run.attempt(f"profile of {name}"):
                    _profile(run, name, ways[name])
    product = run.earlier("env", PRODUCT)
    if product is not None and not run.dry:
        run.number("roofline: product / 272.7 GFLOP an image", product * 1e3 / GFLOP, "img/s")


def _ways(run: Run, network: Any, pixels: torch.Tensor) -> dict[str, Work]:
    """Returns the forward passes by name. The first letter is that of the plan; eager ones before compiled ones."""
    last = pixels.contiguous(memory_format=torch.channels_last)
    network.module.to(memory_format=torch.channels_last)
    device = torch.device(run.device)
    half: Any = copy.deepcopy(network.module).to(torch.bfloat16)
    plain: Any = copy.deepcopy(half).to(memory_format=torch.contiguous_format)
    small, small_last = pixels.bfloat16(), last.bfloat16()
    compiled = torch.compile(network.posterior, dynamic=False)
    frozen = torch.compile(bare(half), dynamic=False)

    def inside(context: Callable[[], Any], call: Callable[[torch.Tensor], object], values: torch.Tensor) -> Work:
        def way() -> object:
            with context():
                return call(values)

        return way

    def autocast() -> Any:
        return torch.autocast(run.device, torch.bfloat16)

    def as_encode(dtype: Any) -> Callable[[], Any]:
        return lambda: computing_in(dtype, device)

    ways = {
        "a float32": inside(as_encode("float32"), network.posterior, last),
        "b float32, torch's defaults": inside(contextlib.nullcontext, network.posterior, last),
        "b2 tf32": inside(as_encode("tf32"), network.posterior, last),
        "c bf16 autocast": inside(as_encode("bfloat16"), network.posterior, last),
        "d bf16 weights": inside(contextlib.nullcontext, bare(half), small_last),
        "e bf16 weights, NCHW": inside(contextlib.nullcontext, bare(plain), small),
        BARE: inside(autocast, compiled, last),
        CHOSEN: inside(as_encode("bfloat16"), torch.compile(network.posterior, dynamic=False), last),
        "h compiled, bf16 weights, frozen": inside(_freezing, frozen, small_last),
    }
    if not standins.has("triton"):
        run.not_run("fused norms", "Triton is missing")
        return ways
    fused, half_fused = with_fused_norms(network), copy.copy(network)
    half_fused.module = half
    ways["i bf16 autocast, fused norms"] = inside(as_encode("bfloat16"), fused.posterior, last)
    ways["j bf16 weights, fused norms"] = inside(contextlib.nullcontext, bare(with_fused_norms(half_fused)), small_last)
    return ways


@contextlib.contextmanager
def _freezing() -> Any:
    from torch._inductor import config

    before = config.freezing
    config.freezing = True
    try:
        yield
    finally:
        config.freezing = before


def _warm(run: Run, name: str, way: Work) -> None:
    """Calls a forward pass for the first time, which may compile, and measures its memory at the second."""
    start = time.perf_counter()
    way()
    wait(run)
    if "compiled" in name:
        run.number(f"{name}: first call", time.perf_counter() - start, "s")
    if not run.dry:
        torch.cuda.reset_peak_memory_stats()
        way()
        wait(run)
        run.number(f"{name}: memory", torch.cuda.max_memory_allocated() / 1e9, "GB")


def _profile(run: Run, name: str, way: Work) -> None:
    """Records the longest kernels of one call, their shares of its time, and the number of launches."""
    from torch.profiler import ProfilerActivity, profile

    kind = ProfilerActivity.CPU if run.dry else ProfilerActivity.CUDA
    way()
    wait(run)
    with profile(activities=[kind]) as profiler:
        way()
        wait(run)
    kernels = [
        (event.key, event.self_cpu_time_total if run.dry else event.self_device_time_total, event.count)
        for event in profiler.key_averages()
    ]
    kernels = sorted((kernel for kernel in kernels if kernel[1] > 0), key=lambda kernel: -kernel[1])
    total = sum(kernel[1] for kernel in kernels)
    run.number(f"{name}: launches", sum(kernel[2] for kernel in kernels), "")
    for key, microseconds, count in kernels[:12]:
        run.number(f"{name[0]}: {count} x {key[:70]}", 100 * microseconds / total, "% of the time")
