"""Datasets on an object store: downloaded when they are needed, checked, evicted, and read as those in a folder."""

import errno
import json
import os
import subprocess
import sys
import threading
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from latentq import FormatError, LatentDataset, LatentMixture, LatentqError
from latentq.store.cache import ShardCache
from latentq.store.objects import ObjectStore
from latentq.system.extras import MissingPackageError
from support.bucket_making import make_buckets
from support.fault_proxy import FaultProxy
from support.making import make_dataset


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """60 samples in 12 shards or so, with hashes."""
    return make_dataset(tmp_path_factory.mktemp("made") / "out", 60, size_limit=800, hashes=["xxh3_64"])


def upload(path, url):
    store = ObjectStore(url)
    for file in sorted(path.rglob("*")):
        if file.is_file():
            store.put(file.relative_to(path).as_posix(), file)
    return url


@pytest.fixture
def url(made, s3):
    return upload(made.path, f"{s3}/set")


@pytest.fixture
def downloads(monkeypatch):
    """Counts the downloads of each object."""
    counts = Counter()
    download = ObjectStore.download

    def counted(self, name, path):
        counts[name] += 1
        return download(self, name, path)

    monkeypatch.setattr(ObjectStore, "download", counted)
    return counts


def sizes(path):
    return [entry["raw_data"]["bytes"] for entry in json.loads((path / "index.json").read_bytes())["shards"]]


def cached_bytes(cache):
    total = 0
    for file in cache.rglob("*.mds"):
        with suppress(FileNotFoundError):  # it is evicted just now
            total += file.stat().st_size
    return total


def assert_same_batches(first, second):
    for a, b in zip(first, second, strict=True):
        assert a.keys() == b.keys()
        assert all(torch.equal(a[n], b[n]) if torch.is_tensor(a[n]) else a[n] == b[n] for n in a)


@pytest.mark.parametrize("options", [{}, {"shuffle": True, "seed": 3}, {"shuffle": "window", "window": 3}])
def test_batches_are_those_of_the_folder_and_each_shard_comes_once(made, url, downloads, tmp_path, options):
    remote, local = LatentDataset(url, cache=tmp_path / "cache"), LatentDataset(made.path)
    assert len(sizes(made.path)) > 10
    for _ in range(2):
        assert_same_batches(remote.loader(4, **options), local.loader(4, **options))
    assert set(downloads.values()) == {1}
    again = LatentDataset(url, cache=tmp_path / "cache")
    assert_same_batches(again.loader(4, **options), local.loader(4, **options))
    assert set(downloads.values()) == {1}


def test_sample_downloads_its_shard_alone(url, made, downloads, tmp_path):
    remote = LatentDataset(url, cache=tmp_path / "cache")
    assert torch.equal(remote[17]["latent"], LatentDataset(made.path)[17]["latent"])
    assert len(downloads) == 1


def test_small_cache_holds_its_bytes_and_downloads_each_shard_once_an_epoch(made, url, downloads, tmp_path):
    cache_bytes = 2 * 3 * max(sizes(made.path))
    remote = LatentDataset(url, cache=tmp_path / "cache", cache_bytes=cache_bytes)
    local = LatentDataset(made.path)
    loader = remote.loader(4, shuffle="window", window=3, seed=1)
    expected = local.loader(4, shuffle="window", window=3, seed=1)
    for epoch in range(3):
        for batch, other in zip(loader, expected, strict=True):
            assert batch["key"] == other["key"]
            assert torch.equal(batch["latent"], other["latent"])
            assert cached_bytes(tmp_path / "cache") <= cache_bytes
        ahead = cache_bytes // max(sizes(made.path))  # of the next epoch
        assert sum(downloads.values()) <= (epoch + 1) * len(sizes(made.path)) + ahead
    for index in np.random.default_rng(0).permutation(60):
        assert torch.equal(remote[int(index)]["latent"], local[int(index)]["latent"])
        assert cached_bytes(tmp_path / "cache") <= cache_bytes
    # The space of evicted shards is free: no descriptor refers to them.
    assert not [name for name in open_files() if str(tmp_path) in name and name.endswith("(deleted)")]


