"""Writes a list of dicts of tensors as torch.save does, in pieces and without making tensors."""

from __future__ import annotations

import pickle
import struct
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import IO, Self

import numpy as np

from latentq.format.safe_torch_file import PICKLE, STORAGES

_ALIGNMENT = 64  # bytes; torch aligns the records of storages
_ITEMS_AT_ONCE = 1000  # list items per APPENDS, as pickle writes them


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
        """Opens the record of the next storage for writing its bytes.

        Args:
            dtype: The NumPy dtype of its elements.
            count: The number of its elements.
        """
        self._storages.append((dtype, count))
        return self._record(f"data/{len(self._storages) - 1}")

    def write_list(self, items: Iterable[Mapping[str, tuple[int, int, tuple[int, ...]]]]) -> None:
        """Writes the list.

        Args:
            items: For each item its contiguous tensors by name: the index of the storage, the start in it, the shape.
        """
        with self._record(PICKLE) as file:
            file.write(pickle.PROTO + b"\x02" + pickle.EMPTY_LIST)
            file.write(pickle.MARK)
            for number, item in enumerate(items, start=1):
                fields = b"".join(
                    self._memoized(_text(name)) + self._tensor(*location) for name, location in item.items()
                )
                file.write(pickle.EMPTY_DICT + pickle.MARK + fields + pickle.SETITEMS)
                if number % _ITEMS_AT_ONCE == 0:
                    file.write(pickle.APPENDS + pickle.MARK)
            file.write(pickle.APPENDS + pickle.STOP)
        for name, data in (("byteorder", b"little"), ("version", b"3\n")):
            with self._record(name) as file:
                file.write(data)

    def _tensor(self, storage: int, start: int, shape: tuple[int, ...]) -> bytes:
        """Pickles torch._utils._rebuild_tensor_v2(storage, start, shape, strides, False, OrderedDict()).

        Args:
            storage: The number of the storage, in the order of their records.
            start: Offset of the first element, in elements.
            shape: Shape of the tensor, which is C-contiguous.
        """
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
        kind = next(name for name, stored in STORAGES.items() if stored == dtype)
        fields = _text("storage") + _global("torch", kind) + _text(str(index)) + _text("cpu") + _integer(count)
        return pickle.MARK + fields + pickle.TUPLE + pickle.BINPERSID

    def _memoized(self, code: bytes) -> bytes:
        """Returns the code that pickles an object; from its second use on, the code that gets it from the memo."""
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
