"""Reads rows of safetensors files, and writes such files in pieces."""

from __future__ import annotations

import json
import os
import weakref
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from latentq._core import FormatError
from latentq.store.local import check_regular
from latentq.system.text import one_line

_NAMES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16", "F64": "float64", "I8": "int8", "U8": "uint8",
          "I16": "int16", "I32": "int32", "I64": "int64"}  # fmt: skip
_CODES = {name: code for code, name in _NAMES.items()}
_LENGTH = 8  # bytes of the header's length
_MAX_HEADER = 100_000_000  # as the format's own library has it
_ALIGNMENT = 8  # of the header, which the format's own library pads with spaces


@dataclass(frozen=True)
class _Tensor:
    """A tensor of a file: NumPy's name of its dtype, or the format's; its shape; and where it begins in the file."""

    dtype: str
    shape: tuple[int, ...]
    start: int


class SafetensorsFile:
    """A safetensors file, whose tensors are read by rows, so that none needs to be in memory. It stays open.

    Files are read and not mapped: a file that another process truncates must not end this process.

    Args:
        path: The file.

    Raises:
        FormatError: It is no such file, or truncated; the message names it.
        OSError: It cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        check_regular(path)
        self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        weakref.finalize(self, os.close, self._descriptor)
        size = os.fstat(self._descriptor).st_size
        length = int.from_bytes(os.pread(self._descriptor, _LENGTH, 0), "little")
        header = bytearray(length if length <= min(size - _LENGTH, _MAX_HEADER) else 0)
        self._fill(memoryview(header), _LENGTH)
        try:
            self._tensors, self.metadata = _parsed(header, _LENGTH + length, size)
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise FormatError(f"{path}: not a safetensors file, or truncated: {one_line(str(error))}") from None
        self.names = [*self._tensors]

    def describe(self, name: str) -> tuple[str, tuple[int, ...]]:
        """Returns the dtype and shape of a tensor.

        Raises:
            FormatError: There is no such tensor.
        """
        if name not in self._tensors:
            raise FormatError(f"{self._path}: it has no tensor {name!r}, but {', '.join(self.names[:6]) or 'none'}")
        tensor = self._tensors[name]
        return tensor.dtype, tensor.shape

    def dtype(self, name: str) -> np.dtype[Any]:
        """Returns the dtype of the arrays of a tensor; that of bfloat16 is uint16, for its bits.

        Raises:
            FormatError: There is no such tensor, or NumPy has no such dtype.
        """
        dtype, _ = self.describe(name)
        if dtype not in _CODES:
            raise FormatError(f"{self._path}: {name} is {dtype}, which cannot be read")
        return np.dtype("uint16" if dtype == "bfloat16" else dtype)

    def rows(self, name: str, start: int, end: int, out: NDArray[Any] | None = None) -> NDArray[Any]:
        """Reads rows of a tensor. bfloat16 is its bits in uint16.

        Args:
            name: The tensor.
            start: The index of the first row.
            end: The index after the last row.
            out: A contiguous array for them, of `dtype(name)` and their shape; None makes a new one.

        Raises:
            FormatError: There are no such rows, or the file is truncated.
            OSError: They cannot be read.
        """
        _, shape = self.describe(name)
        if not shape or not 0 <= start <= end <= shape[0]:
            raise FormatError(f"{self._path}: {name} has the shape {shape}, and no rows {start} to {end}")
        return self._read(name, start * prod(shape[1:]), (end - start, *shape[1:]), out)

    def array(self, name: str) -> NDArray[Any]:
        """Reads a whole tensor. Raises as `rows`."""
        return self._read(name, 0, self.describe(name)[1], None)

    def _read(self, name: str, skipped: int, shape: tuple[int, ...], out: NDArray[Any] | None) -> NDArray[Any]:
        """Reads an array, after as many elements of its tensor as are skipped."""
        dtype = self.dtype(name)
        if out is None:
            out = np.empty(shape, dtype)
        elif (out.dtype, out.shape) != (dtype, shape):
            raise ValueError(f"out must be {dtype} {shape}, not {out.dtype} {out.shape}")
        rest = out.reshape(-1).view(np.uint8).data
        self._fill(rest, self._tensors[name].start + skipped * dtype.itemsize)
        return out

    def _fill(self, rest: memoryview, offset: int) -> None:
        """Reads bytes at an offset: by one call, since others may hold the GIL after each."""
        while rest:
            try:
                count = os.preadv(self._descriptor, [rest], offset)
            except OSError as error:
                raise OSError(error.errno, error.strerror, str(self._path)) from None
            if not count:
                raise FormatError(f"{self._path}: it is truncated")
            rest, offset = rest[count:], offset + count


def _parsed(header: bytearray, base: int, size: int) -> tuple[dict[str, _Tensor], dict[str, str]]:
    """Returns the tensors and the metadata of a file, by the rules of the format's own library.

    Args:
        header: The header's JSON.
        base: Where the tensors begin in the file.
        size: The size of the file.

    Raises:
        ValueError: The header breaks a rule; also TypeError, KeyError, AttributeError and RecursionError.
    """
    if header[:1] != b"{":
        raise ValueError("there is no header")
    values = json.loads(header.decode())
    metadata = values.pop("__metadata__", {})
    if not all(isinstance(text, str) for text in metadata.values()):
        raise ValueError("the metadata holds something else than texts")
    tensors, end = {}, 0
    for name, value in sorted(values.items(), key=lambda item: item[1]["data_offsets"]):
        shape, (first, last) = tuple(value["shape"]), value["data_offsets"]
        if not all(type(number) is int and number >= 0 for number in (*shape, first, last)):
            raise ValueError(f"{name} has sides or offsets that are no numbers")
        dtype = _NAMES.get(value["dtype"], value["dtype"])
        nbytes = prod(shape) * _item_size(dtype) if dtype in _CODES else last - first
        if first != end or last - first != nbytes or last < first:
            raise ValueError(f"{name} is not where it must be")
        tensors[str(name)], end = _Tensor(str(dtype), shape, base + first), last
    if base + end != size:
        raise ValueError(f"it has {size} bytes, and its header says {base + end}")
    return tensors, dict(metadata)


def _item_size(dtype: str) -> int:
    return 2 if dtype == "bfloat16" else np.dtype(dtype).itemsize


def is_safetensors(path: Path) -> bool:
    """True if a file begins as a safetensors file does: the header's length, then a JSON object."""
    try:
        with path.open("rb") as file:
            start = file.read(9)
        return len(start) == 9 and start[8:] == b"{" and int.from_bytes(start[:8], "little") < path.stat().st_size
    except OSError:
        return False


