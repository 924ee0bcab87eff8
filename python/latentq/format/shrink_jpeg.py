"""Images as JPEGs of bounded size."""

from __future__ import annotations

from dataclasses import dataclass
from io import BytesIO
from typing import Any

from latentq import image
from latentq._core import LatentqError

_ORIENTATION = 0x0112  # the EXIF tag


@dataclass(frozen=True)
class Jpeg:
    """A JPEG file and its size in pixels."""

    data: bytes
    width: int
    height: int


class TooSmallError(LatentqError):
    """An image with a side below the minimum size."""


def to_jpeg(data: bytes, *, min_size: int, max_size: int, quality: int) -> Jpeg:
    """Returns an image as a JPEG of bounded size; a JPEG that needs no downscaling keeps its bytes.

    Args:
        data: The image file.
        min_size: Least pixels of both sides, after downscaling.
        max_size: The short side, in pixels, that a larger image is downscaled to.
        quality: JPEG quality, 1 to 100, of an image that is encoded again.

    Raises:
        TooSmallError: A side is below `min_size`.
        ImageError: The image cannot be decoded.
    """
    info = image.info(data)
    width, height = info.width, info.height
    short = min(width, height)
    if short > max_size:  # like torchvision's Resize: the long side is truncated
        width, height = (max_size if side == short else max_size * side // short for side in (width, height))
    if min(width, height) < min_size:
        raise TooSmallError(f"{info.width} x {info.height} pixels, below {min_size}")
    # Decoded even if the bytes are kept: a broken image is found here and not in training.
    pixels = image.decode(data, orient=False, alpha="drop", icc="ignore")
    if short <= max_size and info.format == "JPEG":
        return Jpeg(data, width, height)
    if short > max_size:
        pixels = image.resize(pixels, height, width)
    from PIL import Image

    options: dict[str, Any] = {}
    with Image.open(BytesIO(data)) as original:
        if original.mode == "RGB" and original.info.get("icc_profile"):
            options["icc_profile"] = original.info["icc_profile"]
    if info.orientation != 1:
        exif = Image.Exif()
        exif[_ORIENTATION] = info.orientation
        options["exif"] = exif.tobytes()
    file = BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=quality, **options)
    return Jpeg(file.getvalue(), width, height)
