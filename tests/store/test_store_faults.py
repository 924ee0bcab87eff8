"""Runs on an object store that fails requests, in processes that are killed."""

import json
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest

import latentq
from conftest import contents, heed_interrupts
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
    monkeypatch.setattr("latentq.store.objects._PATIENCE", 0.0)
    options = {"endpoint": "http://127.0.0.1:1", "connect_timeout": "1s"}
    monkeypatch.setattr("latentq.store.objects._RETRIES", {"max_retries": 0})
    with pytest.raises(OSError, match=r"Generic S3 error: .*") as error:
        latentq.encode(pictures, f"{s3}/set", storage_options=options, progress=None)
    assert str(error.value).count("\n") == 0
    assert f"{s3}/set" in str(error.value)


def test_store_that_cannot_be_reached_for_a_while_is_waited_for(s3, monkeypatch):
    """obstore itself does not repeat a conditional put whose connection failed."""
    from obstore.exceptions import GenericError

    monkeypatch.setattr("latentq.store.objects._FIRST_WAIT", 0.001)
    monkeypatch.setattr("latentq.store.objects._LONGEST_WAIT", 0.001)
    failures = 0

    def put(store, name, data, mode, original=ObjectStore._put):
        nonlocal failures
        failures += 1
        if failures <= 20:
            raise GenericError(f"Generic S3 error: Error performing PUT {name}: error sending request")
        return original(store, name, data, mode)

    monkeypatch.setattr(ObjectStore, "_put", put)
    assert ObjectStore(s3).put_once("name", b"data")
    failures = 0
    monkeypatch.setattr("latentq.store.objects._PATIENCE", 0.0)
    with pytest.raises(OSError, match="error sending request"):
        ObjectStore(s3).put_once("other", b"data")


def test_missing_credentials_are_told(s3, monkeypatch):
    """obstore then asks the cloud's own machines for them, and its message names that request alone."""
    from obstore.exceptions import GenericError

    def get(*_):
        raise GenericError("Generic S3 error: Error performing PUT http://169.254.169.254/latest/api/token in 1 s")

    monkeypatch.setattr("obstore.get", get)
    with pytest.raises(PermissionError, match="there are no credentials in the environment or the storage options"):
        ObjectStore(s3).get("other")


