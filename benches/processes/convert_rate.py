"""Convert 100,000 samples from safetensors shards and from an .npz per image, beside the bare reading of the files.

The files are made first, in a folder that `--keep` keeps. Each conversion runs in a process of its own; its memory is
the largest anonymous resident memory that the process had (mapped files are the page cache's), after a tenth of the
samples and at the end. The bare reading is that of the tools' own readers: whole tensors of a safetensors file by
`safe_open`, and `np.load` with every array of an .npz. Both orders are warm: the files have just been read.

    python benches/processes/convert_rate.py [--samples 100000] [--folder /tmp/convert] [--only lightningdit] [--bits 8]
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np

SHARD = 10_000
SHAPES = {"lightningdit": (4, 32, 32), "mar": (8, 16, 16)}


def make(layout: str, folder: Path, samples: int) -> None:
    """Write the files of a layout, with new values in each."""
    shape = SHAPES[layout]
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True)
    if layout == "lightningdit":
        import torch
        from safetensors.torch import save_file

        for number, first in enumerate(range(0, samples, SHARD)):
            count = min(SHARD, samples - first)
            tensors = {
                name: torch.from_numpy(rng.standard_normal((count, *shape), np.float32))
                for name in ("latents", "latents_flip")
            }
            tensors["labels"] = torch.arange(count) % 1000
            save_file(tensors, folder / f"latents_rank00_shard{number:03d}.safetensors")
        return
    block = rng.standard_normal((64, *shape), np.float32)
    for index in range(samples):
        path = folder / f"n{index % 1000:08d}"
        path.mkdir(exist_ok=True)
        np.savez(path / f"{index}.JPEG.npz", moments=block[index % 64] + index, moments_flip=block[-index % 64] - index)


def read(layout: str, folder: Path) -> int:
    """Read every file as the tool's own reader does; return the bytes of the arrays."""
    total = 0
    if layout == "lightningdit":
        from safetensors import safe_open

        for path in sorted(folder.glob("*.safetensors")):
            with safe_open(path, "pt") as file:
                for name in file.keys():  # noqa: SIM118  (not a dict)
                    tensor = file.get_tensor(name).clone()
                    total += tensor.nbytes
        return total
    for path in sorted(folder.rglob("*.npz")):
        data = np.load(path)
        total += sum(data[name].nbytes for name in data.files)
    return total


def anonymous() -> int:
    """Return the anonymous resident memory of this process in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon"):
            return 1024 * int(line.split()[1])
    return 0


def child(layout: str, folder: Path, out: Path, samples: int, bits: int | None) -> None:
    """Convert in this process, and print seconds and memory as JSON."""
    import latentq
    from latentq.system.progress import Progress

    seen: list[tuple[int, int]] = []
    bars: list[Progress] = []
    init = Progress.__init__

    def record(self: Progress, *arguments: object, **options: object) -> None:
        init(self, *arguments, **options)  # type: ignore[arg-type]
        bars.append(self)

    Progress.__init__ = record  # type: ignore[method-assign,assignment]
    stopped = threading.Event()

    def watch() -> None:
        while not stopped.wait(0.02):
            seen.append((max((bar._done for bar in bars if bar._label == "convert"), default=0), anonymous()))

    watcher = threading.Thread(target=watch)
    import torch  # noqa: F401  (the import takes seconds)
    from safetensors import safe_open  # noqa: F401

    watcher.start()
    start, used = time.perf_counter(), time.process_time()
    latentq.convert(folder, out, from_layout=layout, bits=bits)
    seconds, processor = time.perf_counter() - start, time.process_time() - used
    stopped.set()
    watcher.join()
    early = max((memory for done, memory in seen if done <= samples / 10), default=0)
    late = max((memory for _, memory in seen), default=0)
    print(json.dumps({"seconds": seconds, "processor": processor, "early": early, "late": late}))


def main() -> None:
    """Run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, default=100_000)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--only", choices=SHAPES)
    parser.add_argument("--bits", type=int)
    parser.add_argument("--rounds", type=int, default=3, help="of which the median is printed")
    parser.add_argument("--child", nargs=2, metavar=("LAYOUT", "OUT"))
    options = parser.parse_args()
    folder = options.folder or Path(tempfile.mkdtemp(prefix="convert_rate-"))
    if options.child:
        child(options.child[0], folder / options.child[0], Path(options.child[1]), options.samples, options.bits)
        return
    try:
        for layout in [options.only] if options.only else SHAPES:
            if not (folder / layout).exists():
                make(layout, folder / layout, options.samples)
            read(layout, folder / layout)
            rates = []
            for _ in range(options.rounds):
                start, used = time.perf_counter(), time.process_time()
                total = read(layout, folder / layout)
                rates.append((time.perf_counter() - start, time.process_time() - used))
            bare, bare_processor = sorted(rates)[options.rounds // 2]
            out = folder / "out"
            command = [sys.executable, __file__, "--folder", str(folder), "--samples", str(options.samples)]
            command += ["--bits", str(options.bits)] if options.bits else []
            results = []
            for _ in range(options.rounds):
                shutil.rmtree(out, ignore_errors=True)
                done = subprocess.run(
                    [*command, "--child", layout, str(out)], capture_output=True, text=True, check=True
                )
                results.append(json.loads(done.stdout))
            result = sorted(results, key=lambda found: found["seconds"])[options.rounds // 2]
            stored = f"{options.bits} bits" if options.bits else "float32"
            size = total / options.samples / 1000
            print(f"{layout}, {options.samples} samples of {size:.1f} kB, to {stored}:")
            for name, seconds, processor in (
                ("bare reading", bare, bare_processor),
                ("converting", result["seconds"], result["processor"]),
            ):
                rate, microseconds = options.samples / seconds, 1e6 * processor / options.samples
                print(f"  {name} {rate:,.0f} samples/s, {microseconds:.0f} us of processor time each")
            print(f"  {bare / result['seconds']:.2f} of the rate of bare reading; memory", end=" ")
            print(f"{result['early'] / 1e6:.0f} MB after a tenth, at most {result['late'] / 1e6:.0f} MB")
            shutil.rmtree(out, ignore_errors=True)
    finally:
        if options.folder is None:
            shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "2")
    main()
