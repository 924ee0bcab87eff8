"""Float dtypes by name, and the values that quantizing them reports."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from latentq._core import LatentqError

FLOAT_BITS = {"float16": 16, "bfloat16": 16, "float32": 32}


FLOAT_MAX = {"float16": 65504.0, "bfloat16": float.fromhex("0x1.fep127"), "float32": float(np.finfo(np.float32).max)}


FLOAT_DTYPES: dict[str, np.dtype[Any]] = {
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(np.uint16),
    "float32": np.dtype(np.float32),
}


_FLOAT_NAMES: dict[Any, str] = {np.float32: "float32", np.float16: "float16", **{name: name for name in FLOAT_BITS}}


class NotFiniteError(LatentqError, ValueError):
    """A NaN or an infinity where a number is needed; the message names the sample and the channel."""


@dataclass(frozen=True, slots=True)
class Counts:
    """What was seen while quantising.

    Attributes:
        clipped: (C,) int64, the values outside [low, high] in each channel, those of bad samples left out.
        bad: (N,) bool, the samples that hold a NaN or an infinity. Their codes are 0.
    """

    clipped: npt.NDArray[np.int64]
    bad: npt.NDArray[np.bool_]


def float_name(dtype: Any) -> str:
    """The name of one of the three float types, from a name, a NumPy dtype or a torch dtype."""
    name = _FLOAT_NAMES.get(dtype)
    if name is None:
        name = str(dtype).removeprefix("torch.")
        if name not in FLOAT_BITS:
            try:
                name = np.dtype(dtype).name
            except TypeError:
                name = ""
        if name not in FLOAT_BITS:
            raise TypeError(f"dtype must be float32, float16 or bfloat16, not {dtype}")
    return name


def not_finite(sample: int, channel: int) -> NotFiniteError:
    return NotFiniteError(f"sample {sample}, channel {channel} holds a NaN, an infinity or a number too large")
