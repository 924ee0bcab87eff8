"""The contenders of `bench_loader.py`: the same codes and labels in the layout of every tool, and an epoch over each.

Those that `latentq bench` has too are in `latentq.benchmark.loading`. Every epoch is shuffled and gives batches of 256
latents (4, 32, 32) as float32 tensors, with labels, on the CPU. A rival may take the codes of a whole batch and
dequantize them at once, which is the fastest way with each; mosaicml decodes as the page of imagenet.int8 does.
"""

import functools
import multiprocessing
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from race import writers
from torch.utils.data import DataLoader, Dataset

from latentq import mds
from latentq.benchmark.loading import (
    BATCH,
    CODES,
    LABELS,
    SHAPE,
    Batch,
    Epoch,
    bare_reads,
    dequantize,
    identity,
    latent_dataset,
    loader,
    numpy_memmap,
    pairs,
    resident,
    torch_options,
)
from latentq.benchmark.loading_mosaicml import mosaicml


def write_layout(folder: Path, name: str) -> Path:
    """Write the codes and labels of `folder` in one layout, unless it is there already; its path."""
    path = folder / name
    if not path.exists():
        codes, labels = np.load(folder / CODES, mmap_mode="r"), np.load(folder / LABELS)
        WRITERS[name](path, codes, labels)
    return path


def write_litdata(path: Path, codes: Any, labels: Any) -> None:
    method = multiprocessing.get_start_method()
    writers.litdata(path, codes, labels)
    # litdata sets spawn for the whole process, which would lose the encoding that is registered with mosaicml.
    multiprocessing.set_start_method(method, force=True)


WRITERS: dict[str, Callable[[Path, Any, Any], None]] = {
    "litdata": write_litdata,
    "tar": writers.tars,
    "arrow": writers.hf_datasets,
}


def collate(rows: Iterable[bytes], labels: Iterable[int]) -> Batch:
    """Join codes, given as bytes, and dequantize them at once."""
    codes = np.frombuffer(b"".join(rows), np.uint8).reshape(-1, *SHAPE)
    return dequantize(torch.from_numpy(codes.copy())), torch.tensor(list(labels))


# latentq


def loader_uncached(folder: Path, dtype: torch.dtype = torch.float32) -> Epoch:
    """The loader on a dataset that does not fit into the reader's cache: sample by sample from the files."""
    dataset = latent_dataset(folder, dtype)
    dataset._reader = mds.Reader(folder / "mds", cache_bytes=0)
    return pairs(dataset.loader(BATCH, shuffle=True))


def torch_loader(folder: Path, workers: int) -> Epoch:
    dataset = latent_dataset(folder)
    return pairs(DataLoader(dataset, collate_fn=dataset.collate, **torch_options(workers)))


# Rivals


def litdata_collate(items: list[tuple[bytes, int]]) -> Batch:
    return collate(*zip(*items, strict=True))


def litdata(folder: Path, workers: int) -> Epoch:
    from litdata import StreamingDataLoader, StreamingDataset

    source = StreamingDataset(str(write_layout(folder, "litdata")), shuffle=True)
    batches = StreamingDataLoader(
        source, batch_size=BATCH, num_workers=workers, collate_fn=litdata_collate, persistent_workers=workers > 0
    )
    return lambda: batches


def webdataset_collate(items: list[tuple[bytes, bytes]]) -> Batch:
    rows, labels = zip(*items, strict=True)
    return collate(rows, map(int, labels))


def webdataset(folder: Path, workers: int) -> Epoch:
    import webdataset as wds

    shards = sorted(str(path) for path in write_layout(folder, "tar").iterdir())
    source = wds.WebDataset(shards, shardshuffle=len(shards)).shuffle(1000).to_tuple("bin", "cls")
    source = source.batched(BATCH, collation_fn=webdataset_collate)
    batches = wds.WebLoader(source, batch_size=None, num_workers=workers, persistent_workers=workers > 0)
    return lambda: batches


class Arrow(Dataset[Any]):
    def __init__(self, path: Path) -> None:
        from datasets import load_from_disk

        self.rows = load_from_disk(str(path))

    def __len__(self) -> int:
        return len(self.rows)

    def __getitems__(self, indices: list[int]) -> Batch:
        batch = self.rows[indices]
        return collate(batch["latent"], batch["label"])


def hf_datasets(folder: Path, workers: int) -> Epoch:
    batches = DataLoader(Arrow(write_layout(folder, "arrow")), collate_fn=identity, **torch_options(workers))
    return lambda: batches


# Bounds: no rivals, but what no loader can beat


class Constant(Dataset[Any]):
    """The same batch again and again: the cost of the DataLoader and its workers alone."""

    def __init__(self, folder: Path) -> None:
        self.labels = torch.from_numpy(np.load(folder / "labels.npy"))
        self.latents = torch.zeros(BATCH, *SHAPE)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitems__(self, indices: list[int]) -> Batch:
        return self.latents[: len(indices)], self.labels[: len(indices)]


def constant(folder: Path, workers: int) -> Epoch:
    batches = DataLoader(Constant(folder), collate_fn=identity, **torch_options(workers))
    return lambda: batches


class TwoProcesses:
    """Two processes that each read and dequantize one half of the batches whenever they are told to."""

    def __init__(self, folder: Path) -> None:
        context = multiprocessing.get_context("fork")
        self._barrier = context.Barrier(3)
        for half in range(2):
            context.Process(target=self._work, args=(folder, slice(half, None, 2)), daemon=True).start()

    def _work(self, folder: Path, part: slice) -> None:
        epoch = bare_reads(folder, part)
        while True:
            self._barrier.wait()
            for _batch in epoch():
                pass
            self._barrier.wait()

    def __call__(self) -> Iterable[Batch]:
        self._barrier.wait()
        self._barrier.wait()
        return ()


CONTENDERS: dict[str, Callable[[Path], Epoch]] = {
    "latentq loader": loader,
    "latentq loader, bfloat16": functools.partial(loader, dtype=torch.bfloat16),
    "latentq loader, files only": loader_uncached,
    "latentq loader, files only, bfloat16": functools.partial(loader_uncached, dtype=torch.bfloat16),
    "latentq resident": resident,
    "latentq resident, bfloat16": functools.partial(resident, dtype=torch.bfloat16),
    "LatentDataset, 0 workers": functools.partial(torch_loader, workers=0),
    "LatentDataset, 2 workers": functools.partial(torch_loader, workers=2),
    "NumPy memmap, 0 workers": functools.partial(numpy_memmap, workers=0),
    "NumPy memmap, 2 workers": functools.partial(numpy_memmap, workers=2),
    "mosaicml, 0 workers": functools.partial(mosaicml, workers=0),
    "mosaicml, 2 workers": functools.partial(mosaicml, workers=2),
    "litdata, 2 workers": functools.partial(litdata, workers=2),
    "webdataset, 2 workers": functools.partial(webdataset, workers=2),
    "HF datasets, 0 workers": functools.partial(hf_datasets, workers=0),
    "HF datasets, 2 workers": functools.partial(hf_datasets, workers=2),
}
BOUNDS: dict[str, Callable[[Path], Epoch]] = {
    "bound: DataLoader alone, 0 workers": functools.partial(constant, workers=0),
    "bound: DataLoader alone, 2 workers": functools.partial(constant, workers=2),
    "bound: read + kernel, 1 thread": bare_reads,
    "bound: read + kernel, 2 processes": TwoProcesses,
}
