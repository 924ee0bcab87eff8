"""Whole shuffled epochs of batches of 256 latents (4, 32, 32) to float32 tensors on the CPU, with labels.

Contenders are latentq's loader, a NumPy memory map in a DataLoader, mosaicml-streaming where it is installed, and bare
reads. All dequantize the same codes; a rival may take those of a whole batch and dequantize them at once.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from latentq import mds
from latentq.format.recipe import Recipe
from latentq.quantizer import Quantizer
from latentq.reading.dataset import LatentDataset

BATCH = 256
SHAPE = (4, 32, 32)
SIZE = 4 * 32 * 32
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
CODES, LABELS = "codes.npy", "labels.npy"
BOUND = "read + kernel, 1 thread"
Batch = tuple[torch.Tensor, torch.Tensor]
Epoch = Callable[[], Iterable[Batch]]


def write_numpy(folder: Path, samples: int) -> None:
    """Writes codes and labels, which every other layout is made from. A label tells which sample it is."""
    codes = np.random.default_rng(0).integers(0, 256, (samples, *SHAPE), np.uint8)
    np.save(folder / CODES, codes)
    np.save(folder / LABELS, np.arange(samples))


def write_mds(folder: Path, name: str, encoding: str) -> Path:
    """Writes the codes and labels of `folder` as shards, unless they are there, and returns their folder.

    Args:
        folder: A folder of `write_numpy`.
        name: Name of the folder of the shards, in it.
        encoding: MDS encoding of the latents.
    """
    path = folder / name
    if not path.exists():
        with mds.Writer(path, {"latent": encoding, "label": "int"}, sync=False) as writer:
            writer.write_batch({"latent": np.load(folder / CODES), "label": np.load(folder / LABELS)})
    return path


def dequantize(codes: torch.Tensor) -> torch.Tensor:
    """Returns values of codes, as the page of imagenet.int8 computes them."""
    return codes.float().mul_((HIGH - LOW) / 255).add_(LOW)


def identity(batch: object) -> object:
    """Collates nothing: the dataset gives whole batches."""
    return batch


def torch_options(workers: int) -> dict[str, Any]:
    """Returns options of DataLoader."""
    return {"batch_size": BATCH, "shuffle": True, "num_workers": workers, "persistent_workers": workers > 0}


def latent_dataset(folder: Path, dtype: torch.dtype = torch.float32) -> LatentDataset:
    """Returns latentq's dataset of the codes."""
    path = write_mds(folder, "mds", "ndarray:uint8:4,32,32")
    return LatentDataset(path, recipe=RECIPE, quantizer=QUANTIZER, dtype=dtype)


def pairs(loader: Iterable[dict[str, torch.Tensor]]) -> Epoch:
    """Returns epochs of latents and labels."""
    return lambda: ((batch["latent"], batch["label"]) for batch in loader)


def loader(folder: Path, dtype: torch.dtype = torch.float32) -> Epoch:
    """Returns epochs of latentq's loader."""
    return pairs(latent_dataset(folder, dtype).loader(BATCH, shuffle=True))


def resident(folder: Path, dtype: torch.dtype = torch.float32) -> Epoch:
    """Returns epochs of latentq's resident dataset."""
    return pairs(latent_dataset(folder, dtype).to_device("cpu").loader(BATCH, shuffle=True))


class Memmap(Dataset[Any]):
    """The codes as a NumPy memory map, a batch at a time."""

    def __init__(self, folder: Path) -> None:
        self.codes = np.load(folder / CODES, mmap_mode="r")
        self.labels = np.load(folder / LABELS)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitems__(self, indices: list[int]) -> Batch:
        return dequantize(torch.from_numpy(self.codes[indices])), torch.from_numpy(self.labels[indices])


def numpy_memmap(folder: Path, workers: int) -> Epoch:
    """Returns epochs over a NumPy memory map."""
    batches: Iterable[Batch] = DataLoader(Memmap(folder), collate_fn=identity, **torch_options(workers))
    return lambda: batches


def bare_reads(folder: Path, part: slice = slice(None)) -> Epoch:
    """Returns epochs of one thread: a positioned read for each sample, and the kernel, into the same buffers.

    Args:
        folder: A folder of `write_numpy`.
        part: Which batches.
    """
    labels = torch.from_numpy(np.load(folder / LABELS))
    start = np.load(folder / CODES, mmap_mode="r").offset
    file = (folder / CODES).open("rb")
    codes = np.empty((BATCH, *SHAPE), np.uint8)
    rows = [[memoryview(row).cast("B")] for row in codes]
    latents = np.empty(codes.shape, np.float32)

    def epoch() -> Iterable[Batch]:
        for indices in torch.split(torch.randperm(len(labels)), BATCH)[part]:
            for row, index in zip(rows, indices.tolist(), strict=False):
                os.preadv(file.fileno(), row, start + index * SIZE)
            QUANTIZER.dequantize(codes, out=latents)
            yield torch.from_numpy(latents)[: len(indices)], labels[indices]

    return epoch


def run(epoch: Epoch) -> None:
    """Goes through one epoch."""
    for _batch in epoch():
        pass


def check(epoch: Epoch, folder: Path) -> None:
    """Raises AssertionError if an epoch does not give every sample once, or its first batch has other values."""
    codes = np.load(folder / CODES, mmap_mode="r")
    seen: list[int] = []
    for latents, labels in epoch():
        if not seen:
            expected = torch.from_numpy(codes[labels.numpy()] * ((HIGH - LOW) / 255) + LOW)
            tolerance = 1e-5 if latents.dtype == torch.float32 else 0.05
            torch.testing.assert_close(latents.double(), expected, atol=tolerance, rtol=0)
        seen += labels.tolist()
    if sorted(seen) != list(range(len(codes))):
        raise AssertionError("an epoch does not give every sample once")
