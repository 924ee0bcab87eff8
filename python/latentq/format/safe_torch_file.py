"""Reads torch.save's files without making tensors: a zip with a pickle and one record per storage.

Nothing that the pickle names is imported or called. For a list of dicts of tensors, torch.load makes three objects of
half a kilobyte or more per sample, and pickle's memo takes as much again: more than twice the file's size for
imagenet_3gb. Here a tensor is a reference into the file.
"""

from __future__ import annotations

import io
import os
import pickle
import pickletools
import struct
import tempfile
import zipfile
import zlib
from array import array
from collections import OrderedDict
from math import prod
from pathlib import Path
from typing import IO, Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from latentq._core import FormatError
from latentq.system.text import one_line

PICKLE = "data.pkl"
STORAGES = {
    "BoolStorage": "bool", "ByteStorage": "uint8", "CharStorage": "int8", "ShortStorage": "int16",
    "IntStorage": "int32", "LongStorage": "int64", "HalfStorage": "float16", "BFloat16Storage": "bfloat16",
    "FloatStorage": "float32", "DoubleStorage": "float64",
}  # fmt: skip
_LOCAL_HEADER = struct.Struct("<4s22xHH")  # of a zip member: signature, then the lengths of its name and extra field
_REBUILD = ("_rebuild_tensor", "_rebuild_tensor_v2")
_SCANNED = 1 << 24  # bytes; scanning a larger pickle in Python would take longer than loading it
_BAD_ZIP = (zipfile.BadZipFile, ValueError, NotImplementedError, EOFError, struct.error, zlib.error, MemoryError)


class TensorRecord(NamedTuple):
    """A tensor in a torch file: its storage, and its start, shape and strides in the storage, in elements."""

    storage: str
    dtype: str
    start: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class TorchFile:
    """A file that torch.save wrote, opened for reading.

    Args:
        path: The file.

    Raises:
        FormatError: It is no such file, or truncated.
        OSError: It cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self._open(path.open("rb"), path)

    @classmethod
    def of_bytes(cls, data: bytes, name: str | Path) -> Self:
        """Opens the bytes of a file that torch.save wrote, for example a member of an archive.

        Args:
            data: The bytes.
            name: Their name, for messages.

        Raises:
            FormatError: They are no such file, or truncated.
        """
        opened = cls.__new__(cls)
        file = tempfile.TemporaryFile()  # noqa: SIM115  (closed with the object)
        file.write(data)
        file.flush()
        opened._open(file, name)
        return opened

    def _open(self, file: IO[bytes], name: str | Path) -> None:
        self._path = name
        self._file = file
        try:
            self._members = _Members(self._file)
            if PICKLE not in self._members:
                raise ValueError(f"it has no {PICKLE}")
            if "byteorder" in self._members and (order := self._members.read("byteorder")) != b"little":
                raise ValueError(f"its byte order is {order[:20]!r}; only little is supported")
        except _BAD_ZIP as error:
            self._file.close()
            raise FormatError(f"{name}: not a torch file, or truncated: {one_line(error)}") from None

    def load(self, *, ignore_others: bool = False) -> Any:
        """Returns the object that was saved, with a `TensorRecord` for each tensor.

        Args:
            ignore_others: Replace other objects than tensors and plain containers by empty stand-ins, instead of
                raising an error.

        Raises:
            FormatError: The pickle is broken, or holds other objects.
        """
        try:
            data = self._members.read(PICKLE)
            if len(data) <= _SCANNED:
                _check_operations(data)
            loaded = _Unpickler(io.BytesIO(data), ignore_others).load()
            if isinstance(loaded, _Ignored):
                raise pickle.UnpicklingError("it holds no tensors")
            return loaded
        except Exception as error:  # unpickling broken bytes raises nearly anything
            raise FormatError(f"{self._path}: cannot be loaded: {one_line(error)}") from None

    def read(self, tensor: TensorRecord) -> NDArray[Any]:
        """Reads a tensor's values; bfloat16 as its bits in uint16.

        Raises:
            FormatError: The tensor is not within its storage, or the storage is not in the file.
        """
        try:
            dtype = np.dtype("uint16" if tensor.dtype == "bfloat16" else tensor.dtype)
            offset, size = self._members.locate(f"data/{tensor.storage}")
            count = _extent(tensor)
            if (tensor.start + count) * dtype.itemsize > size:
                raise ValueError(f"it ends at element {tensor.start + count}, its storage has {size // dtype.itemsize}")
            if prod(tensor.shape) > os.fstat(self._file.fileno()).st_size:  # of strides 0
                raise ValueError(f"its shape {tensor.shape} has more elements than the file has bytes")
            data = self._members.pread(count * dtype.itemsize, offset + tensor.start * dtype.itemsize)
            steps = [stride * dtype.itemsize for stride in tensor.strides]
            return np.ndarray(tensor.shape, dtype, data, strides=steps)
        except (TypeError, ValueError, OverflowError, MemoryError) as error:
            raise FormatError(f"{self._path}: a tensor is not in the file: {one_line(error)}") from None


class _Members:
    """Offsets and sizes of the members of a zip; compact, since there are millions."""

    def __init__(self, file: IO[bytes]) -> None:
        with zipfile.ZipFile(file) as archive:
            entries = archive.infolist()
            prefix = entries[0].filename.partition("/")[0] + "/" if entries else ""
            self._index = {info.filename.removeprefix(prefix): index for index, info in enumerate(entries)}
            self._headers = array("Q", [info.header_offset for info in entries])
            # A compressed member cannot be read in place; torch never compresses.
            stored = zipfile.ZIP_STORED
            self._sizes = array("q", [info.file_size if info.compress_type == stored else -1 for info in entries])
        self._file = file.fileno()

    def __contains__(self, name: str) -> bool:
        return name in self._index

    def locate(self, name: str) -> tuple[int, int]:
        """Returns the offset and size of a member's data in bytes, or raises ValueError."""
        index = self._index.get(name)
        if index is None:
            raise ValueError(f"there is no record {name}")
        size, header = self._sizes[index], self._headers[index]
        start = os.pread(self._file, _LOCAL_HEADER.size, header)
        if size < 0 or len(start) < _LOCAL_HEADER.size:
            raise ValueError(f"record {name} is {'compressed' if size < 0 else 'truncated'}")
        signature, name_length, extra_length = _LOCAL_HEADER.unpack(start)
        if signature != b"PK\x03\x04":
            raise ValueError(f"record {name} has no header")
        return header + _LOCAL_HEADER.size + name_length + extra_length, size

    def read(self, name: str) -> bytes:
        """Reads a whole member, or raises ValueError."""
        offset, size = self.locate(name)
        return self.pread(size, offset)

    def pread(self, size: int, offset: int) -> bytes:
        """Reads bytes of the file, or raises ValueError if it ends before."""
        if offset + size > os.fstat(self._file).st_size:
            raise ValueError("the file is truncated")
        data = os.pread(self._file, size, offset)
        while len(data) < size:  # one call returns at most 2 GiB
            part = os.pread(self._file, size - len(data), offset + len(data))
            if not part:
                raise ValueError("the file is truncated")
            data += part
        return data


