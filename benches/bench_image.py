"""Decoding, resizing and cropping against Pillow, torchvision, OpenCV and libjpeg-turbo alone.

Every contender gets the same files, as bytes in memory, and goes over all of them in every round. Work on one thread is
timed by the CPU time of the process, so that other work on the machine does not count.

The files are the photographs of `../shared/images` if they are there, else one that scikit-image ships; those four of
`make demo`; and mosaics of the photographs, as large as pictures of a camera. OpenCV has no antialiased bicubic filter,
so it resizes by area means, which is less work.
"""

import functools
import io
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import skimage.data
import torch
import torchvision
from PIL import Image
from torchvision.transforms.v2 import functional

from latentq import image
from latentq.benchmark import pixels
from latentq.benchmark.pixels import PLAIN, SIZE, each, of_encoded, pillow_decode, pillow_load, resized
from latentq.benchmark.turns import CORES

ROOT = Path(__file__).resolve().parents[1]
PHOTOGRAPHS = ROOT.parent / "shared" / "images"
ROUNDS = 15


def torchvision_decode(data: bytes) -> torch.Tensor:
    encoded = torch.frombuffer(bytearray(data), dtype=torch.uint8)
    return torchvision.io.decode_image(encoded, torchvision.io.ImageReadMode.RGB)


def torchvision_fit(pixels: torch.Tensor) -> torch.Tensor:
    interpolation = torchvision.transforms.InterpolationMode.BICUBIC
    return functional.center_crop(functional.resize(pixels, SIZE, interpolation, antialias=True), SIZE)


def opencv_decode(data: bytes) -> Any:
    flags = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION
    return cv2.imdecode(np.frombuffer(data, np.uint8), flags)


def opencv_fit(pixels: Any) -> Any:
    wide, tall, left, top = resized(pixels.shape[1], pixels.shape[0])
    pixels = cv2.resize(pixels, (wide, tall), interpolation=cv2.INTER_AREA)
    return np.ascontiguousarray(pixels[top : top + SIZE, left : left + SIZE])


def torchvision_load(data: bytes) -> torch.Tensor:
    return torchvision_fit(torchvision_decode(data))


def opencv_load(data: bytes) -> Any:
    return opencv_fit(opencv_decode(data))


def mosaic(pictures: list[Image.Image], width: int, height: int) -> bytes:
    """A JPEG of the size of a camera's, with the detail of photographs: they lie next to each other, not resized."""
    canvas = Image.new("RGB", (width, height))
    x = y = row = 0
    for index in range(10_000):
        picture = pictures[index % len(pictures)]
        canvas.paste(picture, (x, y))
        x, row = x + picture.width, max(row, picture.height)
        if x >= width:
            x, y, row = 0, y + row, 0
        if y >= height:
            break
    buffer = io.BytesIO()
    canvas.save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


@dataclass(frozen=True, eq=False)
class Files(pixels.Files):
    """Encoded files and their pixels in the type of each rival."""

    tensors: list[torch.Tensor]

    @property
    def many(self) -> list[bytes]:
        """At least eight files, for several threads."""
        return self.encoded * max(1, 8 // len(self.encoded))


@functools.cache
def files(name: str) -> Files:
    demo = [Path(skimage.data.__file__).parent / file for file in DEMO]
    small = sorted(PHOTOGRAPHS.rglob("*.JPEG")) or demo[-1:]
    if name == "photographs":
        encoded = [path.read_bytes() for path in small]
    elif name == "photographs of the demo":
        encoded = [path.read_bytes() for path in demo]
    else:
        pictures = [pillow_decode(path.read_bytes()) for path in small]
        width, height, count = CAMERAS[name]
        encoded = [mosaic(pictures[shift:] + pictures[:shift], width, height) for shift in range(count)]
    plain = of_encoded(encoded)
    tensors = [torch.from_numpy(array.transpose(2, 0, 1).copy()) for array in plain.arrays]
    return Files(plain.encoded, plain.arrays, plain.pictures, tensors)


DEMO = ("astronaut.png", "chelsea.png", "coffee.png", "rocket.jpg")
CAMERAS = {"3 megapixels": (2048, 1536, 4), "12 megapixels": (4000, 3000, 2)}  # width, height, number of files
SETS = ["photographs", "photographs of the demo", *CAMERAS]
JPEGS = ["photographs", *CAMERAS]  # the demo's are PNG but for one


@functools.cache
def threads() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(CORES)


def in_threads(function: Callable[[bytes], object]) -> Callable[[Files], object]:
    return lambda files: list(threads().map(function, files.many)) and None


DECODE = {
    **pixels.DECODE,
    "torchvision": each(torchvision_decode),
    "OpenCV": each(opencv_decode),
}
FIT = {
    **pixels.FIT,
    "torchvision": each(torchvision_fit, "tensors"),
    "OpenCV (area)": each(opencv_fit, "arrays"),
}
LOAD = {
    **pixels.LOAD,
    "torchvision": each(torchvision_load),
    "OpenCV (area)": each(opencv_load),
    "latentq, min_side (not exact)": each(lambda data: image.load(data, SIZE, min_side=SIZE, **PLAIN)),
}
LOAD_IN_THREADS = {
    "Pillow": in_threads(pillow_load),
    "torchvision": in_threads(torchvision_load),
    "OpenCV (area)": in_threads(opencv_load),
    "latentq": lambda files: image.load_batch(files.many, SIZE, threads=CORES, **PLAIN),
}


@pytest.fixture(autouse=True)
def one_thread_each() -> None:
    torch.set_num_threads(1)
    cv2.setNumThreads(1)


sets = pytest.mark.parametrize("name", SETS)


def compare(turns: Callable[..., Any], contenders: Any, title: str, name: str) -> None:
    turns(
        contenders, files(name), group=f"{name}: {title}, 1 thread", reference="Pillow", rounds=ROUNDS,
        items=len(files(name).encoded), unit="images", clock=time.process_time,
    )  # fmt: skip


def with_libjpeg(contenders: dict[str, Any]) -> Any:
    """Parametrizes by contender and set of files; libjpeg-turbo takes part where all files are JPEGs."""
    pairs = [(name, files) for files in SETS for name in contenders if files in JPEGS or "libjpeg" not in name]
    return pytest.mark.parametrize(("contender", "name"), pairs)


@with_libjpeg(DECODE)
def bench_decode(turns, name, contender):
    compare(turns, DECODE, "decode", name)


@sets
@pytest.mark.parametrize("contender", FIT)
def bench_resize_and_crop(turns, name, contender):
    compare(turns, FIT, f"resize to {SIZE} and crop", name)


@with_libjpeg(LOAD)
def bench_load(turns, name, contender):
    compare(turns, LOAD, f"file to {SIZE} crop", name)


@sets
@pytest.mark.parametrize("contender", LOAD_IN_THREADS)
def bench_load_in_threads(turns, name, contender):
    turns(
        LOAD_IN_THREADS, files(name), group=f"{name}: file to {SIZE} crop, {CORES} threads", reference="Pillow",
        rounds=ROUNDS, items=len(files(name).many), unit="images",
    )  # fmt: skip
