"""Versions, the card, torch's defaults, and the ceilings that other numbers are compared with."""

from __future__ import annotations

import contextlib
import importlib
import os
import platform
import statistics
import subprocess
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from gpu import standins
from gpu.harness import Run
from gpu.measure import in_turns, rates
from latentq.system.processors import processors

PRODUCT = "bf16 product, TFLOP/s"
COPY = "device copy, read and write, TB/s"
STATE = "name,clocks.sm,power.draw"  # of the card, before and after
_PIXELS = 64 * 256 * 256 * 3  # bytes of a batch


def work(run: Run) -> None:
    """Records facts, and measures ceilings."""
    run.results.set_env(**_facts(run), torch_defaults=_defaults())
    run.check("a card is there", run.device == "cpu" or torch.cuda.is_available(), run.device, "cuda", card_only=True)
    side = run.size(8192, 64)
    a, b = (torch.randn(side, side, device=run.device).to(torch.bfloat16) for _ in range(2))
    source = torch.randint(0, 255, (run.size(2 << 30),), dtype=torch.uint8, device=run.device)
    target = torch.empty_like(source)
    nbytes = run.size(256 << 20)
    on_device = torch.randint(0, 255, (nbytes,), dtype=torch.uint8, device=run.device)
    pageable, pinned = on_device.cpu(), _pinned(run, nbytes).copy_(on_device)
    seconds = in_turns(
        run,
        {
            "product": lambda: a @ b,
            "copy": lambda: target.copy_(source),
            "host to device, pinned": lambda: on_device.copy_(pinned, non_blocking=True),
            "host to device, pageable": lambda: on_device.copy_(pageable),
            "device to host, pinned": lambda: pinned.copy_(on_device, non_blocking=True),
            "device to host, pageable": lambda: pageable.copy_(on_device),
        },
    )
    rates(run, PRODUCT, seconds.pop("product"), 2 * side**3 / 1e12, "TFLOP/s")
    rates(run, COPY, seconds.pop("copy"), 2 * source.nbytes / 1e12, "TB/s")
    for name, values in seconds.items():
        rates(run, name, values, nbytes / 1e9, "GB/s")
    _pinning(run)


def _pinned(run: Run, nbytes: int) -> torch.Tensor:
    return torch.empty(nbytes, dtype=torch.uint8, pin_memory=not run.dry)


def _pinning(run: Run) -> None:
    """Measures how long page-locked memory takes to get, new and from torch's cache."""
    times = []
    for _ in range(10):
        start = time.perf_counter()
        memory = _pinned(run, run.size(_PIXELS))
        times.append(1e6 * (time.perf_counter() - start))
        del memory
    run.number("12.6 MB of pinned memory, first", times[0], "us")
    run.number("12.6 MB of pinned memory, again", statistics.median(times[1:]), "us", times[1:])


def _facts(run: Run) -> dict[str, Any]:
    facts: dict[str, Any] = {"json": run.results.file.name, "python": platform.python_version()}
    for package in ("torch", "triton", "numpy", "torchvision", "diffusers", "latentq"):
        with contextlib.suppress(PackageNotFoundError):
            facts[package] = version(package)
    facts.setdefault("latentq", importlib.import_module("latentq").__version__)
    if torch.backends.cudnn.is_available():
        facts["cuDNN"] = torch.backends.cudnn.version()
    if torch.cuda.is_available():
        card = torch.cuda.get_device_properties(0)
        facts |= {"card": card.name, "memory": card.total_memory, "cards": torch.cuda.device_count()}
        facts |= {"driver": query("driver_version"), "card_at_start": query(STATE)}
    quota = Path("/sys/fs/cgroup/cpu.max")
    facts |= {
        "processors": os.cpu_count(),
        "affinity": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else "",
        "threads by default": processors(),
        "cpu.max": quota.read_text().strip() if quota.exists() else "",
        "commit": _commit(),
        "stand-ins": standins.MISSING,
    }
    return facts


def query(fields: str) -> str:
    """Returns what nvidia-smi says about the card; empty if it does not run."""
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        command = ["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader"]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    return ""


def _commit() -> str:
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        command = ["git", "-C", str(standins.ROOT), "rev-parse", "--short", "HEAD"]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    return ""


def _defaults() -> dict[str, Any]:
    """Returns the settings of torch that decide which arithmetic is used."""
    names = (
        "cudnn.enabled", "cudnn.benchmark", "cudnn.deterministic", "cudnn.allow_tf32", "cudnn.conv.fp32_precision",
        "cuda.matmul.allow_tf32", "cuda.matmul.fp32_precision", "fp32_precision",
        "cuda.matmul.allow_bf16_reduced_precision_reduction",
    )  # fmt: skip
    found: dict[str, Any] = {}
    for name in names:
        value: Any = torch.backends
        with contextlib.suppress(AttributeError, RuntimeError):  # an older torch, or two interfaces that were mixed
            for part in name.split("."):
                value = getattr(value, part)
            found[name] = value
    found["float32_matmul_precision"] = torch.get_float32_matmul_precision()
    return found
