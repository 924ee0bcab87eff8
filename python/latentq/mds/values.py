"""Column encodings whose values are Python objects: text, JSON, numbers as text, and Pillow images.

The compiled core handles all other encodings. An encoder takes a value and returns bytes or text; a decoder takes what
the core read and returns the value.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from decimal import Decimal
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from PIL import Image

IMAGE_ENCODINGS = frozenset(
    {"pil", "jpeg", "png", "jpeg_array", "jpegarray", "list[pil]", "list[jpeg]", "list[png]"},
)
# A decoder that raises one of these says nothing about the value: Pillow is not installed, or memory is short.
NOT_ABOUT_THE_VALUE = (ImportError, MemoryError)


def _check_type(value: Any, kind: type | tuple[type, ...], expected: str) -> None:
    if not isinstance(value, kind):
        raise TypeError(f"expected {expected}, not {type(value).__name__}")


def _encode_json(value: Any) -> str:
    return json.dumps(value.tolist() if isinstance(value, np.ndarray) else value)


def _encode_int(value: Any) -> str:
    _check_type(value, int, "an int")
    return str(int(value))  # the stock writer writes True as a text that no reader takes


def _encode_float(value: Any) -> str:
    _check_type(value, float, "a float")
    return str(value)


def _encode_decimal(value: Any) -> str:
    _check_type(value, Decimal, "a Decimal")
    return str(value)


def _check_image(value: Any) -> None:
    from PIL import Image

    _check_type(value, Image.Image, "a Pillow image")


def _encode_pil(value: Image.Image) -> bytes:
    _check_image(value)
    mode = value.mode.encode()
    return np.array([*value.size, len(mode)], "<u4").tobytes() + mode + value.tobytes()


def _encode_jpeg(value: Image.Image) -> bytes:
    _check_image(value)
    # An image that was opened from a JPEG file is copied, not compressed a second time.
    name = getattr(value, "filename", "")
    if value.format == "JPEG" and name and Path(name).is_file():
        return Path(name).read_bytes()
    return _image_file(value, "JPEG")


def _encode_png(value: Image.Image) -> bytes:
    _check_image(value)
    return _image_file(value, "PNG")


def _image_file(value: Image.Image, format: str) -> bytes:
    out = BytesIO()
    value.save(out, format=format)
    return out.getvalue()


def _encode_blobs(blobs: list[bytes], head: bytes = b"") -> bytes:
    """Returns `head`, the number of blobs, their lengths (all u32), and the blobs."""
    lengths = np.array([len(blobs), *map(len, blobs)], np.uint64)
    if lengths.max() >= 1 << 32:
        raise ValueError("an element of 4 GiB or more")
    return b"".join([head, lengths.astype("<u4").tobytes(), *blobs])


def _list_encoder(encode: Callable[[Any], bytes]) -> Callable[[Any], bytes]:
    def encode_list(value: Any) -> bytes:
        _check_type(value, list, "a list")
        return _encode_blobs([item if isinstance(item, bytes) else encode(item) for item in value], bytes(4))

    return encode_list


def _encode_jpeg_array(value: Sequence[bytes]) -> bytes:
    return _encode_blobs([bytes(item) for item in value])


def _decode_pil(value: bytes) -> Image.Image:
    from PIL import Image

    width, height, length = np.frombuffer(value, "<u4", 3).tolist()
    mode = value[12 : 12 + length].decode()
    return Image.frombytes(mode, (width, height), value[12 + length :])


def _decode_image(value: bytes) -> Image.Image:
    from PIL import Image

    return Image.open(BytesIO(value))


def _list_decoder(decode: Callable[[bytes], Image.Image]) -> Callable[[list[bytes]], list[Image.Image]]:
    return lambda values: [decode(value) for value in values]


ENCODERS: dict[str, Callable[[Any], bytes | str]] = {
    "json": _encode_json,
    "str_int": _encode_int,
    "str_float": _encode_float,
    "str_decimal": _encode_decimal,
    "pil": _encode_pil,
    "jpeg": _encode_jpeg,
    "png": _encode_png,
    "jpeg_array": _encode_jpeg_array,
    "jpegarray": _encode_jpeg_array,
    "list[pil]": _list_encoder(_encode_pil),
    "list[jpeg]": _list_encoder(_encode_jpeg),
    "list[png]": _list_encoder(_encode_png),
}
DECODERS: dict[str, Callable[[Any], Any]] = {
    "json": json.loads,
    "str_int": int,
    "str_float": float,
    "str_decimal": Decimal,
    "pil": _decode_pil,
    "jpeg": _decode_image,
    "png": _decode_image,
    "jpeg_array": _list_decoder(_decode_image),
    "jpegarray": _list_decoder(_decode_image),
    "list[pil]": _list_decoder(_decode_pil),
    "list[jpeg]": _list_decoder(_decode_image),
    "list[png]": _list_decoder(_decode_image),
}
