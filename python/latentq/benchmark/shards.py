"""MDS shards: latentq's writer and reader, a NumPy memory map, bare files, and mosaicml-streaming if it is installed.

A sample is a latent of 4,096 bytes and two strings. Every writer's files are on the disk (fsync) when its time ends;
files that are read are in the page cache.
"""

from __future__ import annotations

import functools
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from latentq import mds

COLUMNS = {"latent": "ndarray:uint8:4,32,32", "key": "str", "caption": "str"}
SIZE = 4096  # bytes of a latent
BATCH = 256
BARE_WRITE = "the latents in one file.write, then fsync"
BARE_READ = "one preadv of each sample, and a conversion"

Array = Any


def samples(count: int) -> tuple[Array, list[str], list[str]]:
    """Returns latents (count, 4, 32, 32) uint8, keys and captions."""
    latents = np.random.default_rng(0).integers(0, 256, (count, 4, 32, 32), np.uint8)
    keys = [f"n{index % 1000:08}/photo_{index}.jpeg" for index in range(count)]
    return latents, keys, [f"a photograph of thing {index}" for index in range(count)]


# Writing


@dataclass(frozen=True, eq=False)
class Writing:
    """Samples, and the folder to write them to."""

    out: Path
    latents: Array
    keys: list[str]
    captions: list[str]

    def rows(self) -> Iterator[dict[str, object]]:
        """Yields the samples one by one."""
        for latent, key, caption in zip(self.latents, self.keys, self.captions, strict=True):
            yield {"latent": latent, "key": key, "caption": caption}

    def clear(self) -> None:
        """Deletes what a contender wrote."""
        shutil.rmtree(self.out, ignore_errors=True)


def sync(folder: Path) -> None:
    """Waits until a folder and its files are on the disk."""
    for path in [*folder.iterdir(), folder, folder.parent]:
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)


def write_samples(data: Writing) -> None:
    """Writes by `Writer.write`."""
    with mds.Writer(data.out, COLUMNS) as writer:
        for row in data.rows():
            writer.write(row)


def write_batches(data: Writing, hashes: tuple[str, ...] = ()) -> None:
    """Writes by `Writer.write_batch`."""
    with mds.Writer(data.out, COLUMNS, hashes=hashes) as writer:
        for start in range(0, len(data.keys), BATCH):
            part = slice(start, start + BATCH)
            batch = {"latent": data.latents[part], "key": data.keys[part], "caption": data.captions[part]}
            writer.write_batch(batch)


def write_bytes(data: Writing) -> None:
    """Writes the latents alone, as one array."""
    data.out.mkdir()
    with (data.out / "one").open("wb") as file:
        file.write(data.latents)
    sync(data.out)


WRITE: dict[str, Callable[[Writing], object]] = {
    "latentq Writer.write_batch": write_batches,
    "latentq Writer.write_batch, xxh3_64": functools.partial(write_batches, hashes=("xxh3_64",)),
    "latentq Writer.write": write_samples,
    BARE_WRITE: write_bytes,
}


# Reading


@dataclass(frozen=True, eq=False)
class Reading:
    """The same samples, opened by everything that reads them, and the indices to read."""

    path: Path
    memmap: Array
    file: int  # descriptor of the file behind the memory map
    start: int  # of the first sample in it
    cached: mds.Reader
    uncached: mds.Reader
    indices: tuple[int, ...]
    batches: list[Array]
    codes: Array = field(default_factory=lambda: np.zeros((BATCH, SIZE), np.uint8))  # buffers for a batch
    floats: Array = field(default_factory=lambda: np.zeros((BATCH, SIZE), np.float32))


def reading(folder: Path, count: int, reads: int, batches: int) -> Reading:
    """Writes samples as shards and as an array, and opens both.

    Args:
        folder: Where to.
        count: Number of samples.
        reads: Number of samples that are read one by one.
        batches: Number of batches of `BATCH` samples.
    """
    latents, keys, captions = samples(count)
    path = folder / "read"
    with mds.Writer(path, COLUMNS, sync=False) as writer:
        writer.write_batch({"latent": latents, "key": keys, "caption": captions})
    np.save(folder / "latents.npy", latents.reshape(count, SIZE))
    memmap = np.load(folder / "latents.npy", mmap_mode="r")
    memmap.sum()
    cached, uncached = mds.Reader(path), mds.Reader(path, cache_bytes=0)
    for reader in (*[cached] * 5, uncached):  # shards are cached in the second epoch, in the background
        reader.gather(range(count), "latent")
    rng = np.random.default_rng(1)
    indices = tuple(rng.integers(0, count, reads).tolist())
    shuffled = [rng.permutation(count)[:BATCH] for _ in range(batches)]
    file = os.open(folder / "latents.npy", os.O_RDONLY)
    return Reading(path, memmap, file, memmap.offset, cached, uncached, indices, shuffled)


SINGLES: dict[str, Callable[[Reading], object]] = {
    "latentq Reader[i]": lambda r: [r.cached[i] for i in r.indices] and None,
    "latentq Reader[i], cache_bytes=0": lambda r: [r.uncached[i] for i in r.indices] and None,
}


def _memmap_new(r: Reading) -> None:
    for batch in r.batches:
        r.memmap[batch].astype(np.float32)


def _gather_new(r: Reading, reader: mds.Reader) -> None:
    for batch in r.batches:
        reader.gather(batch, "latent").astype(np.float32)


def _memmap_warm(r: Reading) -> None:
    for batch in r.batches:
        np.take(r.memmap, batch, 0, out=r.codes, mode="clip")
        np.copyto(r.floats, r.codes)


def _gather_warm(r: Reading, reader: mds.Reader) -> None:
    for batch in r.batches:
        reader.gather(batch, "latent", out=r.codes)
        np.copyto(r.floats, r.codes)


def _bare_reads(r: Reading) -> None:
    rows = [[memoryview(row)] for row in r.codes]
    for batch in r.batches:
        for row, index in zip(rows, batch.tolist(), strict=True):
            os.preadv(r.file, row, r.start + index * SIZE)
        np.copyto(r.floats, r.codes)


GATHER_NEW: dict[str, Callable[[Reading], object]] = {
    "latentq gather(i).astype(float32)": lambda r: _gather_new(r, r.cached),
    "latentq gather(i).astype(float32), cache_bytes=0": lambda r: _gather_new(r, r.uncached),
    "memmap[i].astype(float32)": _memmap_new,
}
GATHER_WARM: dict[str, Callable[[Reading], object]] = {
    "latentq gather(i, out=), copyto": lambda r: _gather_warm(r, r.cached),
    "latentq gather(i, out=), copyto, cache_bytes=0": lambda r: _gather_warm(r, r.uncached),
    "take(memmap, i, out=), copyto": _memmap_warm,
    BARE_READ: _bare_reads,
}
