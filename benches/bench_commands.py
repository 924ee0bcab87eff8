"""The command line as its users meet it, each command a process of its own, and listing of awkward sources.

A command's time is the CPU time of its process and of its children, so that other work on the machine does not count.
"""

import os
import random
import subprocess
import sys
import tarfile
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from pyarrow import parquet

from latentq.benchmark.turns import Measured
from latentq.sources import open_source

IMAGES = 1_000
MEMBERS = 20_000
COLUMNS = 20_000
ROUNDS = 5


def process(*arguments: object) -> Measured:
    """Runs Python with arguments and returns the CPU seconds that the process and its children took."""
    before = os.times()
    subprocess.run([sys.executable, *map(str, arguments)], check=True, capture_output=True)
    after = os.times()
    seconds = after.children_user - before.children_user + after.children_system - before.children_system
    return Measured(seconds)


def command(*arguments: object) -> Measured:
    """Runs one `latentq` command."""
    return process("-m", "latentq", *arguments)


# Commands


@pytest.fixture(scope="module")
def encoded(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """1,000 photographs of 500 x 375 pixels, made from noise of two scales, and the dataset of them by `dct-f8c16`."""
    folder = tmp_path_factory.mktemp("commands")
    numbers = np.random.default_rng(0)
    for index in range(IMAGES):
        path = folder / "photographs" / f"class {index % 10}" / f"{index:04}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        coarse = Image.fromarray(numbers.integers(0, 256, (12, 16, 3), np.uint8)).resize((500, 375))
        fine = numbers.normal(0, 12, (375, 500, 3))
        Image.fromarray(np.clip(np.asarray(coarse) + fine, 0, 255).astype(np.uint8)).save(path, quality=90)
    command("encode", folder / "photographs", folder / "dataset", "--autoencoder", "dct-f8c16", "--quiet")
    return folder / "photographs", folder / "dataset"


STARTS: dict[str, Callable[[tuple[Path, Path]], Measured]] = {
    "import torch": lambda _: process("-c", "import torch"),
    "import numpy": lambda _: process("-c", "import numpy"),
    "latentq encode --help": lambda _: command("encode", "--help"),
    "latentq info": lambda folders: command("info", folders[1]),
    "latentq verify": lambda folders: command("verify", folders[1]),
    "latentq decode, 1 picture": lambda folders: command(
        "decode", folders[1], "--index", 0, "-o", folders[1].parent / "sheet.png"
    ),
}


@pytest.mark.parametrize("contender", STARTS)
def bench_start(turns, encoded, contender):
    turns(STARTS, encoded, group="commands, CPU time", reference=next(iter(STARTS)), rounds=ROUNDS)


MEASURE: dict[str, Callable[[tuple[Path, Path]], Measured]] = {
    "measure --source": lambda folders: command("measure", folders[1], "--source", folders[0]),
}


@pytest.mark.parametrize("contender", MEASURE)
def bench_measure(turns, encoded, contender):
    turns(MEASURE, encoded, group=f"the error of quantizers on {IMAGES:,} photographs, CPU time", rounds=3)


# Listing


def make_tar(path: Path, names: list[str]) -> None:
    with tarfile.open(path, "w") as tar:
        for name in names:
            tar.addfile(tarfile.TarInfo(name), BytesIO())


@pytest.fixture(scope="module")
def tars(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("tars")
    names = [f"{index:06}.jpg" for index in range(MEMBERS)]
    random.Random(0).shuffle(names)
    make_tar(folder / "names.tar", names)
    make_tar(folder / "one-name.tar", ["picture.jpg"] * MEMBERS)
    return {"names": folder / "names.tar", "one name": folder / "one-name.tar"}


def list_members(path: Path) -> None:
    with tarfile.open(path) as tar:
        assert len(tar.getmembers()) == MEMBERS


def list_samples(path: Path) -> None:
    assert sum(1 for _ in open_source(path).listing().samples) == MEMBERS


LIST: dict[str, Callable[[dict[str, Path]], Any]] = {
    "tarfile": lambda tars: list_members(tars["names"]),
    "latentq": lambda tars: list_samples(tars["names"]),
    "latentq, all members of one name": lambda tars: list_samples(tars["one name"]),
}


@pytest.mark.parametrize("contender", LIST)
def bench_list_tar(turns, tars, contender):
    turns(
        LIST, tars, group=f"list a tar of {MEMBERS:,} members", reference="tarfile", rounds=ROUNDS, items=MEMBERS,
        unit="members",
    )  # fmt: skip


@pytest.fixture(scope="module")
def wide_tables(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two parquet files of 20,000 columns, which both have to be compared."""
    folder = tmp_path_factory.mktemp("wide")
    columns = {"image": pa.array([b""]), **{f"c{index}": pa.array([1]) for index in range(COLUMNS)}}
    for name in ("a.parquet", "b.parquet"):
        parquet.write_table(pa.table(columns), folder / name)
    return folder


def read_schemas(folder: Path) -> None:
    for path in sorted(folder.iterdir()):
        parquet.read_schema(path)


WIDE: dict[str, Callable[[Path], Any]] = {
    "pyarrow.parquet.read_schema": read_schemas,
    "latentq": lambda folder: list(open_source(folder).listing().samples),
}


@pytest.mark.parametrize("contender", WIDE)
def bench_wide_tables(turns, wide_tables, contender):
    turns(
        WIDE, wide_tables, group=f"list two parquet files of {COLUMNS:,} columns", reference=next(iter(WIDE)),
        rounds=ROUNDS,
    )  # fmt: skip
