"""Runs on a Ray cluster of several nodes: the bytes of one process, and faults of workers told as what they are."""

import errno
import io
import os
import socket
import sys
import time
from pathlib import Path

import pytest

import latentq
from conftest import contents, paint
from latentq import LatentqError, RayOptions
from latentq.cli.main import main
from latentq.format.files import SHARDS
from latentq.run import ray_units
from latentq.run.ray import ClusterError, Workers
from latentq.run.ray_units import check_shared
from latentq.sharding.card import ShardsCard
from latentq.system.extras import MissingPackageError

SMALL = {"autoencoder": "dct-f8c16", "size": 64, "unit_size": 4}


@pytest.fixture(scope="module", autouse=True)
def _by_value(cluster):
    """Workers do not import this file."""
    from ray import cloudpickle

    cloudpickle.register_pickle_by_value(sys.modules[__name__])


def make_source(folder, count=24):
    for index in range(count):
        paint(folder / f"{index % 3}" / f"{index:03}.png", index, (200 - 5 * index, 150))
    (folder / "1" / "broken.jpg").write_text("no")
    return folder


def test_encode_shards_and_verify_do_the_work_of_one_process(tmp_path, cluster):
    source = make_source(tmp_path / "source")
    latentq.encode(source, tmp_path / "one", **SMALL)
    stream = io.StringIO()
    card = latentq.encode(source, tmp_path / "ray", **SMALL, progress=stream, ray=RayOptions())
    assert card.complete
    assert contents(tmp_path / "ray") == contents(tmp_path / "one")
    lines = stream.getvalue().splitlines()
    assert sum(line.startswith("rejected: 1/broken.jpg: decode:") for line in lines) == 1
    assert [line for line in lines if line.startswith("encode: 25 of 25 images")]
    workers = [line for line in lines if line.startswith("worker ")]
    assert sum(int(line.split(": ")[1].split()[0]) for line in workers) == 7

    shard = next((tmp_path / "ray" / "00004").glob("*.mds"))
    shard.write_bytes(shard.read_bytes()[:-1] + b"?")
    (tmp_path / "ray" / "00002" / "unit.toml").write_text("no")
    findings = latentq.verify(tmp_path / "ray")
    assert findings
    assert latentq.verify(tmp_path / "ray", ray=RayOptions()) == findings  # also those of a unit that cannot be read

    options = ("--unit-size", "4", "--min-size", "8", "--quiet")
    assert main(["shards", str(source), str(tmp_path / "shards"), *options]) == 0
    assert main(["shards", str(source), str(tmp_path / "ray-shards"), *options, "--ray", "--workers", "2"]) == 0
    assert contents(tmp_path / "ray-shards") == contents(tmp_path / "shards")


