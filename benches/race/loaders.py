"""Shuffled epochs of batches of 256 latents (4, 32, 32) as float32 tensors on the CPU, with labels, by each loader.

The codes are in `codes.npy`, in MDS shards and in the layouts of litdata, webdataset and Hugging Face datasets, all in
one folder. A rival may take the codes of a whole batch and dequantize them at once, the fastest way with each.
"""

import functools
import gc
import os
import shutil
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch

BATCH = 256
SHAPE = (4, 32, 32)
SIZE = 4096
LOW, HIGH = -12.0, 12.0
WORKERS = 2
Batch = tuple[torch.Tensor, torch.Tensor]
Epoch = Callable[[], Iterable[Batch]]


class Contender:
    """One loader: opened by `prepare`, or by a `run` that finds it closed."""

    def __init__(self, make: Callable[[Path], Epoch], folder: Path, *, first: bool) -> None:
        self._make, self._folder, self._first = make, folder, first
        self._epoch: Epoch | None = None

    def prepare(self) -> None:
        """Open, and go through four epochs, in the first of which every sample comes once and has the right values."""
        self._epoch = self._make(self._folder)
        codes = np.load(self._folder / "codes.npy", mmap_mode="r")
        seen: list[int] = []
        for latents, labels in self._epoch():
            if not seen:
                expected = torch.from_numpy(codes[labels.numpy().ravel()] * ((HIGH - LOW) / 255) + LOW)
                torch.testing.assert_close(latents.double(), expected, atol=1e-5, rtol=0)
                assert latents.dtype == torch.float32
            seen += labels.ravel().tolist()
        assert len(seen) == len(codes), f"an epoch has {len(seen)} of {len(codes)} samples"
        assert sorted(seen) == list(range(len(codes))), "an epoch does not give every sample once"
        assert seen != sorted(seen), "the epoch is not shuffled"
        for _ in range(3):
            self.run()

    def close(self) -> None:
        self._epoch = None
        gc.collect()

    def run(self) -> None:
        if self._epoch is None:
            self._epoch = self._make(self._folder)
        for _batch in self._epoch():
            if self._first:
                break


def dequantize(codes: torch.Tensor) -> torch.Tensor:
    return codes.float().mul_((HIGH - LOW) / 255).add_(LOW)


def shuffled(samples: int) -> tuple[torch.Tensor, ...]:
    return torch.randperm(samples).split(BATCH)


def latentq(folder: Path) -> Epoch:
    from latentq.benchmark.loading import loader

    return loader(folder)


def numpy_memmap(folder: Path) -> Epoch:
    codes, labels = np.load(folder / "codes.npy", mmap_mode="r"), torch.from_numpy(np.load(folder / "labels.npy"))
    return lambda: ((dequantize(torch.from_numpy(codes[i.numpy()])), labels[i]) for i in shuffled(len(labels)))


class Reads:
    """Bound: one positioned read for each sample, in the order of a shuffled epoch, without dequantizing."""

    def __init__(self, folder: Path, threads: int) -> None:
        self._labels = torch.from_numpy(np.load(folder / "labels.npy"))
        self._start = np.load(folder / "codes.npy", mmap_mode="r").offset
        self._file = os.open(folder / "codes.npy", os.O_RDONLY)
        self._threads = ThreadPoolExecutor(threads)

    def _read(self, indices: torch.Tensor) -> Any:
        codes = np.empty((len(indices), *SHAPE), np.uint8)
        for row, index in zip(codes, indices.tolist(), strict=True):
            os.preadv(self._file, [memoryview(row).cast("B")], self._start + index * SIZE)
        return codes

    def __call__(self) -> Iterable[Batch]:
        batches = shuffled(len(self._labels))
        for indices, codes in zip(batches, self._threads.map(self._read, batches), strict=True):
            yield torch.from_numpy(codes), self._labels[indices]

    def __del__(self) -> None:
        self._threads.shutdown()
        os.close(self._file)


def from_codes(batches: Iterable[dict[str, Any]]) -> Epoch:
    """Epochs of a loader whose batches have codes and labels, stored as MDS."""

    def epoch() -> Iterable[Batch]:
        for batch in batches:
            codes = torch.as_tensor(np.asarray(batch["latent"])).view(-1, *SHAPE)
            yield dequantize(codes), torch.as_tensor(np.asarray(batch["label"])).view(-1)

    return epoch


def own_shards(folder: Path) -> Path:
    """A folder of hard links for this process: two processes of mosaicml-streaming may not have one folder open."""
    own = folder / f"mds-{os.getpid()}"
    if not own.exists():
        own.mkdir()
        for path in (folder / "mds").iterdir():
            os.link(path, own / path.name)
    return own


def streaming(folder: Path, workers: int) -> Epoch:
    """mosaicml-streaming and streaming-community, which share their code."""
    from streaming import StreamingDataset
    from torch.utils.data import DataLoader

    source = StreamingDataset(local=str(own_shards(folder)), shuffle=True, batch_size=BATCH)
    return from_codes(DataLoader(source, batch_size=BATCH, num_workers=workers, persistent_workers=workers > 0))


