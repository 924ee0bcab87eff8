"""Pictures to encode, sources that repeat, break off or break, and the runs of `latentq.encode` on them."""

from __future__ import annotations

import contextlib
import struct
import time
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

import latentq
from gpu.harness import Run
from gpu.standins import ROOT
from latentq import Recipe
from latentq.sources import Listing, Sample

UNIFORM = {"kind": "uniform", "low": -14.0, "high": 14.0}


def photographs(run: Run) -> list[Path]:
    """Returns 64 photographs if they are next to the checkout or in it, else 64 generated pictures."""
    for folder in (ROOT / "shared" / "images", ROOT.parent / "shared" / "images"):
        files = sorted(folder.rglob("*.JPEG"))
        if files:
            run.results.set_env(images=f"{len(files)} photographs")
            return files
    files = [paint(run.folder / "painted" / f"{number:02}", number, (500, 375)) for number in range(64)]
    run.results.set_env(images=f"64 generated pictures, {files[0].suffix[1:]} (the photographs are not here)")
    return files


def paint(path: Path, seed: int, size: tuple[int, int]) -> Path:
    """Saves a random picture of (width, height) pixels and returns its path: a JPEG, or a PNG if Pillow is missing."""
    random = np.random.default_rng(seed)
    rough = random.integers(0, 256, (size[1] // 8 + 1, size[0] // 8 + 1, 3), np.uint8)
    pixels = rough.repeat(8, 0).repeat(8, 1)[: size[1], : size[0]] // 2 + random.integers(0, 99, 1, np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        from PIL import Image
    except ImportError:
        path = path.with_suffix(".png")
        path.write_bytes(png(pixels))
    else:
        path = path.with_suffix(".jpg")
        Image.fromarray(pixels).save(path, quality=90)
    return path


def png(pixels: np.ndarray) -> bytes:
    """Returns (H, W, 3) uint8 pixels as a PNG."""
    height, width, _ = pixels.shape
    rows = b"".join(b"\0" + row.tobytes() for row in pixels)
    chunks = [
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)),
        (b"IDAT", zlib.compress(rows, 1)),
        (b"IEND", b""),
    ]
    packed = [struct.pack(">I", len(d)) + name + d + struct.pack(">I", zlib.crc32(name + d)) for name, d in chunks]
    return b"\x89PNG\r\n\x1a\n" + b"".join(packed)


class Repeated:
    """A source of `count` samples that repeats the same files.

    Args:
        files: The files.
        count: The number of samples.
        replaced: Other files for some samples, by number.
        interrupt: The number of the sample whose reading is interrupted as by Ctrl-C, once.

    Attributes:
        began: The time of the first reading, by `time.perf_counter`.
    """

    kind = "repeated"

    def __init__(
        self, files: Sequence[Path], count: int, *, replaced: dict[int, Path] | None = None, interrupt: int = -1
    ) -> None:
        self.files = [files[number % len(files)] for number in range(count)]
        for number, file in (replaced or {}).items():
            self.files[number] = file
        self.interrupt = interrupt
        self.began: float | None = None

    def listing(self) -> Listing:
        """Lists the samples."""
        return Listing(tuple(Sample(f"{i:06}", file.stat().st_size) for i, file in enumerate(self.files)), ())

    def data(self, sample: Sample) -> Path:
        """Returns a sample's file."""
        self.began = self.began or time.perf_counter()
        number = int(sample.key)
        if number == self.interrupt:
            self.interrupt = -1
            raise KeyboardInterrupt
        return self.files[number]


def recipe(
    size: int,
    *,
    content: str = "latent",
    dtype: str = "float32",
    quantizer: dict[str, Any] | None = None,
    store: str = "sample",
    unit_size: int = 4096,
    **image: Any,
) -> Recipe:
    """Returns a recipe of one column of latents, moments or tokens, and keys."""
    column: dict[str, Any] = {"from": content, "size": size}
    if content != "tokens":
        column["quantizer"] = quantizer or UNIFORM
    if content == "latent":
        column["store"] = store
    return Recipe.from_dict(
        {
            "name": "gpu",
            "unit_size": unit_size,
            "image": image,
            "autoencoder": {"dtype": dtype},
            "columns": {content: column, "key": {"from": "key", "encoding": "str"}},
        }
    )


def encode(run: Run, source: Any, out: Path, network: Any, recipe: Recipe, **options: Any) -> latentq.Card:
    """Encodes a source on the run's device, in one process unless the options say otherwise."""
    given = {"device": run.device, "rank": 0, "world_size": 1, "progress": None} | options
    return latentq.encode(source, out, recipe=recipe, autoencoder=network, **given)


def contents(folder: Path) -> dict[str, bytes]:
    """Returns the bytes of all files below a folder, by relative path."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def differing(first: Path, second: Path) -> list[str]:
    """Returns the names of the files that differ between two folders, or are in only one of them."""
    mine, other = contents(first), contents(second)
    return sorted(name for name in mine.keys() | other.keys() if mine.get(name) != other.get(name))


@contextlib.contextmanager
def compiling(run: Run) -> Iterator[None]:
    """In a rehearsal, torch.compile compiles nothing inside the block: for a CPU that takes too long."""
    real = torch.compile
    if run.dry:
        torch.compile = lambda function, **_: function  # type: ignore[assignment]
    try:
        yield
    finally:
        torch.compile = real
