"""The image path against Pillow, torchvision and OpenCV, and against libjpeg-turbo alone.

Every contender gets the same files, as bytes in memory, and goes over all of them in every round; the rounds of all
contenders alternate. A figure is the median of the rounds, a ratio the median of the ratios within a round. Where one
thread works its processor time is counted, so that what else runs on the machine falls away; else it is the clock's.

    python benches/image.py [--rounds 15]
"""

import argparse
import io
import os
import platform
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import PIL
import skimage.data
import torch
import torchvision
from PIL import Image
from torchvision.transforms.v2 import functional

import latentq
from latentq import image

ROOT = Path(__file__).resolve().parents[1]
SIZE = 256
PLAIN = {"orient": False, "alpha": "drop", "icc": "ignore"}
BICUBIC = Image.Resampling.BICUBIC


def pillow_decode(data):
    return Image.open(io.BytesIO(data)).convert("RGB")


def pillow_fit(picture):
    """torchvision's Resize and CenterCrop, in Pillow."""
    width, height = picture.size
    wide, tall = (SIZE, int(SIZE * height / width)) if width <= height else (int(SIZE * width / height), SIZE)
    picture = picture.resize((wide, tall), BICUBIC)
    left, top = round((wide - SIZE) / 2), round((tall - SIZE) / 2)
    return picture.crop((left, top, left + SIZE, top + SIZE))


def torchvision_decode(data):
    encoded = torch.frombuffer(bytearray(data), dtype=torch.uint8)
    return torchvision.io.decode_image(encoded, torchvision.io.ImageReadMode.RGB)


def torchvision_fit(pixels):
    interpolation = torchvision.transforms.InterpolationMode.BICUBIC
    return functional.center_crop(functional.resize(pixels, SIZE, interpolation, antialias=True), SIZE)


def opencv_decode(data):
    flags = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION
    return cv2.imdecode(np.frombuffer(data, np.uint8), flags)


def opencv_fit(pixels):
    """INTER_AREA: OpenCV has no antialiased bicubic, so this is less work."""
    height, width = pixels.shape[:2]
    wide, tall = (SIZE, int(SIZE * height / width)) if width <= height else (int(SIZE * width / height), SIZE)
    pixels = cv2.resize(pixels, (wide, tall), interpolation=cv2.INTER_AREA)
    left, top = round((wide - SIZE) / 2), round((tall - SIZE) / 2)
    return np.ascontiguousarray(pixels[top : top + SIZE, left : left + SIZE])


def bare_rate(files: Sequence[bytes]) -> Callable[[], float]:
    """Seconds of one pass of libjpeg-turbo alone."""
    command = ["cargo", "build", "--quiet", "--release", "-p", "latentq-core", "--example", "jpeg_rate"]
    subprocess.run(command, cwd=ROOT, check=True)
    folder = Path(tempfile.mkdtemp())
    paths = [folder / f"{index}.jpg" for index in range(len(files))]
    for path, data in zip(paths, files, strict=True):
        path.write_bytes(data)

    def passes() -> float:
        program = ROOT / "target/release/examples/jpeg_rate"
        printed = subprocess.run([program, "3", *paths], check=True, capture_output=True, text=True).stdout
        return statistics.median(float(line) for line in printed.split())

    return passes


def timed(work: Callable[[], object], clock: Callable[[], float] = time.perf_counter) -> Callable[[], float]:
    def once() -> float:
        start = clock()
        work()
        return clock() - start

    return once


def each(function: Callable, items: Sequence) -> Callable[[], float]:
    return timed(lambda: [function(item) for item in items], time.process_time)


def compare(title: str, count: int, contenders: dict[str, Callable[[], float]], rounds: int) -> None:
    for once in contenders.values():
        once()
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, once in contenders.items():
            seconds[name].append(once())
    reference = seconds["Pillow"]
    print(f"\n| {title} | images/s | to Pillow |\n|---|---:|---:|")
    for name, values in seconds.items():
        ratio = statistics.median(theirs / ours for theirs, ours in zip(reference, values, strict=True))
        print(f"| {name} | {count / statistics.median(values):,.1f} | {ratio:.2f} |")


def mosaic(pictures: Sequence[Image.Image], width: int, height: int) -> bytes:
    """A JPEG of camera size with the detail of photographs: they lie side by side at their own resolution."""
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


