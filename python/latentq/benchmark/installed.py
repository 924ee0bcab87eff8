"""The contenders of each group with those rivals that are installed."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from latentq.benchmark import quantizing, shards
from latentq.benchmark.turns import Contenders
from latentq.system.extras import is_installed

if TYPE_CHECKING:
    from latentq.benchmark.loading import Epoch
    from latentq.benchmark.quantizing import Arrays, Work


def quantizers(title: str, *, compiled: bool = True) -> Contenders:
    """Returns contenders that quantize or dequantize `quantizing.arrays`.

    Args:
        title: One of `quantizing.TITLES`.
        compiled: With torch.compile, which takes seconds to compile and needs a C++ compiler.
    """
    works: dict[str, Work] = dict(quantizing.NUMPY[title])
    if is_installed("torch"):
        from latentq.benchmark.quantizing_torch import COMPILED, TORCH

        for name, work in TORCH[title].items():
            works[name] = _by_threads(works[name], work) if name in quantizing.LIMITS else work
        if compiled:
            works["torch.compile"] = COMPILED[title]
    return works


def _by_threads(one: Work, many: Work) -> Work:
    """Returns work on one thread by NumPy, and on several by torch, whose limits use all of them."""

    def work(data: Arrays) -> object:
        return one(data) if data.threads == 1 else many(data)

    return work


def writers() -> Contenders:
    """Returns contenders that write `shards.Writing`."""
    works: dict[str, Callable[[shards.Writing], object]] = dict(shards.WRITE)
    if is_installed("streaming"):
        from latentq.benchmark.shards_mosaicml import write

        works["MDSWriter, then fsync"] = write
    return works


def single_readers() -> Contenders:
    """Returns contenders that read samples of `shards.Reading` one by one."""
    works: dict[str, Callable[[shards.Reading], object]] = dict(shards.SINGLES)
    if is_installed("streaming"):
        from latentq.benchmark.shards_mosaicml import read

        works["MDSReader[i]"] = read
    return works


def loaders(folder: Path) -> Contenders:
    """Returns one epoch of each contender, warmed up by epochs whose values are checked.

    Args:
        folder: A folder of `loading.write_numpy`.
    """
    from latentq.benchmark import loading

    epochs: dict[str, Epoch] = {
        "latentq": loading.loader(folder),
        "latentq, resident": loading.resident(folder),
        "NumPy memmap, DataLoader": loading.numpy_memmap(folder, 0),
    }
    if is_installed("streaming"):
        from latentq.benchmark.loading_mosaicml import mosaicml

        epochs["mosaicml-streaming"] = mosaicml(folder, 0)
    for name, epoch in epochs.items():
        for _ in range(4 if name.startswith("latentq") else 1):  # it caches shards in the second, in the background
            loading.check(epoch, folder)
    epochs[loading.BOUND] = loading.bare_reads(folder)  # its batches share a buffer, so they cannot be checked together
    return {name: functools.partial(_run, epoch) for name, epoch in epochs.items()}


def _run(epoch: Epoch, _data: object) -> None:
    for _batch in epoch():
        pass
