"""Read a dataset four times as large as the memory that its process may take, shuffled, next to plain reads.

    python benches/processes/cold_loader.py [ROUNDS] [--folder FOLDER]

Each contender reads for some seconds in a process of its own, in a memory control group of 512 MiB (page cache
included), with no file in the page cache at first; contenders take turns. Plain reads are those of `pread_rate`, an
example of the Rust core: one sample at a time by each of 8 and of 128 threads, without decoding. `--folder` keeps the
dataset there.

Needs cargo, and permission to make a memory control group (version 1 or 2) below the one of this process.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from memory_cap import group

from latentq import mds

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from rivals import evict

from latentq.benchmark.loading import RECIPE, SHAPE

REPOSITORY = Path(__file__).resolve().parents[2]
CAP = 512 << 20
SAMPLES = 4 * CAP // 4096
SAMPLE_BYTES = 4104  # in a shard: a latent and its label
SECONDS = 6
CODE = """
import os, sys, time
from latentq.benchmark.loading import BATCH, QUANTIZER, RECIPE
from latentq import LatentDataset
shuffle = {"True": True}.get(sys.argv[2], sys.argv[2])
begun = time.perf_counter()
batches = iter(LatentDataset(sys.argv[1], recipe=RECIPE, quantizer=QUANTIZER).loader(BATCH, shuffle=shuffle, window=4))
samples = 0
for batch in batches:
    samples += len(batch["label"])
    if time.perf_counter() - begun > float(sys.argv[3]):
        break
print(samples / (time.perf_counter() - begun), flush=True)
os._exit(0)
"""


def write(dataset: Path) -> None:
    rng = np.random.default_rng(0)
    columns = {"latent": RECIPE.columns["latent"].encoding, "label": "int"}
    with mds.Writer(dataset, columns, size_limit=16 << 20) as writer:
        for start in range(0, SAMPLES, 4096):
            codes = rng.integers(0, 256, (4096, *SHAPE), np.uint8)
            writer.write_batch({"latent": codes, "label": np.arange(start, start + 4096)})


def pread_rate() -> str:
    """Build the example and return its path."""
    example = ["cargo", "build", "--release", "--quiet", "--package", "latentq-core", "--example", "pread_rate"]
    subprocess.run(example, check=True, cwd=REPOSITORY)
    target = os.environ.get("CARGO_TARGET_DIR", str(REPOSITORY / "target"))
    return f"{target}/release/examples/pread_rate"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rounds", type=int, nargs="?", default=3)
    parser.add_argument("--folder", type=Path)
    options = parser.parse_args()
    reads = pread_rate()
    with tempfile.TemporaryDirectory() as temporary:
        dataset = (options.folder or Path(temporary)) / "dataset"
        if not dataset.exists():
            write(dataset)
        commands = {
            "loader, shuffled": [sys.executable, "-c", CODE, str(dataset), "True", str(SECONDS)],
            "loader, windows of 4 shards": [sys.executable, "-c", CODE, str(dataset), "window", str(SECONDS)],
            **{
                f"plain reads, {threads} threads": [reads, str(dataset), str(SAMPLE_BYTES), str(threads), str(SECONDS)]
                for threads in (8, 128)
            },
        }
        rates: dict[str, list[float]] = {name: [] for name in commands}
        folder, limit, _ = group()
        try:
            (folder / limit).write_text(str(CAP))
            for _ in range(options.rounds):
                for name, command in commands.items():
                    evict(dataset)
                    done = subprocess.run(
                        command,
                        preexec_fn=lambda: (folder / "cgroup.procs").write_text(str(os.getpid())),
                        capture_output=True,
                        text=True,
                        check=True,
                    )
                    rates[name].append(float(done.stdout))
        finally:
            folder.rmdir()
    bound = statistics.median(rates["plain reads, 128 threads"])
    for name, seen in rates.items():
        each = ", ".join(f"{rate:,.0f}" for rate in seen)
        print(f"{name:32s} {statistics.median(seen):9,.0f} samples/s, {statistics.median(seen) / bound:.2f} ({each})")


if __name__ == "__main__":
    main()