def photographs(folder: Path) -> dict[str, list[bytes]]:
    """The sets of files: small photographs, and mosaics of them as large as a camera's."""
    names = ("astronaut.png", "chelsea.png", "coffee.png", "rocket.jpg")
    demo = [(Path(skimage.data.__file__).parent / name).read_bytes() for name in names]
    small = [path.read_bytes() for path in sorted(folder.rglob("*.JPEG"))] or demo[-1:]
    pictures = [pillow_decode(data) for data in small]
    return {
        f"{len(small)} photographs": small,
        "the demo's photographs (3 PNG, 1 JPEG)": demo,
        "3 megapixels": [mosaic(pictures[shift:] + pictures[:shift], 2048, 1536) for shift in range(4)],
        "12 megapixels": [mosaic(pictures[shift:] + pictures[:shift], 4000, 3000) for shift in range(2)],
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--images", type=Path, default=ROOT.parent / "shared" / "images")
    options = parser.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    print(
        f"{time.strftime('%Y-%m-%d %H:%M')} UTC, {platform.processor() or platform.machine()}, {os.cpu_count()} cores"
    )
    with Path("/proc/cpuinfo").open() as lines:
        print(next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), ""))
    versions = {"latentq": latentq.__version__, "Pillow": PIL.__version__, "torchvision": torchvision.__version__}
    print({**versions, "torch": torch.__version__, "OpenCV": cv2.__version__})

    for name, files in photographs(options.images).items():
        measure(name, files, options.rounds)


def measure(name: str, files: Sequence[bytes], rounds: int) -> None:
    count = len(files)
    pixels = [image.decode(data, **PLAIN) for data in files]
    pictures = [pillow_decode(data) for data in files]
    tensors = [torch.from_numpy(array.transpose(2, 0, 1).copy()) for array in pixels]
    are_jpegs = all(data.startswith(b"\xff\xd8") for data in files)
    bare = {"libjpeg-turbo alone": bare_rate(files)} if are_jpegs else {}
    compare(
        f"{name}: decode alone, 1 thread",
        count,
        {
            "Pillow": each(pillow_decode, files),
            "torchvision": each(torchvision_decode, files),
            "OpenCV": each(opencv_decode, files),
            "latentq": each(lambda data: image.decode(data, **PLAIN), files),
            **bare,
        },
        rounds,
    )
    compare(
        f"{name}: resize to {SIZE} and crop alone, 1 thread",
        count,
        {
            "Pillow": each(pillow_fit, pictures),
            "torchvision": each(torchvision_fit, tensors),
            "OpenCV (area)": each(opencv_fit, pixels),
            "latentq": each(lambda array: image.fit(array, SIZE), pixels),
        },
        rounds,
    )
    compare(
        f"{name}: file to {SIZE} crop, 1 thread",
        count,
        {
            "Pillow": each(lambda data: np.asarray(pillow_fit(pillow_decode(data))), files),
            "torchvision": each(lambda data: torchvision_fit(torchvision_decode(data)), files),
            "OpenCV (area)": each(lambda data: opencv_fit(opencv_decode(data)), files),
            "latentq": each(lambda data: image.load(data, SIZE, **PLAIN), files),
            "latentq, min_side (inexact)": each(lambda data: image.load(data, SIZE, min_side=SIZE, **PLAIN), files),
            **bare,
        },
        rounds,
    )
    cores = os.cpu_count() or 1
    many = files * max(1, 8 // count)
    with ThreadPoolExecutor(cores) as pool:
        compare(
            f"{name}: file to {SIZE} crop, {cores} threads",
            len(many),
            {
                "Pillow": timed(lambda: list(pool.map(lambda data: np.asarray(pillow_fit(pillow_decode(data))), many))),
                "torchvision": timed(lambda: list(pool.map(lambda d: torchvision_fit(torchvision_decode(d)), many))),
                "OpenCV (area)": timed(lambda: list(pool.map(lambda d: opencv_fit(opencv_decode(d)), many))),
                "latentq.load_batch": timed(lambda: image.load_batch(many, SIZE, threads=cores, **PLAIN)),
            },
            rounds,
        )


if __name__ == "__main__":
    main()