class SafetensorsWriter:
    """Writes a safetensors file in pieces, so that no tensor needs to be in memory.

    The bytes are those of the format's own library: tensors by falling size of their elements, then by name. A context
    manager; an error inside leaves a truncated file.

    Args:
        path: The file, which is replaced.
        tensors: NumPy's name of the dtype, or `bfloat16`, and the shape of each tensor.
        metadata: Texts for the header.
    """

    def __init__(
        self, path: Path, tensors: Mapping[str, tuple[str, tuple[int, ...]]], metadata: Mapping[str, str]
    ) -> None:
        sizes = {name: _item_size(dtype) for name, (dtype, _) in tensors.items()}
        header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
        self._starts: dict[str, int] = {}
        end = 0
        for name in sorted(tensors, key=lambda name: (-sizes[name], name)):
            dtype, shape = tensors[name]
            start, end = end, end + sizes[name] * prod(shape)
            header[name] = {"dtype": _CODES[dtype], "shape": list(shape), "data_offsets": [start, end]}
            self._starts[name] = start
        data = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        data += b" " * (-len(data) % _ALIGNMENT)
        self._base = 8 + len(data)
        self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
        self._path = path
        try:
            self._write(len(data).to_bytes(8, "little") + data, 0)
            os.ftruncate(self._descriptor, self._base + end)
        except BaseException:
            os.close(self._descriptor)
            raise

    def write(self, name: str, first: int, rows: NDArray[Any]) -> None:
        """Writes rows of a tensor.

        Args:
            name: The tensor.
            first: The index of the first row.
            rows: (n, *shape of a row) of the tensor's dtype.
        """
        rows = np.ascontiguousarray(rows)
        row_bytes = rows.nbytes // max(1, len(rows))
        self._write(rows.reshape(-1).view(np.uint8).data, self._base + self._starts[name] + first * row_bytes)

    def _write(self, data: bytes | memoryview, offset: int) -> None:
        rest = memoryview(data)
        while rest:
            try:
                written = os.pwrite(self._descriptor, rest, offset)
            except OSError as error:
                raise OSError(error.errno, error.strerror, str(self._path)) from None
            rest, offset = rest[written:], offset + written

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._descriptor)