def neprr(folder: Path) -> Epoch:
    from streaming import StreamingDataLoader, StreamingDataset

    source = StreamingDataset(local=str(folder / "mds"), shuffle=True, batch_size=BATCH)
    return from_codes(StreamingDataLoader(source, batch_size=BATCH, num_workers=0, native_batching="required"))


def zephon(folder: Path) -> Epoch:
    from zephon import Pipeline
    from zephon.io import Dataset
    from zephon.work import StaticMixtureWorkSource

    def epoch() -> Iterable[Batch]:
        source = StaticMixtureWorkSource(
            datasets=[Dataset.from_path("codes", str(folder / "mds"))],
            mixture={"codes": 1.0},
            shuffle_block_size="global",
            exhausted_policy="redistribute",  # every sample once, then the end
            chunk_size=BATCH,
        )
        for batch in Pipeline(source).batch(BATCH, drop_last=False):
            rows = [record.payload for record in batch.records]
            codes = torch.from_numpy(np.stack([row["latent"] for row in rows]))
            yield dequantize(codes), torch.tensor([row["label"] for row in rows])

    return epoch


def collate(rows: Iterable[bytes], labels: Iterable[int]) -> Batch:
    codes = np.frombuffer(b"".join(rows), np.uint8).reshape(-1, *SHAPE)
    return dequantize(torch.from_numpy(codes.copy())), torch.tensor(list(labels))


def collate_items(items: list[tuple[bytes, Any]]) -> Batch:
    rows, labels = zip(*items, strict=True)
    return collate(rows, map(int, labels))


def litdata(folder: Path) -> Epoch:
    from litdata import StreamingDataLoader, StreamingDataset

    source = StreamingDataset(str(folder / "litdata"), shuffle=True)
    batches = StreamingDataLoader(
        source, batch_size=BATCH, num_workers=WORKERS, collate_fn=collate_items, persistent_workers=True
    )
    return lambda: batches


def webdataset(folder: Path) -> Epoch:
    import webdataset as wds

    shards = sorted(str(path) for path in (folder / "tar").iterdir())
    source = wds.WebDataset(shards, shardshuffle=len(shards)).shuffle(1000).to_tuple("bin", "cls")
    source = source.batched(BATCH, collation_fn=collate_items)
    batches = wds.WebLoader(source, batch_size=None, num_workers=WORKERS, persistent_workers=True)
    return lambda: batches


def hf_datasets(folder: Path) -> Epoch:
    from datasets import load_from_disk

    rows = load_from_disk(str(folder / "arrow"))

    def epoch() -> Iterable[Batch]:
        for indices in shuffled(len(rows)):
            batch = rows[indices.tolist()]
            yield collate(batch["latent"], batch["label"])

    return epoch


def turboloader(folder: Path) -> Epoch:
    from turboloader import ArrayDataLoader

    codes, labels = np.load(folder / "codes.npy", mmap_mode="r"), np.load(folder / "labels.npy")
    batches = ArrayDataLoader(codes, labels, batch_size=BATCH, shuffle=True)
    return lambda: ((dequantize(torch.as_tensor(np.asarray(x))), torch.as_tensor(np.asarray(y))) for x, y in batches)


def spdl(folder: Path) -> Epoch:
    """Batches of a memory map, taken and dequantized by SPDL's threads."""
    from spdl.pipeline import PipelineBuilder

    codes, labels = np.load(folder / "codes.npy", mmap_mode="r"), torch.from_numpy(np.load(folder / "labels.npy"))

    def take(indices: torch.Tensor) -> Batch:
        return dequantize(torch.from_numpy(codes[indices.numpy()])), labels[indices]

    def epoch() -> Iterable[Batch]:
        builder = PipelineBuilder().add_source(shuffled(len(labels))).pipe(take, concurrency=WORKERS).add_sink(4)
        pipeline = builder.build(num_threads=WORKERS)
        with pipeline.auto_stop():
            yield from pipeline

    return epoch


MAKERS: dict[str, Callable[[Path], Epoch]] = {
    "latentq": latentq,
    "plain reads, 1 thread": functools.partial(Reads, threads=1),
    "plain reads, 8 threads": functools.partial(Reads, threads=8),
    "NumPy memmap": numpy_memmap,
    "mosaicml-streaming, 0 workers": functools.partial(streaming, workers=0),
    "mosaicml-streaming, 2 workers": functools.partial(streaming, workers=WORKERS),
    "streaming-community, 0 workers": functools.partial(streaming, workers=0),
    "streaming-community, 2 workers": functools.partial(streaming, workers=WORKERS),
    "neprr-streaming, native batches": neprr,
    "zephon": zephon,
    "litdata, 2 workers": litdata,
    "webdataset, 2 workers": webdataset,
    "Hugging Face datasets": hf_datasets,
    "turboloader": turboloader,
    "SPDL, 2 threads": spdl,
}


class Bound(Contender):
    """A bound gives codes, so there are no values to check."""

    def prepare(self) -> None:
        for _ in range(2):
            self.run()


def contender(kind: str, name: str, folder: Path) -> Contender:
    if not name.startswith("latentq") and "SPDL" not in name:
        torch.set_num_threads(1)  # torch's pool costs more than it gives for batches of 1 MiB
    kinds = Bound if name.startswith("plain") else Contender
    return kinds(MAKERS[name.partition(" (")[0]], folder, first=kind == "first batch")


def clear(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
