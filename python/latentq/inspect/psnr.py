"""Peak signal-to-noise ratio."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray


def psnr(pixels: NDArray[Any], original: NDArray[Any], *, peak: float = 255.0) -> float:
    """Returns the peak signal-to-noise ratio of an image in dB; infinite if both are equal.

    Args:
        pixels: The image, of any shape.
        original: The image to compare with, of the same shape.
        peak: The largest pixel value.
    """
    difference = np.subtract(pixels, original, dtype=np.float32).ravel()  # exact for 8-bit pixels
    error = float(difference @ difference) / difference.size
    return math.inf if error == 0 else 10 * math.log10(peak**2 / error)
