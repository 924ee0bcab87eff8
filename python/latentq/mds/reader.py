"""Reads samples of a dataset of MDS shards."""

from __future__ import annotations

import operator
import os
import sys
import time
from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any, overload

import numpy as np
from numpy.typing import ArrayLike, NDArray

from latentq import _core
from latentq._core import MismatchError
from latentq.mds.values import DECODERS, NOT_ABOUT_THE_VALUE
from latentq.system.arrays import new_array
from latentq.system.memory import available_bytes

_INT64, _UINT8 = np.dtype(np.int64), np.dtype(np.uint8)
_PAGE_CACHE_SHARE = 4  # files of up to 3/4 of available memory are read ahead as a whole
_FRESH = 10.0  # seconds until the available memory is measured again
_MEMORY_SHARE = 8  # all readers of a process cache uncompressed shards up to this fraction (1/8) of available memory


class Reader:
    """A dataset that is open for reading: a sequence of samples, each a dict of its columns.

    A file is opened when it is first read, checked against the index then, and read by position. A reader can be shared
    between threads, pickled (as its path) and used after a fork.

    A column whose encoding is `pkl` or unknown gives its bytes. Arrays are writable and own their memory.

    Args:
        path: The dataset's folder.
        cache_bytes: The maximum number of bytes of shards to cache in memory. As many compressed shards are cached as
            fit, and always one. Uncompressed shards are cached only if the whole dataset fits and takes no more than
            an eighth of the memory available when the reader is opened: a background thread loads the shards one after
            the other, in the second epoch, or at once for a loader whose samples are not in the page cache. A forked
            child shares what its parent has cached. Neither a forked child nor an unpickled reader caches more
            uncompressed shards: the system's page cache serves all processes.

    Raises:
        FileNotFoundError: The folder has no index.json.
        latentq.FormatError: The index violates its format.
        ValueError: `cache_bytes` is negative.

    Attributes:
        path: The dataset's folder, absolute.
        columns: The encoding of each column by name, as `Writer` takes them; `ndarray:DTYPE` for arrays whose shape
            differs from group to group.
    """

    path: Path
    columns: dict[str, str]

    def __init__(self, path: str | os.PathLike[str], *, cache_bytes: int = 1 << 30) -> None:
        if cache_bytes < 0:
            raise ValueError(f"cache_bytes {cache_bytes} is negative")
        cache_bytes = min(cache_bytes, sys.maxsize)
        available = available_bytes()
        self._open(path, cache_bytes, cache_bytes if available is None else max(available // _MEMORY_SHARE, 0))

    def _open(self, path: str | os.PathLike[str], cache_bytes: int, raw_cache_bytes: int) -> None:
        self.path = Path(path).absolute()
        self._cache_bytes = cache_bytes
        self._measured, self._room = time.monotonic(), _page_cache()
        self._core = _core.MdsReader(str(self.path), cache_bytes, raw_cache_bytes, self._room)
        columns = self._core.columns
        self.columns = {name: encoding for name, encoding, _ in columns}
        self._resolved = {
            name: (number, None if fixed is None else (np.dtype(fixed[0]), tuple(fixed[1])))
            for number, (name, _, fixed) in enumerate(columns)
        }
        self._decoders = {name: DECODERS[text] for name, text in self.columns.items() if text in DECODERS}

    @property
    def core(self) -> _core.MdsReader:
        """The compiled reader, which `_core.gather` takes."""
        return self._core

    def read_ahead(self, *, begin: bool, parts: int = 1) -> None:
        """Announces that all samples will be read in any order, or ends such an announcement.

        If they are not in memory, and the files of the dataset have at most three quarters of the available memory, or
        of its part, a background thread reads whole files ahead. Reads wait for the thread up to 0.5 s. Each of several
        loaders announces and ends on its own: the thread stops when all have ended.

        Args:
            begin: False to end.
            parts: The number of datasets that are read together, among which memory is divided.
        """
        if begin:
            self._core.expect_all(self.room() // parts)
        else:
            self._core.stop_ahead()

    def room(self) -> int:
        """Returns how many bytes of files may be read ahead."""
        now = time.monotonic()
        if now >= self._measured + _FRESH:
            self._measured, self._room = now, _page_cache()
        return self._room

    def __len__(self) -> int:
        return len(self._core)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Returns the sample at `index`; a negative index counts from the end.

        Raises:
            IndexError: There is no such sample.
            latentq.FormatError: The shard, or a value in it, violates its format.
        """
        try:
            sample = self._core.sample(index)
        except OverflowError:
            raise self._out_of_bounds(index) from None
        for name in self._decoders:
            sample[name] = self._decoded(name, sample[name], index)
        return sample

    def groups(self) -> tuple[list[str], NDArray[np.int64], NDArray[np.int32]]:
        """Returns the groups of the samples, by the names of their shards: see `Writer.begin_group`.

        Returns:
            The names of the groups in the order of their first samples, '' for shards without a group; for each run of
            consecutive samples of a group the index of its first sample, (R,) ascending from 0; and the position of its
            group among the names, (R,).
        """
        return self._core.groups()

    def __reduce__(self) -> tuple[Any, ...]:
        return _unpickled, (str(self.path), self._cache_bytes, self._core.index_hash)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self.path)!r})"

    @overload
    def gather(self, indices: ArrayLike, column: str, *, out: NDArray[np.uint8] | None = None) -> Any: ...
    @overload
    def gather(
        self, indices: ArrayLike, column: Sequence[str], *, out: Mapping[str, NDArray[np.uint8]] | None = None
    ) -> dict[str, Any]: ...
    def gather(self, indices: ArrayLike, column: str | Sequence[str], *, out: Any = None) -> Any:
        """Returns one column of many samples, or several columns.

        Args:
            indices: The n indices, in any order, repeated or not; negative ones count from the end.
            column: A column's name, or several names.
            out: A C-contiguous uint8 array (n, k) that receives the bytes of one column's values, if each has exactly k
                bytes; with several columns, a dict of such arrays for any of the columns.

        Returns:
            For a column of fixed arrays or numbers, an array (n, *shape) of its dtype; for any other column a list of n
            values; `out` if it is given. For several columns, a dict of these by name.

        Raises:
            IndexError: There is no such sample.
            KeyError: There is no such column.
            ValueError: `out` is not such an array, its arrays overlap or are for columns not asked for, or a value does
                not have k bytes.
            TypeError: The indices are not integers.
            latentq.FormatError: A shard, or a value in it, violates its format.
        """
        positions = _index_array(indices)
        if isinstance(column, str):
            number, fixed = self.resolve_column(column)
            if out is not None:
                _check_out(out, len(positions))
                _core.gather_now(self._core, positions, (number,), (out,))
                return out
            if fixed is not None:  # in one call: in Python, a few steps take as long as a few samples
                dtype, shape = fixed
                return _core.gather_array(self._core, positions, number, shape, dtype)
            return self._gather(positions, [column], [None])[0]
        names, outs = list(column), {} if out is None else out
        if not isinstance(outs, Mapping):
            raise ValueError("with several columns, out must be a dict of arrays by column")
        if unknown := [name for name in outs if name not in names]:
            raise ValueError(f"out has arrays for {unknown}, which are not among the columns {names}")
        return dict(zip(names, self._gather(positions, names, [outs.get(name) for name in names]), strict=True))

    def stored(self, index: int, column: str) -> Any:
        """Returns one column of one sample as it is stored: an image as the bytes of its file, not decoded.

        Args:
            index: The sample's index; a negative index counts from the end.
            column: The column's name.

        Raises:
            IndexError: There is no such sample.
            KeyError: There is no such column.
            latentq.FormatError: The shard violates its format.
        """
        try:
            positions = np.array([operator.index(index)], np.int64)
        except OverflowError:
            raise self._out_of_bounds(index) from None
        values = _core.gather_now(self._core, positions, [self.resolve_column(column)[0]], [None])[0]
        assert values is not None
        return values[0]

    def resolve_column(self, column: str) -> tuple[int, tuple[np.dtype[Any], tuple[int, ...]] | None]:
        """Returns a column's number, and the dtype and shape of its values if all have the same, else None.

        Args:
            column: The column's name.

        Raises:
            KeyError: There is no such column.
        """
        if column not in self._resolved:
            raise KeyError(f"{self.path} has no column {column!r}, but {', '.join(map(repr, self.columns))}")
        return self._resolved[column]

    def _gather(self, indices: NDArray[np.int64], names: list[str], outs: list[NDArray[np.uint8] | None]) -> list[Any]:
        n = len(indices)
        arrays: list[Any] = []
        for name, out in zip(names, outs, strict=True):
            _, fixed = self.resolve_column(name)
            if out is not None:
                _check_out(out, n)
                arrays.append(out)
            elif fixed is not None:
                dtype, shape = fixed
                arrays.append(new_array((n, *shape), dtype))
            else:
                arrays.append(None)
        given = [out for out in outs if out is not None]
        if len(given) > 1 and any(np.may_share_memory(*pair) for pair in combinations(given, 2)):
            raise ValueError("the arrays of out overlap")
        lists = _core.gather_now(self._core, indices, [self.resolve_column(name)[0] for name in names], arrays)
        return [
            array if values is None else self.decoded_list(name, values, indices)
            for name, array, values in zip(names, arrays, lists, strict=True)
        ]

    def decoded_list(self, name: str, values: list[Any], indices: NDArray[np.int64]) -> list[Any]:
        """Decodes a column's values that the core gathered from the samples `indices`, as `gather` returns them.

        Args:
            name: The column's name.
            values: The gathered values, one per sample.
            indices: The samples' indices.
        """
        if name not in self._decoders:
            return values
        return [self._decoded(name, value, index) for value, index in zip(values, indices.tolist(), strict=True)]

    def _decoded(self, name: str, value: Any, index: int) -> Any:
        try:
            return self._decoders[name](value)
        except NOT_ABOUT_THE_VALUE:
            raise
        except Exception as error:  # Pillow's plugins raise many types on damaged bytes: SyntaxError, struct.error
            self._core.fault(index, self.resolve_column(name)[0], str(error))

    def _out_of_bounds(self, index: int) -> IndexError:
        return IndexError(f"index {index} is out of bounds for axis 0 with size {len(self)}")


def _page_cache() -> int:
    """Returns how many bytes of files may be read ahead: they must stay in memory until they are needed."""
    available = available_bytes()
    return 0 if available is None else max(available - available // _PAGE_CACHE_SHARE, 0)


def _unpickled(path: str, cache_bytes: int, index_hash: int) -> Reader:
    """Opens the dataset of a pickled reader. Raises MismatchError if another one is there now."""
    reader = Reader.__new__(Reader)
    reader._open(path, cache_bytes, 0)
    if reader._core.index_hash != index_hash:
        raise MismatchError(f"{path} has another index than when it was opened, after an update perhaps: open it again")
    return reader


def _check_out(out: Any, n: int) -> None:
    """Raises ValueError unless `out` can receive `n` values."""
    fits = isinstance(out, np.ndarray) and out.dtype == _UINT8 and out.ndim == 2 and len(out) == n
    if not fits or not out.flags.c_contiguous or not out.flags.writeable:
        raise ValueError(f"out must be a C-contiguous, writable uint8 array of shape ({n}, k)")


def _index_array(indices: ArrayLike) -> NDArray[np.int64]:
    """Returns indices as a contiguous int64 array with one axis."""
    array = np.asarray(indices)
    if array.dtype == _INT64 and array.ndim == 1 and array.flags.c_contiguous:
        return array
    if array.ndim != 1:
        raise ValueError(f"indices must have one axis, not {array.ndim}")
    if array.size == 0:
        return np.empty(0, np.int64)
    if array.dtype.kind not in "iu":
        raise TypeError(f"indices must be integers, not {array.dtype}")
    if array.dtype.kind == "u" and array.max() > np.iinfo(np.int64).max:
        raise IndexError(f"index {array.max()} is out of bounds")
    return np.ascontiguousarray(array, np.int64)