def _extent(tensor: TensorRecord) -> int:
    """Returns the number of elements from a tensor's first to its last, both included, or raises ValueError."""
    layout = (tensor.start, *tensor.shape, *tensor.strides)
    if any(type(value) is not int or value < 0 for value in layout) or len(tensor.shape) != len(tensor.strides):
        raise ValueError(f"start {tensor.start}, shape {tensor.shape} and strides {tensor.strides} do not fit")
    if 0 in tensor.shape:
        return 0
    return 1 + sum((side - 1) * stride for side, stride in zip(tensor.shape, tensor.strides, strict=True))


def _check_operations(data: bytes) -> None:
    """Refuses operations that allocate far more memory than the pickle has bytes; torch.save writes none of them.

    They are memo indices beyond the pickle's size, and bytearrays. Lengths of other objects are checked by `genops`.
    """
    for operation, argument, _ in pickletools.genops(data):
        if operation.name in ("PUT", "LONG_BINPUT") and (argument or 0) > len(data):
            raise pickle.UnpicklingError(f"it has a memo index of {argument}")
        if operation.name == "BYTEARRAY8":
            raise pickle.UnpicklingError("it holds a bytearray")


class _StorageType(NamedTuple):
    """The dtype of a storage; a pickle can only get one by naming torch's class."""

    dtype: str


class _Ignored(dict[Any, Any]):
    """A stand-in for an object that is neither a tensor nor a container: it accepts any use and keeps nothing."""

    def __init__(self, *_: object, **__: object) -> None:
        super().__init__()

    def __hash__(self) -> int:  # type: ignore[override]
        return id(self)

    def __eq__(self, other: object) -> bool:
        return self is other

    def __setitem__(self, key: object, value: object) -> None:
        pass

    def __setstate__(self, state: object) -> None:
        pass

    def append(self, item: object) -> None:
        """Ignores an item."""

    def extend(self, items: object) -> None:
        """Ignores items."""

    def add(self, item: object) -> None:
        """Ignores an item."""


class _Unpickler(pickle.Unpickler):
    """Knows only tensors and plain containers, so that no file can have anything executed."""

    def __init__(self, file: IO[bytes], ignore_others: bool) -> None:
        super().__init__(file)
        self._ignore_others = ignore_others

    def find_class(self, module: str, name: str) -> Any:
        if module == "torch._utils" and name in _REBUILD:
            return _rebuild_tensor
        if module == "torch._utils" and name == "_rebuild_parameter":
            return _rebuild_parameter
        if (module, name) == ("collections", "OrderedDict"):
            # In a list of tensors it only is the empty dict of a tensor's hooks.
            return OrderedDict if self._ignore_others else _no_hooks
        if module == "torch" and name in STORAGES:
            return _StorageType(STORAGES[name])
        if self._ignore_others:
            return _Ignored
        raise pickle.UnpicklingError(f"it holds {module}.{name}, which is no tensor")

    def persistent_load(self, pid: Any) -> tuple[str, str]:
        _, storage_type, key, *_ = pid
        if not isinstance(storage_type, _StorageType) or not isinstance(key, str):
            raise pickle.UnpicklingError("it holds a storage of an unknown type")
        return key, storage_type.dtype


def _no_hooks() -> None:
    return None


def _rebuild_tensor(storage: tuple[str, str], start: int, shape: Any, strides: Any, *_: object) -> TensorRecord:
    key, dtype = storage
    if dtype not in STORAGES.values() or not isinstance(key, str):
        raise pickle.UnpicklingError("it holds a tensor without a storage")
    return TensorRecord(key, dtype, start, tuple(shape), tuple(strides))


def _rebuild_parameter(data: object, *_: object) -> object:
    return data
