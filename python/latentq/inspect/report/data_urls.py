"""The pictures of a report as data URLs that stay within a number of bytes together."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

_BUDGET = 3_000_000  # bytes of all pictures; a third more as base64


class _Level(NamedTuple):
    """A way to store pictures.

    Attributes:
        side: The longest side; larger pictures are shrunk.
        options: Pillow's options of the WebP format.
        text: What the report says about it.
    """

    side: int
    options: dict[str, Any]
    text: str


_LEVELS = (
    _Level(1 << 14, {"lossless": True}, "Pictures are stored without loss."),
    _Level(1 << 14, {"quality": 95}, "Pictures are stored as WebP of quality 95."),
    _Level(768, {"quality": 90}, "Pictures are stored as WebP of quality 90, at most 768 pixels wide or high."),
    _Level(512, {"quality": 85}, "Pictures are stored as WebP of quality 85, at most 512 pixels wide or high."),
    _Level(256, {"quality": 80}, "Pictures are stored as WebP of quality 80, at most 256 pixels wide or high."),
    _Level(128, {"quality": 70}, "Pictures are stored as WebP of quality 70, at most 128 pixels wide or high."),
)


def data_urls(pictures: Sequence[NDArray[np.uint8]], uses: Sequence[int] | None = None) -> tuple[list[str], str]:
    """Returns pictures as data URLs, at the best quality that keeps all of them together under 3 MB.

    Args:
        pictures: (H, W, 3) uint8 pixels.
        uses: How often each one is on the page, and counts; None for once.

    Returns:
        The URLs, and a sentence that says how pictures are stored.
    """
    files: list[bytes] = []
    for level in _LEVELS:
        files, nbytes = [], 0
        for number, pixels in enumerate(pictures):
            files.append(_webp(pixels, level))
            nbytes += len(files[-1]) * (1 if uses is None else uses[number])
            if level is not _LEVELS[-1] and nbytes > _BUDGET:
                break
        else:
            return [f"data:image/webp;base64,{base64.b64encode(file).decode()}" for file in files], level.text
    raise AssertionError  # the last level takes any number of bytes


def _webp(pixels: NDArray[np.uint8], level: _Level) -> bytes:
    from PIL import Image

    picture = Image.fromarray(np.ascontiguousarray(pixels))
    picture.thumbnail((level.side, level.side), Image.Resampling.LANCZOS)
    file = io.BytesIO()
    picture.save(file, "WEBP", **level.options)
    return file.getvalue()
