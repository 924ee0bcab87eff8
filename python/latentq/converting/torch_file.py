"""torch.save's files, read and written without making tensors: a zip with a pickle and one record per storage.

For a list of dicts of tensors, torch.load makes three objects of half a kilobyte or more per sample, and pickle's memo
takes as much again: more than twice the file's size for imagenet_3gb. Here a tensor is a reference into the file.
"""

from __future__ import annotations

import io
import os
import pickle
import struct
import zipfile
import zlib
from array import array
from collections.abc import Iterable, Mapping
from math import prod
from pathlib import Path
from types import TracebackType
from typing import IO, Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from latentq._core import FormatError
from latentq.system.text import one_line

_DTYPES = {
    "BoolStorage": "bool", "ByteStorage": "uint8", "CharStorage": "int8", "ShortStorage": "int16",
    "IntStorage": "int32", "LongStorage": "int64", "HalfStorage": "float16", "FloatStorage": "float32",
    "DoubleStorage": "float64",
}  # fmt: skip
_PICKLE = "data.pkl"
_LOCAL_HEADER = struct.Struct("<4s22xHH")  # of a zip member: signature, then the lengths of its name and extra field
_ALIGNMENT = 64  # bytes; torch aligns the records of storages
_ITEMS_AT_ONCE = 1000  # list items per APPENDS, as pickle writes them


class TensorRecord(NamedTuple):
    """A tensor in a torch file: its storage, and its start, shape and strides in the storage, in elements."""

    storage: str
    dtype: str
    start: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


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
        """Return the offset and size of a member's data, in bytes, or raise ValueError."""
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
        """Read a whole member, or raise ValueError."""
        offset, size = self.locate(name)
        if size > os.fstat(self._file).st_size:
            raise ValueError(f"record {name} is truncated")
        data = bytearray()
        while len(data) < size and (part := os.pread(self._file, size - len(data), offset + len(data))):
            data += part
        if len(data) < size:
            raise ValueError(f"record {name} is truncated")
        return bytes(data)


class TorchFile:
    """A file that torch.save wrote, opened for reading.

    Raises:
        FormatError: It is no such file, or truncated.
        OSError: It cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = path.open("rb")
        try:
            self._members = _Members(self._file)
            if _PICKLE not in self._members:
                raise ValueError(f"it has no {_PICKLE}")
            if "byteorder" in self._members and (order := self._members.read("byteorder")) != b"little":
                raise ValueError(f"its byte order is {order!r}; only little is supported")
        except (zipfile.BadZipFile, ValueError, NotImplementedError, EOFError, struct.error, zlib.error) as error:
            raise FormatError(f"{path}: not a torch file, or truncated: {one_line(error)}") from None

    def load(self) -> Any:
        """Return the object that was saved, with a `TensorRecord` for each tensor.

        Raises:
            FormatError: The pickle is broken, or holds something else than tensors and plain containers.
        """
        try:
            return _Unpickler(io.BytesIO(self._members.read(_PICKLE))).load()
        except Exception as error:  # unpickling broken bytes raises nearly anything
            raise FormatError(f"{self._path}: cannot be loaded: {one_line(error)}") from None

    def read(self, tensor: TensorRecord) -> NDArray[Any]:
        """Read a tensor's values.

        Raises:
            FormatError: The tensor is not within its storage, or the storage is not in the file.
        """
        try:
            dtype = np.dtype(tensor.dtype)
            offset, size = self._members.locate(f"data/{tensor.storage}")
            count = _extent(tensor)
            if (tensor.start + count) * dtype.itemsize > size:
                raise ValueError(f"it ends at element {tensor.start + count} of a storage of {size} bytes")
            data = os.pread(self._file.fileno(), count * dtype.itemsize, offset + tensor.start * dtype.itemsize)
            steps = [stride * dtype.itemsize for stride in tensor.strides]
            return np.ndarray(tensor.shape, dtype, data, strides=steps)
        except (RuntimeError, TypeError, ValueError, OverflowError, MemoryError) as error:
            raise FormatError(f"{self._path}: a tensor is not in the file: {one_line(error)}") from None


def _extent(tensor: TensorRecord) -> int:
    """Return the number of elements from a tensor's first to its last, both included, or raise ValueError."""
    layout = (tensor.start, *tensor.shape, *tensor.strides)
    if any(type(value) is not int or value < 0 for value in layout) or len(tensor.shape) != len(tensor.strides):
        raise ValueError(f"start {tensor.start}, shape {tensor.shape} and strides {tensor.strides} do not fit")
    if 0 in tensor.shape:
        return 0
    count = 1 + sum((side - 1) * stride for side, stride in zip(tensor.shape, tensor.strides, strict=True))
    if prod(tensor.shape) > count:
        raise ValueError(f"shape {tensor.shape} and strides {tensor.strides} overlap")
    return count


