"""Time reading a source from an object store beside the same source on this machine, and plain GETs of its archives.

    python benches/processes/store_source.py [ROUNDS]

The store is a small server on loopback that speaks S3's HEAD and GET with ranges, in a process of its own: without
delay, and with 30 ms before each response, as another machine in a region has, and 100 MB/s for each connection. A tar
is listed (its headers and captions), and its images are read in order by as many threads as `latentq encode` takes.
Nothing is decoded. Plain GETs read the same bytes in ranges of 8 MiB on 16 threads. IMAGES (2000) sets their number.
"""

import io
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from latentq.sources import Sample, Source, open_source
from latentq.sources.listing import connections_of, deferred_read, read_sample
from latentq.store.objects import ObjectStore
from latentq.system.threads import in_order

IMAGES, IMAGE_BYTES = int(os.environ.get("IMAGES", "2000")), 120_000
PIECE = 1 << 23
NETWORKS = {"no delay": (0.0, 0.0), "30 ms, 100 MB/s a connection": (0.03, 100e6)}
SERVER = """
import os, sys, threading, time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

path, delay, rate = sys.argv[1], float(sys.argv[2]), float(sys.argv[3])
data = open(path, "rb").read()

class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_HEAD(self):
        self.answer(False)

    def do_GET(self):
        self.answer(True)

    def answer(self, is_get):
        time.sleep(delay)
        start, stop = 0, len(data)
        asked = self.headers.get("Range")
        if asked:
            first, _, last = asked.removeprefix("bytes=").partition("-")
            start, stop = int(first), min(int(last) + 1, len(data))
        self.send_response(206 if asked else 200)
        if asked:
            self.send_header("Content-Range", f"bytes {start}-{stop - 1}/{len(data)}")
        self.send_header("Content-Length", str(stop - start))
        self.send_header("Last-Modified", "Mon, 30 Nov 2026 12:00:00 GMT")
        self.send_header("ETag", '"1"')
        self.end_headers()
        if is_get:
            step = 1 << 18 if rate else stop - start
            for at in range(start, stop, step):
                begun = time.monotonic()
                self.wfile.write(memoryview(data)[at : min(at + step, stop)])
                if rate:
                    time.sleep(max(0.0, begun + step / rate - time.monotonic()))

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


def write(path: Path) -> None:
    with tarfile.open(path, "w") as tar:
        for number in range(IMAGES):
            for suffix, data in (("jpg", os.urandom(IMAGE_BYTES)), ("txt", b"a caption")):
                info = tarfile.TarInfo(f"{number:06}.{suffix}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))


def listed(path: str) -> None:
    for _sample in open_source(path).listing().samples:
        pass


def read(path: str) -> Callable[[], None]:
    source = open_source(path)
    samples = [*source.listing().samples]

    def begun(sample: Sample) -> Callable[[], int]:
        return partial(_bytes_of, source, sample, deferred_read(source, sample))

    def read_all() -> None:
        threads = connections_of(source) or 2
        if sum(in_order(lambda work: work(), map(begun, samples), threads)) != IMAGES * IMAGE_BYTES:
            raise AssertionError

    return read_all


def _bytes_of(source: Source, sample: Sample, read: Callable[[], bytes] | None) -> int:
    data, _ = read_sample(source, sample, read)
    return len(data) if isinstance(data, bytes) else 0


def main() -> None:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 3
    root = Path(tempfile.mkdtemp(prefix="latentq-bench-"))
    path = root / "0.tar"
    write(path)
    size = path.stat().st_size
    try:
        for network, (delay, rate) in NETWORKS.items():
            command = [sys.executable, "-c", SERVER, str(path), str(delay), str(rate)]
            server = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            assert server.stdout is not None
            os.environ |= {
                "AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_REGION": "us-east-1",
                "AWS_ENDPOINT_URL": server.stdout.readline().strip(), "AWS_ALLOW_HTTP": "true",
            }  # fmt: skip
            store, url = ObjectStore("s3://bench-bucket"), "s3://bench-bucket/0.tar"

            def gets(store: ObjectStore = store) -> None:
                pieces = [(start, min(start + PIECE, size)) for start in range(0, size, PIECE)]
                with ThreadPoolExecutor(16) as pool:
                    for _ in pool.map(lambda piece: store.read("0.tar", *piece), pieces):
                        pass

            listed(url)
            read(url)()
            print(f"most memory so far: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MiB")
            contenders = {
                "plain GETs": gets,
                "listed here": lambda: listed(str(path)),
                "listed from the store": lambda url=url: listed(url),  # type: ignore[misc]
                "read here": read(str(path)),
                "read from the store": read(url),
            }
            durations: dict[str, list[float]] = {name: [] for name in contenders}
            for number in range(rounds + 1):
                for name, work in contenders.items():
                    begun = time.perf_counter()
                    work()
                    if number:  # the first round warms up
                        durations[name].append(time.perf_counter() - begun)
            print(f"{network}: a tar of {size / 1e6:.0f} MB, {IMAGES} images")
            for name, values in durations.items():
                value = statistics.median(values)
                ratio = statistics.median(a / b for a, b in zip(durations["plain GETs"], values, strict=True))
                print(f"{name:<24} {value * 1e3:8.0f} ms {size / value / 1e6:8.0f} MB/s {ratio:6.2f} x plain GETs")
            server.kill()
            server.wait()
    finally:
        shutil.rmtree(root)


if __name__ == "__main__":
    main()
