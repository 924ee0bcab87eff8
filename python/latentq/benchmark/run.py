"""The groups of `latentq bench`."""

from __future__ import annotations

import functools
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from latentq.benchmark import codecs, installed, pixels, quantizing, shards
from latentq.benchmark.group import Group
from latentq.benchmark.turns import CORES
from latentq.system.extras import is_installed

_SAMPLES = 12_800  # latents of 4 KiB that are written and read
_READS, _BATCHES = 1_000, 25
_QUICK_ROUNDS = 3

Prepared = tuple[str, Callable[[], Group]]
"""A group's title, and a function that prepares the group."""


@dataclass(frozen=True)
class Plan:
    """Choice of what to measure.

    Attributes:
        folder: A new folder for files, on the file system to measure.
        images: A folder with JPEGs; None makes pictures.
        quick: Fewer rounds, and no torch.compile.
    """

    folder: Path
    images: Path | None = None
    quick: bool = False


def groups(plan: Plan) -> Iterator[Prepared]:
    """Yields the groups in the order of the table.

    Args:
        plan: What to measure.
    """
    for part in (_quantizing, _codecs, _pixels, _shards, _loading):
        for title, prepare in part(plan):
            yield title, functools.partial(_prepare, title, prepare, plan)


def skipped(plan: Plan) -> list[str]:
    """Returns a sentence for each part that is not measured here, and why."""
    notes = []
    if not is_installed("torch"):
        notes.append("the loader and the device are not measured: torch is not installed")
    else:
        from latentq.benchmark.device import best_device

        if best_device() is None:
            notes.append("no device is measured: torch finds none")
        if not _compiled(plan):
            notes.append(f"torch.compile is not measured: {'--quick' if plan.quick else 'there is no C++ compiler'}")
    if not is_installed("streaming"):
        notes.append("mosaicml-streaming is not measured: it is not installed")
    return notes


def _prepare(title: str, prepare: Callable[[], Group], plan: Plan) -> Group:
    group = prepare()
    return replace(group, title=title, rounds=_QUICK_ROUNDS if plan.quick else group.rounds)


def _compiled(plan: Plan) -> bool:
    return not plan.quick and any(map(shutil.which, ("c++", "g++", "clang++")))


def _quantizing(plan: Plan) -> Iterator[Prepared]:
    for threads in sorted({1, CORES}):
        suffix = f", {threads} thread{'s' * (threads > 1)}"
        for title in quantizing.TITLES:
            if threads == 1 or (title.endswith("warm") and is_installed("torch")):  # NumPy's limits have one thread
                yield title + suffix, functools.partial(_codes_and_values, title, threads, compiled=_compiled(plan))
    for title, works in (
        ("dtypes and bits to codes, 1 thread", quantizing.QUANTIZE_TYPES),
        ("codes to dtypes, 1 thread", quantizing.DEQUANTIZE_TYPES),
    ):
        yield title, functools.partial(_types, works)


def _codes_and_values(title: str, threads: int, *, compiled: bool) -> Group:
    if is_installed("torch"):
        import torch

        torch.set_num_threads(threads)
    # OpenMP's workers spin for a while after a call of torch, on the cores that the next contender needs.
    options = {"untimed_call": True, "rest": 0.0 if threads == 1 else 0.02}
    works = installed.quantizers(title, compiled=compiled)
    return Group(
        title, works, quantizing.arrays(threads), quantizing.VALUES, "values", limits=quantizing.LIMITS, rounds=5,
        options=options,
    )  # fmt: skip


def _types(works: Mapping[str, Callable[[quantizing.Types], object]]) -> Group:
    named = {name if name in quantizing.LIMITS else f"latentq {name}": work for name, work in works.items()}
    return Group(
        "", named, quantizing.types(), quantizing.VALUES, "values", ours=next(iter(named)), limits=quantizing.LIMITS,
        rounds=5, options={"untimed_call": True},
    )  # fmt: skip


def _codecs(_plan: Plan) -> Iterator[Prepared]:
    for title, works, values in (
        ("4 bits a value to float32, 1 thread", codecs.DECODE, codecs.COUNT * codecs.ELEMENTS),
        ("float32 to 4 bits a value, 1 thread", codecs.ENCODE, codecs.ENCODED),
    ):
        yield title, functools.partial(_codec, works, values)


def _codec(works: Mapping[str, Callable[[codecs.Codes], object]], values: int) -> Group:
    data = codecs.codes(codecs.COUNT)
    return Group("", works, data, values, "values", ours="latentq affine", limits=quantizing.LIMITS)


def _pixels(plan: Plan) -> Iterator[Prepared]:
    for title, works in (
        ("JPEGs to pixels, 1 thread", pixels.DECODE),
        ("resize to 256 and crop, 1 thread", pixels.FIT),
        ("JPEGs to 256 crops, 1 thread", pixels.LOAD),
    ):
        yield title, functools.partial(_pictures, plan.images, works)


def _pictures(images: Path | None, works: Mapping[str, pixels.Work]) -> Group:
    files = pixels.files(images)
    pixels.check(files)
    return Group("", works, files, len(files.encoded), "images", limits=pixels.LIMITS)


def _shards(plan: Plan) -> Iterator[Prepared]:
    opened = functools.cache(lambda: shards.reading(plan.folder, _SAMPLES, _READS, _BATCHES))

    def gather(works: Mapping[str, Callable[[shards.Reading], object]]) -> Group:
        items = _BATCHES * shards.BATCH
        return Group("", works, opened(), items, "samples", ours=next(iter(works)), limits=(shards.BARE_READ,))

    def singles() -> Group:
        return Group("", installed.single_readers(), opened(), _READS, "samples", ours="latentq Reader[i]")

    yield "write samples of 4 KiB, on the disk at the end", functools.partial(_writing, plan)
    yield "read random single samples", singles
    yield "256 shuffled samples to float32, new", functools.partial(gather, shards.GATHER_NEW)
    yield "256 shuffled samples to float32, warm", functools.partial(gather, shards.GATHER_WARM)


def _writing(plan: Plan) -> Group:
    data = shards.Writing(plan.folder / "written", *shards.samples(_SAMPLES))
    return Group(
        "", installed.writers(), data, _SAMPLES, "samples", ours="latentq Writer.write_batch",
        limits=(shards.BARE_WRITE,), rounds=5, options={"setup": shards.Writing.clear},
    )  # fmt: skip


def _loading(plan: Plan) -> Iterator[Prepared]:
    if not is_installed("torch"):
        return
    from latentq.benchmark import device, loading

    @functools.cache
    def folder() -> Path:
        path = plan.folder / "loading"
        path.mkdir()
        loading.write_numpy(path, _SAMPLES)
        return path

    def epochs() -> Group:
        works = installed.loaders(folder())
        return Group("", works, None, _SAMPLES, "samples", limits=(loading.BOUND,), rounds=3)

    yield "shuffled epochs to float32 tensors", epochs
    best = device.best_device()
    if best is not None:
        yield f"uint8 to float32, {best}", functools.partial(_on_device, best)
        yield f"shuffled epochs, to {best}", functools.partial(_epochs_to_device, folder, best)


def _on_device(device: Any) -> Group:
    from latentq.benchmark.device import DEQUANTIZE, on_device

    data = on_device(device)
    return Group("", DEQUANTIZE, data, quantizing.VALUES, "values", limits=quantizing.LIMITS, options={"warmup": 3})


def _epochs_to_device(folder: Callable[[], Path], device: Any) -> Group:
    from latentq.benchmark.device import epochs

    return Group("", epochs(folder(), device), None, _SAMPLES, "samples", rounds=5, options={"warmup": 4})
