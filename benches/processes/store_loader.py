"""Time the loader on a dataset of an object store: with a warm cache beside a folder, and cold beside plain GETs.

    python benches/processes/store_loader.py [ROUNDS]

The store is a small server on loopback that speaks S3's GET, in a process of its own: as fast as it can be, and limited
to 100 MB/s together, as a network is. Plain GETs are those of obstore on 16 threads, of the same shards, into files.
Contenders take turns; ratios are medians of the ratios in one round.
"""

import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from latentq import LatentDataset, Quantizer, mds
from latentq.store.objects import ObjectStore

SAMPLES, BATCH = 40_960, 256
SHARD_BYTES = 1 << 21
WINDOW = 8
WINDOWS = {"shuffle": "window", "window": WINDOW}
WARM_ROUNDS = 60
RATES = (0, 100e6)  # bytes a second of all connections together; 0 for no limit
SERVER = """
import os, sys, threading, time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

folder, rate = sys.argv[1], float(sys.argv[2])
files = {name: open(os.path.join(folder, name), "rb").read() for name in os.listdir(folder)}
lock, free = threading.Lock(), [0.0]

class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        data = files.get(self.path.rpartition("/")[2])
        body = memoryview(data if data is not None else b"<Error><Code>NoSuchKey</Code></Error>")
        self.send_response(404 if data is None else 200)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Last-Modified", "Mon, 30 Nov 2026 12:00:00 GMT")
        self.send_header("ETag", '"1"')
        self.end_headers()
        step = 1 << 17 if rate else len(body)
        for start in range(0, len(body), step):
            if rate:
                with lock:
                    free[0] = max(free[0], time.monotonic()) + step / rate
                    until = free[0]
                time.sleep(max(0.0, until - time.monotonic()))
            self.wfile.write(body[start : start + step])

    def log_message(self, *_):
        pass

class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

server = Server(("127.0.0.1", 0), Handler)
print(f"http://127.0.0.1:{server.server_port}", flush=True)
threading.Thread(target=server.serve_forever, daemon=True).start()
sys.stdin.read()
"""
OPTIONS = {"quantizer": Quantizer.uniform(-8.0, 8.0, channels=4)}


def write(folder: Path) -> None:
    rng = np.random.default_rng(0)
    columns = {"latent": "ndarray:uint8:4,32,32", "label": "int"}
    with mds.Writer(folder, columns, hashes=["xxh3_64"], size_limit=SHARD_BYTES) as writer:
        for start in range(0, SAMPLES, BATCH):
            codes = rng.integers(0, 256, (BATCH, 4, 32, 32), np.uint8)
            writer.write_batch({"latent": codes, "label": list(range(start, start + BATCH))})


def run(dataset: LatentDataset, **options: object) -> None:
    for _batch in dataset.loader(BATCH, **options):
        pass


def ended(dataset: LatentDataset) -> None:
    """Waits for the downloads of the next epoch that have begun."""
    if dataset._shards is not None:
        dataset._shards.close()


def main() -> None:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 5
    root = Path(tempfile.mkdtemp(prefix="latentq-bench-"))
    write(root / "local")
    try:
        for rate in RATES:
            command = [sys.executable, "-c", SERVER, str(root / "local"), str(rate)]
            server = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            assert server.stdout is not None
            os.environ |= {
                "AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_REGION": "us-east-1",
                "AWS_ENDPOINT_URL": server.stdout.readline().strip(), "AWS_ALLOW_HTTP": "true",
            }  # fmt: skip
            print(f"\nthe server gives {rate / 1e6:.0f} MB/s" if rate else "the server has no limit")
            measure(root, ObjectStore("s3://bench-bucket/set"), rounds)
            if rate == RATES[-1]:
                print()
                measure_warm(root, ObjectStore("s3://bench-bucket/set"))
            server.kill()
            server.wait()
    finally:
        shutil.rmtree(root)


def measure(root: Path, store: ObjectStore, rounds: int) -> None:
    names = sorted(file.name for file in (root / "local").glob("*.mds"))
    sizes = [(root / "local" / name).stat().st_size for name in names]

    def gets(folder: Path) -> None:
        folder.mkdir()
        with ThreadPoolExecutor(16) as pool:
            for _ in pool.map(lambda name: store.copy(name, folder / name), names):
                pass

    opened: list[LatentDataset] = []

    def cold(folder: Path, cache_bytes: int | None = None, **options: object) -> None:
        opened.append(LatentDataset(store.url, cache=folder, cache_bytes=cache_bytes, **OPTIONS))
        run(opened[-1], **options)

    contenders = {
        "plain GETs": gets,
        "cold, in order": cold,
        "cold, window": lambda folder: cold(folder, **WINDOWS),
        "cold, window, small cache": lambda folder: cold(folder, 2 * WINDOW * max(sizes), **WINDOWS),
        "cold, full shuffle": lambda folder: cold(folder, shuffle=True),
    }
    durations: dict[str, list[float]] = {name: [] for name in contenders}
    for number in range(rounds + 1):
        for name, work in contenders.items():
            begun = time.perf_counter()
            work(root / "cold")
            if number:  # the first round warms up
                durations[name].append(time.perf_counter() - begun)
            while opened:
                ended(opened.pop())
            shutil.rmtree(root / "cold")
    print(f"{len(names)} shards, {sum(sizes) / 1e6:.0f} MB, {SAMPLES} samples, batches of {BATCH}, {rounds} rounds")
    for name, values in durations.items():
        ratio = statistics.median(a / b for a, b in zip(durations["plain GETs"], values, strict=True))
        rate = sum(sizes) / statistics.median(values) / 1e6
        print(f"{name:<28} {statistics.median(values) * 1e3:8.0f} ms {rate:8.0f} MB/s {ratio:6.2f} x plain GETs")


def measure_warm(root: Path, store: ObjectStore) -> None:
    local = LatentDataset(root / "local", **OPTIONS)
    run(LatentDataset(store.url, cache=root / "warm", **OPTIONS))
    warm = LatentDataset(store.url, cache=root / "warm", **OPTIONS)
    for options in ({"shuffle": True}, WINDOWS):
        durations: dict[LatentDataset, list[float]] = {local: [], warm: []}
        for number in range(-4, WARM_ROUNDS):
            for dataset in (local, warm) if number % 2 else (warm, local):
                begun = time.perf_counter()
                run(dataset, **options)
                if number >= 0:
                    durations[dataset].append(time.perf_counter() - begun)
        ratio = statistics.median(a / b for a, b in zip(durations[local], durations[warm], strict=True))
        medians = [f"{statistics.median(values) * 1e3:.0f} ms" for values in durations.values()]
        print(f"folder {medians[0]}, warm cache {medians[1]}: {ratio:.2f} x the folder, {options}")


if __name__ == "__main__":
    main()
