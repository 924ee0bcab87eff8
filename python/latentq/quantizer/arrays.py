"""NumPy arrays in the form that the compiled kernels take, and the choice between arrays and torch tensors."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt

from latentq.quantizer.floats import FLOAT_DTYPES

FLOAT32 = np.dtype(np.float32)
FLOAT16 = np.dtype(np.float16)
UINT8 = np.dtype(np.uint8)
UINT16 = np.dtype(np.uint16)


def tensors_for(x: object) -> ModuleType | None:
    """Returns the module `latentq.quantizer.tensors` if x is a torch tensor, else None.

    torch takes seconds to import, so it is imported only by callers who have a tensor.
    """
    torch = sys.modules.get("torch")
    if torch is None or not isinstance(x, torch.Tensor):
        return None
    from latentq.quantizer import tensors

    return tensors


def as_array(x: Any) -> Any:
    """Returns the memory of a torch tensor as an array (bfloat16 as its bits in uint16), and anything else as it is."""
    if type(x) is not np.ndarray and (tensors := tensors_for(x)):
        return tensors.to_numpy(x)
    return x


def native_array(array: Any, dtype: np.dtype[Any]) -> npt.NDArray[Any]:
    """Returns the array if it is C-contiguous, aligned and of native byte order, else a copy that is.

    Raises:
        TypeError: The dtype of the array is not `dtype` in some byte order.
    """
    # The first two comparisons are the common case, and cheap compared with a call on one latent.
    if array.dtype is dtype and array.flags.carray:
        return array  # type: ignore[no-any-return]
    if array.dtype.newbyteorder("=") != dtype:
        raise TypeError(f"expected an array of {dtype}, not {array.dtype}")
    return np.require(array, dtype, ["C", "A"])


def float_array(x: Any) -> tuple[npt.NDArray[Any], bool]:
    """Returns a float array in the form that the kernels take, and True if its 16-bit items are bfloat16 bits.

    Raises:
        TypeError: `x` is not an array of float16, float32, float64 or uint16 (the bits of bfloat16).
    """
    if type(x) is np.ndarray:  # comparisons of dtypes take as long as a small array
        if x.dtype is FLOAT32:
            return native_array(x, FLOAT32), False
        if x.dtype is FLOAT16:
            return native_array(x, FLOAT16).view(UINT16), False
        if x.dtype is UINT16:
            return native_array(x, UINT16), True
    if not isinstance(x, np.ndarray):
        raise TypeError(f"expected an array or a tensor, not {type(x).__name__}")
    native = x.dtype.newbyteorder("=")
    if native not in (np.float16, np.float32, np.float64, np.uint16):
        raise TypeError(f"expected floats (or bfloat16 bits in uint16), not {x.dtype}")
    x = native_array(x, native)
    return x.view(np.uint16) if native == np.float16 else x, native == np.uint16


def as_bits(out: Any, name: str) -> Any:
    """Returns an output array of that float type in the form that the kernels take: float16 viewed as uint16.

    Raises:
        ValueError: `out` is of another type.
    """
    dtype = FLOAT_DTYPES[name]
    given = getattr(out, "dtype", None)
    if given is not dtype and given != dtype:
        raise ValueError(f"out must be an array of {dtype}")
    return out.view(np.uint16) if name == "float16" else out


def as_float64(x: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """Returns float values as float64; uint16 items are read as the bits of bfloat16."""
    if x.dtype.newbyteorder("=") == np.uint16:
        x = (x.astype(np.uint32) << 16).view(np.float32)
    return x.astype(np.float64)


def fill(out: Any, values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Copies the values into `out` and returns it.

    Raises:
        ValueError: `out` is not an array of the same shape and dtype.
    """
    if not isinstance(out, np.ndarray) or out.shape != values.shape or out.dtype != values.dtype:
        raise ValueError(f"out must be an array of {values.dtype} of shape {values.shape}")
    out[...] = values
    return out


def check_threads(threads: int) -> int:
    """Returns the number of threads as the kernels take it; they never start more threads than there are chunks.

    Raises:
        ValueError: It is less than 1.
    """
    if threads < 1:
        raise ValueError(f"threads must be at least 1, not {threads}")
    return min(threads, 1 << 16)
