"""Tensors of torch.save's files, read without executing anything, and written."""

from __future__ import annotations

import gzip
import io
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from latentq._core import FormatError
from latentq.converting.npy_file import MAX_MEMBER
from latentq.format.safe_torch_file import TensorRecord, TorchFile
from latentq.store.local import read_regular

_GZIP = b"\x1f\x8b"


def open_torch(path: Path) -> TorchFile:
    """Opens a torch file, which may be compressed by gzip.

    Raises:
        FormatError: It is no such file, or truncated; the message names it.
        OSError: It cannot be read.
    """
    with path.open("rb") as file:
        compressed = file.read(2) == _GZIP
    if not compressed:
        return TorchFile(path)
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(read_regular(path))) as archive:
            data = archive.read(MAX_MEMBER + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise FormatError(f"{path}: not a gzip file, or truncated: {error}") from None
    if len(data) > MAX_MEMBER:
        raise FormatError(f"{path}: it is more than {MAX_MEMBER} bytes of a gzip file")
    return TorchFile.of_bytes(data, path)


def record_of(value: object, where: object, axes: int | None = None) -> TensorRecord:
    """Returns a value of a torch file that must be a tensor of floats.

    Args:
        value: The value.
        where: The file and the value's name, for messages.
        axes: The number of its axes, if it must be one.

    Raises:
        FormatError: It is something else.
    """
    if not isinstance(value, TensorRecord) or value.dtype not in ("float32", "float16", "bfloat16"):
        found = value.dtype if isinstance(value, TensorRecord) else type(value).__name__
        raise FormatError(f"{where}: must be a tensor of floats, not {found}")
    if axes is not None and len(value.shape) != axes:
        raise FormatError(f"{where}: must have {axes} axes, not the shape {value.shape}")
    return value


def floats_of(file: TorchFile, record: TensorRecord, where: object) -> NDArray[np.float64]:
    """Reads a tensor of floats as float64.

    Args:
        file: The file.
        record: The tensor.
        where: The file and the tensor's name, for messages.

    Raises:
        FormatError: It is of another dtype, or not in the file.
    """
    array = file.read(record)
    if record.dtype == "bfloat16":
        return (array.astype(np.uint32) << 16).view(np.float32).astype(np.float64)
    if array.dtype.kind != "f":
        raise FormatError(f"{where}: must be a tensor of floats, not {record.dtype}")
    return array.astype(np.float64)


def array_dtype(dtype: str) -> np.dtype[Any]:
    """Returns the dtype of arrays that hold values of a tensor's dtype; bfloat16 is its bits in uint16."""
    return np.dtype("uint16" if dtype == "bfloat16" else dtype)


def tensor_bytes(value: Any) -> bytes:
    """Returns the bytes of a file that torch.save writes.

    Args:
        value: A tensor, or a plain container of tensors.
    """
    import torch

    file = io.BytesIO()
    torch.save(value, file)
    return file.getvalue()


def to_tensor(array: NDArray[Any], dtype: str) -> Any:
    """Returns a tensor of a dtype of its own memory, from float32 values.

    Args:
        array: float32.
        dtype: `float32`, `float16` or `bfloat16`.
    """
    import torch

    return torch.from_numpy(np.array(array)).to(getattr(torch, dtype))
