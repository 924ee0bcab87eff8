"""Reads rows of safetensors files, and writes such files in pieces."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from math import prod
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from latentq._core import FormatError
from latentq.store.local import check_regular
from latentq.system.extras import needed_for

_NAMES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16", "F64": "float64", "I8": "int8", "U8": "uint8",
          "I16": "int16", "I32": "int32", "I64": "int64"}  # fmt: skip
_ALIGNMENT = 8  # of the header, which the format's own library pads with spaces


class SafetensorsFile:
    """A safetensors file, opened for reading. Its header is checked by the format's own library.

    Args:
        path: The file.

    Raises:
        FormatError: It is no such file, or truncated; the message names it.
        MissingPackageError: safetensors or torch is not installed.
        OSError: It cannot be read.
    """

    def __init__(self, path: Path) -> None:
        with needed_for("reading safetensors files"):
            from safetensors import SafetensorError, safe_open
        self._error: type[Exception] = SafetensorError
        self._path = path
        check_regular(path)
        if not path.exists():
            raise FileNotFoundError(2, "No such file", str(path))
        try:
            opening: Any = safe_open
            self._file: Any = opening(path, "pt")
            self.names: list[str] = list(self._file.keys())
            self.metadata: dict[str, str] = dict(self._file.metadata() or {})
        except SafetensorError as error:
            raise FormatError(f"{path}: not a safetensors file, or truncated: {error}") from None

    def describe(self, name: str) -> tuple[str, tuple[int, ...]]:
        """Returns the dtype and shape of a tensor.

        Raises:
            FormatError: There is no such tensor.
        """
        if name not in self.names:
            raise FormatError(f"{self._path}: it has no tensor {name!r}, but {', '.join(self.names[:6]) or 'none'}")
        part = self._file.get_slice(name)
        dtype = str(part.get_dtype())
        return _NAMES.get(dtype, dtype), tuple(part.get_shape())

    def rows(self, name: str, start: int, end: int) -> NDArray[Any]:
        """Returns rows of a tensor, which stay in the file until they are used. bfloat16 is its bits in uint16.

        Raises:
            FormatError: They cannot be read.
        """
        return self._numpy(lambda: self._file.get_slice(name)[start:end])

    def array(self, name: str) -> NDArray[Any]:
        """Returns a whole tensor. bfloat16 is its bits in uint16.

        Raises:
            FormatError: It cannot be read.
        """
        return self._numpy(lambda: self._file.get_tensor(name))

    def _numpy(self, read: Any) -> NDArray[Any]:
        import torch

        try:
            tensor = read()
        except (self._error, RuntimeError) as error:
            raise FormatError(f"{self._path}: cannot be read: {error}") from None
        array: NDArray[Any] = (tensor.view(torch.uint16) if tensor.dtype == torch.bfloat16 else tensor).numpy()
        return array


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
        codes = {name: code for code, name in _NAMES.items()}
        sizes = {name: 2 if dtype == "bfloat16" else np.dtype(dtype).itemsize for name, (dtype, _) in tensors.items()}
        header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
        self._starts: dict[str, int] = {}
        end = 0
        for name in sorted(tensors, key=lambda name: (-sizes[name], name)):
            dtype, shape = tensors[name]
            start, end = end, end + sizes[name] * prod(shape)
            header[name] = {"dtype": codes[dtype], "shape": list(shape), "data_offsets": [start, end]}
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
