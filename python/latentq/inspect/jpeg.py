"""JPEGs of decoded or original pixels, for comparisons of size and of pictures."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from numpy.typing import NDArray

QUALITY = 95


def jpeg(pixels: NDArray[np.uint8]) -> bytes:
    """Returns pixels (H, W, 3) as a JPEG file of quality `QUALITY`."""
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(file, "JPEG", quality=QUALITY)
    return file.getvalue()


def jpeg_pixels(data: bytes) -> NDArray[np.uint8]:
    """Returns the pixels (H, W, 3) of a JPEG file of `jpeg`."""
    from latentq import image

    pixels: NDArray[Any] = image.decode(data)
    return pixels
