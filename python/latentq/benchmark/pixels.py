"""Files to pixels: latentq and Pillow, each decoding, resizing and cropping as torchvision does it to 256 x 256.

The pixels are equal (checked by `check`), so nobody does less work. The limits are libjpeg-turbo alone, which decodes
the same part of each file and drops it, and reading the pixels.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from latentq import ImageError, image
from latentq._core import image_decode_and_drop

SIZE = 256
PLAIN: dict[str, Any] = {"orient": False, "alpha": "drop", "icc": "ignore"}
LIBJPEG, READ = "libjpeg-turbo alone", "plain read"
LIMITS = (LIBJPEG, READ)
BICUBIC = Image.Resampling.BICUBIC
_MADE = (8, 375, 500)  # number, height and width of made pictures
_SUFFIXES = {".jpg", ".jpeg"}

Work = Callable[["Files"], object]


@dataclass(frozen=True, eq=False)
class Files:
    """Encoded files, and their pixels as arrays (h, w, 3) uint8 and as Pillow's images."""

    encoded: list[bytes]
    arrays: list[Any]
    pictures: list[Image.Image]


def files(folder: Path | None, limit: int = 32) -> Files:
    """Returns the first JPEGs below a folder, or made ones.

    Args:
        folder: The folder; None makes pictures of 500 x 375 pixels whose spectrum is that of photographs (1/f).
        limit: Number of files at most.

    Raises:
        FileNotFoundError: There are no JPEGs below the folder.
        ImageError: One of them cannot be decoded. The message names it.
    """
    if folder is None:
        return of_encoded([_made(seed) for seed in range(_MADE[0])])
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in _SUFFIXES and path.is_file())
    if not paths:
        raise FileNotFoundError(2, "no JPEGs below this folder", str(folder))
    encoded = [path.read_bytes() for path in paths[:limit]]
    for path, data in zip(paths, encoded, strict=False):
        try:
            image.decode(data, **PLAIN)
        except ImageError as error:
            raise ImageError(f"{path}: {error}") from None
    return of_encoded(encoded)


def of_encoded(encoded: list[bytes]) -> Files:
    """Returns encoded files with their pixels."""
    arrays = [image.decode(data, **PLAIN) for data in encoded]
    return Files(encoded, arrays, [pillow_decode(data) for data in encoded])


def _made(seed: int) -> bytes:
    """Returns a JPEG of noise whose amplitude falls with the frequency, as that of photographs does."""
    _, height, width = _MADE
    rng = np.random.default_rng(seed)
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None])
    frequency[0, 0] = np.inf
    planes = [np.fft.irfft2(np.fft.rfft2(rng.normal(size=(height, width))) / frequency, (height, width))]
    planes += [np.fft.irfft2(np.fft.rfft2(rng.normal(size=(height, width))) / frequency**1.5) for _ in range(2)]
    luma, blue, red = (plane[:height, :width] / plane.std() for plane in planes)
    ycc = np.stack([128 + 48 * luma, 128 + 16 * blue, 128 + 16 * red], -1)
    picture = Image.fromarray(ycc.clip(0, 255).astype(np.uint8), "YCbCr")
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def pillow_decode(data: bytes) -> Image.Image:
    """Returns the RGB image of a file."""
    return Image.open(io.BytesIO(data)).convert("RGB")


def resized(width: int, height: int) -> tuple[int, int, int, int]:
    """Returns the size with a short side of `SIZE`, and left and top of the center crop, as torchvision does it."""
    wide, tall = (SIZE, int(SIZE * height / width)) if width <= height else (int(SIZE * width / height), SIZE)
    return wide, tall, round((wide - SIZE) / 2), round((tall - SIZE) / 2)


def pillow_fit(picture: Image.Image) -> Image.Image:
    """Returns an image resized and cropped to `SIZE`."""
    wide, tall, left, top = resized(*picture.size)
    return picture.resize((wide, tall), BICUBIC).crop((left, top, left + SIZE, top + SIZE))


def pillow_load(data: bytes) -> Any:
    """Returns the pixels (SIZE, SIZE, 3) of a file."""
    return np.asarray(pillow_fit(pillow_decode(data)))


def check(files: Files) -> None:
    """Raises AssertionError if latentq's pixels are not Pillow's to the bit."""
    for data in files.encoded:
        np.testing.assert_array_equal(image.load(data, SIZE, **PLAIN), pillow_load(data))


def each(function: Callable[[Any], object], attribute: str = "encoded") -> Work:
    """Returns the work of one function on every file, one after the other."""
    return lambda files: [function(item) for item in getattr(files, attribute)] and None


DECODE: dict[str, Work] = {
    "latentq": each(lambda data: image.decode(data, **PLAIN)),
    LIBJPEG: each(lambda data: image_decode_and_drop(data, None, {})),
    "Pillow": each(pillow_decode),
}
FIT: dict[str, Work] = {
    "latentq": each(lambda array: image.fit(array, SIZE), "arrays"),
    READ: each(np.max, "arrays"),
    "Pillow": each(pillow_fit, "pictures"),
}
LOAD: dict[str, Work] = {
    "latentq": each(lambda data: image.load(data, SIZE, **PLAIN)),
    LIBJPEG: each(lambda data: image_decode_and_drop(data, (SIZE, SIZE), {})),
    "Pillow": each(pillow_load),
}
