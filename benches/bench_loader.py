"""Whole shuffled epochs of batches of 256 latents (4, 32, 32) to float32, with labels: latentq against its rivals.

Every contender gives the same values (checked) as torch tensors. Four epochs warm it up, unless the epochs themselves
are compared. All files are in the page cache.
"""

import functools
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from bucket_datasets import SHAPES, loader_of, write_buckets, write_square
from loader_rivals import BOUNDS, CONTENDERS

from latentq import LatentLoader
from latentq.benchmark.loading import BATCH, Epoch, check, latent_dataset, run, write_numpy

SAMPLES = 25_600
SAMPLES_OF_EPOCHS = 60_000
BYTES_OF_BUCKETS = 1 << 28
ROUNDS = 5


def folder_of(samples: int, request: pytest.FixtureRequest, factory: pytest.TempPathFactory) -> Iterator[Path]:
    parent = request.config.getoption("--folder") or factory.mktemp("loader")
    folder = parent / f"latentq-bench-{os.getpid()}-{samples}"
    folder.mkdir(parents=True)
    write_numpy(folder, samples)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def folder(request, tmp_path_factory):
    yield from folder_of(SAMPLES, request, tmp_path_factory)


@pytest.fixture(scope="module")
def large_folder(request, tmp_path_factory):
    yield from folder_of(SAMPLES_OF_EPOCHS, request, tmp_path_factory)


@functools.cache
def prepared(name: str, folder: Path) -> Epoch:
    """The contender, ready and warmed up by four epochs in which it gave every sample once, with the right values."""
    epoch = {**CONTENDERS, **BOUNDS}[name](folder)
    for _ in range(4):  # latentq caches shards in the second, in the background
        if name in CONTENDERS:
            check(epoch, folder)
        else:
            run(epoch)
    return epoch


def one_epoch(name: str) -> Callable[[Path], None]:
    return lambda folder: run(prepared(name, folder))


EPOCH = {name: one_epoch(name) for name in (*CONTENDERS, *BOUNDS)}


@pytest.mark.parametrize("contender", EPOCH)
def bench_epoch(turns, folder, contender):
    turns(
        EPOCH, folder, group="shuffled epochs, warm", reference="NumPy memmap, 0 workers", rounds=ROUNDS, items=SAMPLES,
        unit="samples",
    )  # fmt: skip


class FirstEpochs:
    """The epochs of a loader from the opening of its dataset on, each a contender."""

    def __init__(self) -> None:
        self._loader: LatentLoader | None = None

    def run(self, number: int, folder: Path) -> None:
        if number == 1:
            self._loader = None  # drop the cache of the round before
            self._loader = latent_dataset(folder).loader(BATCH, shuffle=True)
        for _batch in self._loader:
            pass


FIRST_EPOCHS = FirstEpochs()
EPOCHS = {f"epoch {number}": functools.partial(FIRST_EPOCHS.run, number) for number in range(1, 6)}


@pytest.mark.parametrize("contender", EPOCHS)
def bench_first_epochs(turns, large_folder, contender):
    turns(
        EPOCHS, large_folder, group="the first epochs after opening a dataset", reference="epoch 1", rounds=ROUNDS,
        items=SAMPLES_OF_EPOCHS, unit="samples",
    )  # fmt: skip


@pytest.fixture(scope="module")
def bucket_folder(request, tmp_path_factory):
    parent = request.config.getoption("--folder") or tmp_path_factory.mktemp("buckets")
    folder = parent / f"latentq-bench-{os.getpid()}-buckets"
    write_square(folder / "square", BYTES_OF_BUCKETS)
    write_buckets(folder / "buckets", BYTES_OF_BUCKETS)
    yield folder
    shutil.rmtree(folder)


@functools.cache
def bucket_loader(kind: str, resident: bool, folder: Path) -> Epoch:
    """A loader of batches of 64, warmed up by four epochs."""
    epoch = loader_of(folder / kind, resident=resident)
    for _ in range(3):
        run(epoch)
    return epoch


BUCKET_EPOCH = {
    f"{what}{', resident' if resident else ''}": functools.partial(
        lambda kind, resident, folder: run(bucket_loader(kind, resident, folder)), kind, resident
    )
    for resident in (False, True)
    for kind, what in (("square", "square"), ("buckets", f"{len(SHAPES)} buckets"))
}


@pytest.mark.parametrize("contender", BUCKET_EPOCH)
def bench_buckets(turns, bucket_folder, contender):
    turns(
        BUCKET_EPOCH, bucket_folder, group="shuffled epochs of the same bytes", reference="square", rounds=3 * ROUNDS,
        items=BYTES_OF_BUCKETS, unit="bytes",
    )  # fmt: skip
