"""Samples that are on the disk only: whole files are read ahead if they fit in memory, otherwise all of a batch."""

import multiprocessing
import os
import shutil
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
import zstd
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from latentq import FormatError, LatentMixture, mds
from latentq._core import Threads
from latentq.benchmark.loading import CODES, LABELS, LOW, latent_dataset, write_numpy
from support.page_cache import PAGE, evict, pages_in_memory, resident, soon

COUNT = 1024
STEP = 24 / 255


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A dataset of 4 MiB in 5 shards, with strings of many lengths."""
    folder = tmp_path_factory.mktemp("cold")
    write_numpy(folder, COUNT)
    codes, labels = np.load(folder / CODES), np.load(folder / LABELS)
    with mds.Writer(folder / "mds", {"latent": "ndarray:uint8:4,32,32", "label": "int"}, size_limit=1 << 20) as writer:
        writer.write_batch({"latent": codes, "label": labels})
    columns = {"caption": "str", "latent": "ndarray:uint8:4,32,32", "label": "int"}
    with mds.Writer(folder / "strings", columns, size_limit=1 << 18) as writer:
        for label in range(256):
            writer.write({"caption": "x" * (label * 37 % 4000), "latent": codes[label], "label": label})
    return folder


def files(folder):
    return sorted(folder.glob("*.mds"))


def become_resident(folder):
    return soon(lambda: resident(folder) == 1)


def check(batch, folder):
    codes = np.load(folder / CODES, mmap_mode="r")[batch["label"].numpy()]
    np.testing.assert_allclose(batch["latent"].numpy(), codes * STEP + LOW, atol=1e-5)


def seen(batches, folder):
    """Returns the labels of batches whose latents are right."""
    labels = []
    for batch in batches:
        check(batch, folder)
        labels += batch["label"].tolist()
    return sorted(labels)


def test_an_epoch_in_random_order_reads_whole_files_ahead(made):
    dataset = latent_dataset(made)
    evict(made / "mds")
    batches = iter(dataset.loader(8, shuffle=True))
    check(next(batches), made)
    assert become_resident(made / "mds")
    assert len(seen(batches, made)) == COUNT - 8
    assert seen(dataset.loader(100, shuffle=True), made) == list(range(COUNT))


@pytest.mark.parametrize("available", [0, None])
def test_without_room_only_samples_are_read(made, monkeypatch, available):
    monkeypatch.setattr("latentq.mds.reader.available_bytes", lambda: available)
    dataset = latent_dataset(made)
    evict(made / "mds")
    before = resident(made / "mds")
    check(next(iter(dataset.loader(16, shuffle=True))), made)
    time.sleep(0.05)
    assert resident(made / "mds") <= max(0.5, before)
    assert seen(dataset.loader(100, shuffle=True), made) == list(range(COUNT))


def is_in_memory(folder, place):
    name, offset = place
    return pages_in_memory(folder / name)[offset // PAGE]


@pytest.mark.parametrize("is_mixture", [False, True])
def test_without_room_the_samples_of_the_next_steps_are_asked_for(made, monkeypatch, is_mixture):
    monkeypatch.setattr("latentq.mds.reader._page_cache", lambda: 8 * 90 * 4104)
    dataset = latent_dataset(made)
    source = LatentMixture([dataset]) if is_mixture else dataset
    order = [batch["label"].tolist() for batch in source.loader(16, shuffle=True, seed=5)]
    locate = mds.Reader(
        made / "mds"
    ).core.location  # which reads a sample; they are stored in the order of their labels
    coming = [locate(label, 0) for labels in order[3:9] for label in labels]
    evict(made / "mds")
    before = resident(made / "mds")
    dataset = latent_dataset(made)  # another one, which has not cached its shards
    source = LatentMixture([dataset]) if is_mixture else dataset
    assert source.samples_ahead == 0
    batches = iter(source.loader(16, shuffle=True, seed=5, prefetch=1))
    for expected in order[:3]:
        batch = next(batches)
        check(batch, made)
        assert batch["label"].tolist() == expected
    assert source.samples_ahead == (89 if before < 1 else 0)
    assert soon(lambda: all(is_in_memory(made / "mds", place) for place in coming))
    assert resident(made / "mds") <= max(0.8, before)
    assert len(seen(batches, made)) == COUNT - 3 * 16


def test_asking_ends_once_samples_are_in_memory(made, monkeypatch):
    monkeypatch.setattr("latentq.mds.reader._page_cache", lambda: 1 << 20)
    evict(made / "mds")
    is_cold = resident(made / "mds") < 1
    dataset = latent_dataset(made)
    dataset.batch([0, 500])
    assert (dataset.samples_ahead > 0) == is_cold
    mds.Reader(made / "mds", cache_bytes=0).gather(range(COUNT), "latent")
    threads = Threads(1)
    dataset.ask(np.arange(0, COUNT, 9), threads)
    dataset.ask(np.array([-1, COUNT, 2**62]), threads)  # there are none such
    deadline = time.monotonic() + 20
    while dataset.samples_ahead and time.monotonic() < deadline:
        time.sleep(0.001)
    assert dataset.samples_ahead == 0
    threads.shutdown()
    with pytest.raises(ValueError, match="shut down"):
        dataset.ask(np.arange(3), threads)


def test_compressed_shards_are_not_asked_for(made, tmp_path):
    columns = {"latent": "ndarray:uint8:4,32,32", "label": "int"}
    with mds.Writer(tmp_path / "mds", columns, size_limit=1 << 20, compression="zstd") as writer:
        writer.write_batch({"latent": np.load(made / CODES), "label": np.load(made / LABELS)})
    first, *_, last = sorted((tmp_path / "mds").glob("*.zstd"))
    unpacked = last.with_suffix("")  # as a stock reader leaves it
    unpacked.write_bytes(zstd.decompress(last.read_bytes()))
    last.unlink()
    dataset = latent_dataset(tmp_path)
    dataset.batch([COUNT - 1])
    evict(tmp_path / "mds")
    threads = Threads(1)
    dataset.ask(np.array([0, COUNT - 3]), threads)
    assert soon(lambda: any(pages_in_memory(unpacked)))
    threads.shutdown()
    first.unlink()
    with pytest.raises(FileNotFoundError):  # it was not decompressed into the cache
        dataset.batch([0])


def test_a_few_samples_do_not_read_whole_files_but_many_do(made):
    dataset = latent_dataset(made)
    evict(made / "mds")
    before = resident(made / "mds")
    check(dataset.batch(range(3, COUNT, 200)), made)
    time.sleep(0.05)
    assert resident(made / "mds") <= max(0.5, before)
    for start in range(12):
        check(dataset.batch(range(start, COUNT, 17)), made)
    assert become_resident(made / "mds")


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_workers_read_cold_samples(made, method):
    dataset = latent_dataset(made)
    evict(made / "mds")
    check(dataset.batch([5, 900]), made)
    workers = DataLoader(
        dataset,
        batch_size=64,
        shuffle=True,
        num_workers=2,
        collate_fn=dataset.collate,
        multiprocessing_context=multiprocessing.get_context(method),
    )
    assert seen(workers, made) == list(range(COUNT))


def test_a_child_that_is_forked_while_files_are_read_ahead_reads_on_its_own(made):
    dataset = latent_dataset(made)
    evict(made / "mds")
    batches = iter(dataset.loader(8, shuffle=True))
    check(next(batches), made)
    pid = os.fork()
    if pid == 0:
        try:
            evict(made / "mds")
            complete = seen(dataset.loader(32, shuffle=True), made) == list(range(COUNT))
            del dataset
        finally:
            os._exit(0 if complete else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert len(seen(batches, made)) == COUNT - 8


def test_the_end_of_one_loader_leaves_reading_ahead_to_the_other(made):
    dataset = latent_dataset(made)
    for path in files(made / "mds"):
        path.read_bytes()  # in memory: nothing is read ahead yet
    first, second = (iter(dataset.loader(8, shuffle=True)) for _ in range(2))
    next(first)
    next(second)
    second.close()
    evict(made / "mds")
    next(first)
    assert become_resident(made / "mds")
    first.close()


def test_without_threads_nothing_is_read_ahead(made):
    code = """
