"""The contenders of `bench_loader.py`: the same codes and labels in the layout of every tool, and an epoch over each.

Every epoch is shuffled and gives batches of 256 latents (4, 32, 32) as float32 tensors, with labels, on the CPU. A
rival may take the codes of a whole batch and dequantize them at once, which is the fastest way with each; mosaicml
decodes as the page of imagenet.int8 does.
"""

import functools
import io
import multiprocessing
import os
import tarfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from latentq import LatentDataset, Quantizer, Recipe, mds

BATCH = 256
SHAPE = (4, 32, 32)
SIZE = int(np.prod(SHAPE))
LOW, HIGH = -12.0, 12.0  # for which the decoding on the page of imagenet.int8 is right
QUANTIZER = Quantizer.uniform(LOW, HIGH, channels=SHAPE[0])
RECIPE = Recipe.from_dict(
    {
        "name": "bench",
        "columns": {
            "latent": {"from": "latent", "encoding": "ndarray:uint8:4,32,32"},
            "label": {"from": "label", "encoding": "int"},
        },
    }
)
Batch = tuple[torch.Tensor, torch.Tensor]
Epoch = Callable[[], Iterable[Batch]]


def write_layout(folder: Path, name: str) -> Path:
    """Write the codes and labels of `folder` in one layout, unless it is there already; its path."""
    path = folder / name
    if not path.exists():
        codes, labels = np.load(folder / "codes.npy", mmap_mode="r"), np.load(folder / "labels.npy")
        WRITERS[name](path, codes, labels)
    return path


def write_numpy(folder: Path, samples: int) -> None:
    """The codes and labels that every other layout is made from."""
    codes = np.random.default_rng(0).integers(0, 256, (samples, *SHAPE), np.uint8)
    np.save(folder / "codes.npy", codes)
    np.save(folder / "labels.npy", np.arange(samples))  # a label tells which sample it is


def write_mds(path: Path, codes: Any, labels: Any, encoding: str) -> None:
    with mds.Writer(path, {"latent": encoding, "label": "int"}) as writer:
        writer.write_batch({"latent": np.asarray(codes), "label": labels})


@functools.cache
def stored_codes(path: str) -> Any:
    return np.load(path, mmap_mode="r")


def litdata_item(index: int, codes: str) -> tuple[bytes, int]:
    return stored_codes(codes)[index].tobytes(), index


def write_litdata(path: Path, codes: Any, labels: Any) -> None:
    from litdata import optimize

    method = multiprocessing.get_start_method()
    optimize(
        functools.partial(litdata_item, codes=str(path.parent / "codes.npy")),
        inputs=list(range(len(codes))),
        output_dir=str(path),
        chunk_bytes="64MB",
        num_workers=1,
    )
    # litdata sets spawn for the whole process, which would lose the encoding that is registered with mosaicml.
    multiprocessing.set_start_method(method, force=True)


def write_tars(path: Path, codes: Any, labels: Any) -> None:
    path.mkdir()
    for start in range(0, len(codes), 2560):
        with tarfile.open(path / f"{start:08d}.tar", "w") as tar:
            for i in range(start, min(start + 2560, len(codes))):
                for suffix, data in (("bin", codes[i].tobytes()), ("cls", str(labels[i]).encode())):
                    entry = tarfile.TarInfo(f"{i:08d}.{suffix}")
                    entry.size = len(data)
                    tar.addfile(entry, io.BytesIO(data))


def write_arrow(path: Path, codes: Any, labels: Any) -> None:
    import datasets

    rows = {"latent": [row.tobytes() for row in codes], "label": labels.tolist()}
    datasets.Dataset.from_dict(rows).save_to_disk(str(path))


WRITERS: dict[str, Callable[[Path, Any, Any], None]] = {
    "mds": functools.partial(write_mds, encoding="ndarray:uint8:4,32,32"),
    "mds-raw": functools.partial(write_mds, encoding="raw:uint8"),
    "codes.bin": lambda path, codes, _labels: codes.tofile(path),
    "litdata": write_litdata,
    "tar": write_tars,
    "arrow": write_arrow,
}


def dequantize(codes: torch.Tensor) -> torch.Tensor:
    return codes.float().mul_((HIGH - LOW) / 255).add_(LOW)


def collate(rows: Iterable[bytes], labels: Iterable[int]) -> Batch:
    """Join codes, given as bytes, and dequantize them at once."""
    codes = np.frombuffer(b"".join(rows), np.uint8).reshape(-1, *SHAPE)
    return dequantize(torch.from_numpy(codes.copy())), torch.tensor(list(labels))


def identity(batch: object) -> object:
    return batch


