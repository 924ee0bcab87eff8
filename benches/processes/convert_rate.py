"""Convert 100,000 samples from safetensors shards and from an .npz per image, beside the bare reading of the files.

The files are made first, in `--folder`, which is kept, or else in a temporary folder. Each conversion runs in a
process of its own; its memory is the largest anonymous resident memory that the process had (mapped files are the page
cache's), after a tenth of the samples and at the end. The bare reading is that of the tools' own libraries: whole
tensors of a safetensors file by `safe_open`, copied, and `np.load` with every array of an .npz. The files have just
been read, so they are in the page cache.

No conversion can be faster than the machine reads the files and writes as many bytes as the result has, with fsync:
that is measured too, by two threads with a buffer each. Rounds of the three follow each other; medians are printed.

A virtual machine may return free memory to its host, and gets it back at a tenth of the speed of memory. So before each
of the two that write, as many bytes are written to a file, which is removed.

    python benches/processes/convert_rate.py [--samples 100000] [--folder /tmp/convert] [--only lightningdit] [--bits 8]
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

SHARD = 10_000
WARM = 1 << 30  # bytes of memory for more than the files
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


def copy(sources: list[Path], out: Path, share: float) -> None:
    """Read files, and write that share of their bytes to files of 64 MiB, each fsynced, by two threads."""
    out.mkdir()
    buffers = threading.local()

    def one(source: Path) -> None:
        if not hasattr(buffers, "data"):
            buffers.data = memoryview(bytearray(1 << 26))
        with source.open("rb", buffering=0) as file:
            number = 0
            while count := file.readinto(buffers.data):
                with (out / f"{source.name}.{number}").open("xb", buffering=0) as copied:
                    copied.write(buffers.data[: int(share * count)])
                    os.fsync(copied.fileno())
                number += 1

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(one, sources))


def warm(folder: Path, nbytes: int) -> None:
    """Have the host of a virtual machine give back memory for as many bytes of files."""
    data = bytes(1 << 24)
    with (folder / f"warm-{os.getpid()}").open("xb", buffering=0) as file:
        Path(file.name).unlink()
        for _ in range(nbytes >> 24):
            file.write(data)


def anonymous() -> int:
    """Return the anonymous resident memory of this process in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon"):
            return 1024 * int(line.split()[1])
    return 0


def written(layout: str, samples: int, bits: int | None) -> int:
    """Return about how many bytes the result of a conversion has."""
    values = 2 * samples * math.prod(SHAPES[layout])
    return values * (bits or 32) // 8


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
    watcher.start()
    warm(out.parent, written(layout, samples, bits) + WARM)
    start, used = time.perf_counter(), time.process_time()
    latentq.convert(folder, out, from_layout=layout, bits=bits)
    seconds, processor = time.perf_counter() - start, time.process_time() - used
    stopped.set()
    watcher.join()
    early = max((memory for done, memory in seen if done <= samples / 10), default=0)
    late = max((memory for _, memory in seen), default=0)
    print(json.dumps({"seconds": seconds, "processor": processor, "early": early, "late": late}))


def measure(layout: str, folder: Path, options: argparse.Namespace) -> None:
    """Measure one layout, and print the medians."""
    source, out = folder / layout, folder / "out"
    command = [sys.executable, __file__, "--folder", str(folder), "--samples", str(options.samples)]
    command += ["--bits", str(options.bits)] if options.bits else []
    files = sorted(path for path in source.rglob("*") if path.is_file())
    total = read(layout, source)
    bare, converted, bound = [], [], []
    for _ in range(options.rounds):
        start, used = time.perf_counter(), time.process_time()
        read(layout, source)
        bare.append((time.perf_counter() - start, time.process_time() - used))
        shutil.rmtree(out, ignore_errors=True)
        done = subprocess.run([*command, "--child", layout, str(out)], capture_output=True, text=True, check=True)
        converted.append(json.loads(done.stdout))
        shutil.rmtree(out)
        if layout == "lightningdit":
            warm(folder, written(layout, options.samples, options.bits) + WARM)
            start = time.perf_counter()
            copy(files, out, options.bits / 32 if options.bits else 1)
            bound.append(time.perf_counter() - start)
            shutil.rmtree(out)
    seconds, processor = sorted(bare)[options.rounds // 2]
    result = sorted(converted, key=lambda found: found["seconds"])[options.rounds // 2]
    stored = f"{options.bits} bits" if options.bits else "float32"
    print(f"{layout}, {options.samples} samples of {total / options.samples / 1000:.1f} kB, to {stored}:")
    for name, seconds_taken, processor_taken in (
        ("bare reading", seconds, processor),
        ("converting", result["seconds"], result["processor"]),
    ):
        rate, microseconds = options.samples / seconds_taken, 1e6 * processor_taken / options.samples
        print(f"  {name} {rate:,.0f} samples/s, {microseconds:.0f} us of processor time each")
    if bound:
        rate = options.samples / statistics.median(bound)
        print(f"  reading, and writing as many bytes as the result has {rate:,.0f} samples/s")
    print(f"  {seconds / result['seconds']:.2f} of the rate of bare reading; memory", end=" ")
    print(f"{result['early'] / 1e6:.0f} MB after a tenth, at most {result['late'] / 1e6:.0f} MB")


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
            measure(layout, folder, options)
    finally:
        if options.folder is None:
            shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "2")
    main()
