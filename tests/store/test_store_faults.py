"""Runs on an object store that fails requests, in processes that are killed."""

import json
import os
import random
import subprocess
import sys
import threading
import time

import pytest

import latentq
from conftest import contents
from latentq.store.objects import ObjectStore
from support.fault_proxy import FaultProxy

OPTIONS = ("--autoencoder", "dct-f8c16", "--size", "64", "--unit-size", "2", "--quiet")


@pytest.fixture
def local(pictures, tmp_path) -> dict[str, bytes]:
    """The files of the dataset of `pictures` in a folder."""
    latentq.encode(pictures, tmp_path / "local", autoencoder="dct-f8c16", size=64, unit_size=2, progress=None)
    return {name: data for name, data in contents(tmp_path / "local").items() if not name.endswith("/")}


def objects(url: str) -> dict[str, bytes]:
    store = ObjectStore(url)
    return {name: store.get(name) for name, _ in store.files()}


@pytest.fixture
def faulty(s3_server):
    """A proxy to the S3 server at which one request in five fails."""
    proxy = FaultProxy(s3_server)
    yield proxy
    proxy.close()


def test_failing_requests_are_made_again(pictures, s3, s3_server, local, faulty):
    options = {"endpoint": faulty.url}
    for attempt in range(3):
        latentq.encode(
            pictures, f"{s3}/{attempt}", storage_options=options, progress=None,
            autoencoder="dct-f8c16", size=64, unit_size=2,
        )  # fmt: skip
        assert objects(f"{s3}/{attempt}") == local
    assert all(faulty.faults.values())


def test_store_that_stays_away_is_one_line(pictures, s3, monkeypatch):
    monkeypatch.setattr("latentq.store.objects._ATTEMPTS", 1)
    options = {"endpoint": "http://127.0.0.1:1", "connect_timeout": "1s"}
    monkeypatch.setattr("latentq.store.objects._RETRIES", {"max_retries": 0})
    with pytest.raises(OSError, match=r"Generic S3 error: .*") as error:
        latentq.encode(pictures, f"{s3}/set", storage_options=options, progress=None)
    assert str(error.value).count("\n") == 0
    assert f"{s3}/set" in str(error.value)


def test_expired_credentials_are_one_line(pictures, s3, s3_server, monkeypatch):
    from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

    class Expired(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = b"<Error><Code>ExpiredToken</Code><Message>The provided token has expired.</Message></Error>"
            self.send_response(400)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Expired)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    started = time.monotonic()
    with pytest.raises(PermissionError, match=r"ExpiredToken: The provided token has expired\.") as error:
        latentq.encode(
            pictures, f"{s3}/set", storage_options={"endpoint": f"http://127.0.0.1:{server.server_port}"}, progress=None
        )
    server.shutdown()
    assert time.monotonic() - started < 30
    assert str(error.value).count("\n") == 0


@pytest.mark.long
def test_three_processes_killed_at_random_complete_the_dataset(pictures, s3, local, faulty):
    """Three ranks are killed and started again while requests fail; a reader never sees a part of the dataset."""
    url, draw = f"{s3}/set", random.Random(0)
    environment = os.environ | {"AWS_ENDPOINT_URL": faulty.url}
    kills, seen, over = 0, [], threading.Event()

    def poll() -> None:
        store = ObjectStore(url)
        while not over.wait(0.05):
            try:
                index = json.loads(store.get("index.json"))
            except FileNotFoundError:
                continue
            names = {name for name, _ in store.files()}
            seen.append({shard["raw_data"]["basename"] for shard in index["shards"]} - names)

    poller = threading.Thread(target=poll)
    poller.start()

    def start(rank: int) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "latentq", "encode", str(pictures), url, *OPTIONS]
        return subprocess.Popen([*command, "--rank", str(rank), "--world-size", "3"], env=environment)

    running = {rank: start(rank) for rank in range(3)}
    lifetime = 2.0
    deadline = time.monotonic() + 400
    while running and time.monotonic() < deadline:
        time.sleep(draw.random() * lifetime)
        rank = draw.choice([*running])
        process = running[rank]
        if process.poll() is None and kills < 12:
            process.kill()
            process.wait()
            kills, lifetime = kills + 1, lifetime + 1
        if process.poll() is not None:
            if process.returncode == 0:
                del running[rank]
            else:
                running[rank] = start(rank)
    over.set()
    poller.join()
    latentq.encode(
        pictures, url, autoencoder="dct-f8c16", size=64, unit_size=2, progress=None
    )  # if each left the end to another
    assert kills >= 5
    assert objects(url) == local
    assert seen[-1:] in ([], [set()])
    assert not any(seen)


def test_stock_reader_reads_a_dataset_on_a_store(pictures, s3, local, tmp_path, streaming_alone):
    streaming = pytest.importorskip("streaming")
    latentq.encode(pictures, f"{s3}/set", autoencoder="dct-f8c16", size=64, unit_size=2, progress=None)
    dataset = streaming.StreamingDataset(remote=f"{s3}/set", local=str(tmp_path / "cache"), batch_size=1, shuffle=False)
    assert sorted(sample["key"] for sample in dataset) == sorted(
        path.relative_to(pictures).as_posix() for path in pictures.rglob("*.*")
    )
