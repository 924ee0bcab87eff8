"""Shards against MDSWriter, MDSReader, StreamingDataset and a NumPy memmap, on the same samples and files.

    python benches/mds.py            prints the table
    python benches/mds.py --write    puts it into benches/RESULTS.md as well, under its heading

A sample is a latent of 4,096 bytes and two strings. Contenders take turns round by round, so that what else the
machine does meets all of them; a figure is the median over the rounds, a ratio the median of the rounds' ratios.
Files are warm.
"""

import argparse
import datetime as dt
import json
import logging
import os
import platform
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import numpy as np
import streaming.base.format.base.writer as stock_writer
from streaming import MDSWriter, StreamingDataset
from streaming.base.format.mds.reader import MDSReader
from streaming.base.util import clean_stale_shared_memory

from latentq import mds

RESULTS = Path(__file__).with_name("RESULTS.md")
HEADING = "## MDS shards"
COLUMNS = {"latent": "ndarray:uint8:4,32,32", "key": "str", "caption": "str"}
SAMPLES = 40_000
WRITTEN = 100_000  # six shards and a half
READS = 2_000
BATCH = 256

Contenders = dict[str, Callable[[], object]]


def compete(contenders: Contenders, rounds: int, each: int, between: Callable[[], object] = lambda: None) -> list[str]:
    """A row for each: microseconds for one of the `each` things a call does, and how many times the first's speed."""
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for number in range(rounds + 1):
        for name, call in contenders.items():
            between()
            start = time.perf_counter()
            call()
            if number:  # the first round warms up
                times[name].append((time.perf_counter() - start) / each * 1e6)
    first = next(iter(times.values()))
    rows = []
    for name, own in times.items():
        ratio = statistics.median(a / b for a, b in zip(first, own, strict=True))
        rows.append(f"| {name} | {statistics.median(own):.2f} | {min(own):.2f} | {ratio:.2f} |")
    return rows


def rows_of(n: int) -> tuple[np.ndarray, list[str], list[str]]:
    latents = np.random.default_rng(0).integers(0, 256, (n, 4, 32, 32), np.uint8)
    return (
        latents,
        [f"n{i % 1000:08}/photo_{i}.jpeg" for i in range(n)],
        [f"a photograph of thing {i}" for i in range(n)],
    )


def synced(folder: Path) -> None:
    for path in [*folder.iterdir(), folder, folder.parent]:
        handle = os.open(path, os.O_RDONLY)
        os.fsync(handle)
        os.close(handle)


def writing(root: Path, rounds: int) -> list[str]:
    latents, keys, captions = rows_of(WRITTEN)
    out = root / "written"
    stock_writer.sleep = lambda _: time.sleep(1e-4)  # in its favour: it naps for a second while its threads finish

    def stock() -> None:
        with MDSWriter(out=str(out), columns=COLUMNS) as writer:
            for latent, key, caption in zip(latents, keys, captions, strict=True):
                writer.write({"latent": latent, "key": key, "caption": caption})
        synced(out)

    def single() -> None:
        with mds.Writer(out, COLUMNS) as writer:
            for latent, key, caption in zip(latents, keys, captions, strict=True):
                writer.write({"latent": latent, "key": key, "caption": caption})

    def batched(**options: list[str]) -> None:
        with mds.Writer(out, COLUMNS, **options) as writer:
            for at in range(0, WRITTEN, BATCH):
                part = slice(at, at + BATCH)
                writer.write_batch({"latent": latents[part], "key": keys[part], "caption": captions[part]})

    def plain() -> None:
        out.mkdir()
        with (out / "one").open("wb") as file:
            file.write(latents)
        synced(out)

    def clean() -> None:
        shutil.rmtree(out, ignore_errors=True)

    contenders: Contenders = {
        "`MDSWriter`, then fsync": stock,
        "`Writer.write`": single,
        "`Writer.write_batch`": batched,
        "`Writer.write_batch`, xxh3_64": lambda: batched(hashes=["xxh3_64"]),
        "the latents in one `file.write`, then fsync": plain,
    }
    rows = compete(contenders, rounds, WRITTEN, clean)
    clean()
    return rows


