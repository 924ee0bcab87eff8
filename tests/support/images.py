"""Generated images in every format, and what Pillow makes of them."""

import functools
import io
import struct
import zlib
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms

from latentq import _core

Pixels = NDArray[np.uint8]
FILTERS = {
    "box": Image.Resampling.BOX,
    "bilinear": Image.Resampling.BILINEAR,
    "hamming": Image.Resampling.HAMMING,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}
PLAIN: dict[str, Any] = {"orient": False, "alpha": "drop", "icc": "ignore"}


@functools.cache
def noise(height: int, width: int, channels: int = 3, seed: int = 0) -> Pixels:
    """Returns a smooth picture with added noise, which uses every coefficient of every codec."""
    rng = np.random.default_rng(seed)
    y, x, c = np.mgrid[:height, :width, :channels]
    waves = 127 + 80 * np.sin(x / 7 + c) * np.cos(y / 5 - c)
    pixels = np.clip(waves + rng.normal(0, 25, (height, width, channels)), 0, 255).astype(np.uint8)
    pixels.flags.writeable = False
    return pixels


def saved(picture: Image.Image, format: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, format, **options)
    return buffer.getvalue()


def pillow(data: bytes) -> Pixels:
    with Image.open(io.BytesIO(data)) as picture:
        return np.asarray(picture.convert("RGB"))


def picture_of(mode: str, height: int, width: int, seed: int = 0) -> Image.Image:
    channels = {"1": 1, "L": 1, "I;16": 1, "I": 1, "F": 1, "LA": 2, "RGBA": 4, "CMYK": 4}.get(mode, 3)
    pixels = noise(height, width, channels, seed)
    if mode in ("P", "PA"):
        return Image.fromarray(pixels).quantize(37).convert(mode)
    if mode in ("I;16", "I", "F"):  # with values that do not fit into 8 bits
        wide = (pixels[..., 0] - np.float32(20.3)) * 1.3
        return Image.fromarray(
            wide.clip(0 if mode == "I;16" else None).astype({"I;16": "u2", "I": "i4", "F": "f4"}[mode])
        )
    if mode in ("LAB", "YCbCr"):
        return Image.frombytes(mode, (width, height), pixels.tobytes())
    if mode == "1":
        return Image.fromarray(pixels[..., 0]).convert("1")
    return Image.fromarray(pixels[..., 0] if channels == 1 else pixels, mode)


def crop_with_pillow(picture: Image.Image, size: int, crop: str, filter: str) -> Pixels:
    """Crops with the code of the crop's authors."""
    width, height = picture.size
    short = min(width, height)
    if crop == "center":  # torchvision's Resize and CenterCrop
        wide, tall = (size, int(size * height / width)) if width <= height else (int(size * width / height), size)
        picture = picture.resize((wide, tall), FILTERS[filter])
        top, left = round((tall - size) / 2.0), round((wide - size) / 2.0)
    elif crop == "center-round":  # VQGAN
        scale = size / short
        wide, tall = round(width * scale), round(height * scale)
        picture = picture.resize((wide, tall), FILTERS[filter])
        top, left = round((tall - size) / 2.0), round((wide - size) / 2.0)
    else:  # ADM, guided_diffusion.image_datasets.center_crop_arr
        while min(*picture.size) >= 2 * size:
            picture = picture.resize((picture.size[0] // 2, picture.size[1] // 2), Image.Resampling.BOX)
        scale = size / min(*picture.size)
        wide, tall = round(picture.size[0] * scale), round(picture.size[1] * scale)
        picture = picture.resize((wide, tall), FILTERS[filter])
        top, left = (tall - size) // 2, (wide - size) // 2
    return np.asarray(picture)[top : top + size, left : left + size]


def png(*chunks: tuple[bytes, bytes]) -> bytes:
    """Returns a PNG with the given chunks."""
    body = [struct.pack(">I", len(d)) + n + d + struct.pack(">I", zlib.crc32(n + d)) for n, d in chunks]
    return b"\x89PNG\r\n\x1a\n" + b"".join(body)


def wide_profile() -> bytes:
    """Returns the profile of sRGB with red and green swapped, whose effect is large."""
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    red, green = profile.index(b"rXYZ"), profile.index(b"gXYZ")
    profile[red : red + 4], profile[green : green + 4] = b"gXYZ", b"rXYZ"
    return bytes(profile)


def failing_batch(fault: Exception) -> type:
    """Returns an `ImageBatch` whose first image fails."""
    image_batch = _core.ImageBatch

    class Failing:
        def __init__(self, *arguments: Any) -> None:
            self._batch = image_batch(*arguments)
            self.start, self.is_done = self._batch.start, self._batch.is_done

        def result(self, position: int) -> tuple[Exception | None, tuple[int, int] | None, int | None]:
            return self._batch.result(position) if position else (fault, None, None)

    return Failing
