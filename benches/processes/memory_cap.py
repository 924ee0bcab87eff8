"""Read an epoch of a dataset ten times as large as the memory that its process may take, page cache included.

    python benches/processes/memory_cap.py

Prints the peak of the process's control group. Needs permission to make a memory control group (version 1 or 2) below
the one of this process.
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from latentq import mds

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from latentq.benchmark.loading import RECIPE, SHAPE

CAP = 512 << 20
CODE = """
import sys
sys.path.insert(0, sys.argv[2])
from latentq.benchmark.loading import BATCH, QUANTIZER, RECIPE
from latentq import LatentDataset
dataset = LatentDataset(sys.argv[1], recipe=RECIPE, quantizer=QUANTIZER)
print(sum(len(batch["label"]) for batch in dataset.loader(BATCH, shuffle=True)))
"""


def group() -> tuple[Path, str, str]:
    """Make a control group: its folder, and the names of the files that hold its limit and its peak."""
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == "memory":
            parent, files = Path("/sys/fs/cgroup/memory" + path), ("memory.limit_in_bytes", "memory.max_usage_in_bytes")
            break
        if not controllers and Path("/sys/fs/cgroup/cgroup.controllers").exists():
            parent, files = Path("/sys/fs/cgroup" + path), ("memory.max", "memory.peak")
    folder = parent / f"latentq-{os.getpid()}"
    folder.mkdir()
    return folder, *files


def main() -> None:
    samples = 10 * CAP // 4096
    with tempfile.TemporaryDirectory() as temporary:
        dataset = Path(temporary) / "dataset"
        with mds.Writer(dataset, {"latent": RECIPE.columns["latent"].encoding, "label": "int"}) as writer:
            rng = np.random.default_rng(0)
            for start in range(0, samples, 4096):
                count = min(4096, samples - start)
                codes = rng.integers(0, 256, (count, *SHAPE), np.uint8)
                writer.write_batch({"latent": codes, "label": np.arange(start, start + count)})
        folder, limit, peak = group()
        try:
            (folder / limit).write_text(str(CAP))
            done = subprocess.run(
                [sys.executable, "-c", CODE, str(dataset), str(Path(__file__).parents[1])],
                preexec_fn=lambda: (folder / "cgroup.procs").write_text(str(os.getpid())),
                capture_output=True,
                text=True,
                check=False,
            )
            seen = int((folder / peak).read_text())
        finally:
            folder.rmdir()
    if done.returncode or int(done.stdout) != samples:
        sys.exit(f"the epoch failed with exit code {done.returncode}: {done.stderr[-500:]}")
    size = samples * 4096 / 2**30
    print(f"{samples:,} samples ({size:.2f} GiB) read under a cap of {CAP >> 20} MiB, peak {seen >> 20} MiB")


if __name__ == "__main__":
    main()