@pytest.mark.parametrize("end", ["close", "damage"])
def test_loop_that_ends_early_keeps_no_shard(made, url, tmp_path, end):
    cache = {"cache": tmp_path / "cache", "cache_bytes": 6 * max(sizes(made.path))}
    remote = LatentDataset(url, **cache)
    if end == "damage":
        ObjectStore(url).put("shard.00004.mds", b"damage")
    batches = iter(remote.loader(4, shuffle="window", window=3))
    if end == "damage":
        with pytest.raises(FormatError):
            list(batches)
    else:
        next(batches)
        batches.close()
    assert not remote._shards._pins
    deadline = time.monotonic() + 10
    while any(str(tmp_path) in name for name in open_files()):  # a download that was under way ends
        assert time.monotonic() < deadline
        time.sleep(0.01)


def open_files():
    names = []
    for descriptor in Path("/proc/self/fd").iterdir():
        with suppress(FileNotFoundError):
            names.append(str(descriptor.readlink()))
    return names


def test_resumed_at_any_step_with_other_ranks_the_order_is_the_same(made, url, tmp_path):
    options = {"shuffle": "window", "window": 3, "seed": 2}
    cache = {"cache": tmp_path / "cache", "cache_bytes": 6 * max(sizes(made.path))}
    whole = [key for batch in LatentDataset(made.path).loader(4, **options) for key in batch["key"]]
    loader = LatentDataset(url, **cache).loader(4, **options)
    batches = iter(loader)
    begun = [key for _ in range(5) for key in next(batches)["key"]]
    state = json.loads(json.dumps(loader.state_dict()))
    batches.close()
    ranks = [LatentDataset(url, **cache).loader(2, **options, rank=rank, world_size=2) for rank in range(2)]
    for rank in ranks:
        rank.load_state_dict(state)
    rest = [
        key
        for step in zip(*ranks, strict=True)
        for batch in step
        for key, is_valid in zip(batch["key"], batch["valid"], strict=True)
        if is_valid
    ]
    assert begun + rest == whole


def test_shuffles_that_the_cache_is_too_small_for(made, url, tmp_path):
    remote = LatentDataset(url, cache=tmp_path / "cache", cache_bytes=3 * max(sizes(made.path)))
    with pytest.raises(ValueError, match="shuffle='window' shuffles within windows"):
        remote.loader(4, shuffle=True)
    with pytest.raises(ValueError, match=r"5 shards may have .* give a smaller window"):
        remote.loader(4, shuffle="window", window=5)
    with pytest.raises(ValueError, match="the largest shard of s3://"):
        LatentDataset(url, cache=tmp_path / "cache", cache_bytes=100)


def test_mixture_and_buckets_are_read_as_in_folders(made, url, s3, tmp_path):
    other = make_dataset(tmp_path / "other", 20, size_limit=800, seed=1)
    buckets = make_buckets(tmp_path / "buckets")
    cache = {"cache": tmp_path / "cache"}
    mixture = LatentMixture([LatentDataset(url, **cache), LatentDataset(other.path)], weights=[1, 2])
    expected = LatentMixture([LatentDataset(made.path), LatentDataset(other.path)], weights=[1, 2])
    for options in ({"shuffle": True}, {"shuffle": "window", "window": 2}):
        assert_same_batches(mixture.loader(4, **options), expected.loader(4, **options))
    remote = LatentDataset(upload(buckets.path, f"{s3}/buckets"), **cache, cache_bytes=9000)
    local = LatentDataset(buckets.path)
    assert_same_batches(remote.loader(4, shuffle="window", window=1), local.loader(4, shuffle="window", window=1))


