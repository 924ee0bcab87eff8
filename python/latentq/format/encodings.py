"""The MDS encodings of columns that follow from shapes and quantizers."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import Any

from latentq.format.options import FLOATS, Column

_DTYPES = {"float32": "float32", "float16": "float16", "bfloat16": "uint16"}


def latent_encoding(column: Column, shape: tuple[int, ...]) -> str:
    """Returns the encoding of a column of latents, moments or embeddings, whose codes are packed below 8 bits.

    Args:
        column: The column.
        shape: The shape of a sample.
    """
    kind, bits = column.quantizer["kind"], column.quantizer.get("bits", 8)
    if kind == "transform":
        sample_bytes = transform_bytes(column.quantizer, shape)
        return "bytes" if sample_bytes is None else f"ndarray:uint8:{sample_bytes}"
    if kind in FLOATS or bits == 8:
        return array_encoding(_DTYPES.get(kind, "uint8"), shape)
    return f"ndarray:uint8:{-(-prod(shape) * bits // 8)}"


def transform_bytes(options: Mapping[str, Any], shape: tuple[int, ...]) -> int | None:
    """Returns the bytes of every sample of a transform with these options of a recipe; None if they vary.

    Args:
        options: The quantizer of a recipe's column, of kind `transform`.
        shape: (C, h, w) of a sample; with buckets, of the first.
    """
    if "bits" in options:
        return -(-prod(shape) * int(options["bits"]) // 8)
    return options.get("bytes")


def array_encoding(dtype: str, shape: tuple[int, ...]) -> str:
    """Returns the encoding of a column of arrays."""
    return f"ndarray:{dtype}:{','.join(map(str, shape))}"
