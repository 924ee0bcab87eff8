"""Out of memory: the batch is halved, the failed attempt's memory is given back, and the result is that of the half."""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import Any

import torch

from gpu.harness import Run
from gpu.networks import sdxl_sized
from gpu.pictures import Repeated, differing, encode, photographs, recipe

LIMIT = 6 << 30  # bytes that the process may have
MIB = 1 << 20


class Watched:
    """A network's `posterior` that counts what was raised, and the memory in use when the next call begins.

    Attributes:
        raised: Type and text of each exception.
        after: Bytes in use at the first call after an exception.
        batches: The size of each call's batch.
    """

    def __init__(self, run: Run, network: Any) -> None:
        self._run = run
        self._posterior = network.posterior
        self.raised: list[str] = []
        self.after: list[int] = []
        self.batches: list[int] = []
        self._failed = False

    def __call__(self, pixels: torch.Tensor) -> Any:
        if self._failed:
            self._failed = False
            self.after.append(0 if self._run.dry else torch.cuda.memory_allocated())
        self.batches.append(len(pixels))
        try:
            if self._run.dry and len(pixels) > 3:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")
            return self._posterior(pixels)
        except Exception as error:
            self.raised.append(f"{type(error).__name__}: {str(error)[:120]}")
            self._failed = True
            raise


def work(run: Run) -> None:
    """Encodes with too large a batch, with a fixed range and with a calibrated one."""
    network, files = sdxl_sized(run), photographs(run)
    size, count, batch = run.size(256, 16), run.size(256, 12), run.size(64, 8)
    weights = 0
    if not run.dry:
        weights = torch.cuda.memory_allocated()
        torch.cuda.set_per_process_memory_fraction(LIMIT / torch.cuda.get_device_properties(0).total_memory)
    posterior = network.posterior
    for kind in ("uniform", "affine"):
        with run.attempt(kind):
            watched = network.posterior = Watched(run, network)
            out, said = run.folder / kind, io.StringIO()
            own_recipe = recipe(size, dtype="bfloat16", quantizer=None if kind == "uniform" else {"kind": "affine"})
            try:
                encode(run, Repeated(files, count), out, network, own_recipe, batch_size=batch, progress=said)
                run.check(f"{kind}: runs through", True, "runs", "runs")
            finally:
                network.posterior = posterior
                run.check(f"{kind}: was out of memory", watched.raised, watched.raised, "at least once")
            _judge(run, kind, watched, said.getvalue(), weights, size)
            _compare(run, kind, Repeated(files, count), out, network, own_recipe, watched.batches[-1])


def _judge(run: Run, kind: str, watched: Watched, said: str, weights: int, size: int) -> None:
    """Checks what was said, how often it failed, and the memory of the next attempt."""
    halved = [int(number) for number in re.findall(r"retrying with batch size (\d+)", said)]
    run.check(
        f"{kind}: it says the batch",
        halved and halved[-1] == watched.batches[-1],
        halved,
        f"..., {watched.batches[-1]}",
    )
    # A batch that fits at the first try after the failures shows that none failed twice with one size.
    run.check(
        f"{kind}: each size fails once", len(watched.raised) == len(set(halved)), len(watched.raised), len(set(halved))
    )
    for number, (used, batch) in enumerate(zip(watched.after, halved, strict=False)):
        most = weights + batch * 3 * size * size * (1 + 4) + 16 * MIB  # pixels as bytes and as floats
        note = f"weights {weights / MIB:.0f} MiB, batch {batch}"
        run.check(
            f"{kind}: memory given back, {number + 1}", used <= most, f"{used / MIB:.0f} MiB",
            f"<= {most / MIB:.0f} MiB", note, card_only=True,
        )  # fmt: skip


def _compare(run: Run, kind: str, source: Any, out: Path, network: Any, own_recipe: Any, batch: int) -> None:
    """Checks that a run that begins with the batch which fits gives the same bytes."""
    other = run.folder / f"{kind} again"
    encode(run, source, other, network, own_recipe, batch_size=batch)
    different = differing(out, other)
    run.check(f"{kind}: as a run begun with batches of {batch}", not different, different, "the same bytes")