def reading(root: Path, rounds: int) -> tuple[list[str], list[str], list[str]]:
    latents, keys, captions = rows_of(SAMPLES)
    path = root / "read"
    with mds.Writer(path, COLUMNS, sync=False) as writer:
        writer.write_batch({"latent": latents, "key": keys, "caption": captions})
    np.save(root / "latents.npy", latents.reshape(SAMPLES, -1))
    memmap = np.load(root / "latents.npy", mmap_mode="r")
    memmap.sum()
    reader = mds.Reader(path)
    reader.gather(range(SAMPLES), "latent")
    clean_stale_shared_memory()
    dataset = StreamingDataset(local=str(path), batch_size=1)
    shards = [
        MDSReader.from_json(str(path), None, entry) for entry in json.loads((path / "index.json").read_text())["shards"]
    ]
    starts = np.cumsum([0, *map(len, shards)])
    rng = np.random.default_rng(1)
    chosen = rng.integers(0, SAMPLES, READS).tolist()
    places = [(int(k), i - int(starts[k])) for i in chosen for k in [np.searchsorted(starts, i, "right") - 1]]
    single = compete(
        {
            "`MDSReader[i]`": lambda: [shards[shard][i] for shard, i in places] and None,
            "`StreamingDataset[i]`": lambda: [dataset[i] for i in chosen] and None,
            "`Reader[i]`": lambda: [reader[i] for i in chosen] and None,
        },
        rounds,
        READS,
    )
    batches = [rng.permutation(SAMPLES)[:BATCH] for _ in range(50)]
    codes, floats = np.empty((BATCH, 4096), np.uint8), np.empty((BATCH, 4096), np.float32)

    def warm_memmap() -> None:
        for batch in batches:
            np.take(memmap, batch, 0, out=codes, mode="clip")
            np.copyto(floats, codes)

    def warm_gather() -> None:
        for batch in batches:
            reader.gather(batch, "latent", out=codes)
            np.copyto(floats, codes)

    def new_memmap() -> None:
        for batch in batches:
            memmap[batch].astype(np.float32)

    def new_gather() -> None:
        for batch in batches:
            reader.gather(batch, "latent").astype(np.float32)

    new = compete({"`memmap[i].astype(float32)`": new_memmap, "`gather(i).astype(float32)`": new_gather}, rounds, 50)
    warm = compete(
        {"`take(memmap, i, out=)`, `copyto`": warm_memmap, "`gather(i, out=)`, `copyto`": warm_gather}, rounds, 50
    )
    return single, new, warm


def opening(root: Path, rounds: int) -> list[str]:
    path = root / "open"
    with mds.Writer(path, COLUMNS, hashes=["xxh3_64"], sync=False) as writer:
        writer.write({"latent": np.zeros((4, 32, 32), np.uint8), "key": "k", "caption": "c"})
    index = json.loads((path / "index.json").read_text())
    entry = json.dumps(index["shards"][0], sort_keys=True)
    many = ", ".join(entry.replace("shard.00000", f"shard.{number:05}") for number in range(100_000))
    (path / "index.json").write_text(f'{{"shards": [{many}], "version": 2}}')

    def stock() -> None:
        for entry in json.loads((path / "index.json").read_text())["shards"]:
            MDSReader.from_json(str(path), None, entry)

    contenders: Contenders = {"`json.load`, `MDSReader.from_json`": stock, "`Reader(path)`": lambda: mds.Reader(path)}
    return compete(contenders, min(rounds, 5), 1)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--folder", type=Path, default=None, help="on the file system to be measured")
    parser.add_argument("--rounds", type=int, default=9)
    arguments = parser.parse_args()
    logging.disable(logging.WARNING)
    root = Path(tempfile.mkdtemp(prefix="latentq-bench-", dir=arguments.folder))
    try:
        single, new, warm = reading(root, arguments.rounds)
        tables = {
            "Writing, us a sample, on the disk at the end": writing(root, arguments.rounds),
            "Random single samples, us a sample": single,
            "256 shuffled into float32, new arrays, us a batch": new,
            "256 shuffled into float32, arrays used again, us a batch": warm,
            "Opening an index of 100,000 shards, us": opening(root, arguments.rounds),
        }
    finally:
        shutil.rmtree(root)
    lines = [HEADING, "", about(root), ""]
    for title, rows in tables.items():
        lines += [f"| {title} | median | least | times as fast |", "|---|---|---|---|", *rows, ""]
    text = "\n".join(lines)
    print(text)
    if arguments.write:
        write(text)


def about(root: Path) -> str:
    cpu = next(
        (x.split(":")[1].strip() for x in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in x), "?"
    )
    load = os.getloadavg()[0]
    versions = ", ".join(f"{name} {version(name)}" for name in ["mosaicml-streaming", "numpy", "latentq"])
    return (
        f"{dt.date.today()}, {cpu}, {os.cpu_count()} cores (load average {load:.1f}), Linux {platform.release()}, "
        f"Python {platform.python_version()}, {versions}; files in {root.parent}; `python {' '.join(sys.argv)}`."
    )


def write(text: str) -> None:
    """Puts the tables in place of those between the heading and the first paragraph of prose that follows `###`."""
    old = RESULTS.read_text() if RESULTS.exists() else "# Results\n"
    before, _, rest = old.partition(HEADING + "\n")
    at = min((i for i in (rest.find("\n### "), rest.find("\n## ")) if i >= 0), default=len(rest))
    RESULTS.write_text(before.rstrip() + "\n\n" + text.rstrip() + "\n" + rest[at:])


if __name__ == "__main__":
    main()