def torch_options(workers: int) -> dict[str, Any]:
    return {"batch_size": BATCH, "shuffle": True, "num_workers": workers, "persistent_workers": workers > 0}


# latentq


def latent_dataset(folder: Path, dtype: torch.dtype = torch.float32) -> LatentDataset:
    return LatentDataset(write_layout(folder, "mds"), recipe=RECIPE, quantizer=QUANTIZER, dtype=dtype)


def pairs(loader: Iterable[dict[str, torch.Tensor]]) -> Epoch:
    return lambda: ((batch["latent"], batch["label"]) for batch in loader)


def loader(folder: Path, dtype: torch.dtype = torch.float32) -> Epoch:
    return pairs(latent_dataset(folder, dtype).loader(BATCH, shuffle=True))


def loader_uncached(folder: Path, dtype: torch.dtype = torch.float32) -> Epoch:
    """The loader on a dataset that does not fit into the reader's cache: sample by sample from the files."""
    dataset = latent_dataset(folder, dtype)
    dataset._reader = mds.Reader(folder / "mds", cache_bytes=0)
    return pairs(dataset.loader(BATCH, shuffle=True))


def resident(folder: Path, dtype: torch.dtype = torch.float32) -> Epoch:
    return pairs(latent_dataset(folder, dtype).to_device("cpu").loader(BATCH, shuffle=True))


def torch_loader(folder: Path, workers: int) -> Epoch:
    dataset = latent_dataset(folder)
    return pairs(DataLoader(dataset, collate_fn=dataset.collate, **torch_options(workers)))


# Rivals


class Memmap(Dataset[Any]):
    def __init__(self, folder: Path) -> None:
        self.codes = np.load(folder / "codes.npy", mmap_mode="r")
        self.labels = np.load(folder / "labels.npy")

    def __len__(self) -> int:
        return len(self.labels)

    def __getitems__(self, indices: list[int]) -> Batch:
        return dequantize(torch.from_numpy(self.codes[indices])), torch.from_numpy(self.labels[indices])


def numpy_memmap(folder: Path, workers: int) -> Epoch:
    batches = DataLoader(Memmap(folder), collate_fn=identity, **torch_options(workers))
    return lambda: batches


def mosaicml(folder: Path, workers: int) -> Epoch:
    from streaming import StreamingDataset
    from streaming.base.format.mds.encodings import Encoding, _encodings
    from streaming.base.util import clean_stale_shared_memory

    class uint8(Encoding):  # noqa: N801  (the name on the page of imagenet.int8)
        def encode(self, obj: Any) -> bytes:
            return obj.tobytes()

        def decode(self, data: bytes) -> Any:
            x = np.frombuffer(data, np.uint8).astype(np.float32)
            return (x / 255.0 - 0.5) * 24.0

    path = write_layout(folder, "mds-raw")
    _encodings["uint8"] = uint8
    clean_stale_shared_memory()
    source = StreamingDataset(local=str(path), shuffle=True, shuffle_algo="naive", batch_size=BATCH)
    batches = DataLoader(source, batch_size=BATCH, num_workers=workers, persistent_workers=workers > 0)
    return lambda: ((b["latent"].view(-1, *SHAPE), b["label"]) for b in batches)


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


def read_and_dequantize(folder: Path, part: slice = slice(None)) -> Epoch:
    """One thread: one positioned read per sample from one file, and the kernel, into the same buffers."""
    labels = torch.from_numpy(np.load(folder / "labels.npy"))
    file = write_layout(folder, "codes.bin").open("rb")
    codes = np.empty((BATCH, *SHAPE), np.uint8)
    rows = [[memoryview(row).cast("B")] for row in codes]
    latents = np.empty(codes.shape, np.float32)

    def epoch() -> Iterable[Batch]:
        for indices in torch.randperm(len(labels)).split(BATCH)[part]:
            for row, index in zip(rows, indices.tolist(), strict=False):
                os.preadv(file.fileno(), row, index * SIZE)
            QUANTIZER.dequantize(codes, out=latents)
            yield torch.from_numpy(latents)[: len(indices)], labels[indices]

    return epoch


class TwoProcesses:
    """Two processes that each read and dequantize one half of the batches whenever they are told to."""

    def __init__(self, folder: Path) -> None:
        write_layout(folder, "codes.bin")
        context = multiprocessing.get_context("fork")
        self._barrier = context.Barrier(3)
        for half in range(2):
            context.Process(target=self._work, args=(folder, slice(half, None, 2)), daemon=True).start()

    def _work(self, folder: Path, part: slice) -> None:
        epoch = read_and_dequantize(folder, part)
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
    "bound: read + kernel, 1 thread": read_and_dequantize,
    "bound: read + kernel, 2 processes": TwoProcesses,
}
