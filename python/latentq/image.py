"""Decodes, resizes and crops images: bit for bit the pixels of Pillow, several times as fast.

Arrays are ``uint8`` of shape (height, width, 3), RGB, C-contiguous and writable. The format of a file is detected from
its bytes, never from its name; formats that the core does not decode, such as AVIF, are decoded by Pillow.
``orient=False, alpha="drop", icc="ignore"`` gives the pixels of ``PIL.Image.open(file).convert("RGB")``.

Every function releases the GIL while it works and keeps no threads between calls, so it can be called from threads,
from ``DataLoader`` workers and after a fork.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from latentq import _core
from latentq._core import ImageError
from latentq.choices import Alpha, ChannelOrder, Crop, Filter, Icc, Size, height_width
from latentq.image_fallback import as_png, header, is_unknown_format, load_by_pillow
from latentq.system.arrays import new_array

__all__ = [
    "MAX_PIXELS",
    "CropWindow",
    "ImageInfo",
    "crop_window",
    "decode",
    "fit",
    "info",
    "load",
    "load_batch",
    "load_sizes",
    "resize",
    "upright_size",
]

Item: TypeAlias = bytes | str | os.PathLike[str]

MAX_PIXELS: int = _core.MAX_PIXELS
"""The default pixel limit, above which Pillow refuses an image."""


@dataclass(frozen=True)
class ImageInfo:
    """The properties of an image, from its header.

    Attributes:
        format: The name that Pillow uses: ``"JPEG"``, ``"PNG"``, ``"WEBP"``, ...
        width: Pixels in a stored row, before any orientation is applied.
        height: Stored rows.
        channels: The number of channels with alpha, after the lookup in a palette: 1 to 4.
        orientation: The EXIF orientation, 1 (upright) to 8.
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
        orient: Rotate and mirror the image to upright by its EXIF orientation, else by its XMP orientation.
        alpha: The background color under transparent pixels, or ``"drop"`` to ignore the alpha channel.
        icc: ``"srgb"`` converts the colors from the embedded profile, ``"ignore"`` ignores the profile.
        min_side: Inexact, for JPEG only: decode at 1/2, 1/4 or 1/8 of the size if the short side stays at least this
            many pixels long.
        max_pixels: The largest number of pixels to accept, checked before anything is allocated.

    Returns:
        uint8 (height, width, 3).

    Raises:
        OSError: The file cannot be read.
        ImageError: It is not an image of a known format, or it is broken, truncated or over the limit.
    """
    _positive(min_side=min_side, max_pixels=max_pixels)
    options: _core._ImageOptions = {
        "orient": orient,
        "alpha": alpha,
        "icc": icc,
        "min_side": min_side,
        "max_pixels": max_pixels,
    }
    source = _source(data)
    try:
        return _core.image_decode(source, options)
    except ImageError as error:
        if not is_unknown_format(error):
            raise
        return _core.image_decode(as_png(source, max_pixels, error), options)


def resize(pixels: NDArray[np.uint8], height: int, width: int, *, filter: Filter = "bicubic") -> NDArray[np.uint8]:
    """Resizes an image, with the pixels of ``PIL.Image.resize``.

    Args:
        pixels: uint8 (rows, columns, 3).
        height: Rows of the result, at least 1.
        width: Columns of the result, at least 1.
        filter: The resampling filter.

    Returns:
        uint8 (height, width, 3).
    """
    _positive(height=height, width=width)
    return _core.image_resize(_pixels(pixels), height, width, {"filter": filter})


def fit(
    pixels: NDArray[np.uint8], size: Size, *, crop: Crop = "center", filter: Filter = "bicubic"
) -> NDArray[np.uint8]:
    """Resizes an image to cover a size, and crops it.

    The side that is scaled by more, of a square the short one, becomes that of the result; the aspect ratio decides the
    other, whose middle is kept.

    Args:
        pixels: uint8 (rows, columns, 3).
        size: The side of a square, or (height, width), each at least 1.
        crop: ``"center"`` resizes the other side to ``int(size * long / short)``, as torchvision does;
            ``"center-round"`` rounds both sides; ``"adm"`` halves with a box filter while both sides are at least
            twice those of the result, then resizes, as ADM and DiT do.
        filter: The resampling filter (of the last step, for ``"adm"``).

    Returns:
        uint8 (height, width, 3).
    """
    return _core.image_fit(_pixels(pixels), _checked_size(size), {"crop": crop, "filter": filter})


@dataclass(frozen=True)
class CropWindow:
    """The part of a resized image that is kept.

    Attributes:
        height: Rows of the resized image.
        width: Columns of the resized image.
        top: The first row that is kept.
        left: The first column that is kept.
    """

    height: int
    width: int
    top: int
    left: int


def crop_window(height: int, width: int, size: Size, *, crop: Crop = "center") -> CropWindow:
    """Returns what `fit` resizes an image to, and the part of it that it keeps.

    Args:
        height: Rows of the image, at least 1.
        width: Columns of the image, at least 1.
        size: See `fit`.
        crop: See `fit`.
    """
    _positive(height=height, width=width)
    return CropWindow(*_core.image_window((height, width), _checked_size(size), {"crop": crop}))


def upright_size(data: Item, *, orient: bool = True) -> tuple[int, int]:
    """Returns the height and width of what `decode` makes of an image, from its header.

    Of a JPEG file that is named by its path, only the beginning is read.

    Args:
        data: The bytes of a file, or its path.
        orient: See `decode`.

    Raises:
        OSError: The file cannot be read.
        ImageError: It is not an image of a known format, or its header is broken.
    """
    source = _source(data)
    try:
        return _core.image_size(source, orient)
    except ImageError as error:
        if not is_unknown_format(error):
            raise
        _, width, height, _, orientation = header(source, error)
        return (width, height) if orient and orientation >= 5 else (height, width)


def load(
    data: Item,
    size: Size,
    *,
    crop: Crop = "center",
    filter: Filter = "bicubic",
    orient: bool = True,
    alpha: Alpha = "white",
    icc: Icc = "srgb",
    min_side: int | None = None,
    max_pixels: int = MAX_PIXELS,
) -> NDArray[np.uint8]:
    """Decodes and fits an image, without computing the pixels that the crop discards.

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
        uint8 (height, width, 3).

    Raises:
        OSError: The file cannot be read.
        ImageError: It is not an image of a known format, or it is broken, truncated or over the limit.
    """
    sides = _checked_size(size)
    _positive(min_side=min_side, max_pixels=max_pixels)
    options: _core._ImageOptions = {
        "crop": crop,
        "filter": filter,
        "orient": orient,
        "alpha": alpha,
        "icc": icc,
        "min_side": min_side,
        "max_pixels": max_pixels,
    }
    source = _source(data)
    try:
        return _core.image_load(source, sides, options)
    except ImageError as error:
        if not is_unknown_format(error):
            raise
        return _core.image_load(as_png(source, max_pixels, error), sides, options)


def load_batch(
    items: Sequence[Item],
    size: Size,
    *,
    threads: int = 1,
    out: NDArray[np.uint8] | None = None,
    layout: ChannelOrder = "chw",
    crop: Crop = "center",
    filter: Filter = "bicubic",
    orient: bool = True,
    alpha: Alpha = "white",
    icc: Icc = "srgb",
    min_side: int | None = None,
    max_pixels: int = MAX_PIXELS,
) -> tuple[NDArray[np.uint8], list[Exception | None]]:
    """Loads many images into one array. An item that fails gets zeros and its error, and does not affect the others.

    Args:
        items: Bytes and paths, in any mixture.
        size: See `fit`.
        threads: The number of threads, at least 1. They end with the call, and do not change the result.
        out: The array to write to: uint8, C-contiguous, of the shape of the result (for example in pinned memory).
        layout: ``"chw"`` for planes, ``"hwc"`` for pixels.
        crop: See `fit`.
        filter: See `fit`.
        orient: See `decode`.
        alpha: See `decode`.
        icc: See `decode`.
        min_side: See `decode`.
        max_pixels: See `decode`.

    Returns:
        The array, uint8 (N, 3, height, width) or (N, height, width, 3), which is `out` if it is given; and a list with
        None, an OSError or an ImageError for each item.

    Raises:
        ValueError: An argument is out of range, or `out` does not match the result.
        TypeError: `items` is a single image.
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
    sizes: Sequence[Size],
    *,
    threads: int = 1,
    out: Sequence[NDArray[np.uint8]] | None = None,
    layout: ChannelOrder = "chw",
    crop: Crop = "center",
    filter: Filter = "bicubic",
    orient: bool = True,
    alpha: Alpha = "white",
    icc: Icc = "srgb",
    min_side: int | None = None,
    max_pixels: int = MAX_PIXELS,
) -> tuple[list[NDArray[np.uint8]], list[Exception | None]]:
    """Loads many images at several sizes, decoding each once. The pixels are those of `load_batch` at each size.

    Args:
        items: See `load_batch`.
        sizes: Each as `size` in `fit`.
        threads: See `load_batch`.
        out: The arrays to write to, one for each size.
        layout: See `load_batch`.
        crop: See `fit`.
        filter: See `fit`.
        orient: See `decode`.
        alpha: See `decode`.
        icc: See `decode`.
        min_side: See `decode`.
        max_pixels: See `decode`.

    Returns:
        An array for each size, uint8 (N, 3, height, width) or (N, height, width, 3), which is that of `out` if it is
        given; and a list with None, an OSError or an ImageError for each item.

    Raises:
        ValueError: An argument is out of range, or an array of `out` does not match its size.
        TypeError: `items` is a single image.
    """
    _positive(threads=threads, min_side=min_side, max_pixels=max_pixels)
    sides = [_checked_size(size) for size in sizes]
    if layout not in ("chw", "hwc"):
        raise ValueError(f"unknown layout {layout!r}: chw or hwc")
    if isinstance(items, str | bytes | os.PathLike):
        raise TypeError("items must be a sequence of paths or bytes; for one image use load")
    shapes = [(len(items), 3, *size) if layout == "chw" else (len(items), *size, 3) for size in sides]
    given = [None] * len(shapes) if out is None else out
    arrays = [_out(array, shape) for array, shape in zip(given, shapes, strict=True)]
    sources = [_source(item) for item in items]
    flat = [array.reshape(-1) for array in arrays]
    options: _core._ImageOptions = {
        "layout": layout,
        "crop": crop,
        "filter": filter,
        "orient": orient,
        "alpha": alpha,
        "icc": icc,
        "min_side": min_side,
        "max_pixels": max_pixels,
    }
    errors = _core.image_load_batch(sources, sides, threads, flat, options)
    for index, error in enumerate(errors):
        if is_unknown_format(error):
            rows = [array[index : index + 1].reshape(-1) for array in arrays]
            errors[index] = load_by_pillow(sources[index], error, sides, rows, options)
    return arrays, errors


