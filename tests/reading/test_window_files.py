"""Windows of shards of a dataset larger than memory: the files of the next window are read during the current one."""

import json
import os
import shutil
import subprocess
import sys
import threading
import time
from functools import cache

import numpy as np
import pytest

from latentq import FormatError, LatentDataset, LatentMixture, mds
from latentq.benchmark.loading import CODES, LABELS, LOW, latent_dataset, write_numpy
from latentq.reading.shard_files import HeldFiles, ShardFiles
from latentq.reading.windows import Window
from support.bucket_making import SHAPES, make_buckets
from support.page_cache import evict, is_resident, soon

COUNT = 1280
STEP = 24 / 255
SHARD = 1 << 19


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A dataset of 5 MiB in 11 shards."""
    folder = tmp_path_factory.mktemp("windows")
    write_numpy(folder, COUNT)
    columns = {"latent": "ndarray:uint8:4,32,32", "label": "int"}
    for name, compression in (("mds", None), ("zipped", "zstd")):
        with mds.Writer(folder / name, columns, size_limit=SHARD, compression=compression) as writer:
            writer.write_batch({"latent": np.load(folder / CODES), "label": np.load(folder / LABELS)})
    return folder


@pytest.fixture
def room(monkeypatch):
    """Sets the memory for files, in shards."""

    def room(shards):
        monkeypatch.setattr("latentq.mds.reader._page_cache", lambda: shards * SHARD)

    room(5)
    return room


def seen(batches, folder):
    """Returns the labels of batches whose latents are right."""
    labels = []
    for batch in batches:
        codes = np.load(folder / CODES, mmap_mode="r")[batch["label"].numpy()]
        np.testing.assert_allclose(batch["latent"].numpy(), codes * STEP + LOW, atol=1e-5)
        labels += batch["label"].tolist()
    return labels


@cache
def location(folder, label):
    """Returns the shard of a sample; they are stored in the order of their labels."""
    return folder / "mds" / mds.Reader(folder / "mds").core.location(label, 0)[0]


def windows_of(labels, folder, shards):
    """Returns the shards of each window of an epoch, as paths. It reads the samples."""
    order = list(dict.fromkeys(location(folder, label) for label in labels))
    return [order[start : start + shards] for start in range(0, len(order), shards)]


@pytest.mark.parametrize("is_mixture", [False, True])
def test_the_files_of_the_next_window_are_read_ahead_and_no_more_than_have_room(made, room, is_mixture):
    def source():
        dataset = latent_dataset(made)
        return LatentMixture([dataset]) if is_mixture else dataset

    order = seen(source().loader(16, shuffle="window", window=2, seed=3), made)
    assert sorted(order) == list(range(COUNT))
    windows = windows_of(order, made, 2)
    evict(made / "mds")
    has_disk = not is_resident(windows[-1][0])
    batches = iter(source().loader(16, shuffle="window", window=2, seed=3))
    assert seen([next(batches)], made) == order[:16]
    assert soon(lambda: all(is_resident(path) for path in windows[0] + windows[1]))
    time.sleep(0.05)
    assert [is_resident(path) for path in windows[3]] == [not has_disk] * 2
    middle = order.index(next(label for label in order if location(made, label) in windows[2])) + 64
    labels = order[:16]
    while len(labels) < middle:
        labels += seen([next(batches)], made)
    # The first window has left memory, and the fourth one is there.
    assert soon(lambda: [is_resident(path) for path in windows[0]] == [not has_disk] * 2)
    assert soon(lambda: all(is_resident(path) for path in windows[3]))
    assert labels + seen(batches, made) == order


@pytest.mark.parametrize("is_mixture", [False, True])
def test_samples_whose_files_are_read_as_a_whole_are_waited_for_and_not_asked_for(made, room, monkeypatch, is_mixture):
    asked, waited = [], []
    wait = HeldFiles.wait
    monkeypatch.setattr(LatentDataset, "samples_ahead", 1024)
    monkeypatch.setattr(LatentDataset, "ask", lambda *_: asked.append(1))
    monkeypatch.setattr(HeldFiles, "wait", lambda held: waited.append(held) or wait(held))
    dataset = latent_dataset(made)
    source = LatentMixture([dataset]) if is_mixture else dataset
    assert sorted(seen(source.loader(64, shuffle="window", window=2), made)) == list(range(COUNT))
    assert len(waited) == COUNT // 64
    assert not asked
    assert sorted(seen(source.loader(64, shuffle=True), made)) == list(range(COUNT))
    assert len(asked) == COUNT // 64


def test_the_first_files_of_the_next_epoch_are_read_ahead_and_stay_in_memory(made, room):
    def loader():
        return latent_dataset(made).loader(16, shuffle="window", window=2, seed=3)

    ordered = loader()
    (last, *_), (first, *_) = (windows_of(seen(ordered, made), made, 2)[::step] for step in (-1, 1))
    assert not set(first) & set(last)
    evict(made / "mds")
    batches = iter(loader())
    labels = seen([next(batches) for _ in range(COUNT // 16 - 1)], made)
    assert soon(lambda: all(is_resident(path) for path in first))
    assert sorted(labels + seen(batches, made)) == list(range(COUNT))
    assert soon(lambda: not is_reading())
    assert all(is_resident(path) for path in first)


def test_without_a_thread_samples_are_read_one_by_one(made, room, monkeypatch):
    def refuse(_):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr("latentq.reading.shard_files.threading.Thread.start", refuse)
    files, _ = shard_files(made, 20)
    held = files.pin(np.array([0, COUNT - 1]))
    assert held is not None
    assert held.missing == 0
    held.release()
    assert sorted(seen(latent_dataset(made).loader(64, shuffle="window", window=2), made)) == list(range(COUNT))


def test_an_index_need_not_say_that_shards_are_not_compressed(made, room, tmp_path):
    shutil.copytree(made, tmp_path / "copy")
    path = tmp_path / "copy/mds/index.json"
    index = json.loads(path.read_bytes())
    for shard in index["shards"]:
        del shard["zip_data"]
    path.write_text(json.dumps(index))
    dataset = latent_dataset(tmp_path / "copy")
    assert dataset.files(Window(2)) is not None


def test_a_dataset_is_read_on_as_it_was_when_its_index_is_replaced(made, room, tmp_path):
    shutil.copytree(made, tmp_path / "copy")
    dataset = latent_dataset(tmp_path / "copy")
    path = tmp_path / "copy/mds/index.json"
    index = json.loads(path.read_bytes())
    path.write_text(json.dumps(index | {"shards": index["shards"][6:]}))
    assert dataset.files(Window(2)) is not None
    assert sorted(seen(dataset.loader(64, shuffle="window", window=2), made)) == list(range(COUNT))
    assert len(latent_dataset(tmp_path / "copy")) < COUNT


def is_reading():
    return "latentq-files" in [thread.name for thread in threading.enumerate()]


def test_files_are_held_for_windows_only_that_fit_twice_in_memory_and_not_whole(made, room):
    def holds(shuffle, parts=1):
        return latent_dataset(made).files(shuffle, parts) is not None

    assert holds(Window(2))
    assert not holds(Window(3))
    assert not holds(Window(2), parts=2)
    assert not holds(shuffle=True)
    assert not holds(shuffle=False)
    room(11)
    assert not holds(Window(2))


def test_with_buckets_each_that_is_not_empty_has_a_window(tmp_path, monkeypatch):
    made = make_buckets(tmp_path / "buckets", units=((0, 20, 20, 20),), size_limit=400)
    sizes = sorted(path.stat().st_size for path in made.path.rglob("*.mds"))
    needed = 2 * sum(sizes[-len(SHAPES) + 1 :])  # the first bucket is empty
    assert needed < sum(sizes)
    for room, is_held in ((needed - 1, False), (needed, True)):
        monkeypatch.setattr("latentq.mds.reader._page_cache", lambda room=room: room)
        dataset = LatentDataset(made.path)
        assert (dataset.files(Window(1)) is not None) == is_held
        keys = [key for batch in dataset.loader(7, shuffle="window", window=1) for key in batch["key"]]
        assert sorted(keys) == sorted(dataset[i]["key"] for i in range(len(made)))


def test_a_compressed_dataset_is_left_to_the_reader(made, room, tmp_path):
    shutil.copytree(made / "zipped", tmp_path / "mds")
    for name in (CODES, LABELS):
        shutil.copy(made / name, tmp_path)
    dataset = latent_dataset(tmp_path)
    assert dataset.files(Window(2)) is None
    assert sorted(seen(dataset.loader(64, shuffle="window", window=2), made)) == list(range(COUNT))


def test_an_epoch_resumes_and_the_next_one_has_another_order(made, room):
    loader = latent_dataset(made).loader(32, shuffle="window", window=2)
    batches = iter(loader)
    first = seen([next(batches) for _ in range(7)], made)
    state = loader.state_dict()
    other = latent_dataset(made).loader(32, shuffle="window", window=2)
    other.load_state_dict(state)
    rest = seen(other, made)
    assert sorted(first + rest) == list(range(COUNT))
    assert seen(batches, made) == rest
    assert sorted(second := seen(loader, made)) == list(range(COUNT))
    assert second != first + rest


def test_a_shard_that_is_cut_off_or_gone_is_an_error_and_nothing_stays_held(made, room, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(made, copy)
    dataset = latent_dataset(copy)
    shards = sorted((copy / "mds").glob("*.mds"))
    evict(copy / "mds")
    os.truncate(shards[4], 2000)
    with pytest.raises(FormatError, match=r"shard\.00004\.mds: at byte"):
        seen(dataset.loader(64, shuffle="window", window=2), made)
    shards[4].unlink()
    with pytest.raises(FileNotFoundError, match=r"shard\.00004\.mds"):
        seen(latent_dataset(copy).loader(64, shuffle="window", window=2), made)
    assert soon(lambda: not is_reading())


def shard_files(made, room):
    paths = sorted((made / "mds").glob("*.mds"))
    lengths = [shard.stat().st_size // 4104 for shard in paths]
    return ShardFiles(paths, np.full(len(paths), 10), np.cumsum(lengths) - lengths, room), lengths


def test_shards_are_counted_once_and_released_by_the_last_holder(made):
    files, lengths = shard_files(made, 20)
    first = files.pin(np.array([0, lengths[0]]))
    again = files.pin(np.array([1]), within=True)
    assert first is not None
    assert again is not None
    assert files.pin(np.array([COUNT - 1]), within=True) is None
    assert soon(lambda: first.missing == 0)
    first.wait()
    first.release()
    first.release()
    assert again.missing == 0
    other = files.pin(np.array([COUNT - 1]), within=True)
    assert other is not None
    assert files.pin(np.array([COUNT // 2]), within=True) is None
    again.release()
    assert again.missing == 0
    more = files.pin(np.array([0]), within=True)
    assert more is not None
    assert soon(lambda: other.missing == more.missing == 0)
    beyond = files.pin(np.arange(COUNT))  # what is needed now is held even without room
    assert beyond is not None
    assert soon(lambda: beyond.missing == 0)


def test_waiting_for_a_file_ends(made, tmp_path):
    os.mkfifo(tmp_path / "fifo")  # opening it waits for a writer
    files = ShardFiles([tmp_path / "fifo"], np.array([1]), np.array([0]), 10)
    held = files.pin(np.array([0]))
    assert held is not None
    begun = time.monotonic()
    held.wait()
    held.wait()
    assert held.missing == 1
    assert time.monotonic() - begun < 10
    held.release()
    with (tmp_path / "fifo").open("wb"):
        pass


@pytest.mark.parametrize("pause", [0, 1], ids=["while files are read", "later"])
def test_the_process_ends(made, pause):
    code = """
import sys
import time
from pathlib import Path
import latentq.mds.reader
from latentq.benchmark.loading import latent_dataset
latentq.mds.reader._page_cache = lambda: 5 << 19
batches = iter(latent_dataset(Path(sys.argv[1])).loader(8, shuffle="window", window=2))
print(len(next(batches)["label"]))
time.sleep(int(sys.argv[2]))
"""
    evict(made / "mds")
    done = subprocess.run(
        [sys.executable, "-c", code, made, str(pause)], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "8\n", "")


def test_a_forked_child_reads_its_own_windows(made, room):
    dataset = latent_dataset(made)
    evict(made / "mds")
    batches = iter(dataset.loader(16, shuffle="window", window=2))
    start = seen([next(batches)], made)
    pid = os.fork()
    if pid == 0:
        complete = False
        try:
            complete = sorted(seen(dataset.loader(64, shuffle="window", window=2), made)) == list(range(COUNT))
        finally:
            os._exit(0 if complete else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert sorted(start + seen(batches, made)) == list(range(COUNT))
