"""Encode on three hosts with a store on a fourth, over a network of 10 ms and 2% loss; one is cut off for a while.

    make test-hosts

Needs root and iproute2, for network namespaces.
"""

import collections
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import latentq
from conftest import contents, paint
from hosts.wire import Wire
from latentq.store.objects import ObjectStore

HOSTS, IMAGES = 3, 90
DELAY, LOSS, CUT_OFF = 0.01, 0.02, 30.0
RUN = {"autoencoder": "dct-f8c16", "size": 64, "unit_size": 2}
SERVER = """
import logging, time, boto3
logging.getLogger("werkzeug").setLevel(logging.ERROR)
from moto.server import ThreadedMotoServer
ThreadedMotoServer(ip_address="0.0.0.0", port=5000, verbose=False).start()
boto3.client("s3", endpoint_url="http://127.0.0.1:5000").create_bucket(Bucket="bucket")
print("ready", flush=True)
time.sleep(3600)
"""


def main() -> int:
    if os.geteuid() or shutil.which("ip") is None:
        print("test-hosts needs root and the command ip (Debian: iproute2)", file=sys.stderr)
        return 1
    os.environ.update(AWS_ACCESS_KEY_ID="key", AWS_SECRET_ACCESS_KEY="secret", AWS_REGION="us-east-1")
    os.environ["AWS_DEFAULT_REGION"] = "us-east-1"
    wire, processes = Wire(DELAY, LOSS), []
    try:
        with tempfile.TemporaryDirectory() as temporary:
            check(Path(temporary), wire, processes)
    finally:
        for process in processes:
            process.kill()
            process.wait()
        wire.close()
    return 0


def check(folder: Path, wire: Wire, processes: list[subprocess.Popen[str]]) -> None:
    for index in range(IMAGES):
        paint(folder / "photos" / f"{index:03}.png", index)
    latentq.encode(folder / "photos", folder / "local", **RUN, progress=None)
    wire.add(None)
    store_host = wire.add("latentq-store")
    hosts = [wire.add(f"latentq-{number}") for number in range(HOSTS)]
    server = subprocess.Popen(within("latentq-store", "-c", SERVER), stdout=subprocess.PIPE, text=True)
    processes.append(server)
    assert server.stdout is not None
    assert server.stdout.readline() == "ready\n"
    options = {"endpoint": f"http://{store_host}:5000", "allow_http": "true"}
    store = ObjectStore("s3://bucket/set", options)

    command = ["-m", "latentq", "encode", str(folder / "photos"), "s3://bucket/set", "--quiet"]
    command += [word for name, value in RUN.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    command += [word for name, value in options.items() for word in ("--storage-option", f"{name}={value}")]
    ranks = []
    for rank in range(HOSTS):
        mine = [*command, "--rank", str(rank), "--world-size", str(HOSTS)]
        ranks.append(subprocess.Popen(within(f"latentq-{rank}", *mine), stderr=subprocess.PIPE, text=True))
    processes.extend(ranks)

    wait(lambda: any(is_unit_of(name, HOSTS - 1) for name in published(store)))
    before = sum(is_unit_of(name, HOSTS - 1) for name in published(store))
    wire.cut_off(hosts[-1])
    print(f"the last host is cut off after {before} of its units", flush=True)
    start = time.monotonic()
    wait(lambda: time.monotonic() - start > CUT_OFF)
    names = published(store)
    assert "index.json" not in names
    assert 0 < sum(is_unit_of(name, HOSTS - 1) for name in names) < IMAGES // 2 // HOSTS
    wire.heal(hosts[-1])
    for rank in ranks:
        _, stderr = rank.communicate(timeout=300)
        assert rank.returncode == 0, stderr

    local = {name: data for name, data in contents(folder / "local").items() if not name.endswith("/")}
    assert {name: store.get(name) for name in published(store)} == local
    shards = json.loads(store.get("index.json"))["shards"]
    counts = collections.Counter(shard["raw_data"]["basename"] for shard in shards)
    assert set(counts.values()) == {1}
    assert sum(shard["samples"] for shard in shards) == IMAGES
    assert wire.lost
    assert wire.refused
    print(f"the same bytes as on one host; {wire.lost} packets were lost, and {wire.refused} while it was cut off")


def within(namespace: str, *arguments: str) -> list[str]:
    """A Python command that runs on a host."""
    return ["ip", "netns", "exec", namespace, sys.executable, *arguments]


def published(store: ObjectStore) -> list[str]:
    return [name for name, _ in store.files()]


def is_unit_of(name: str, rank: int) -> bool:
    unit, _, file = name.partition("/")
    return file == "index.json" and int(unit) % HOSTS == rank


def wait(is_over) -> None:
    start = time.monotonic()
    while not is_over():
        assert time.monotonic() - start < 300
        time.sleep(0.05)


if __name__ == "__main__":
    sys.exit(main())
