"""MDS shards against MDSWriter, MDSReader, StreamingDataset and a NumPy memory map, on the same samples and files.

A sample is a latent of 4,096 bytes and two strings; 100,000 are written, and 40,000 read. From the third epoch on
`Reader` has all of a dataset of that size in memory; with `cache_bytes=0`, and for larger datasets, it reads each
sample from the page cache. Every writer's files are on the disk (fsync) when its time ends; files that are read are in
the page cache.
"""

import functools
import json
import logging
import os
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import streaming.base.format.base.writer as stock_writer
from streaming import MDSWriter, StreamingDataset
from streaming.base.format.mds.reader import MDSReader
from streaming.base.util import clean_stale_shared_memory

from latentq import mds

COLUMNS = {"latent": "ndarray:uint8:4,32,32", "key": "str", "caption": "str"}
SAMPLES = 40_000
WRITTEN = 100_000
READS = 2_000
BATCH = 256
BATCHES = 50
SHARDS = 100_000
ROUNDS = 9


@pytest.fixture(scope="module")
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    parent = request.config.getoption("--folder") or tmp_path_factory.mktemp("mds")
    folder = parent / f"latentq-bench-{os.getpid()}"
    folder.mkdir(parents=True)
    logging.disable(logging.WARNING)
    yield folder
    logging.disable(logging.NOTSET)
    shutil.rmtree(folder)


def samples(count: int) -> tuple[Any, list[str], list[str]]:
    latents = np.random.default_rng(0).integers(0, 256, (count, 4, 32, 32), np.uint8)
    keys = [f"n{index % 1000:08}/photo_{index}.jpeg" for index in range(count)]
    return latents, keys, [f"a photograph of thing {index}" for index in range(count)]


# Writing


@dataclass(frozen=True)
class Writing:
    out: Path
    latents: Any
    keys: list[str]
    captions: list[str]

    def rows(self) -> Iterator[dict[str, object]]:
        for latent, key, caption in zip(self.latents, self.keys, self.captions, strict=True):
            yield {"latent": latent, "key": key, "caption": caption}


def fsync(folder: Path) -> None:
    for path in [*folder.iterdir(), folder, folder.parent]:
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)


def write_by_mosaicml(data: Writing) -> None:
    with MDSWriter(out=str(data.out), columns=COLUMNS) as writer:
        for row in data.rows():
            writer.write(row)
    fsync(data.out)


def write_samples(data: Writing) -> None:
    with mds.Writer(data.out, COLUMNS) as writer:
        for row in data.rows():
            writer.write(row)


def write_batches(data: Writing, hashes: tuple[str, ...] = ()) -> None:
    with mds.Writer(data.out, COLUMNS, hashes=hashes) as writer:
        for start in range(0, WRITTEN, BATCH):
            part = slice(start, start + BATCH)
            batch = {"latent": data.latents[part], "key": data.keys[part], "caption": data.captions[part]}
            writer.write_batch(batch)


def write_bytes(data: Writing) -> None:
    """A bound: the latents in one write."""
    data.out.mkdir()
    with (data.out / "one").open("wb") as file:
        file.write(data.latents)
    fsync(data.out)


WRITE = {
    "MDSWriter, then fsync": write_by_mosaicml,
    "Writer.write": write_samples,
    "Writer.write_batch": write_batches,
    "Writer.write_batch, xxh3_64": functools.partial(write_batches, hashes=("xxh3_64",)),
    "the latents in one file.write, then fsync": write_bytes,
}


@pytest.fixture(scope="module")
def writing(folder):
    return Writing(folder / "written", *samples(WRITTEN))


@pytest.mark.parametrize("contender", WRITE)
def bench_write(turns, monkeypatch, writing, contender):
    # In the rival's favor: it sleeps for a second at a time while its threads finish.
    monkeypatch.setattr(stock_writer, "sleep", lambda _seconds: time.sleep(1e-4))
    turns(
        WRITE, writing, group="write samples, on the disk at the end", reference="MDSWriter, then fsync", rounds=ROUNDS,
        items=WRITTEN, unit="samples", setup=lambda data: shutil.rmtree(data.out, ignore_errors=True),
    )  # fmt: skip


# Reading


@dataclass(frozen=True)
class Reading:
    """The same samples, opened by everything that reads them, and the indices to read."""

    memmap: Any
    cached: mds.Reader
    uncached: mds.Reader
    streaming: StreamingDataset
    shards: list[MDSReader]
    indices: list[int]
    positions: list[tuple[int, int]]  # shard and index in it, of `indices`
    batches: list[Any]
    codes: Any  # buffers for a batch
    floats: Any


