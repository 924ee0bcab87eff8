"""Decodes with Pillow what the core does not: AVIF, JPEG 2000, PSD, TGA, ICO, PPM, QOI, rare TIFFs; plugins' formats.

Pillow's pixels are handed to the core as an uncompressed PNG with the color profile and orientation of the file, so
that every option of `latentq.image` has the same meaning for all formats.
"""

from __future__ import annotations

import contextlib
import io
import re
import struct
import warnings
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, TypeGuard

import numpy as np
from numpy.typing import NDArray

from latentq import _core
from latentq._core import ImageError

if TYPE_CHECKING:
    from PIL.Image import Image

UNKNOWN_FORMAT = "not an image of a known format"
"""The start of the core's message (after the path) for bytes that are not an image of a known format."""
UNSUPPORTED_TIFF = re.compile(r"\bTIFF: .* not supported$")
"""The core's message for a TIFF that may be good, but whose layout it does not read."""

_FORMATS = ("AVIF", "JPEG2000", "HEIF", "JXL", "PSD", "ICO", "PPM", "QOI", "DIB")
_TGA, _TGA_FOOTER, _TGA_HEADER = "TGA", b"TRUEVISION-XFILE.\0", struct.Struct("<3B2HB4H2B")
_KEPT_MODES = ("1", "L", "LA", "RGB", "RGBA", "I;16")
_COLOR_PROFILE_MODES = {"L": b"GRAY", "LA": b"GRAY", "RGB": b"RGB ", "RGBA": b"RGB "}
_ORIENTATION = 0x0112  # the EXIF tag


def is_unknown_format(error: Exception | None) -> TypeGuard[ImageError]:
    """True if the core's error says that the bytes are no image of its formats, or a TIFF that it does not read."""
    return isinstance(error, ImageError) and (UNKNOWN_FORMAT in str(error) or _is_tiff(error))


def _is_tiff(error: Exception) -> bool:
    return bool(UNSUPPORTED_TIFF.search(str(error)))


def as_png(data: bytes | str, max_pixels: int, error: Exception) -> bytes:
    """Decodes an image with Pillow.

    Args:
        data: The bytes of a file, or its path.
        max_pixels: The largest number of pixels to accept, checked before anything is decoded.
        error: The core's error, raised if Pillow is not installed or does not know the format either.

    Returns:
        The pixels as an uncompressed PNG.

    Raises:
        ImageError: The image cannot be decoded, or is over the limit.
        OSError: The file cannot be read.
    """
    with _opened(data, error) as image:
        if image.width * image.height > max_pixels:
            raise ImageError(f"{image.width} x {image.height} pixels are over the limit of {max_pixels}")
        orientation = _orientation(image)
        profile = image.info.get("icc_profile")
        pixels = _plain(image)
        options: dict[str, Any] = {}
        if profile and profile[16:20] == _COLOR_PROFILE_MODES.get(pixels.mode):
            options["icc_profile"] = profile
        if orientation != 1:
            options["exif"] = _exif(orientation)
        file = io.BytesIO()
        pixels.save(file, "PNG", compress_level=0, **options)
    return file.getvalue()


def header(data: bytes | str, error: Exception) -> tuple[str, int, int, int, int]:
    """Reads an image's format, width, height, channels and orientation with Pillow.

    Args:
        data: The bytes of a file, or its path.
        error: The core's error, raised if Pillow is not installed or does not know the format either.

    Raises:
        ImageError: The header cannot be read.
        OSError: The file cannot be read.
    """
    with _opened(data, error) as image:
        palette = 4 if _has_alpha(image) else 3
        channels = palette if image.mode in ("P", "PA") else min(len(image.getbands()), 4)
        return str(image.format), image.width, image.height, channels, _orientation(image)


def load_by_pillow(
    data: bytes | str,
    error: Exception,
    sizes: Sequence[tuple[int, int]],
    rows: list[NDArray[np.uint8]],
    options: _core._ImageOptions,
) -> Exception | None:
    """Loads an image of a format that the core does not decode.

    Args:
        data: The bytes of a file, or its path.
        error: The core's error.
        sizes: Heights and widths.
        rows: Filled with the images, each (3 * height * width,) uint8.
        options: The options of `latentq.image.load_sizes`.

    Returns:
        The image's error, or None.
    """
    try:
        png = as_png(data, options["max_pixels"], error)
    except (OSError, ImageError) as reason:
        return reason
    return _core.image_load_batch([png], sizes, 1, rows, options)[0]


