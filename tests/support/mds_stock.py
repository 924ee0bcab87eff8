"""Datasets of the stock writer and of ours, and what the stock reader reads of them."""

import json
from pathlib import Path

import numpy as np
from streaming import MDSWriter
from streaming.base.format.mds.reader import MDSReader

from latentq import mds

COLUMNS = {"latent": "ndarray:uint8:4,8,8", "label": "int", "key": "str", "score": "float32"}


def samples(n: int, seed: int = 0) -> list[dict]:
    rng = np.random.default_rng(seed)
    return [
        {
            "latent": rng.integers(0, 256, (4, 8, 8), np.uint8),
            "label": int(rng.integers(-(2**63), 2**63)),
            "key": "é" * int(rng.integers(0, 9)) + f"n{i:04}",
            "score": float(rng.normal()),
        }
        for i in range(n)
    ]


def write_stock(path: Path, columns: dict[str, str], rows: list[dict], **options) -> None:
    with MDSWriter(out=str(path), columns=columns, **options) as writer:
        for row in rows:
            writer.write(row)


def write_ours(path: Path, columns: dict[str, str], rows: list[dict], **options) -> None:
    with mds.Writer(path, columns, sync=False, **options) as writer:
        for row in rows:
            writer.write(row)


def stock_samples(path: Path) -> list[dict]:
    index = json.loads((path / "index.json").read_text())
    shards = [MDSReader.from_json(str(path), None, entry) for entry in index["shards"]]
    return [shard[i] for shard in shards for i in range(len(shard))]


def contents(path: Path) -> dict[str, bytes]:
    return {str(file.relative_to(path)): file.read_bytes() for file in sorted(path.rglob("*")) if file.is_file()}


def assert_equal(a: dict, b: dict) -> None:
    assert a.keys() == b.keys()
    for name in a:
        assert type(a[name]) is type(b[name])
        np.testing.assert_array_equal(a[name], b[name])