@pytest.fixture(scope="module")
def reading(folder):
    latents, keys, captions = samples(SAMPLES)
    path = folder / "read"
    with mds.Writer(path, COLUMNS, sync=False) as writer:
        writer.write_batch({"latent": latents, "key": keys, "caption": captions})
    np.save(folder / "latents.npy", latents.reshape(SAMPLES, -1))
    memmap = np.load(folder / "latents.npy", mmap_mode="r")
    memmap.sum()
    cached, uncached = mds.Reader(path), mds.Reader(path, cache_bytes=0)
    for reader in (*[cached] * 5, uncached):  # shards are cached in the second epoch, in the background
        reader.gather(range(SAMPLES), "latent")
    clean_stale_shared_memory()
    dataset = StreamingDataset(local=str(path), batch_size=1)
    entries = json.loads((path / "index.json").read_text())["shards"]
    shards = [MDSReader.from_json(str(path), None, entry) for entry in entries]
    starts = np.cumsum([0, *map(len, shards)])
    rng = np.random.default_rng(1)
    indices = rng.integers(0, SAMPLES, READS).tolist()
    positions = [(int(k), i - int(starts[k])) for i in indices for k in [np.searchsorted(starts, i, "right") - 1]]
    batches = [rng.permutation(SAMPLES)[:BATCH] for _ in range(BATCHES)]
    buffers = np.empty((BATCH, 4096), np.uint8), np.empty((BATCH, 4096), np.float32)
    return Reading(memmap, cached, uncached, dataset, shards, indices, positions, batches, *buffers)


READ_SINGLE = {
    "MDSReader[i]": lambda r: [r.shards[shard][i] for shard, i in r.positions] and None,
    "StreamingDataset[i]": lambda r: [r.streaming[i] for i in r.indices] and None,
    "Reader[i]": lambda r: [r.cached[i] for i in r.indices] and None,
    "Reader[i], cache_bytes=0": lambda r: [r.uncached[i] for i in r.indices] and None,
}


@pytest.mark.parametrize("contender", READ_SINGLE)
def bench_read_single(turns, reading, contender):
    turns(
        READ_SINGLE, reading, group="read random single samples", reference="MDSReader[i]", rounds=ROUNDS, items=READS,
        unit="samples",
    )  # fmt: skip


def memmap_new(r: Reading) -> None:
    for batch in r.batches:
        r.memmap[batch].astype(np.float32)


def gather_new(r: Reading, reader: mds.Reader) -> None:
    for batch in r.batches:
        reader.gather(batch, "latent").astype(np.float32)


def memmap_warm(r: Reading) -> None:
    for batch in r.batches:
        np.take(r.memmap, batch, 0, out=r.codes, mode="clip")
        np.copyto(r.floats, r.codes)


def gather_warm(r: Reading, reader: mds.Reader) -> None:
    for batch in r.batches:
        reader.gather(batch, "latent", out=r.codes)
        np.copyto(r.floats, r.codes)


GATHER_NEW = {
    "memmap[i].astype(float32)": memmap_new,
    "gather(i).astype(float32)": lambda r: gather_new(r, r.cached),
    "gather(i).astype(float32), cache_bytes=0": lambda r: gather_new(r, r.uncached),
}
GATHER_WARM = {
    "take(memmap, i, out=), copyto": memmap_warm,
    "gather(i, out=), copyto": lambda r: gather_warm(r, r.cached),
    "gather(i, out=), copyto, cache_bytes=0": lambda r: gather_warm(r, r.uncached),
}


@pytest.mark.parametrize("contender", GATHER_NEW)
def bench_gather_new(turns, reading, contender):
    turns(
        GATHER_NEW, reading, group=f"{BATCH} shuffled samples to float32, new", reference=next(iter(GATHER_NEW)),
        rounds=ROUNDS, items=BATCHES, unit="batches",
    )  # fmt: skip


@pytest.mark.parametrize("contender", GATHER_WARM)
def bench_gather_warm(turns, reading, contender):
    turns(
        GATHER_WARM, reading, group=f"{BATCH} shuffled samples to float32, warm", reference=next(iter(GATHER_WARM)),
        rounds=ROUNDS, items=BATCHES, unit="batches",
    )  # fmt: skip


# Opening


@pytest.fixture(scope="module")
def many_shards(folder):
    """A dataset whose index lists 100,000 shards; only the first is there."""
    path = folder / "open"
    with mds.Writer(path, COLUMNS, hashes=["xxh3_64"], sync=False) as writer:
        writer.write({"latent": np.zeros((4, 32, 32), np.uint8), "key": "k", "caption": "c"})
    index = json.loads((path / "index.json").read_text())
    entry = json.dumps(index["shards"][0], sort_keys=True)
    entries = ", ".join(entry.replace("shard.00000", f"shard.{number:05}") for number in range(SHARDS))
    (path / "index.json").write_text(f'{{"shards": [{entries}], "version": 2}}')
    return path


def open_by_mosaicml(path: Path) -> None:
    for entry in json.loads((path / "index.json").read_text())["shards"]:
        MDSReader.from_json(str(path), None, entry)


OPEN = {"json.load, MDSReader.from_json": open_by_mosaicml, "Reader": mds.Reader}


@pytest.mark.parametrize("contender", OPEN)
def bench_open(turns, many_shards, contender):
    turns(OPEN, many_shards, group=f"open an index of {SHARDS:,} shards", reference=next(iter(OPEN)), rounds=5)
