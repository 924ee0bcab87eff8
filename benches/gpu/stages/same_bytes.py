"""Datasets are equal to the byte: again, after an interruption, by two ranks, next to a broken file, with any flag."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

import latentq
from gpu import child
from gpu.harness import Run
from gpu.networks import tiny
from gpu.pictures import Repeated, compiling, differing, encode, photographs, recipe
from latentq import mds


class Bytes:
    """The runs of this stage, all of the same pictures.

    Attributes:
        base: The dataset that others are compared with, in float32.
    """

    def __init__(self, run: Run) -> None:
        self.run = run
        self.files = photographs(run)
        self.network = tiny(run)
        self.count, self.unit, self.batch, self.size = (96, 40, 16, 64) if not run.dry else (8, 4, 2, 16)
        self.base = self.encode("base", "float32")

    def encode(self, name: str, dtype: str, *, network: Any = None, source: Any = None, **options: Any) -> Path:
        """Encodes; returns the dataset."""
        out = self.run.folder / name
        own_recipe = recipe(self.size, dtype=dtype, unit_size=self.unit)
        source = source or Repeated(self.files, self.count)
        encode(self.run, source, out, network or self.network, own_recipe, batch_size=self.batch, **options)
        return out

    def same(self, name: str, out: Path, other: Path | None = None) -> None:
        """Checks that a dataset equals another, by default the base."""
        different = differing(out, other or self.base)
        self.run.check(name, not different, different, "the same bytes")

    def codes(self, out: Path) -> np.ndarray:
        """Returns the codes of a dataset."""
        return np.asarray(mds.Reader(out).gather(range(len(mds.Reader(out))), "latent"))

    def start(self, out: Path, **options: Any) -> Any:
        """Starts a process that encodes."""
        overrides = {"dtype": "float32", "unit_size": self.unit}
        return child.start(
            self.run, self.files, self.count, out, self.size, overrides, batch_size=self.batch, **options
        )


def work(run: Run) -> None:
    """Runs every comparison; one that fails costs no other."""
    runs = Bytes(run)
    parts: list[tuple[str, Callable[[], None]]] = [
        (f"{dtype} twice", partial(_twice, runs, dtype)) for dtype in ("float32", "tf32", "bfloat16", "float16")
    ]
    parts += [
        ("interrupted", partial(_interrupted, runs)), ("two ranks", partial(_ranks, runs)),
        ("two processes at once", partial(_processes, runs)), ("one broken file", partial(_broken, runs)),
        ("dct-f8c16", partial(_dct, runs)), ("CUDA and CPU", partial(_devices, runs)),
        ("compiled, resumed", partial(_compiled, runs)),
    ]  # fmt: skip
    for name, part in parts:
        with run.attempt(name):
            part()
    for name, setting in SETTINGS.items():
        with run.attempt(name), setting():
            runs.same(name, runs.encode(name.replace(" ", "-"), "float32"))


def _twice(runs: Bytes, dtype: str) -> None:
    out = runs.base if dtype == "float32" else runs.encode(dtype, dtype)
    runs.same(f"{dtype} twice", runs.encode(f"{dtype} again", dtype), out)


def _interrupted(runs: Bytes) -> None:
    source = Repeated(runs.files, runs.count, interrupt=runs.unit + 2)
    try:
        runs.encode("interrupted", "float32", source=source)
    except KeyboardInterrupt:
        runs.run.check("interrupted in the second unit", source.interrupt < 0, "interrupted", "interrupted")
    runs.same("interrupted", runs.encode("interrupted", "float32", source=source))


def _ranks(runs: Bytes) -> None:
    for rank in range(2):
        out = runs.encode("ranks", "float32", rank=rank, world_size=2)
    runs.same("two ranks", out)


def _processes(runs: Bytes) -> None:
    out = runs.run.folder / "processes"
    other = runs.start(out, rank=0, world_size=2)
    runs.encode("processes", "float32", rank=1, world_size=2)
    child.finish(runs.run, other)
    # The process that ends last completes the dataset, unless both looked before the other was done: then the same
    # command does.
    runs.same("two processes at once", runs.encode("processes", "float32"))


def _broken(runs: Bytes) -> None:
    """Codes of all other samples equal those of the run without it: batches keep their shape."""
    broken, broken_index = runs.run.folder / "broken.jpg", runs.unit + 1
    broken.write_bytes(b"\xff\xd8\xff\xe0 this is no picture")
    out = runs.encode("broken", "float32", source=Repeated(runs.files, runs.count, replaced={broken_index: broken}))
    expected, found = np.delete(runs.codes(runs.base), broken_index, 0), runs.codes(out)
    equal = expected.shape == found.shape and bool((expected == found).all())
    runs.run.check("one broken file", equal, f"{len(found)} samples", f"{len(expected)} samples, the same codes")


def _dct(runs: Bytes) -> None:
    network: Any = latentq.load_autoencoder("dct-f8c16")
    outs = [
        runs.encode(f"dct {device}", "float32", network=network, device=device) for device in (runs.run.device, "cpu")
    ]
    runs.same("dct-f8c16 on CUDA and CPU", *outs)


def _devices(runs: Bytes) -> None:
    try:
        cpu = runs.encode("cpu", "float32", network=runs.network.to("cpu"), device="cpu")
    finally:
        runs.network.to(runs.run.device)
    difference = np.abs(runs.codes(runs.base).astype(int) - runs.codes(cpu))
    runs.run.check(
        "CUDA and CPU, share of other codes", (difference > 0).mean() < 1e-3, (difference > 0).mean(), "< 1e-3"
    )
    runs.run.check("CUDA and CPU, largest difference", difference.max() <= 1, difference.max(), "<= 1")


def _compiled(runs: Bytes) -> None:
    """A unit that a new process compiles and encodes again has the same bytes."""
    out = runs.run.folder / "compiled"
    with compiling(runs.run):
        runs.encode("compiled", "float32", compiled=True)
        kept = runs.encode("compiled too", "float32", compiled=True)
    runs.same("compiled twice", out, kept)
    if runs.run.dry:
        runs.run.not_run("compiled, a unit by a new process", "nothing is compiled for a CPU")
        return
    unit = sorted(path for path in out.iterdir() if path.is_dir())[-1]
    for file in unit.iterdir():
        file.unlink()
    unit.rmdir()
    (out / "index.json").unlink(missing_ok=True)
    child.finish(runs.run, runs.start(out, compiled=True))
    runs.same("compiled, a unit by a new process", out, kept)


@contextlib.contextmanager
def _high() -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


@contextlib.contextmanager
def _precision(path: str, value: str) -> Iterator[None]:
    """Sets `fp32_precision` of torch >= 2.9 in one place; afterwards a place that inherited it inherits it again."""
    broken_index: Any = torch.backends
    parent = broken_index
    for part in filter(None, path.split(".")):
        parent, broken_index = broken_index, getattr(broken_index, part)
    before = broken_index.fp32_precision
    if broken_index is not parent and before == parent.fp32_precision:
        before = "none"
    broken_index.fp32_precision = value
    try:
        yield
    finally:
        broken_index.fp32_precision = before


SETTINGS: dict[str, Callable[[], Any]] = {"set_float32_matmul_precision high": _high}
if hasattr(torch.backends.cudnn, "conv"):
    SETTINGS |= {
        "cudnn.conv ieee": partial(_precision, "cudnn.conv", "ieee"),
        "cudnn.conv tf32": partial(_precision, "cudnn.conv", "tf32"),
        "backends tf32": partial(_precision, "", "tf32"),
    }
