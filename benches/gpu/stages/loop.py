"""`latentq.encode` against the bare compiled network, and against a plain loop such as made imagenet.int8."""

from __future__ import annotations

import resource
import statistics
import tarfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

import latentq
from gpu.harness import Run
from gpu.networks import sdxl_sized
from gpu.pictures import Repeated, compiling, encode, photographs, recipe
from gpu.stages.forward import BARE, BATCH, CHOSEN
from latentq.encoding.stages import Profile
from latentq.system.processors import processors
from latentq.system.progress import Totals

COMPILED, FLOAT32, PLAIN = "encode, bf16 compiled", "encode, float32", "plain loop, float32"
TF32 = "encode, tf32"


class Loop:
    """The runs of this stage, all of the same pictures."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.network, self.files = sdxl_sized(run), photographs(run)
        self.size, self.batch = run.size(256, 16), run.size(BATCH, 2)

    def encode(
        self, name: str, source: Any, dtype: str = "bfloat16", *, compiled: bool = True, **options: Any
    ) -> float:
        """Encodes; returns the images per second from the first reading until the dataset is published."""
        image = {key: options.pop(key) for key in ("min_size", "quantizer") if key in options}
        totals = Totals()
        with compiling(self.run):
            encode(
                self.run, source, self.run.folder / name, self.network, recipe(self.size, dtype=dtype, **image),
                batch_size=self.batch, compiled=compiled, totals=totals, **options,
            )  # fmt: skip
        if isinstance(source, Repeated) and source.began is not None:
            return len(source.files) / (time.perf_counter() - source.began)
        return totals.images / totals.seconds


def work(run: Run) -> None:
    """Measures the image side, the whole program, its variants, and the plain loop."""
    loop = Loop(run)
    with run.attempt("images alone"):
        _images(loop)
    loop.encode("warm", Repeated(loop.files, run.size(256, 4)))  # compiles
    with run.attempt(COMPILED):
        _compiled(loop)
    with run.attempt("tar and min_size"):
        _sources(loop)
    for name, dtype, count in ((FLOAT32, "float32", 1024), (TF32, "tf32", 2048)):
        with run.attempt(name):
            source = Repeated(loop.files, run.size(count, 4))
            run.number(name, loop.encode(name, source, dtype, compiled=False), "img/s")
    _memory(run)
    with run.attempt(PLAIN):
        rate = plain_loop(loop, run.size(4096, 4))
        run.number(PLAIN, rate, "img/s")
        for name, factor in ((COMPILED, 2.0), (FLOAT32, 1.0), (TF32, 1.0)):
            mine = run.earlier("loop", name) or 0.0
            wanted = f">= {factor:g} x plain"
            run.check(f"{name} / plain loop", mine >= factor * rate, mine / rate, wanted, card_only=True)


def _images(loop: Loop) -> None:
    """Measures loading pixels, batch by batch and all at once: the ratio is the cost of a barrier per batch."""
    run, threads = loop.run, processors()
    count = run.size(4096, 16)
    files = [loop.files[number % len(loop.files)] for number in range(count)]
    times: dict[str, list[float]] = {"a call per batch": [], "one call": []}
    batch = min(64, count // 4)
    for _ in range(2 if not run.dry else 1):
        start = time.perf_counter()
        for first in range(0, count, batch):
            latentq.image.load_batch(files[first : first + batch], loop.size, threads=threads)
        middle = time.perf_counter()
        latentq.image.load_batch(files, loop.size, threads=threads)
        times["a call per batch"].append(middle - start)
        times["one call"].append(time.perf_counter() - middle)
    for name, seconds in times.items():
        values = [count / value for value in seconds]
        run.number(f"images alone, {name}, {threads} threads", statistics.median(values), "img/s", values)


def _compiled(loop: Loop) -> None:
    """Measures the whole program at its fastest, twice, and compares it with the bare network."""
    run, count = loop.run, loop.run.size(16384, 8)
    found = []
    for turn in range(2):
        profile = Profile()
        start = time.perf_counter()
        found.append(loop.encode(f"compiled {turn}", Repeated(loop.files, count), profile=profile))
        wall = time.perf_counter() - start
    run.number(COMPILED, max(found), "img/s", found)
    for (stage, state), seconds in sorted(profile.seconds.items()):
        if seconds > 0.001 * wall:
            run.number(f"share of time: {stage} {state}", 100 * seconds / wall, "%")
    for name in (BARE, CHOSEN):
        bare = run.earlier("forward", name)
        if bare is None:
            run.not_run(f"encode / {name}", "that forward pass was not measured")
        else:
            ok = max(found) >= 0.95 * bare
            run.check(f"encode / {name}", ok, max(found) / bare, ">= 0.95", card_only=True)


def _sources(loop: Loop) -> None:
    """Measures the same pictures as files, as a tar, and with a smallest size, for which headers are read first."""
    run, count = loop.run, loop.run.size(4096, 8)
    archive = run.folder / "pictures.tar"
    with tarfile.open(archive, "w") as tar:
        for number in range(count):
            file = loop.files[number % len(loop.files)]
            tar.add(file, f"{number:06}{file.suffix.lower()}")
    sources: dict[str, tuple[Any, dict[str, Any]]] = {
        "files": (Repeated(loop.files, count), {}),
        "tar": (archive, {}),
        "files, min_size 64": (Repeated(loop.files, count), {"min_size": 64}),
        "tar, min_size 64": (archive, {"min_size": 64}),
    }
    for name, (source, options) in sources.items():
        with run.attempt(f"encode from {name}"):
            run.number(f"encode from {name}", loop.encode(f"from {name}", source, **options), "img/s")


def _memory(run: Run) -> None:
    """Records what the process has taken at most."""
    run.number("memory of the process, at most", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6, "GB")
    if run.dry:
        return
    run.number("memory allocated on the card, at most", torch.cuda.max_memory_allocated() / 1e9, "GB")
    run.number("memory reserved on the card, at most", torch.cuda.max_memory_reserved() / 1e9, "GB")
    if hasattr(torch.cuda, "host_memory_stats"):
        for name, value in torch.cuda.host_memory_stats().items():
            if name.startswith("allocated_bytes.") and name.endswith(("current", "peak")):
                run.number(f"pinned memory, {name.rpartition('.')[2]}", value / 1e9, "GB")


class Photographs(torch.utils.data.Dataset[torch.Tensor]):
    """Pictures prepared by Pillow like those of imagenet.int8."""

    def __init__(self, files: list[Path], count: int, size: int) -> None:
        self._files, self._count, self._size = files, count, size

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> torch.Tensor:
        from PIL import Image

        size = self._size
        picture = Image.open(self._files[index % len(self._files)]).convert("RGB")
        short = min(picture.size)
        wide, tall = (int(size * side / short) for side in picture.size)
        picture = picture.resize((wide, tall), Image.Resampling.BICUBIC)
        left, top = round((wide - size) / 2), round((tall - size) / 2)
        pixels = np.asarray(picture.crop((left, top, left + size, top + size)))
        return torch.from_numpy(pixels / np.float32(127.5) - 1).permute(2, 0, 1)


def plain_loop(loop: Loop, count: int) -> float:
    """Returns the images per second of a loop as people write it, from its first batch on."""
    run = loop.run
    data = Photographs(loop.files, count, loop.size)
    workers = processors() if not run.dry else 0
    codes = []
    with torch.no_grad():
        batches = iter(torch.utils.data.DataLoader(data, batch_size=loop.batch, num_workers=workers))
        pixels = next(batches)
        start = time.perf_counter()
        while pixels is not None:
            mean, logvar = loop.network.posterior(pixels.to(run.device))
            latents = mean + (logvar / 2).exp() * torch.randn_like(mean)
            codes.append(((latents.clip(-14, 14) / 28 + 0.5) * 255).to(torch.uint8).cpu().numpy())
            pixels = next(batches, None)
        np.save(run.folder / "codes.npy", np.concatenate(codes))
    return count / (time.perf_counter() - start)
