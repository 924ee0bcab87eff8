"""JPEGs in memory to crops of 256 x 256 pixels (decode, resize by bicubic, center crop), one thread, by each decoder.

The pixels are compared with those of Pillow, which the driver stored: `equal`, or the largest difference.
"""

import functools
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

SIZE = 256


def resized(width: int, height: int) -> tuple[int, int, int, int]:
    """Width and height with a short side of SIZE, and left and top of the crop, as torchvision computes them."""
    wide, tall = (SIZE, int(SIZE * height / width)) if width <= height else (int(SIZE * width / height), SIZE)
    return wide, tall, round((wide - SIZE) / 2), round((tall - SIZE) / 2)


def latentq() -> Callable[[bytes], Any]:
    from latentq import image

    return functools.partial(image.load, size=SIZE, orient=False, alpha="drop", icc="ignore")


def pillow() -> Callable[[bytes], Any]:
    """Pillow and pillow-rs, which replaces it."""
    from PIL import Image

    def load(data: bytes) -> Any:
        picture = Image.open(io.BytesIO(data)).convert("RGB")
        wide, tall, left, top = resized(*picture.size)
        picture = picture.resize((wide, tall), Image.Resampling.BICUBIC)
        crop = picture.crop((left, top, left + SIZE, top + SIZE))
        return np.frombuffer(crop.tobytes(), np.uint8).reshape(SIZE, SIZE, 3)  # pillow-rs has no array interface

    return load


def tensors(decode: Callable[[Any], Any]) -> Callable[[bytes], Any]:
    import torch
    from torchvision.transforms.v2 import InterpolationMode, functional

    torch.set_num_threads(1)

    def load(data: bytes) -> Any:
        pixels = decode(torch.frombuffer(bytearray(data), dtype=torch.uint8))
        pixels = functional.resize(pixels, SIZE, InterpolationMode.BICUBIC, antialias=True)
        return functional.center_crop(pixels, SIZE).permute(1, 2, 0).numpy()

    return load


def torchvision() -> Callable[[bytes], Any]:
    from torchvision.io import ImageReadMode, decode_image

    return tensors(functools.partial(decode_image, mode=ImageReadMode.RGB))


def torchcodec() -> Callable[[bytes], Any]:
    from torchcodec.decoders import decode_image

    return tensors(decode_image)


def opencv() -> Callable[[bytes], Any]:
    """By area means: OpenCV has no antialiased bicubic filter. That is less work."""
    import cv2

    cv2.setNumThreads(1)
    flags = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION

    def load(data: bytes) -> Any:
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
        wide, tall, left, top = resized(pixels.shape[1], pixels.shape[0])
        pixels = cv2.resize(pixels, (wide, tall), interpolation=cv2.INTER_AREA)
        return np.ascontiguousarray(pixels[top : top + SIZE, left : left + SIZE])

    return load


def spdl() -> Callable[[bytes], Any]:
    import spdl.io

    scale = f"scale='if(lt(iw,ih),{SIZE},-1)':'if(lt(iw,ih),-1,{SIZE})':flags=bicubic"
    wanted = f"{scale},crop={SIZE}:{SIZE},format=pix_fmts=rgb24"

    def load(data: bytes) -> Any:
        return spdl.io.to_numpy(spdl.io.load_image(data, filter_desc=wanted))

    return load


def turboloader() -> Callable[[bytes], Any]:
    import turboloader as turbo

    def load(data: bytes) -> Any:
        pixels = turbo.decode_jpeg(data)
        wide, tall, left, top = resized(pixels.shape[1], pixels.shape[0])
        pixels = turbo.Resize(wide, tall, turbo.InterpolationMode.BICUBIC).apply(pixels)
        return pixels[top : top + SIZE, left : left + SIZE]

    return load


MAKERS: dict[str, Callable[[], Callable[[bytes], Any]]] = {
    "latentq": latentq,
    "Pillow": pillow,
    "pillow-rs": pillow,
    "torchvision": torchvision,
    "torchcodec": torchcodec,
    "OpenCV (area)": opencv,
    "SPDL": spdl,
    "turboloader": turboloader,
}


class Contender:
    def __init__(self, name: str, folder: Path) -> None:
        self._load = MAKERS[name]()
        self._files = [path.read_bytes() for path in sorted((folder / "jpegs").iterdir())]
        self._expected = np.load(folder / "crops.npy")

    def prepare(self) -> dict[str, str]:
        most = 0
        for data, expected in zip(self._files, self._expected, strict=True):
            pixels = np.asarray(self._load(data))
            assert pixels.shape == expected.shape, f"pixels of shape {pixels.shape}"
            most = max(most, int(np.abs(pixels.astype(int) - expected).max()))
        return {"note": "pixels are Pillow's" if most == 0 else f"pixels differ by up to {most}"}

    def close(self) -> None:
        """Nothing is open."""

    def run(self) -> None:
        for data in self._files:
            self._load(data)


def contender(_kind: str, name: str, folder: Path) -> Contender:
    full = name if name in MAKERS else name.partition(" (")[0]
    return Contender(full, folder)