@pytest.mark.parametrize("code", ["ExpiredToken", "RequestTimeTooSkewed", "InvalidAccessKeyId"])
@pytest.mark.parametrize("source", [False, True])
def test_credentials_or_clock_refused_in_the_middle_of_a_run(code, source, pictures, s3, s3_server, local):
    """The run ends with one line at any request, an image is never a reject, and the same command completes it."""
    store = ObjectStore(f"{s3}/in")
    for path in pictures.rglob("*.*"):
        store.put(path.relative_to(pictures).as_posix(), path)
    proxy = FaultProxy(s3_server, probability=0)
    left = 0

    def refuse() -> str:
        nonlocal left
        left -= 1
        return code if left < 0 else ""

    options = {"storage_options": {"endpoint": proxy.url}, "progress": None}
    options |= {"autoencoder": "dct-f8c16", "size": 64, "unit_size": 2}
    begun = time.monotonic()
    for count in (0, 6, 15):
        left = count
        proxy.on_request = refuse
        with pytest.raises(PermissionError, match=code) as error:
            latentq.encode(f"{s3}/in" if source else pictures, f"{s3}/set", **options)
        assert str(error.value).count("\n") == 0
    assert time.monotonic() - begun < 60
    proxy.on_request = str
    latentq.encode(f"{s3}/in" if source else pictures, f"{s3}/set", **options)
    proxy.close()
    assert objects(f"{s3}/set") == local


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
def test_three_processes_killed_at_random_requests_complete_the_dataset(pictures, s3, s3_server, local):
    """Three ranks read the source from the store and write to it, while requests fail.

    Each is killed and started again, four times, at a random request. A reader never sees a part of it: neither
    an index that names what is not there, nor a unit's.
    """
    url, draw = f"{s3}/set", random.Random(0)
    store = ObjectStore(f"{s3}/in")
    for path in pictures.rglob("*.*"):
        store.put(path.relative_to(pictures).as_posix(), path)
    missing, polls, over = [], [], threading.Event()

    def poll() -> None:
        store = ObjectStore(url)
        while not over.wait(0.05):
            indexes = [name for name, _ in store.files() if name.endswith("index.json")]
            for name in indexes:
                index = json.loads(store.get(name))
                sizes = dict(store.files())
                for shard in index["shards"]:
                    path = name.removesuffix("index.json") + shard["raw_data"]["basename"]
                    if sizes.get(path) != shard["raw_data"]["bytes"]:
                        missing.append((name, path))
            polls.append(len(indexes))

    poller = threading.Thread(target=poll)
    poller.start()
    proxies = [FaultProxy(s3_server, probability=0.01, seed=rank) for rank in range(3)]

    def work(rank: int) -> None:
        """Runs a rank until it is done. Its proxy kills it at a random request."""
        command = [sys.executable, "-m", "latentq", "encode", f"{s3}/in", url, *OPTIONS]
        environment = os.environ | {"AWS_ENDPOINT_URL": proxies[rank].url}
        kills = 0
        while True:
            process = subprocess.Popen([*command, "--rank", str(rank), "--world-size", "3"], env=environment)
            left = draw.randrange(5 + 10 * kills, 15 + 15 * kills)

            def count(process: subprocess.Popen[bytes] = process) -> str:
                nonlocal left
                left -= 1
                if left == 0:
                    process.kill()
                return ""

            proxies[rank].on_request = count if kills < 4 else str
            if process.wait(300) == 0:
                break
            assert process.returncode == -9
            kills += 1
        killed[rank] = kills

    killed = [0, 0, 0]
    ranks = [threading.Thread(target=work, args=(rank,)) for rank in range(3)]
    for thread in ranks:
        thread.start()
    for thread in ranks:
        thread.join()
    latentq.encode(
        f"{s3}/in", url, autoencoder="dct-f8c16", size=64, unit_size=2, progress=None
    )  # if each left the end to another
    time.sleep(0.2)
    over.set()
    poller.join()
    for proxy in proxies:
        proxy.close()
    assert min(killed) >= 1
    assert sum(killed) >= 6
    assert objects(url) == local
    assert not missing
    assert max(polls) == 7  # the six units' and the dataset's


def test_stock_reader_reads_a_dataset_on_a_store(pictures, s3, local, tmp_path, streaming_alone):
    streaming = pytest.importorskip("streaming")
    latentq.encode(pictures, f"{s3}/set", autoencoder="dct-f8c16", size=64, unit_size=2, progress=None)
    dataset = streaming.StreamingDataset(remote=f"{s3}/set", local=str(tmp_path / "cache"), batch_size=1, shuffle=False)
    assert sorted(sample["key"] for sample in dataset) == sorted(
        path.relative_to(pictures).as_posix() for path in pictures.rglob("*.*")
    )


def test_second_interrupt_ends_a_command_that_waits_for_a_dead_store(s3, tmp_path):
    """The first one is acted upon when the request ends, which may take minutes."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        environment = os.environ | {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{silent.getsockname()[1]}"}
        process = subprocess.Popen(
            [sys.executable, "-m", "latentq", "encode", f"{s3}/in", str(tmp_path / "out"), *OPTIONS],
            env=environment, stderr=subprocess.PIPE, text=True, preexec_fn=heed_interrupts,
        )  # fmt: skip
        silent.settimeout(60)
        with silent.accept()[0]:
            time.sleep(0.2)
            process.send_signal(signal.SIGINT)
            time.sleep(0.7)
            process.send_signal(signal.SIGINT)
            _, errors = process.communicate(timeout=20)
    assert process.returncode == 130
    assert errors == "latentq: interrupted\n"
