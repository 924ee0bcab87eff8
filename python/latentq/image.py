"""Images as arrays, fast: the pixels of Pillow, to the last bit.

Arrays are ``uint8`` of shape (height, width, 3), RGB, C-contiguous and writable. The format of a file is found from its
bytes, never from its name. ``orient=False, alpha="drop", icc="ignore"`` gives what
``PIL.Image.open(file).convert("RGB")`` gives.

Every function releases the interpreter while it works, keeps no threads between calls, and so can be called from
threads, from ``DataLoader`` workers and after a fork.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from latentq import _core

__all__ = ["MAX_PIXELS", "ImageInfo", "decode", "fit", "info", "load", "load_batch", "load_sizes", "resize"]


Alpha: TypeAlias = Literal["white", "black", "drop"]


Icc: TypeAlias = Literal["srgb", "ignore"]


Filter: TypeAlias = Literal["box", "bilinear", "hamming", "bicubic", "lanczos"]


Crop: TypeAlias = Literal["center", "center-round", "adm"]


Layout: TypeAlias = Literal["chw", "hwc"]


Item: TypeAlias = bytes | str | os.PathLike[str]


MAX_PIXELS: int = _core.MAX_PIXELS


"""The pixel limit where none is given: the one above which Pillow refuses an image."""


@dataclass(frozen=True)
class ImageInfo:
    """What an image's header tells.

    Attributes:
        format: ``"JPEG"``, ``"PNG"``, ``"WEBP"``, ...: the names that Pillow uses.
        width: Pixels in a row as stored, before any orientation is applied.
        height: Rows as stored.
        channels: Channels once a palette is looked up, alpha included: 1 to 4.
        orientation: The camera's, 1 (upright) to 8.
    """

    format: str
    width: int
    height: int
    channels: int
    orientation: int


def decode(
    data: Item,
    *,
    orient: bool = True,
    alpha: Alpha = "white",
    icc: Icc = "srgb",
    min_side: int | None = None,
    max_pixels: int = MAX_PIXELS,
) -> NDArray[np.uint8]:
    """Decodes an image.

    Args:
        data: The bytes of a file, or its path.
        orient: Turn the image the way its camera was held (EXIF, else XMP).
        alpha: The ground under transparent pixels, or ``"drop"`` to leave out the alpha channel.
        icc: ``"srgb"`` converts the colours by an embedded profile, ``"ignore"`` takes them as they are.
        min_side: Inexact, for JPEG only: decode at 1/2, 1/4 or 1/8 of the size as long as the short side stays at
            least this many pixels.
        max_pixels: Images of more pixels are refused before anything is allocated.

    Returns:
        uint8 (height, width, 3).

    Raises:
        OSError: The file cannot be read.
        ImageError: It is no image of a known format, or broken, cut off or over the limit.
    """
    _positive(min_side=min_side, max_pixels=max_pixels)
    return _core.image_decode(_source(data), orient, alpha, icc, min_side, max_pixels)


def resize(pixels: NDArray[np.uint8], height: int, width: int, *, filter: Filter = "bicubic") -> NDArray[np.uint8]:
    """Resizes as ``PIL.Image.resize`` does.

    Args:
        pixels: uint8 (rows, columns, 3).
        height: Rows of the result, at least 1.
        width: Columns of the result, at least 1.
        filter: The kernel.

    Returns:
        uint8 (height, width, 3).
    """
    _positive(height=height, width=width)
    return _core.image_resize(_pixels(pixels), height, width, filter)


def fit(
    pixels: NDArray[np.uint8], size: int, *, crop: Crop = "center", filter: Filter = "bicubic"
) -> NDArray[np.uint8]:
    """Resizes and crops to a square.

    Args:
        pixels: uint8 (rows, columns, 3).
        size: The side of the square, at least 1.
        crop: ``"center"`` resizes the long side to ``int(size * long / short)``, as torchvision does;
            ``"center-round"`` rounds both sides; ``"adm"`` halves by a box filter while the short side is at least
            twice the size, then resizes, as ADM and DiT do.
        filter: The kernel (of the last step, for ``"adm"``).

    Returns:
        uint8 (size, size, 3).
    """
    _positive(size=size)
    return _core.image_fit(_pixels(pixels), size, crop, filter)


def load(
    data: Item,
    size: int,
    *,
    crop: Crop = "center",
    filter: Filter = "bicubic",
    orient: bool = True,
    alpha: Alpha = "white",
    icc: Icc = "srgb",
    min_side: int | None = None,
    max_pixels: int = MAX_PIXELS,
) -> NDArray[np.uint8]:
    """Decodes and fits, without computing what the crop throws away.

    Args:
        data: The bytes of a file, or its path.
        size: See `fit`.
        crop: See `fit`.
        filter: See `fit`.
        orient: See `decode`.
        alpha: See `decode`.
        icc: See `decode`.
        min_side: See `decode`.
        max_pixels: See `decode`.

    Returns:
        uint8 (size, size, 3).

    Raises:
        OSError: The file cannot be read.
        ImageError: It is no image of a known format, or broken, cut off or over the limit.
    """
    _positive(size=size, min_side=min_side, max_pixels=max_pixels)
    return _core.image_load(_source(data), size, crop, filter, orient, alpha, icc, min_side, max_pixels)


def load_batch(
    items: Sequence[Item],
    size: int,
    *,
    threads: int = 1,
    out: NDArray[np.uint8] | None = None,
    layout: Layout = "chw",
    crop: Crop = "center",
    filter: Filter = "bicubic",
    orient: bool = True,
    alpha: Alpha = "white",
    icc: Icc = "srgb",
    min_side: int | None = None,
    max_pixels: int = MAX_PIXELS,
) -> tuple[NDArray[np.uint8], list[Exception | None]]:
    """Loads many images into one array. A bad one leaves zeros and its error; the others are unharmed.

    Args:
        items: Bytes or paths, mixed as you like.
        size: See `fit`.
        threads: How many threads work at once, at least 1. They end with the call, and do not change the result.
        out: Where to write: uint8, C-contiguous, of the shape of the result (a view of pinned memory, say).
        layout: ``"chw"`` for planes, ``"hwc"`` for pixels.
        crop: See `fit`.
        filter: See `fit`.
        orient: See `decode`.
        alpha: See `decode`.
        icc: See `decode`.
        min_side: See `decode`.
        max_pixels: See `decode`.

    Returns:
        The array, uint8 (N, 3, size, size) or (N, size, size, 3), which is `out` if that was given; and for each item
        None, its OSError or its ImageError.
    """
    arrays, errors = load_sizes(
        items,
        [size],
        threads=threads,
        out=None if out is None else [out],
        layout=layout,
        crop=crop,
        filter=filter,
        orient=orient,
        alpha=alpha,
        icc=icc,
        min_side=min_side,
        max_pixels=max_pixels,
    )
    return arrays[0], errors


def load_sizes(
    items: Sequence[Item],
    sizes: Sequence[int],
    *,
    threads: int = 1,
    out: Sequence[NDArray[np.uint8]] | None = None,
    layout: Layout = "chw",
    crop: Crop = "center",
    filter: Filter = "bicubic",
    orient: bool = True,
    alpha: Alpha = "white",
    icc: Icc = "srgb",
    min_side: int | None = None,
    max_pixels: int = MAX_PIXELS,
) -> tuple[list[NDArray[np.uint8]], list[Exception | None]]:
    """`load_batch` for several sizes, each image decoded once: the same pixels as one size at a time.

    Args:
        items: See `load_batch`; so are the options that are not said here.
        sizes: See `fit`.
        threads: See `load_batch`.
        out: Where to write: an array for each size.
        layout: See `load_batch`.
        crop: See `fit`.
        filter: See `fit`.
        orient: See `decode`.
        alpha: See `decode`.
        icc: See `decode`.
        min_side: See `decode`.
        max_pixels: See `decode`.

    Returns:
        For each size its array; and for each item None or its error.
    """
    _positive(threads=threads, min_side=min_side, max_pixels=max_pixels)
    for size in sizes:
        _positive(size=size)
    if layout not in ("chw", "hwc"):
        raise ValueError(f"unknown layout {layout!r}: chw or hwc")
    if isinstance(items, str | bytes | os.PathLike):
        raise TypeError("items must be a sequence of paths or bytes; for one image use load")
    shapes = [(len(items), 3, side, side) if layout == "chw" else (len(items), side, side, 3) for side in sizes]
    given = [None] * len(shapes) if out is None else out
    arrays = [_out(array, shape) for array, shape in zip(given, shapes, strict=True)]
    sources = [_source(item) for item in items]
    flat = [array.reshape(-1) for array in arrays]
    errors = _core.image_load_batch(
        sources, list(sizes), threads, flat, layout, crop, filter, orient, alpha, icc, min_side, max_pixels
    )
    return arrays, errors


def _out(out: NDArray[np.uint8] | None, shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """The array to write to."""
    if out is None:
        return np.empty(shape, dtype=np.uint8)
    if out.shape != shape or out.dtype != np.uint8 or not out.flags.c_contiguous or not out.flags.writeable:
        raise ValueError(f"out must be a writable C-contiguous uint8 array of shape {shape}")
    return out


def info(data: Item) -> ImageInfo:
    """Reads an image's header and none of its pixels.

    Args:
        data: The bytes of a file, or its path.

    Raises:
        OSError: The file cannot be read.
        ImageError: It is no image of a known format, or its header is broken.
    """
    return ImageInfo(*_core.image_info(_source(data)))


def _positive(**numbers: int | None) -> None:
    for name, number in numbers.items():
        if number is not None and number < 1:
            raise ValueError(f"{name} must be at least 1, not {number}")


def _source(data: Item) -> bytes | str:
    """Bytes as they are, a path as text (what the core takes)."""
    if isinstance(data, bytes):
        return data
    path = os.fspath(data)
    if not isinstance(path, str):
        raise TypeError(f"an image is bytes or a path, not {type(data).__name__}")
    return path


def _pixels(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Checked, and C-contiguous."""
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3:
        raise ValueError(f"pixels must be uint8 (height, width, 3), not {pixels.dtype} {pixels.shape}")
    return np.ascontiguousarray(pixels)
