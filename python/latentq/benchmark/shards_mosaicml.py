"""mosaicml-streaming's part in the groups of `shards.py`."""

from __future__ import annotations

import functools
import json
import time
from typing import TYPE_CHECKING, Any

import numpy as np
import streaming.base.format.base.writer as stock_writer
from streaming import MDSWriter
from streaming.base.format.mds.reader import MDSReader

from latentq.benchmark.shards import COLUMNS, sync

if TYPE_CHECKING:
    from pathlib import Path

    from latentq.benchmark.shards import Reading, Writing


def write(data: Writing) -> None:
    """Writes by MDSWriter."""
    stock_sleep = stock_writer.sleep
    # In the rival's favor: it sleeps for a second at a time while its threads finish.
    stock_writer.sleep = lambda _seconds: time.sleep(1e-4)
    try:
        with MDSWriter(out=str(data.out), columns=COLUMNS) as writer:
            for row in data.rows():
                writer.write(row)
    finally:
        stock_writer.sleep = stock_sleep
    sync(data.out)


@functools.cache
def opened(path: Path, indices: tuple[int, ...]) -> tuple[list[Any], list[tuple[int, int]]]:
    """Returns MDSReaders of the shards, and shard and index in it of each sample that is read one by one."""
    entries = json.loads((path / "index.json").read_text())["shards"]
    shards = [MDSReader.from_json(str(path), None, entry) for entry in entries]
    starts = np.cumsum([0, *map(len, shards)])
    numbers = np.searchsorted(starts, indices, "right") - 1
    return shards, [(int(n), i - int(starts[n])) for n, i in zip(numbers, indices, strict=True)]


def read(reading: Reading) -> None:
    """Reads samples one by one."""
    shards, positions = opened(reading.path, reading.indices)
    for shard, i in positions:
        shards[shard][i]