@contextlib.contextmanager
def _opened(data: bytes | str, error: Exception) -> Iterator[Image]:
    """Opens an image, and raises what Pillow raises in the body as ImageError."""
    try:
        from PIL import Image, UnidentifiedImageError
    except ModuleNotFoundError:
        raise error from None
    Image.init()
    _register_plugins()
    where = f"{data}: " if isinstance(data, str) else ""
    reason = f"{error}; " if _is_tiff(error) else where
    with contextlib.ExitStack() as stack:
        # Opened here, so that only a fault of the file system is an OSError to the caller.
        file = io.BytesIO(data) if isinstance(data, bytes) else stack.enter_context(open(data, "rb"))  # noqa: PTH123
        known = ("TIFF",) if _is_tiff(error) else (*_FORMATS, *((_TGA,) if _is_tga(file) else ()))
        formats = [form for form in known if form in Image.OPEN]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of large images, whose limit is the caller's
            image = None
            with _image_errors(where, reason), contextlib.suppress(UnidentifiedImageError):
                image = stack.enter_context(Image.open(file, formats=formats))
            if image is None:  # raised here, without Pillow's error as its context
                raise ImageError(f"{error}{_advice(file)}")
            with _image_errors(where, reason):
                yield image


@contextlib.contextmanager
def _image_errors(where: str, reason: str) -> Iterator[None]:
    """Raises what Pillow raises as ImageError, except for faults of the machine.

    Args:
        where: The start of the message: the path, if there is one.
        reason: The start of the message if Pillow fails.
    """
    try:
        yield
    except ImageError as error:
        raise ImageError(f"{where}{error}") from None
    except MemoryError:
        raise
    except OSError as error:
        if error.errno is not None:  # of the file system; a decoder's have no number
            raise
        raise ImageError(f"{reason}Pillow cannot decode it: {error}") from None
    except Exception as error:  # decoders raise anything
        raise ImageError(f"{reason}Pillow cannot decode it: {str(error) or type(error).__name__}") from None


def _register_plugins() -> None:
    """Registers the plugins for HEIC and JPEG XL that are installed."""
    with contextlib.suppress(ImportError):
        import pillow_heif  # type: ignore[import-not-found]

        pillow_heif.register_heif_opener()
    with contextlib.suppress(ImportError):
        import pillow_jxl  # type: ignore[import-not-found]  # noqa: F401  (registers itself)


def _plain(image: Image) -> Image:
    """Returns the image in a mode that a PNG has."""
    if image.mode in _KEPT_MODES:
        image.load()
        return image
    if image.mode in ("P", "PA"):
        return image.convert("RGBA" if _has_alpha(image) else "RGB")
    if image.mode.startswith("I;16"):
        return image.convert("I;16")
    return image.convert("RGBA" if image.mode in ("La", "RGBa") else "RGB")


def _has_alpha(image: Image) -> bool:
    """True if an image has an alpha channel, or a palette with one."""
    in_palette = image.palette is not None and image.palette.mode.endswith("A")
    return "transparency" in image.info or image.mode.endswith(("A", "a")) or in_palette


def _exif(orientation: int) -> bytes:
    """Returns an EXIF block with nothing but an orientation."""
    return b"II*\0" + struct.pack("<LHHHLHHL", 8, 1, _ORIENTATION, 3, 1, orientation, 0, 0)


def _orientation(image: Image) -> int:
    """The orientation that is left to apply; Pillow itself turns TIFFs."""
    return 1 if image.format == "TIFF" else image.getexif().get(_ORIENTATION, 1)


def _is_tga(file: io.BufferedIOBase) -> bool:
    """True if a file has the footer of TGA 2.0, or a header that hardly any other file has. Pillow accepts more."""
    header = file.read(_TGA_HEADER.size)
    end = file.seek(0, io.SEEK_END)
    file.seek(max(end - len(_TGA_FOOTER), 0))
    footer = file.read()
    file.seek(0)
    if footer == _TGA_FOOTER or len(header) < _TGA_HEADER.size:
        return footer == _TGA_FOOTER
    text, has_map, kind, first, colors, map_bits, _, _, width, height, bits, flags = _TGA_HEADER.unpack(header)
    if has_map > 1 or kind not in (1, 2, 3, 9, 10, 11) or bits not in (8, 15, 16, 24, 32) or not width * height:
        return False
    if flags >= 64 or map_bits not in (0, 15, 16, 24, 32) or (not has_map and (first or colors)):
        return False
    pixels = width * height * ((bits + 7) // 8) if kind < 9 else 1  # runs have any length
    length: int = _TGA_HEADER.size + text + colors * ((map_bits + 7) // 8) + pixels
    return end >= length


def _advice(file: io.BufferedIOBase) -> str:
    """Returns what reads a format that needs a plugin, or that the installed plugin does not read it."""
    from PIL import Image

    file.seek(0)
    head = file.read(16)
    if head[4:8] == b"ftyp" and head[8:11] in (b"hei", b"hev", b"mif", b"msf"):
        name, form, package = "HEIC", "HEIF", "pillow-heif"
    elif head.startswith((b"\xff\x0a", b"\0\0\0\x0cJXL ")):
        name, form, package = "JPEG XL", "JXL", "pillow-jxl-plugin"
    else:
        return ""
    return f"; {package} cannot read this {name}" if form in Image.OPEN else f"; {name} needs the package {package}"
