"""Tests readers in other processes, of every start method, and killed."""

import multiprocessing
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from latentq import mds


class Samples(Dataset[dict[str, Any]]):
    def __init__(self, path: Path) -> None:
        self.reader = mds.Reader(path)

    def __len__(self) -> int:
        return len(self.reader)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.reader[index]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("processes") / "out"
    codes = np.random.default_rng(0).integers(0, 256, (64, 4, 8, 8), np.uint8)
    with mds.Writer(path, {"code": "ndarray:uint8:4,8,8", "n": "int"}, size_limit=2000, compression="zstd") as writer:
        writer.write_batch({"code": codes, "n": np.arange(64)})
    return path


@pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")
@pytest.mark.parametrize(
    ("method", "workers", "persistent"),
    [
        ("fork", 0, False),
        *[(method, n, p) for method in ["fork", "spawn", "forkserver"] for n in [1, 4] for p in [False, True]],
    ],
)
def test_a_loader_reads_the_same_with_every_start_method(
    dataset: Path, method: str, workers: int, persistent: bool
) -> None:
    samples = Samples(dataset)
    expected = torch.from_numpy(samples.reader.gather(range(64), "code"))
    context = multiprocessing.get_context(method) if workers else None
    if method == "forkserver":
        context.set_forkserver_preload(["torch.utils.data"])
    loader = DataLoader(
        samples, 16, num_workers=workers, multiprocessing_context=context, persistent_workers=persistent
    )
    for _ in range(2 if persistent else 1):
        batches = list(loader)
        assert torch.equal(torch.cat([batch["code"] for batch in batches]), expected)
        assert torch.cat([batch["n"] for batch in batches]).tolist() == list(range(64))


CYCLES = """
import os, random, signal, sys, time
from latentq import mds
path = sys.argv[1]
reader = mds.Reader(path)
reader.gather(range(len(reader)), "n")

def left():
    own = [path, os.path.dirname(path), "/proc/self/fd"]
    shared = [name for folder in ["/dev/shm", "/tmp"] for name in os.listdir(folder) if "latentq" in name]
    return [sorted(os.listdir(folder)) for folder in own], shared

before = left()
for cycle in range(2000):
    child = os.fork()
    if child == 0:
        mine = mds.Reader(path)
        while True:
            mine.gather(range(len(mine)), "n")
            reader[5]
    time.sleep(random.random() * 3e-3)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
assert left() == before
assert reader.gather([-1], "n").tolist() == [63]
"""


@pytest.mark.long
def test_two_thousand_killed_readers_leave_nothing_behind(dataset: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", CYCLES, str(dataset)], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