import sys
from latentq import mds
reader = mds.Reader(sys.argv[1])
reader.read_ahead(begin=True)
print(len(reader.gather(range(3, 1024, 200), "latent")))
"""
    evict(made / "mds")
    before = resident(made / "mds")
    # The core asks for stacks of this size, which no system has room for.
    environment = os.environ | {"RUST_MIN_STACK": str(1 << 60)}
    command = [sys.executable, "-c", code, made / "mds"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "6\n", "")
    assert resident(made / "mds") <= max(0.5, before)


def test_a_mixture_reads_ahead(made):
    mixture = LatentMixture([latent_dataset(made), latent_dataset(made)])
    evict(made / "mds")
    check(next(iter(mixture.loader(256, shuffle=True))), made)
    assert sum(len(batch["label"]) for batch in mixture.loader(256, shuffle=True)) == 2 * COUNT


def test_datasets_of_a_mixture_share_the_memory_for_files(made, tmp_path, monkeypatch):
    """Two datasets that fit in memory alone, but not together, would drive each other out of it."""
    size = sum(path.stat().st_size for path in files(made / "mds"))
    monkeypatch.setattr("latentq.mds.reader._page_cache", lambda: 3 * size // 2)
    monkeypatch.setattr("latentq.mds.reader._FRESH", 0)
    shutil.copytree(made, tmp_path / "other")
    folders = made / "mds", tmp_path / "other" / "mds"
    for datasets, is_ahead in ((folders[:1], True), (folders, False)):
        mixture = LatentMixture([latent_dataset(folder.parent) for folder in datasets])
        for folder in datasets:
            evict(folder)
        before = [resident(folder) for folder in datasets]
        batches = iter(mixture.loader(16, shuffle=True))
        next(batches)
        if is_ahead:
            assert become_resident(datasets[0])
        else:
            time.sleep(0.05)
            shares = zip(datasets, before, strict=True)
            assert all(resident(folder) <= max(0.5, present) for folder, present in shares)
        batches.close()


@pytest.mark.parametrize("available", [1 << 40, 0])
def test_a_shard_that_is_cut_off_or_gone_is_an_error(made, tmp_path, monkeypatch, available):
    monkeypatch.setattr("latentq.mds.reader.available_bytes", lambda: available)
    copy = tmp_path / "copy"
    shutil.copytree(made, copy)
    dataset = latent_dataset(copy)
    first, second, *_ = files(copy / "mds")
    dataset.batch([0])
    evict(copy / "mds")
    os.truncate(first, 200_000)
    with pytest.raises(FormatError, match=r"shard\.00000\.mds: at byte .*(is truncated|has 200000 bytes)"):
        seen(dataset.loader(64, shuffle=True), made)
    shutil.copy(made / "mds" / first.name, first)
    second.unlink()
    with pytest.raises(FileNotFoundError, match=r"shard\.00001\.mds"):
        seen(latent_dataset(copy).loader(64, shuffle=True), made)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    indices=st.lists(st.integers(0, 255), max_size=40),
    columns=st.lists(st.sampled_from(["caption", "latent", "label"]), min_size=1, max_size=3, unique=True),
)
def test_cold_and_warm_samples_are_the_same(made, indices, columns):
    warm = mds.Reader(made / "strings").gather(indices, columns)
    cold = mds.Reader(made / "strings")
    evict(made / "strings")
    for mine, other in zip(cold.gather(indices, columns), warm, strict=True):
        np.testing.assert_array_equal(mine, other)


def test_the_process_ends_while_files_are_read_ahead(made):
    code = """
import sys
from pathlib import Path
from latentq.benchmark.loading import latent_dataset
batches = iter(latent_dataset(Path(sys.argv[1])).loader(8, shuffle=True))
print(next(batches)["latent"].shape)
"""
    evict(made / "mds")
    done = subprocess.run([sys.executable, "-c", code, made], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"{torch.Size([8, 4, 32, 32])}\n"