def _out(out: NDArray[np.uint8] | None, shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """Returns the array to write to: `out` if it is given, else a new one."""
    if out is None:
        new: NDArray[np.uint8] = new_array(shape, np.uint8)
        return new
    if out.shape != shape or out.dtype != np.uint8 or not out.flags.c_contiguous or not out.flags.writeable:
        raise ValueError(f"out must be a writable C-contiguous uint8 array of shape {shape}")
    return out


def info(data: Item) -> ImageInfo:
    """Reads an image's header, and none of its pixels.

    Args:
        data: The bytes of a file, or its path.

    Raises:
        OSError: The file cannot be read.
        ImageError: It is not an image of a known format, or its header is broken.
    """
    source = _source(data)
    try:
        return ImageInfo(*_core.image_info(source))
    except ImageError as error:
        if not is_unknown_format(error):
            raise
        return ImageInfo(*header(source, error))


def _checked_size(size: Size) -> tuple[int, int]:
    """Returns height and width, or raises ValueError if one is less than 1."""
    height, width = height_width(size)
    if height < 1 or width < 1:
        raise ValueError(f"size must be at least 1, not {size}")
    return height, width


def _positive(**numbers: int | None) -> None:
    """Raises ValueError if one of the named numbers is given and less than 1."""
    for name, number in numbers.items():
        if number is not None and number < 1:
            raise ValueError(f"{name} must be at least 1, not {number}")


def _source(data: Item) -> bytes | str:
    """Returns bytes unchanged and a path as text, as the core takes them."""
    if isinstance(data, bytes):
        return data
    path = os.fspath(data)
    if not isinstance(path, str):
        raise TypeError(f"an image is bytes or a path, not {type(data).__name__}")
    return path


def _pixels(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Returns the array C-contiguous, or raises ValueError if it is not uint8 (height, width, 3)."""
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3:
        raise ValueError(f"pixels must be uint8 (height, width, 3), not {pixels.dtype} {pixels.shape}")
    return np.ascontiguousarray(pixels)