class _Unpickler(pickle.Unpickler):
    """Knows only the parts of a list of tensors, so that no file can have anything executed."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _rebuild_tensor
        if (module, name) == ("collections", "OrderedDict"):  # a tensor's backward hooks; there are none
            return lambda: None
        if module == "torch" and name in _DTYPES:
            return _StorageType(name)
        raise pickle.UnpicklingError(f"it holds {module}.{name}, which is no tensor")

    def persistent_load(self, pid: Any) -> tuple[str, str]:
        _, storage_type, key, *_ = pid
        if not isinstance(storage_type, _StorageType) or not isinstance(key, str):
            raise pickle.UnpicklingError("it holds a storage without a type or a name")
        return key, _DTYPES[storage_type.name]


class _StorageType(NamedTuple):
    name: str


def _rebuild_tensor(storage: Any, start: Any, shape: Any, strides: Any, *_: object) -> TensorRecord:
    key, dtype = storage
    if dtype not in _DTYPES.values() or not isinstance(key, str):
        raise pickle.UnpicklingError("it holds a tensor without a storage")
    return TensorRecord(key, dtype, start, tuple(shape), tuple(strides))


class TorchWriter:
    """Writes a list of dicts of tensors as torch.save would, in pieces: first the storages, then the list.

    A context manager. An error inside leaves a truncated file.
    """

    def __init__(self, path: Path) -> None:
        self._file = path.open("xb")
        self._zip = zipfile.ZipFile(self._file, "w")
        self._storages: list[tuple[str, int]] = []
        self._memo: dict[bytes, int] = {}

    def storage(self, dtype: str, count: int) -> IO[bytes]:
        """Open the record of the next storage for writing its bytes.

        Args:
            dtype: The NumPy dtype of its elements.
            count: The number of its elements.
        """
        self._storages.append((dtype, count))
        return self._record(f"data/{len(self._storages) - 1}")

    def write_list(self, items: Iterable[Mapping[str, tuple[int, int, tuple[int, ...]]]]) -> None:
        """Write the list.

        Args:
            items: For each item its contiguous tensors by name: the index of the storage, the start in it, the shape.
        """
        with self._record(_PICKLE) as file:
            file.write(pickle.PROTO + b"\x02" + pickle.EMPTY_LIST)
            file.write(pickle.MARK)
            for number, item in enumerate(items, start=1):
                fields = b"".join(self._memoized(_text(name)) + self._tensor(*place) for name, place in item.items())
                file.write(pickle.EMPTY_DICT + pickle.MARK + fields + pickle.SETITEMS)
                if number % _ITEMS_AT_ONCE == 0:
                    file.write(pickle.APPENDS + pickle.MARK)
            file.write(pickle.APPENDS + pickle.STOP)
        for name, data in (("byteorder", b"little"), ("version", b"3\n")):
            with self._record(name) as file:
                file.write(data)

    def _tensor(self, storage: int, start: int, shape: tuple[int, ...]) -> bytes:
        """Pickle torch._utils._rebuild_tensor_v2(storage, start, shape, strides, False, OrderedDict())."""
        strides = [int(np.prod(shape[axis + 1 :])) for axis in range(len(shape))]
        return (
            self._memoized(_global("torch._utils", "_rebuild_tensor_v2"))
            + pickle.MARK
            + self._memoized(self._storage(storage))
            + _integer(start)
            + self._memoized(_tuple(shape))
            + self._memoized(_tuple(strides))
            + pickle.NEWFALSE
            + self._memoized(_global("collections", "OrderedDict"))
            + pickle.EMPTY_TUPLE
            + pickle.REDUCE
            + pickle.TUPLE
            + pickle.REDUCE
        )

    def _storage(self, index: int) -> bytes:
        dtype, count = self._storages[index]
        kind = next(name for name, stored in _DTYPES.items() if stored == dtype)
        fields = _text("storage") + _global("torch", kind) + _text(str(index)) + _text("cpu") + _integer(count)
        return pickle.MARK + fields + pickle.TUPLE + pickle.BINPERSID

    def _memoized(self, code: bytes) -> bytes:
        """Return the code that pickles an object; from its second use on, the code that gets it from the memo."""
        slot = self._memo.get(code)
        if slot is not None:
            return pickle.BINGET + bytes([slot])
        self._memo[code] = len(self._memo)
        return code + pickle.BINPUT + bytes([self._memo[code]])

    def _record(self, name: str) -> IO[bytes]:
        info = zipfile.ZipInfo(f"archive/{name}")
        # After the local header, the name, 20 bytes for sizes beyond 4 GiB and the padding's own 4 bytes.
        position = self._file.tell() + 30 + len(info.filename) + 20 + 4
        padding = -position % _ALIGNMENT
        info.extra = struct.pack("<2sH", b"FB", padding) + bytes(padding)
        return self._zip.open(info, "w", force_zip64=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._zip.close()
        self._file.close()


def _global(module: str, name: str) -> bytes:
    return pickle.GLOBAL + f"{module}\n{name}\n".encode()


def _text(text: str) -> bytes:
    return pickle.BINUNICODE + struct.pack("<I", len(text.encode())) + text.encode()


def _integer(value: int) -> bytes:
    return pickle.dumps(value, 2)[2:-1]


def _tuple(values: Iterable[int]) -> bytes:
    return pickle.MARK + b"".join(map(_integer, values)) + pickle.TUPLE