class Doubling:
    """Doubles numbers; the first attempt at some of them goes wrong."""

    def __init__(self, folder, faults):
        self.folder, self.faults = folder, faults

    def __call__(self, queue, _):
        queue.notes.write("planned\n")
        queue.planned("plan")
        for numbers in queue.waves():
            for number in numbers:
                fault = self.faults.get(number)
                if fault is not None and self.is_first(number):
                    fault()
                queue.done(number, 2 * number)

    def is_first(self, number):
        try:
            os.close(os.open(self.folder / str(number), os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            return False
        return True


def disk_is_full():
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/scratch/shard")


def doubled(folder, count=8, options=None, **faults):
    stream = io.StringIO()
    work = Doubling(folder, {int(name[1:]): fault for name, fault in faults.items()})
    with Workers(work, options or RayOptions(), stream, gpus=False) as workers:
        assert workers.plan() == "plan"
        results = dict(workers.results(dict.fromkeys(range(count), 1)))
    assert results == {number: 2 * number for number in range(count)}
    return stream.getvalue()


def test_units_of_workers_that_fail_go_to_others(tmp_path, cluster):
    """A full disk and a killed process are the machine's; each is told once. A slow unit is given to another too."""
    start = time.monotonic()
    told = doubled(tmp_path, _2=disk_is_full, _4=lambda: os._exit(1), _7=lambda: time.sleep(600))
    assert time.monotonic() - start < 300
    assert (told.count("planned"), told.count("No space left on device"), told.count("it died")) == (1, 1, 1), told
    assert "its units go to others" in told


def test_fault_of_the_data_ends_the_run(tmp_path, cluster):
    def refuse():
        raise LatentqError("a.png: decode: broken")

    with pytest.raises(LatentqError, match=rf"^a.png: decode: broken \(worker on {os.uname().nodename}\)$"):
        doubled(tmp_path, _3=refuse, options=RayOptions(workers=1))


class Failing(Doubling):
    """Finds the disk full at each attempt."""

    def is_first(self, _):
        return True


def test_fault_of_the_machine_that_stays_ends_the_run(tmp_path, cluster, monkeypatch):
    monkeypatch.setattr("latentq.run.ray._ATTEMPTS", 2)
    with Workers(Failing(tmp_path, {0: disk_is_full}), RayOptions(), None, gpus=False) as workers:
        workers.plan()
        with pytest.raises(OSError, match="No space left on device"):
            list(workers.results({0: 1}))


def test_machines_that_are_missing_are_told(tmp_path, cluster, monkeypatch):
    work = Doubling(tmp_path, {})

    def told(**options):
        stream = io.StringIO()
        with Workers(work, RayOptions(**options), stream, gpus=True):
            return stream.getvalue()

    missing = "a worker needs 1 CPU and 2 GPUs, and no machine of the cluster has them: waiting for one\n"
    assert told(gpus_per_worker=2) == missing
    assert told(workers=3) == "2 of 3 workers fit in the cluster; the others start when it grows\n"
    assert told() == ""
    monkeypatch.setattr("latentq.run.ray._connect", lambda *_: (False, True))
    with pytest.raises(ClusterError, match="a worker needs 8 CPUs and no GPU, and this machine has 2 CPUs and no GPU"):
        told(cpus_per_worker=8)


HEAD, CPUS, GPUS = {"CPU": 4.0}, {"CPU": 64.0}, {"CPU": 96.0, "GPU": 8.0}


@pytest.mark.parametrize(
    ("machines", "options", "gpus", "size", "fitting"),
    [
        ([HEAD, CPUS], {}, True, (1, 0), 68),
        ([HEAD, GPUS, GPUS], {}, True, (12, 1), 16),
        ([HEAD, CPUS, GPUS], {"gpus_per_worker": 0.5}, True, (6, 0.5), 16),
        ([HEAD, GPUS], {"cpus_per_worker": 32}, True, (32, 1), 3),
        ([HEAD, GPUS], {"gpus_per_worker": 0, "cpus_per_worker": 4}, True, (4, 0), 25),
        ([HEAD, GPUS], {}, False, (1, 0), 100),
    ],
)
def test_size_and_number_of_workers(monkeypatch, machines, options, gpus, size, fitting):
    monkeypatch.setattr(Workers, "_machines", lambda _: machines)
    workers = object.__new__(Workers)
    workers._is_alone = False
    workers._cpus, workers._gpus = workers._sizes(RayOptions(**options), gpus=gpus)
    assert (workers._cpus, workers._gpus) == size
    assert workers._count(None) == fitting


def test_folder_that_is_not_shared_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(ray_units, "VISIBLE_S", 0.0)
    source = make_source(tmp_path / "source", 3)
    latentq.shards(source, tmp_path / "shards", min_size=8)
    card = ShardsCard.load(tmp_path / "shards")
    check_shared(tmp_path / "shards", card)
    with pytest.raises(LatentqError, match="does not see what a worker on another machine published there: name a "):
        check_shared(tmp_path / "elsewhere", card)
    assert (tmp_path / "shards" / SHARDS).exists()


def test_cluster_that_is_not_there_is_told(monkeypatch):
    """At once if nobody listens there; else in the words of Ray, which asks for half a minute."""
    import ray

    def init(**options):
        raise ConnectionError(f"Could not find any running Ray instance.\nAddress {options['address']}")

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", init)
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        with pytest.raises(ClusterError, match=rf"^the Ray cluster of {address} cannot be used: Could not find any"):
            Workers(Doubling(Path(), {}), RayOptions(address), None, gpus=False)
    for named in (address, f"ray://{address}"):
        with pytest.raises(ClusterError, match=rf"^the Ray cluster of {named} cannot be used: .*Connection refused$"):
            Workers(Doubling(Path(), {}), RayOptions(named), None, gpus=False)


def test_verification_that_machines_prevent_finds_nothing(pictures, tmp_path, cluster, monkeypatch):
    """Neither a missing package, nor a fault of the workers' disks, is one of the dataset."""
    latentq.encode(pictures, tmp_path / "out", **SMALL)
    with monkeypatch.context() as patched:
        patched.setitem(sys.modules, "ray", None)
        with pytest.raises(MissingPackageError, match="a run on Ray needs ray, which is not installed"):
            latentq.verify(tmp_path / "out", ray=RayOptions())

    def results(*_):
        raise OSError(errno.EIO, os.strerror(errno.EIO), "/scratch/shard")

    monkeypatch.setattr(Workers, "results", results)
    with pytest.raises(ClusterError, match="Input/output error"):
        latentq.verify(tmp_path / "out", ray=RayOptions(workers=1))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--workers", "2"), "--workers needs --ray"),
        (("--ray", "--workers", "0"), "--workers must be at least 1, not 0"),
        (("--ray", "--world-size", "2"), "--world-size must be 1 with ray, which gives out the units"),
        (("--ray", "--dry-run"), "--dry-run is about this process alone: leave --ray out"),
    ],
)
def test_wrong_options_are_told(pictures, tmp_path, capsys, options, words):
    assert main(["encode", str(pictures), str(tmp_path / "out"), "--quiet", *options]) == 2
    assert words in capsys.readouterr().err
