"""The three float types in which values can be stored or returned, by name."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np

if TYPE_CHECKING:
    import torch

    FloatDType: TypeAlias = str | type[np.floating[Any]] | np.dtype[Any] | torch.dtype

FloatName: TypeAlias = Literal["float16", "bfloat16", "float32"]

FLOAT_BITS: dict[str, int] = {"float16": 16, "bfloat16": 16, "float32": 32}
FLOAT_MAX = {"float16": 65504.0, "bfloat16": float.fromhex("0x1.fep127"), "float32": float(np.finfo(np.float32).max)}
_FLOAT16_OVERFLOW = 65520.0  # the smallest value that rounds to infinity
# NumPy has no bfloat16: its bits are kept in uint16.
FLOAT_DTYPES: dict[str, np.dtype[Any]] = {
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(np.uint16),
    "float32": np.dtype(np.float32),
}
# The usual arguments, looked up first because parsing a dtype takes long for one small latent.
_COMMON_NAMES: dict[Any, FloatName] = {
    np.float32: "float32",
    np.float16: "float16",
    "float32": "float32",
    "float16": "float16",
    "bfloat16": "bfloat16",
}


def float_name(dtype: FloatDType) -> FloatName:
    """Returns the name of a float type.

    Args:
        dtype: `float16`, `bfloat16` or `float32`, as a name, a NumPy dtype or a torch dtype.

    Raises:
        TypeError: `dtype` is another type.
    """
    name = _COMMON_NAMES.get(dtype) or _COMMON_NAMES.get(str(dtype).removeprefix("torch."))
    if name is None:
        try:
            name = _COMMON_NAMES.get(np.dtype(dtype).name)  # type: ignore[arg-type]  # a torch dtype is a TypeError
        except TypeError:
            name = None
    if name is None:
        raise TypeError(f"dtype must be float32, float16 or bfloat16, not {dtype}")
    return name


def half_name(largest: float) -> FloatName:
    """Returns the 16-bit float type for values: `float16`, or `bfloat16` if a value overflows that.

    Args:
        largest: The largest absolute value.
    """
    return "float16" if largest < _FLOAT16_OVERFLOW else "bfloat16"
