"""torch.save's files: a zip with a pickle and a record for each storage, read and written without making tensors.

Of a list of dicts of tensors torch.load makes three objects of half a kilobyte and more for every sample, and what
pickle remembers meanwhile is as much again: more than twice the file for imagenet_3gb. Here a tensor is a place in it.
"""

from __future__ import annotations

import io
import os
import pickle
import struct
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import IO, Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from latentq._core import FormatError

_STORAGES = {
    "BoolStorage": "bool", "ByteStorage": "uint8", "CharStorage": "int8", "ShortStorage": "int16",
    "IntStorage": "int32", "LongStorage": "int64", "HalfStorage": "float16", "FloatStorage": "float32",
    "DoubleStorage": "float64",
}  # fmt: skip


class Tensor(NamedTuple):
    """A tensor in a torch file: where it begins in its storage, and its shape and strides, all in elements."""

    storage: str
    dtype: str
    start: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class TorchFile:
    """What torch.save wrote, opened.

    Raises:
        FormatError: It is no such file, or cut short.
        OSError: It cannot be read.
    """

    def __init__(self, path: Path) -> None:
        import torch

        self._path = path
        self._file = path.open("rb")
        try:
            self._records: Any = torch._C.PyTorchFileReader(str(path))
        except RuntimeError as error:
            raise FormatError(f"{path}: not a torch file, or cut short: {_line(error)}") from None

    def load(self) -> Any:
        """The object that was saved, tensors as `Tensor`. Raises FormatError."""
        try:
            return _Unpickler(io.BytesIO(self._records.get_record("data.pkl"))).load()
        except Exception as error:  # of bytes that are no pickle it raises nearly anything
            raise FormatError(f"{self._path}: cannot be loaded: {_line(error)}") from None

    def read(self, tensor: Tensor) -> NDArray[Any]:
        """A tensor's values. Raises FormatError where they are not in the file."""
        dtype = np.dtype(tensor.dtype)
        last = sum((side - 1) * stride for side, stride in zip(tensor.shape, tensor.strides, strict=True))
        steps = [stride * dtype.itemsize for stride in tensor.strides]
        try:
            start = self._records.get_record_offset(f"data/{tensor.storage}") + tensor.start * dtype.itemsize
            data = os.pread(self._file.fileno(), (last + 1) * dtype.itemsize, start)
            return np.ndarray(tensor.shape, dtype, data, strides=steps)
        except (RuntimeError, TypeError, ValueError, OverflowError) as error:
            raise FormatError(f"{self._path}: a tensor is not in the file: {_line(error)}") from None


class _Unpickler(pickle.Unpickler):
    """Knows what a list of tensors is made of and nothing else, so that no file can have anything executed."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return lambda storage, start, shape, strides, *_: Tensor(storage[0], storage[1], start, shape, strides)
        if (module, name) == ("collections", "OrderedDict"):  # of a tensor's hooks; there are none
            return lambda: None
        if module == "torch" and name in _STORAGES:
            return _STORAGES[name]
        raise pickle.UnpicklingError(f"it holds {module}.{name}, which is no tensor")

    def persistent_load(self, pid: Any) -> tuple[str, str]:
        _, dtype, key, *_ = pid
        return key, dtype


def _line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]


_ALIGNMENT = 64  # of a record's bytes, as torch has it


_TOGETHER = 1000  # items that are appended at once, as pickle does


class TorchWriter:
    """Writes a list of dicts of tensors as torch.save would, in pieces: first the storages, then the list.

    A context manager. An error inside leaves a file that is cut short.
    """

    def __init__(self, path: Path) -> None:
        self._file = path.open("xb")
        self._zip = zipfile.ZipFile(self._file, "w")
        self._storages: list[tuple[str, int]] = []
        self._places: dict[bytes, int] = {}

    def storage(self, dtype: str, numbers: int) -> IO[bytes]:
        """The record of the next storage, of so many numbers, for its bytes to be written to."""
        self._storages.append((dtype, numbers))
        return self._record(f"data/{len(self._storages) - 1}")

    def write_list(self, items: Iterable[Mapping[str, tuple[int, int, tuple[int, ...]]]]) -> None:
        """Writes the list.

        Args:
            items: For each, its contiguous tensors by name: the number of the storage, where in it, and the shape.
        """
        with self._record("data.pkl") as file:
            file.write(pickle.PROTO + b"\x02" + pickle.EMPTY_LIST)
            file.write(pickle.MARK)
            for number, item in enumerate(items, start=1):
                fields = b"".join(self._once(_text(name)) + self._tensor(*place) for name, place in item.items())
                file.write(pickle.EMPTY_DICT + pickle.MARK + fields + pickle.SETITEMS)
                if number % _TOGETHER == 0:
                    file.write(pickle.APPENDS + pickle.MARK)
            file.write(pickle.APPENDS + pickle.STOP)
        for name, data in (("byteorder", b"little"), ("version", b"3\n")):
            with self._record(name) as file:
                file.write(data)

    def _tensor(self, storage: int, start: int, shape: tuple[int, ...]) -> bytes:
        """torch._utils._rebuild_tensor_v2(storage, start, shape, strides, False, OrderedDict())."""
        strides = [int(np.prod(shape[axis + 1 :])) for axis in range(len(shape))]
        return (
            self._once(_name("torch._utils", "_rebuild_tensor_v2"))
            + pickle.MARK
            + self._once(self._storage(storage))
            + _whole(start)
            + self._once(_tuple(shape))
            + self._once(_tuple(strides))
            + pickle.NEWFALSE
            + self._once(_name("collections", "OrderedDict"))
            + pickle.EMPTY_TUPLE
            + pickle.REDUCE
            + pickle.TUPLE
            + pickle.REDUCE
        )

    def _storage(self, number: int) -> bytes:
        dtype, numbers = self._storages[number]
        kind = next(name for name, of in _STORAGES.items() if of == dtype)
        what = _text("storage") + _name("torch", kind) + _text(str(number)) + _text("cpu") + _whole(numbers)
        return pickle.MARK + what + pickle.TUPLE + pickle.BINPERSID

    def _once(self, code: bytes) -> bytes:
        """The code of an object; where it was there before, of that one."""
        place = self._places.get(code)
        if place is not None:
            return pickle.BINGET + bytes([place])
        self._places[code] = len(self._places)
        return code + pickle.BINPUT + bytes([self._places[code]])

    def _record(self, name: str) -> IO[bytes]:
        info = zipfile.ZipInfo(f"archive/{name}")
        at = self._file.tell() + 30 + len(info.filename) + 20 + 4  # the header, and 20 bytes for sizes beyond 4 GiB
        padding = -at % _ALIGNMENT
        info.extra = struct.pack("<2sH", b"FB", padding) + bytes(padding)
        return self._zip.open(info, "w", force_zip64=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._zip.close()
        self._file.close()


def _name(module: str, name: str) -> bytes:
    return pickle.GLOBAL + f"{module}\n{name}\n".encode()


def _text(text: str) -> bytes:
    return pickle.BINUNICODE + struct.pack("<I", len(text.encode())) + text.encode()


def _whole(number: int) -> bytes:
    return pickle.dumps(number, 2)[2:-1]


def _tuple(numbers: Iterable[int]) -> bytes:
    return pickle.MARK + b"".join(map(_whole, numbers)) + pickle.TUPLE
