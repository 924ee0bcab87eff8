# The compiled core. Its public, documented face is `latentq.image`, `latentq.quantizer` and `latentq.mds`.

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "MAX_PIXELS",
    "FormatError",
    "ImageError",
    "LatentqError",
    "MismatchError",
    "RecipeError",
    "__version__",
    "image_decode",
    "image_fit",
    "image_info",
    "image_load",
    "image_load_batch",
    "image_resize",
]

__version__: str

# error.rs

class LatentqError(Exception): ...
class FormatError(LatentqError): ...
class ImageError(LatentqError): ...
class RecipeError(LatentqError): ...
class MismatchError(LatentqError): ...

# image.rs: an image is bytes or a path; arrays are uint8 (height, width, 3)

MAX_PIXELS: int

def image_decode(
    data: bytes | str, orient: bool, alpha: str, icc: str, min_side: int | None, max_pixels: int
) -> NDArray[np.uint8]: ...
def image_fit(pixels: NDArray[np.uint8], size: int, crop: str, filter: str) -> NDArray[np.uint8]: ...
def image_info(data: bytes | str) -> tuple[str, int, int, int, int]: ...
def image_load(
    data: bytes | str,
    size: int,
    crop: str,
    filter: str,
    orient: bool,
    alpha: str,
    icc: str,
    min_side: int | None,
    max_pixels: int,
) -> NDArray[np.uint8]: ...
def image_load_batch(
    items: list[bytes | str],
    size: int,
    threads: int,
    out: NDArray[np.uint8],
    layout: str,
    crop: str,
    filter: str,
    orient: bool,
    alpha: str,
    icc: str,
    min_side: int | None,
    max_pixels: int,
) -> list[Exception | None]: ...
def image_resize(pixels: NDArray[np.uint8], height: int, width: int, filter: str) -> NDArray[np.uint8]: ...
