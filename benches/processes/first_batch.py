"""Time a fresh process until its first shuffled batch of 256 from a dataset of 1,000 shards, without the imports.

    python benches/processes/first_batch.py

Prints the median of 11 processes. The files are in the page cache.
"""

import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from latentq import mds

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from latentq.benchmark.loading import RECIPE, SHAPE

CODE = """
import sys, time
sys.path.insert(0, sys.argv[2])
from latentq.benchmark.loading import BATCH, QUANTIZER, RECIPE
from latentq import LatentDataset
start = time.perf_counter()
dataset = LatentDataset(sys.argv[1], recipe=RECIPE, quantizer=QUANTIZER)
opened = time.perf_counter()
batch = next(iter(dataset.loader(BATCH, shuffle=True)))
assert len(batch["label"]) == BATCH
print(opened - start, time.perf_counter() - start)
"""


def main() -> None:
    samples = 64_000
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "dataset"
        columns = {"latent": RECIPE.columns["latent"].encoding, "label": "int"}
        with mds.Writer(folder, columns, size_limit=64 * (4096 + 8 + 4) + 600) as writer:
            codes = np.random.default_rng(0).integers(0, 256, (samples, *SHAPE), np.uint8)
            writer.write_batch({"latent": codes, "label": np.arange(samples)})
        shards = len(list(folder.glob("*.mds")))
        times = []
        for _ in range(11):
            command = [sys.executable, "-c", CODE, str(folder), str(Path(__file__).parents[1])]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            times.append(tuple(map(float, done.stdout.split())))
    opened, first = (statistics.median(column) for column in zip(*times, strict=True))
    print(f"{shards} shards: opened in {opened:.3f} s, first batch after {first:.3f} s (largest {max(times)[1]:.3f} s)")


if __name__ == "__main__":
    main()
