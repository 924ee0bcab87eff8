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
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from streaming import StreamingDataset
from streaming.base.format.mds.reader import MDSReader
from streaming.base.util import clean_stale_shared_memory

from latentq import mds
from latentq.benchmark import shards
from latentq.benchmark.installed import single_readers, writers
from latentq.benchmark.shards import BATCH, COLUMNS, GATHER_NEW, GATHER_WARM

SAMPLES = 40_000
WRITTEN = 100_000
READS = 2_000
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


# Writing


WRITE = writers()


@pytest.fixture(scope="module")
def writing(folder):
    return shards.Writing(folder / "written", *shards.samples(WRITTEN))


@pytest.mark.parametrize("contender", WRITE)
def bench_write(turns, writing, contender):
    turns(
        WRITE, writing, group="write samples, on the disk at the end", reference="MDSWriter, then fsync", rounds=ROUNDS,
        items=WRITTEN, unit="samples", setup=shards.Writing.clear,
    )  # fmt: skip


# Reading


@pytest.fixture(scope="module")
def reading(folder):
    return shards.reading(folder, SAMPLES, READS, BATCHES)


@functools.cache
def streaming_dataset(reading: shards.Reading) -> StreamingDataset:
    clean_stale_shared_memory()
    return StreamingDataset(local=str(reading.path), batch_size=1)


READ_SINGLE = {
    **single_readers(),
    "StreamingDataset[i]": lambda r: [streaming_dataset(r)[i] for i in r.indices] and None,
}


@pytest.mark.parametrize("contender", READ_SINGLE)
def bench_read_single(turns, reading, contender):
    turns(
        READ_SINGLE, reading, group="read random single samples", reference="MDSReader[i]", rounds=ROUNDS, items=READS,
        unit="samples",
    )  # fmt: skip


@pytest.mark.parametrize("contender", GATHER_NEW)
def bench_gather_new(turns, reading, contender):
    turns(
        GATHER_NEW, reading, group=f"{BATCH} shuffled samples to float32, new", reference="memmap[i].astype(float32)",
        rounds=ROUNDS, items=BATCHES, unit="batches",
    )  # fmt: skip


@pytest.mark.parametrize("contender", GATHER_WARM)
def bench_gather_warm(turns, reading, contender):
    turns(
        GATHER_WARM, reading, group=f"{BATCH} shuffled samples to float32, warm",
        reference="take(memmap, i, out=), copyto", rounds=ROUNDS, items=BATCHES, unit="batches",
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
