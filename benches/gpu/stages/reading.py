"""Readers on the device: the same batches as on the CPU, how fast, and what they cost a training step."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch

from gpu import shards
from gpu.harness import Run
from gpu.measure import wait
from gpu.stages.env import STATE, query
from latentq import LatentDataset

BATCH = 256
KINDS = ("affine8", "affine4", "codebook8", "float16")
MIB = 1 << 20


def work(run: Run) -> None:
    """Measures every kind of column."""
    count, batch = run.size(131_072, 640), run.size(BATCH, 64)
    folders = {kind: shards.make(run.folder / kind, kind, count) for kind in KINDS}
    folders["moments"] = shards.make(run.folder / "moments", "moments", count // 16)
    for kind, folder in folders.items():
        for dtype in (torch.float32, torch.bfloat16):
            with run.attempt(f"{kind} {dtype}"):
                _equal(run, kind, LatentDataset(folder, dtype=dtype), batch)
    for kind in KINDS:
        dataset = LatentDataset(folders[kind], dtype=torch.bfloat16)
        with run.attempt(f"{kind} alone"):
            _alone(run, kind, dataset, batch)
    with run.attempt("next to a step"):
        _next_to_a_step(run, {kind: LatentDataset(folders[kind], dtype=torch.bfloat16) for kind in KINDS}, batch)
    with run.attempt("resident"):
        _resident(run, LatentDataset(folders["affine8"]))
    with run.attempt("DataLoader"):
        _workers(run, LatentDataset(folders["affine8"]), batch)
    run.results.set_env(card_at_end=query(STATE))  # of the stages that always run


def _loaders(run: Run, dataset: LatentDataset, batch: int, **options: Any) -> dict[str, Any]:
    """Returns the loaders on the device, by name."""
    return {
        "loader": dataset.loader(batch, device=run.device, **options),
        "resident": dataset.to_device(run.device).loader(batch, **options),
    }


def _equal(run: Run, kind: str, dataset: LatentDataset, batch: int) -> None:
    """Checks that one shuffled epoch is the same on the CPU, sent to the device, and resident."""
    loaders = _loaders(run, dataset, batch, shuffle=True)
    most = len(dataset) // batch if dataset.layout.dtype == torch.float32 else 64
    different = {name: torch.zeros((), dtype=torch.int64, device=run.device) for name in loaders}
    largest = torch.zeros((), device=run.device)
    for number, (expected, *found) in enumerate(
        zip(dataset.loader(batch, shuffle=True), *loaders.values(), strict=True)
    ):
        if number >= most:
            break
        for name, given in zip(loaders, found, strict=True):
            for key, value in expected.items():
                value, other = value.to(run.device), given[key].to(run.device)
                different[name] += (value != other).sum()
                if kind == "moments" and value.is_floating_point():
                    largest = torch.maximum(largest, ((value.float() - other.float()).abs() / (1 + value.abs())).max())
    short = str(dataset.layout.dtype).removeprefix("torch.")
    if kind == "moments":  # drawn by exp, which differs in the last bit
        limit = 1e-6 if short == "float32" else 1e-2
        run.check(f"{kind} {short}, relative difference", largest.item() <= limit, largest.item(), f"<= {limit:g}")
        return
    for name, count in different.items():
        run.check(f"{kind} {short}, {name}", count.item() == 0, count.item(), 0)


def _alone(run: Run, kind: str, dataset: LatentDataset, batch: int) -> None:
    """Measures batches per second, and the time of the host in `next`."""
    for name, loader in _loaders(run, dataset, batch, shuffle=True).items():
        times = []
        iterator = iter(loader)
        next(iterator)
        wait(run)
        start = time.perf_counter()
        while True:
            before = time.perf_counter()
            try:
                values = next(iterator)
            except StopIteration:
                break
            times.append(time.perf_counter() - before)
        wait(run)
        rate = len(times) / (time.perf_counter() - start)
        run.number(f"{kind}, {name}", rate, "batches/s")
        del values
        times.sort()
        run.number(f"{kind}, {name}: host in next, median", 1e6 * statistics.median(times), "us")
        run.number(f"{kind}, {name}: host in next, 99 %", 1e6 * times[int(len(times) * 0.99)], "us")
        run.number(f"{kind}, {name}: values", rate * batch * 4096 * 2 / 1e9, "GB/s")
        _operations(run, f"{kind}, {name}", loader)


def _operations(run: Run, name: str, loader: Any) -> None:
    """Records how many kernels and copies one batch takes."""
    if run.dry:
        return
    from torch.profiler import ProfilerActivity, profile

    iterator = iter(loader)
    next(iterator)
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        for _ in range(8):
            next(iterator)
        torch.cuda.synchronize()
    iterator.close()
    events = profiler.key_averages()
    copies = sum(event.count for event in events if event.key.startswith(("Memcpy", "Memset")))
    run.number(f"{name}: copies per batch", copies / 8, "")
    run.number(f"{name}: kernels per batch", (sum(event.count for event in events) - copies) / 8, "")


def _next_to_a_step(run: Run, sets: dict[str, LatentDataset], batch: int) -> None:
    """Measures steps of known length with a constant batch and with each reader, in turns."""
    side, steps, rounds = run.size(8192, 64), run.size(50, 4), 3 if not run.dry else 1
    a, b = (torch.randn(side, side, device=run.device).to(torch.bfloat16) for _ in range(2))
    out = torch.empty_like(a)
    constant = torch.zeros(batch, *shards.SHAPE, dtype=torch.bfloat16, device=run.device)
    sources: dict[str, Callable[[], Iterator[Any]]] = {"constant": lambda: iter([{"latent": constant}] * steps)}
    for kind, dataset in sets.items():
        for name, loader in _loaders(run, dataset, batch, shuffle=True).items():
            sources[f"{kind}, {name}"] = lambda loader=loader: iter(loader)  # type: ignore[misc]
    rates: dict[str, list[float]] = {name: [] for name in sources}
    for turn in range(rounds + 1):
        for name, source in sources.items():
            iterator = source()
            wait(run)
            start = time.perf_counter()
            for _ in range(steps):
                a[0, :4] = next(iterator)["latent"][0, :, 0, 0]  # so that the products need the batch
                for _ in range(8):
                    torch.mm(a, b, out=out)
            wait(run)
            if turn:
                rates[name].append(steps / (time.perf_counter() - start))
            getattr(iterator, "close", lambda: None)()
    for name, values in rates.items():
        run.number(f"steps next to {name}", statistics.median(values), "steps/s", values)
        if name != "constant":
            loss = statistics.median(1 - mine / base for mine, base in zip(values, rates["constant"], strict=True))
            run.check(f"{name}: steps are slower by", loss <= 0.01, f"{loss:.2%}", "<= 1%", card_only=True)


def _resident(run: Run, dataset: LatentDataset) -> None:
    """Checks the memory of a resident dataset, and that too large a one is refused before anything is allocated."""
    if run.dry:
        run.not_run("resident memory", "it is the card's")
        return
    torch.cuda.empty_cache()
    before, start = torch.cuda.memory_allocated(), time.perf_counter()
    resident = dataset.to_device("cuda")
    torch.cuda.synchronize()
    run.number("resident: time to load", time.perf_counter() - start, "s")
    more = torch.cuda.memory_allocated() - before - dataset.resident_bytes
    limit = 2 * MIB * len(resident.columns)
    run.check("resident: memory beyond resident_bytes", abs(more) <= limit, more, f"within {limit}")
    del resident
    torch.cuda.empty_cache()
    taken = torch.empty(torch.cuda.mem_get_info()[0] - 100 * MIB, dtype=torch.uint8, device="cuda")
    before, said = torch.cuda.memory_allocated(), "no error"
    try:
        dataset.to_device("cuda")
    except MemoryError as error:
        said = str(error)
    allocated = torch.cuda.memory_allocated() - before
    run.check("resident: too large", "needs" in said and not allocated, f"{said}; {allocated} bytes", "MemoryError, 0")
    del taken
    torch.cuda.empty_cache()


def _workers(run: Run, dataset: LatentDataset, batch: int) -> None:
    """Checks an epoch of torch's DataLoader, whose workers are forked when the device is already in use."""
    loader = torch.utils.data.DataLoader(
        dataset, batch_size=batch, num_workers=4 if not run.dry else 2, pin_memory=not run.dry, persistent_workers=True,
        collate_fn=dataset.collate,
    )  # fmt: skip
    different = count = 0
    start = time.perf_counter()
    for mine, expected in zip(loader, dataset.loader(batch), strict=True):
        on_device = mine["latent"].to(run.device, non_blocking=True)
        different += int((on_device != expected["latent"].to(run.device)).sum())
        count += len(on_device)
    run.number("DataLoader with workers, compared", count / (time.perf_counter() - start), "samples/s")
    run.check("DataLoader with workers", different == 0 and count == len(dataset), different, 0, f"{count} samples")