def test_several_readers_of_one_cache_download_each_shard_once(made, url, downloads, tmp_path):
    """Each has locks of its own, as processes have."""
    readers = [LatentDataset(url, cache=tmp_path / "cache") for _ in range(4)]
    keys = [[] for _ in readers]

    def read(number):
        for batch in readers[number].loader(4, shuffle=True, seed=number):
            keys[number] += batch["key"]

    threads = [threading.Thread(target=read, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(sorted(found) == made.keys for found in keys)
    assert set(downloads.values()) == {1}


def test_several_readers_of_a_small_cache_read_everything(made, url, tmp_path):
    cache = {"cache": tmp_path / "cache", "cache_bytes": 4 * max(sizes(made.path))}
    readers = [LatentDataset(url, **cache) for _ in range(3)]
    keys = [[] for _ in readers]

    def read(number):
        for batch in readers[number].loader(4, shuffle="window", window=2, seed=number):
            keys[number] += batch["key"]

    threads = [threading.Thread(target=read, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(sorted(found) == made.keys for found in keys)


def test_failing_requests_are_made_again(made, url, s3_server, tmp_path):
    proxy = FaultProxy(s3_server, probability=0.06, seed=1)
    options = {"endpoint": proxy.url, "allow_http": "true"}
    remote = LatentDataset(url, cache=tmp_path / "cache", storage_options=options)
    assert_same_batches(remote.loader(4, shuffle=True), LatentDataset(made.path).loader(4, shuffle=True))
    proxy.close()
    assert any(proxy.faults.values())


@pytest.mark.parametrize("damage", ["flipped", "truncated", "empty"])
def test_damaged_shard_is_an_error_that_names_it(made, url, downloads, tmp_path, damage):
    name = "shard.00003.mds"
    data = bytearray((made.path / name).read_bytes())
    data[len(data) // 2] ^= 1
    ObjectStore(url).put(name, {"flipped": bytes(data), "truncated": bytes(data[:-7]), "empty": b""}[damage])
    remote = LatentDataset(url, cache=tmp_path / "cache")
    with pytest.raises(FormatError, match=r"s3://.*/shard\.00003\.mds: .*: it is damaged") as error:
        list(remote.loader(4))
    assert "\n" not in str(error.value)
    assert downloads[name] == 3
    assert not list((tmp_path / "cache").rglob(f"{name}*"))
    ObjectStore(url).put(name, made.path / name)
    assert_same_batches(remote.loader(4), LatentDataset(made.path).loader(4))


def test_what_a_killed_process_left_is_downloaded_again(made, url, tmp_path):
    remote = LatentDataset(url, cache=tmp_path / "cache")
    for number in range(4):
        (remote.path / f"shard.{number:05}.mds.part").write_bytes(b"half")
    (remote.path / "shard.00001.mds").write_bytes(b"cut by a broken disk")
    assert_same_batches(remote.loader(4), LatentDataset(made.path).loader(4))
    assert not list((tmp_path / "cache").rglob("*.part"))


def test_shard_from_before_the_last_start_of_the_machine_is_hashed_again(made, url, downloads, tmp_path):
    remote = LatentDataset(url, cache=tmp_path / "cache")
    list(remote.loader(4))
    downloads.clear()
    for number, damaged in ((2, True), (3, False)):
        path = remote.path / f"shard.{number:05}.mds"
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= damaged
        path.write_bytes(data)
        os.utime(path, (1, 1))
    assert_same_batches(LatentDataset(url, cache=tmp_path / "cache").loader(4), LatentDataset(made.path).loader(4))
    assert downloads == {"shard.00002.mds": 1}


@pytest.mark.long
def test_killed_reader_leaves_a_cache_that_others_read(made, url, s3_server, tmp_path):
    code = (
        "import sys, latentq\n"
        "for batch in latentq.LatentDataset(sys.argv[1], cache=sys.argv[2]).loader(4): print(batch['key'], flush=True)"
    )
    for wait in (1, 3):
        process = subprocess.Popen([sys.executable, "-c", code, url, str(tmp_path / "cache")], stdout=subprocess.PIPE)
        for _ in range(wait):
            process.stdout.readline()
        process.kill()
        process.wait()
    remote = LatentDataset(url, cache=tmp_path / "cache")
    assert_same_batches(remote.loader(4), LatentDataset(made.path).loader(4))


@pytest.mark.long
def test_processes_of_a_small_cache_on_a_bad_network_read_everything(made, url, s3_server, tmp_path):
    """Four processes share a cache smaller than the dataset while requests fail; one is killed."""
    proxy = FaultProxy(s3_server, probability=0.03, seed=2)
    code = (
        "import sys, latentq\n"
        "ds = latentq.LatentDataset(sys.argv[1], cache=sys.argv[2], cache_bytes=int(sys.argv[3]))\n"
        "for epoch in range(2):\n"
        "    for batch in ds.loader(4, shuffle='window', window=2, seed=int(sys.argv[4])):\n"
        "        print(*batch['key'], flush=True)"
    )
    arguments = [url, str(tmp_path / "cache"), str(4 * max(sizes(made.path)))]
    environment = os.environ | {"AWS_ENDPOINT_URL": proxy.url}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", code, *arguments, str(seed)], stdout=subprocess.PIPE, text=True, env=environment
        )
        for seed in range(4)
    ]
    processes[0].stdout.readline()
    processes[0].kill()
    keys = [process.communicate(timeout=120)[0].split() for process in processes]
    assert [process.returncode for process in processes[1:]] == [0, 0, 0]
    assert all(sorted(found) == sorted(2 * made.keys) for found in keys[1:])
    proxy.close()
    assert any(proxy.faults.values())


@pytest.mark.long
def test_workers_made_by_spawn_read_a_dataset(made, url, tmp_path):
    remote = LatentDataset(url, cache=tmp_path / "cache")
    loader = DataLoader(remote, batch_size=4, num_workers=2, multiprocessing_context="spawn", collate_fn=remote.collate)
    assert [key for batch in loader for key in batch["key"]] == made.keys


def test_worker_made_by_fork_says_what_to_do(made, url, tmp_path):
    remote = LatentDataset(url, cache=tmp_path / "cache")
    with pytest.raises(LatentqError, match="multiprocessing_context='spawn'"):
        next(iter(DataLoader(remote, batch_size=4, num_workers=1, multiprocessing_context="fork")))
    list(remote.loader(4))
    cached = DataLoader(remote, batch_size=4, num_workers=1, multiprocessing_context="fork")
    assert [key for batch in cached for key in batch["key"]] == made.keys


def test_dataset_opened_in_a_forked_child_says_what_to_do(url, tmp_path):
    """obstore's threads are one set for the process: a client that the child makes would wait for ever too."""
    ObjectStore(url).get("index.json")
    child = os.fork()
    if not child:
        try:
            LatentDataset(url, cache=tmp_path / "cache")
        except LatentqError as error:
            os._exit(42 if "multiprocessing_context='spawn'" in str(error) else 1)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 42


def test_whole_cache_is_read_without_the_store(made, url, tmp_path, monkeypatch):
    remote = LatentDataset(url, cache=tmp_path / "cache")
    remote[0]
    gone = {"endpoint": "http://127.0.0.1:1", "connect_timeout": "1s"}
    monkeypatch.setattr("latentq.store.objects._ATTEMPTS", 1)
    monkeypatch.setattr("latentq.store.objects._PATIENCE", 0.0)
    for name in ("_RETRIES", "_FEW_RETRIES"):
        monkeypatch.setattr(f"latentq.store.objects.{name}", {"max_retries": 0})
    with pytest.raises(OSError, match="Generic S3 error"):  # a shard is missing
        LatentDataset(url, cache=tmp_path / "cache", storage_options=gone)
    list(remote.loader(4))
    with pytest.warns(UserWarning, match=rf"^{url} cannot be asked for its newest version; the one in .*/cache/set-"):
        offline = LatentDataset(url, cache=tmp_path / "cache", storage_options=gone)
    assert_same_batches(offline.loader(4), LatentDataset(made.path).loader(4))
    loader = DataLoader(offline, batch_size=4, num_workers=1, multiprocessing_context="fork")
    assert [key for batch in loader for key in batch["key"]] == made.keys

    def refused(*_):
        raise PermissionError(13, "nobody may read this")

    monkeypatch.setattr(ObjectStore, "get", refused)
    with pytest.raises(PermissionError, match="nobody"):  # the store answers: nothing else is read instead
        LatentDataset(url, cache=tmp_path / "cache")


def test_newest_of_two_whole_versions_is_read_with_the_store_and_without(made, url, tmp_path, monkeypatch):
    first = LatentDataset(url, cache=tmp_path / "cache")
    list(first.loader(4))
    other = make_dataset(tmp_path / "other", 60, size_limit=800, seed=9, hashes=["xxh3_64"])
    upload(other.path, url)
    second = LatentDataset(url, cache=tmp_path / "cache")
    assert second.path != first.path
    list(second.loader(4))
    monkeypatch.setattr("latentq.store.objects._ATTEMPTS", 1)
    monkeypatch.setattr("latentq.store.objects._PATIENCE", 0.0)
    monkeypatch.setattr("latentq.store.objects._FEW_RETRIES", {"max_retries": 0})
    gone = {"endpoint": "http://127.0.0.1:1", "connect_timeout": "1s"}
    with pytest.warns(UserWarning, match=second.path.name):
        assert LatentDataset(url, cache=tmp_path / "cache", storage_options=gone).path == second.path


@pytest.mark.parametrize("options", [{"shuffle": "window", "window": 2}, {}])
def test_first_shards_of_the_next_epoch_come_at_the_end_of_an_epoch(made, url, downloads, tmp_path, options):
    remote = LatentDataset(url, cache=tmp_path / "cache", cache_bytes=6 * max(sizes(made.path)))
    loader = remote.loader(5, **options)
    first = remote._shards.shards_of(next(loader._steps(1, loader._first)).indices)
    names = [remote._shards.shards[number].name for number in first]
    batches = iter(loader)
    for _ in range(len(loader) - 1):
        next(batches)
    deadline = time.monotonic() + 20
    while not all((remote.path / name).exists() for name in names):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    before = downloads.copy()
    assert len(list(batches)) == 1
    next(iter(loader))
    assert all(downloads[name] == before[name] for name in names)


def test_disk_that_is_full_is_named(url, tmp_path):
    """The kernel's own error: what is written for a shard goes to /dev/full."""
    remote = LatentDataset(url, cache=tmp_path / "cache")
    for shard in remote._shards.shards:
        (remote.path / f"{shard.name}.part").symlink_to("/dev/full")
    with pytest.raises(OSError, match="no space is left for the cache") as error:
        remote[0]
    assert error.value.errno == errno.ENOSPC
    assert str(remote.path) in str(error.value)
    name = remote._shards.shards[0].name
    assert not list(remote.path.glob(f"{name}*"))  # neither it nor the part, which was a link here
    assert remote[0]["latent"].shape == LatentDataset(url, cache=tmp_path / "other")[0]["latent"].shape


def test_urls_without_a_dataset(s3, tmp_path, monkeypatch):
    with pytest.raises(LatentqError, match=r"holds no finished dataset: it has no index\.json"):
        LatentDataset(f"{s3}/nothing", cache=tmp_path)
    with pytest.raises(OSError, match="no such bucket"):
        LatentDataset("s3://other-bucket/set", cache=tmp_path)
    for index in (b"{", b'{"shards": [{"samples": 1}]}', b'{"shards": [{"samples": 1, "raw_data": {"basename": "../x", '
                  b'"bytes": 1}}]}'):  # fmt: skip
        ObjectStore(f"{s3}/broken").put("index.json", index)
        with pytest.raises(FormatError, match=r"broken/index\.json: "):
            LatentDataset(f"{s3}/broken", cache=tmp_path)
    monkeypatch.setitem(sys.modules, "obstore", None)
    with pytest.raises(MissingPackageError, match="pip install 'obstore"):
        LatentDataset(f"{s3}/nothing", cache=tmp_path)


def test_expired_credentials_while_reading_are_one_line(url, tmp_path, monkeypatch):
    remote = LatentDataset(url, cache=tmp_path / "cache")

    class Expired:
        def get(self, *_):
            from obstore.exceptions import GenericError

            raise GenericError("<Error><Code>ExpiredToken</Code><Message>The provided token has expired.</Message>")

    monkeypatch.setattr(remote._shards._remote, "_obstore", Expired())
    begun = time.monotonic()
    with pytest.raises(PermissionError, match=r"ExpiredToken: The provided token has expired\.") as error:
        list(remote.loader(4))
    assert time.monotonic() - begun < 10
    assert "\n" not in str(error.value)


def test_versions_of_a_dataset_do_not_mix(made, url, tmp_path):
    first = LatentDataset(url, cache=tmp_path / "cache")
    first[0]
    other = make_dataset(tmp_path / "other", 60, size_limit=800, seed=9, hashes=["xxh3_64"])
    upload(other.path, url)
    second = LatentDataset(url, cache=tmp_path / "cache")
    assert second.path != first.path
    assert torch.equal(second[0]["latent"], LatentDataset(other.path)[0]["latent"])
    assert torch.equal(first[0]["latent"], LatentDataset(made.path)[0]["latent"])


def test_all_shards_are_fetched_with_their_bytes_counted(made, url, tmp_path):
    cache = ShardCache(url, tmp_path / "cache")
    counts = []
    cache.fetch_all(counts.append)
    assert sum(counts) == cache.nbytes == sum(sizes(made.path))
    assert cache.is_complete
    assert {file.name for file in Path(cache.folder).glob("*.mds")} == {file.name for file in made.path.glob("*.mds")}
