"""Shuffled batches of 256 latents (4, 32, 32) to float32, with labels, on the CPU: latentq against what else there is.

Every contender holds the same codes and labels, gives the same values (checked) in torch tensors, and is timed over
whole epochs after two that warm it up (latentq's reader holds what fits into memory from the second on), in turns, so
that what else the machine does meets all alike. The median counts. Rivals may take codes for a whole batch and
dequantise it at once, which is the fastest way with each; mosaicml decodes as the page of imagenet.int8 does.

    python benches/loader.py [--samples 25600] [--rounds 5] [--only NAME ...]
"""

import argparse
import contextlib
import functools
import io
import json
import multiprocessing
import os
import statistics
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from latentq import LatentDataset, Quantizer, Recipe, mds

BATCH = 256
SHAPE = (4, 32, 32)
SIZE = int(np.prod(SHAPE))
LOW, HIGH = -12.0, 12.0  # so that the decode of imagenet.int8's page is right
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
Epoch = Callable[[], Iterable[tuple[torch.Tensor, torch.Tensor]]]


def dequantize(codes: torch.Tensor) -> torch.Tensor:
    return codes.float().mul_((HIGH - LOW) / 255).add_(LOW)


def batched(rows: Iterable[bytes], labels: Iterable[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes as bytes, joined and dequantised at once."""
    codes = np.frombuffer(b"".join(rows), np.uint8).reshape(-1, *SHAPE)
    return dequantize(torch.from_numpy(codes.copy())), torch.tensor(list(labels))


# latentq


def dataset(folder: Path, dtype: torch.dtype = torch.float32) -> LatentDataset:
    return LatentDataset(folder / "mds", recipe=RECIPE, quantizer=QUANTIZER, dtype=dtype)


def pairs(loader: Iterable[dict[str, torch.Tensor]]) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    return ((batch["latent"], batch["label"]) for batch in loader)


def latentq_loader(folder: Path, dtype: torch.dtype = torch.float32) -> Epoch:
    loader = dataset(folder, dtype).loader(BATCH, shuffle=True)
    return lambda: pairs(loader)


def latentq_uncached(folder: Path, dtype: torch.dtype = torch.float32) -> Epoch:
    """The loader as it reads what does not fit into memory: sample by sample from the files."""
    source = dataset(folder, dtype)
    source._reader = mds.Reader(folder / "mds", cache_bytes=0)
    loader = source.loader(BATCH, shuffle=True)
    return lambda: pairs(loader)


def latentq_workers(folder: Path, workers: int) -> Epoch:
    source = dataset(folder)
    loader = DataLoader(source, collate_fn=source.collate, **torch_options(workers))
    return lambda: pairs(loader)


def latentq_resident(folder: Path, dtype: torch.dtype = torch.float32) -> Epoch:
    loader = dataset(folder, dtype).to_device("cpu").loader(BATCH, shuffle=True)
    return lambda: pairs(loader)


def torch_options(workers: int) -> dict[str, object]:
    return {"batch_size": BATCH, "shuffle": True, "num_workers": workers, "persistent_workers": workers > 0}


# Rivals


class Memmap(Dataset):
    def __init__(self, folder: Path) -> None:
        self.codes = np.load(folder / "codes.npy", mmap_mode="r")
        self.labels = np.load(folder / "labels.npy")

    def __len__(self) -> int:
        return len(self.labels)

    def __getitems__(self, indices: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
        return dequantize(torch.from_numpy(self.codes[indices])), torch.from_numpy(self.labels[indices])


def identity(batch: object) -> object:
    return batch


def numpy_memmap(folder: Path, workers: int) -> Epoch:
    loader = DataLoader(Memmap(folder), collate_fn=identity, **torch_options(workers))
    return lambda: loader


def mosaicml(folder: Path, workers: int) -> Epoch:
    from streaming import StreamingDataset
    from streaming.base.format.mds.encodings import Encoding, _encodings
    from streaming.base.util import clean_stale_shared_memory

    class uint8(Encoding):  # noqa: N801  (as on the page of imagenet.int8)
        def encode(self, obj: np.ndarray) -> bytes:
            return obj.tobytes()

        def decode(self, data: bytes) -> np.ndarray:
            x = np.frombuffer(data, np.uint8).astype(np.float32)
            return (x / 255.0 - 0.5) * 24.0

    _encodings["uint8"] = uint8
    clean_stale_shared_memory()
    source = StreamingDataset(local=str(folder / "raw"), shuffle=True, shuffle_algo="naive", batch_size=BATCH)
    loader = DataLoader(source, batch_size=BATCH, num_workers=workers, persistent_workers=workers > 0)
    return lambda: ((b["latent"].view(-1, *SHAPE), b["label"]) for b in loader)


def litdata_collate(items: list[tuple[bytes, int]]) -> tuple[torch.Tensor, torch.Tensor]:
    return batched(*zip(*items, strict=True))


def litdata(folder: Path, workers: int) -> Epoch:
    from litdata import StreamingDataLoader, StreamingDataset

    source = StreamingDataset(str(folder / "litdata"), shuffle=True)
    loader = StreamingDataLoader(
        source, batch_size=BATCH, num_workers=workers, collate_fn=litdata_collate, persistent_workers=workers > 0
    )
    return lambda: loader


def webdataset_collate(items: list[tuple[bytes, bytes]]) -> tuple[torch.Tensor, torch.Tensor]:
    rows, labels = zip(*items, strict=True)
    return batched(rows, map(int, labels))


def webdataset(folder: Path, workers: int) -> Epoch:
    import webdataset as wds

    shards = sorted(str(path) for path in (folder / "tar").iterdir())
    source = wds.WebDataset(shards, shardshuffle=len(shards)).shuffle(1000).to_tuple("bin", "cls")
    source = source.batched(BATCH, collation_fn=webdataset_collate)
    loader = wds.WebLoader(source, batch_size=None, num_workers=workers, persistent_workers=workers > 0)
    return lambda: loader


class Arrow(Dataset):
    def __init__(self, folder: Path) -> None:
        from datasets import load_from_disk

        self.rows = load_from_disk(str(folder / "arrow"))

    def __len__(self) -> int:
        return len(self.rows)

    def __getitems__(self, indices: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
        batch = self.rows[indices]
        return batched(batch["latent"], batch["label"])


def hf_datasets(folder: Path, workers: int) -> Epoch:
    loader = DataLoader(Arrow(folder), collate_fn=identity, **torch_options(workers))
    return lambda: loader


class Given(Dataset):
    """One batch that is there already: what the DataLoader and its workers cost by themselves."""

    def __init__(self, folder: Path) -> None:
        self.labels = torch.from_numpy(np.load(folder / "labels.npy"))
        self.latents = torch.zeros(BATCH, *SHAPE)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitems__(self, indices: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
        return self.latents[: len(indices)], self.labels[: len(indices)]


def given(folder: Path, workers: int) -> Epoch:
    loader = DataLoader(Given(folder), collate_fn=identity, **torch_options(workers))
    return lambda: loader


def read_and_kernel(folder: Path) -> Epoch:
    """A bound: on one thread, a positioned read a sample from one file, and the kernel, into the same memory."""
    labels = torch.from_numpy(np.load(folder / "labels.npy"))
    descriptor = os.open(folder / "codes.bin", os.O_RDONLY)
    codes = np.empty((BATCH, *SHAPE), np.uint8)
    rows = [[memoryview(row).cast("B")] for row in codes]
    latents = np.empty(codes.shape, np.float32)

    def epoch() -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        for indices in torch.randperm(len(labels)).split(BATCH):
            for row, index in zip(rows, indices.tolist(), strict=False):
                os.preadv(descriptor, row, index * SIZE)
            QUANTIZER.dequantize(codes, out=latents)
            yield torch.from_numpy(latents)[: len(indices)], labels[indices]

    return epoch


def both_cores(folder: Path, epochs: int = 5) -> float:
    """Samples a second that two processes read and dequantise, each as `read_and_kernel` does."""
    context = multiprocessing.get_context("fork")
    barrier, rates = context.Barrier(2), context.SimpleQueue()

    def run() -> None:
        epoch = read_and_kernel(folder)
        count = sum(len(labels) for _, labels in epoch())
        barrier.wait()
        start = time.perf_counter()
        for _ in range(epochs):
            for _batch in epoch():
                pass
        rates.put(epochs * count / (time.perf_counter() - start))

    processes = [context.Process(target=run) for _ in range(2)]
    for process in processes:
        process.start()
    total = sum(rates.get() for _ in processes)
    for process in processes:
        process.join()
    return float(total)


CONTENDERS: dict[str, Callable[[Path], Epoch]] = {
    "latentq loader": latentq_loader,
    "latentq loader, bfloat16": functools.partial(latentq_loader, dtype=torch.bfloat16),
    "latentq loader, files only": latentq_uncached,
    "latentq loader, files only, bf16": functools.partial(latentq_uncached, dtype=torch.bfloat16),
    "latentq resident": latentq_resident,
    "latentq resident, bfloat16": functools.partial(latentq_resident, dtype=torch.bfloat16),
    "LatentDataset, 0 workers": functools.partial(latentq_workers, workers=0),
    "LatentDataset, 2 workers": functools.partial(latentq_workers, workers=2),
    "read + kernel, one thread": read_and_kernel,
    "DataLoader alone, 0 workers": functools.partial(given, workers=0),
    "DataLoader alone, 2 workers": functools.partial(given, workers=2),
    "NumPy memmap, 0 workers": functools.partial(numpy_memmap, workers=0),
    "NumPy memmap, 2 workers": functools.partial(numpy_memmap, workers=2),
    "mosaicml, 0 workers": functools.partial(mosaicml, workers=0),
    "mosaicml, 2 workers": functools.partial(mosaicml, workers=2),
    "litdata, 2 workers": functools.partial(litdata, workers=2),
    "webdataset, 2 workers": functools.partial(webdataset, workers=2),
    "HF datasets, 0 workers": functools.partial(hf_datasets, workers=0),
    "HF datasets, 2 workers": functools.partial(hf_datasets, workers=2),
}


@functools.cache
def stored_codes(folder: str) -> np.ndarray:
    return np.load(Path(folder) / "codes.npy", mmap_mode="r")


def litdata_item(index: int, folder: str) -> tuple[bytes, int]:
    return stored_codes(folder)[index].tobytes(), index


def prepare(folder: Path, samples: int, names: list[str]) -> None:
    """The same codes and labels in every layout."""
    rng = np.random.default_rng(0)
    codes = rng.integers(0, 256, (samples, *SHAPE), np.uint8)
    labels = np.arange(samples)  # so that a label tells which sample it is
    np.save(folder / "codes.npy", codes)
    np.save(folder / "labels.npy", labels)
    codes.tofile(folder / "codes.bin")
    for name, encoding in (("mds", "ndarray:uint8:4,32,32"), ("raw", "raw:uint8")):
        with mds.Writer(folder / name, {"latent": encoding, "label": "int"}) as writer:
            writer.write_batch({"latent": codes, "label": labels})
    if any(name.startswith("litdata") for name in names):
        from litdata import optimize

        optimize(
            functools.partial(litdata_item, folder=str(folder)),
            inputs=list(range(samples)),
            output_dir=str(folder / "litdata"),
            chunk_bytes="64MB",
            num_workers=1,
        )
        # litdata sets spawn for the whole process, which would lose what mosaicml's contender registers.
        multiprocessing.set_start_method("fork", force=True)
    if any(name.startswith("webdataset") for name in names):
        (folder / "tar").mkdir()
        for start in range(0, samples, 2560):
            with tarfile.open(folder / "tar" / f"{start:08d}.tar", "w") as tar:
                for i in range(start, min(start + 2560, samples)):
                    for suffix, data in (("bin", codes[i].tobytes()), ("cls", str(labels[i]).encode())):
                        entry = tarfile.TarInfo(f"{i:08d}.{suffix}")
                        entry.size = len(data)
                        tar.addfile(entry, io.BytesIO(data))
    if any(name.startswith("HF") for name in names):
        import datasets

        rows = {"latent": [row.tobytes() for row in codes], "label": labels.tolist()}
        datasets.Dataset.from_dict(rows).save_to_disk(str(folder / "arrow"))


def check(epoch: Epoch, folder: Path) -> None:
    """Every sample once, with the right values."""
    codes = np.load(folder / "codes.npy", mmap_mode="r")
    seen = []
    for latents, labels in epoch():
        if not seen:
            expected = torch.from_numpy(codes[labels.numpy()] * ((HIGH - LOW) / 255) + LOW)
            tolerance = 1e-5 if latents.dtype == torch.float32 else 0.05
            torch.testing.assert_close(latents.double(), expected, atol=tolerance, rtol=0)
        seen += labels.tolist()
    assert sorted(seen) == list(range(len(codes)))


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--samples", type=int, default=25_600)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", nargs="*", default=[])
    parser.add_argument("--folder", help="where the layouts are made; a temporary folder by default")
    options = parser.parse_args()
    names = [name for name in CONTENDERS if not options.only or any(part in name for part in options.only)]
    with tempfile.TemporaryDirectory(dir=options.folder) as temporary:
        folder = Path(temporary)
        with contextlib.redirect_stdout(sys.stderr):
            prepare(folder, options.samples, names)
        epochs = {}
        for name in names:
            epochs[name] = CONTENDERS[name](folder)
            for _ in range(2 if "alone" not in name else 0):
                check(epochs[name], folder)
            print(f"ready: {name}", file=sys.stderr, flush=True)
        seconds: dict[str, list[float]] = {name: [] for name in names}
        for _ in range(options.rounds):
            for name, epoch in epochs.items():
                start = time.perf_counter()
                for _batch in epoch():
                    pass
                seconds[name].append(time.perf_counter() - start)
        bound = both_cores(folder)
    rates = {name: options.samples / statistics.median(times) for name, times in seconds.items()}
    best = max((rate for name, rate in rates.items() if _is_rival(name)), default=float("nan"))
    mosaic = max((rate for name, rate in rates.items() if name.startswith("mosaicml")), default=float("nan"))
    print(f"{'':28}{'samples/s':>12}{'x mosaicml':>12}{'x best rival':>14}  range of samples/s")
    for name, rate in rates.items():
        low, high = (options.samples / edge(seconds[name]) for edge in (max, min))
        print(f"{name:28}{rate:>12,.0f}{rate / mosaic:>12.1f}{rate / best:>14.2f}  {low:,.0f} - {high:,.0f}")
    print(f"{'read + kernel, both cores':28}{bound:>12,.0f}")
    print(json.dumps({name: round(rate) for name, rate in rates.items()}), file=sys.stderr)


def _is_rival(name: str) -> bool:
    return name.startswith(("NumPy", "litdata", "webdataset", "HF"))


if __name__ == "__main__":
    main()
