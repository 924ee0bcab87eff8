"""NumPy arrays as the kernels take them, and whether a value is a torch tensor."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt

from latentq.quantizer.floats import FLOAT_DTYPES

FLOAT32 = np.dtype(np.float32)


def native_array(array: Any, dtype: np.dtype[Any]) -> npt.NDArray[Any]:
    """The array itself if it is C-contiguous, aligned and native, else a copy that is. Its type must be dtype."""
    # The first two comparisons are the common case, and cheap beside a call on one latent.
    if array.dtype is dtype and array.flags.carray:
        return array  # type: ignore[no-any-return]
    if array.dtype.newbyteorder("=") != dtype:
        raise TypeError(f"expected an array of {dtype}, not {array.dtype}")
    return np.require(array, dtype, ["C", "A"])


def float_array(x: Any) -> tuple[npt.NDArray[Any], bool]:
    """A float array as the kernels take it, and whether its 16 bits are bfloat16's."""
    if type(x) is np.ndarray and x.dtype is FLOAT32:
        return native_array(x, FLOAT32), False
    if not isinstance(x, np.ndarray):
        raise TypeError(f"expected an array or a tensor, not {type(x).__name__}")
    native = x.dtype.newbyteorder("=")
    if native not in (np.float16, np.float32, np.float64, np.uint16):
        raise TypeError(f"expected floats (or bfloat16 bits in uint16), not {x.dtype}")
    x = native_array(x, native)
    return x.view(np.uint16) if native == np.float16 else x, native == np.uint16


def as_bits(out: Any, name: str) -> Any:
    """An output of that float type as the kernels take it: float16 as uint16."""
    dtype = FLOAT_DTYPES[name]
    given = getattr(out, "dtype", None)
    if given is not dtype and given != dtype:
        raise ValueError(f"out must be an array of {dtype}")
    return out.view(np.uint16) if name == "float16" else out


def as_float64(x: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """Float values, bfloat16's bits among them, as float64."""
    if x.dtype.newbyteorder("=") == np.uint16:
        x = (x.astype(np.uint32) << 16).view(np.float32)
    return x.astype(np.float64)


def fill(out: Any, values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    if not isinstance(out, np.ndarray) or out.shape != values.shape or out.dtype != values.dtype:
        raise ValueError(f"out must be an array of {values.dtype} of shape {values.shape}")
    out[...] = values
    return out


def torch_of(x: Any) -> ModuleType | None:
    """The module for torch tensors if x is one. torch is imported only by whoever has a tensor."""
    torch = sys.modules.get("torch")
    if torch is None or not isinstance(x, torch.Tensor):
        return None
    from latentq.quantizer import tensors as quantizer_torch

    return quantizer_torch
