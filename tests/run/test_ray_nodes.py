"""Runs on a Ray cluster whose nodes die and join, and whose driver is killed: always the bytes of one process."""

import signal
import subprocess
import sys
import threading
import time

import pytest

import latentq
from conftest import contents, paint
from latentq import RayOptions
from latentq.store.objects import ObjectStore
from support.ray_fixtures import add_node, started_cluster

pytestmark = pytest.mark.long

SMALL = {"autoencoder": "dct-f8c16", "size": 64, "unit_size": 4}


def make_source(folder, count=40):
    for index in range(count):
        paint(folder / f"{index % 3}" / f"{index:03}.png", index, (300 - 5 * index, 200))
    (folder / "1" / "broken.jpg").write_text("no")
    return folder


class Slow:
    """An autoencoder that takes its time."""

    def __init__(self, model, seconds):
        self.model, self.seconds = model, seconds

    def __getattr__(self, name):
        return getattr(self.__dict__["model"], name)

    def __getstate__(self):
        return self.__dict__

    def __setstate__(self, state):
        self.__dict__.update(state)

    def encode(self, pixels):
        time.sleep(self.seconds)
        return self.model.encode(pixels)


@pytest.fixture
def nodes():
    """A cluster of its own, for tests that change it."""
    from ray import cloudpickle

    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    with started_cluster(1, 1) as cluster:
        yield cluster


def units_in(out):
    return len([*out.glob("[0-9]*/index.json")])


def wait_for_units(out, count):
    while units_in(out) < count:
        time.sleep(0.05)


def test_nodes_die_and_join(tmp_path, nodes):
    source, out = make_source(tmp_path / "source"), tmp_path / "out"
    model = Slow(latentq.load_autoencoder("dct-f8c16"), 1.0)
    latentq.encode(source, tmp_path / "one", **SMALL | {"autoencoder": Slow(model.model, 0.0)})
    cards = []

    def encode():
        options = SMALL | {"autoencoder": model}
        cards.append(latentq.encode(source, out, **options, ray=RayOptions(workers=3), progress=sys.stderr))

    encoding = threading.Thread(target=encode)  # nodes can be changed by the main thread only
    encoding.start()
    wait_for_units(out, 2)
    old, older = nodes.worker_nodes
    nodes.remove_node(old, allow_graceful=False)
    add_node(nodes, 1)
    wait_for_units(out, 6)
    nodes.remove_node(older, allow_graceful=False)
    assert units_in(out) < 11
    encoding.join()
    assert cards[0].complete
    assert contents(out) == contents(tmp_path / "one")


@pytest.mark.parametrize("then", ["with Ray", "without Ray"])
def test_driver_is_killed(tmp_path, nodes, tiny_vae, then):
    source, out = make_source(tmp_path / "source"), tmp_path / "out"
    options = {"autoencoder": str(tiny_vae), "size": 64, "unit_size": 2, "batch_size": 1}
    latentq.encode(source, tmp_path / "one", **options)
    command = [sys.executable, "-m", "latentq", "encode", "source", "out", "--autoencoder", str(tiny_vae)]
    command += ["--size", "64", "--unit-size", "2", "--batch-size", "1", "--ray", nodes.address]
    with subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.DEVNULL) as driver:
        wait_for_units(out, 1)
        driver.send_signal(signal.SIGKILL)
    assert not (out / "index.json").exists()
    ray = RayOptions() if then == "with Ray" else None
    assert latentq.encode(source, out, **options, ray=ray).complete
    assert contents(out) == contents(tmp_path / "one")


def test_dataset_on_a_store_begun_without_ray_and_updated_with_it(tmp_path, nodes, s3, s3_server):
    source = make_source(tmp_path / "source", 10)
    options = {"endpoint": s3_server, "allow_http": "true", "region": "us-east-1"}
    options |= {"access_key_id": "key", "secret_access_key": "secret"}  # the nodes were started without
    latentq.encode(source, tmp_path / "one", **SMALL)
    latentq.encode(source, f"{s3}/set", **SMALL, rank=1, world_size=2, storage_options=options)
    assert latentq.encode(source, f"{s3}/set", **SMALL, storage_options=options, ray=RayOptions()).complete
    paint(source / "2" / "new.png", 77)
    latentq.encode(source, tmp_path / "one", update=True)
    again = {"update": True, "storage_options": options, "ray": RayOptions(workers=1)}
    assert latentq.encode(source, f"{s3}/set", **again).complete
    store = ObjectStore(f"{s3}/set", options)
    files = {name: data for name, data in contents(tmp_path / "one").items() if not name.endswith("/")}
    assert {stored.name: store.get(stored.name) for stored in store.list()} == files
    assert latentq.encode(source, f"{s3}/set", **again).source.revision == 1  # nothing changed
    pairs = [word for key, value in options.items() for word in ("--storage-option", f"{key}={value}")]
    command = [sys.executable, "-m", "latentq", "verify", f"{s3}/set", "--ray", nodes.address, *pairs]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, f"{s3}/set: good\n"), done.stderr
