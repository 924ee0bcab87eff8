"""Writes a dataset of MDS shards, and publishes it as a whole."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from latentq import _core
from latentq.mds.values import ENCODERS


class Writer:
    """Writes a dataset into a temporary folder next to `path`, and publishes it with one rename when it is closed.

    As a context manager, an exception inside `with` removes the temporary and publishes nothing. A full shard is
    written by a separate thread while the next is filled, so at most two shards are in memory; during compression, also
    a copy of one and the result. A forked child can neither fill nor publish its parent's dataset. A writer must not be
    used by two threads at the same time.

    Args:
        path: The dataset's folder: absent (in a folder that exists), or empty.
        columns: The encoding of each column by name: those of mosaicml-streaming except `pkl`, and `raw:DTYPE`, an
            array's bytes alone, which imagenet.int8 types as the scalar.
        compression: `br`, `bz2`, `gz`, `snappy` or `zstd`, all except `snappy` also with a level, as in `zstd:7`.
        hashes: Algorithms of `hashlib` and `xxhash`, in any order; the index holds the digests of every shard.
        size_limit: The maximum size of a shard, below 2**32 bytes: a number of bytes, or a number with a unit as
            mosaicml-streaming writes it (`1kb` is 1024 bytes, `64mb`). A larger sample gets a shard of its own. With
            None or 0, all samples go into one shard of less than 4 GiB.
        sync: True if `close` returns only after everything was fsynced.
        buffers: Memory for shards that earlier writers have used and later ones will, which is faster than new memory.

    Raises:
        ValueError: The format does not have such columns, compression, hashes or limit.
        FileExistsError: There is something at `path`.
        OSError: The folder next to `path` is not writable.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        columns: Mapping[str, str],
        *,
        compression: str | None = None,
        hashes: Iterable[str] = (),
        size_limit: int | str | None = 1 << 26,
        sync: bool = True,
        buffers: _core.MdsBuffers | None = None,
    ) -> None:
        limit = _size_in_bytes(size_limit)
        self._core = _core.MdsWriter(
            os.fspath(path), list(columns.items()), compression, list(hashes), min(limit, 1 << 32), sync, buffers
        )
        self._fixed = self._fixed_columns()
        self._encoders = {name: ENCODERS[encoding] for name, encoding in columns.items() if encoding in ENCODERS}
        if not self._encoders and type(self).write is Writer.write:
            # Nothing of `write` is left to do in Python, so skip its frame.
            self.write = self._core.write  # type: ignore[method-assign]

    def _fixed_columns(self) -> dict[str, tuple[str, list[int]] | None]:
        """Returns the dtype and shape of each column's values, or None where they vary."""
        return {name: fixed for name, _, fixed in self._core.columns}

    def begin_group(self, name: str, columns: Mapping[str, str]) -> None:
        """Begins a group of samples, whose arrays may have another shape than those before.

        The samples that follow go to shards called `shard.NAME.NNNNN.mds`. A group without samples leaves no trace.

        Args:
            name: 1 to 100 of the characters A-Z, a-z, 0-9, - and _; after the name of the group before, in text order.
            columns: The encoding of each column of the dataset; only the lengths of an array's axes may differ.

        Raises:
            ValueError: The name or a column is not allowed; nothing is changed.
            OSError: A shard could not be written. The dataset can no longer be published.
        """
        self._core.begin_group(name, list(columns.items()))
        self._fixed = self._fixed_columns()

    def write(self, sample: Mapping[str, Any]) -> None:
        """Adds one sample. A `bytes` value is written unchanged, for any encoding.

        Args:
            sample: A value for each column; other keys are ignored.

        Raises:
            KeyError: A column is missing.
            ValueError: A value does not fit its column; nothing of the sample is written.
            TypeError: A value has another type than its column.
            OSError: A shard could not be written. The dataset can no longer be published.
        """
        if self._encoders:
            encoded = {name: self._encoded(name, sample[name]) for name in self._encoders if name in sample}
            sample = {**sample, **encoded}
        self._core.write(sample)

    def write_batch(self, batch: Mapping[str, Any]) -> None:
        """Adds N samples: all of them, or none if a value does not fit.

        Args:
            batch: For each column a sequence of N values. A column of fixed arrays also takes an array (N, *shape), and
                a column of numbers an array (N,).

        Raises:
            ValueError: The columns have different lengths, or a value does not fit.
            KeyError: As in `write`; also `TypeError` and `OSError`.
        """
        columns: dict[str, Any] = {}
        lengths = {}
        for name, fixed in self._fixed.items():
            if name not in batch:
                raise KeyError(f"the batch has no column {name!r}")
            values = batch[name]
            lengths[name] = len(values)
            if name in self._encoders:
                values = [self._encoded(name, value) for value in values]
            elif fixed is not None and isinstance(values, np.ndarray):
                values = _array_values(values, *fixed)
            columns[name] = values
        if len(set(lengths.values())) > 1:
            raise ValueError(f"columns of different lengths: {lengths}")
        self._core.write_batch(next(iter(lengths.values())), columns)

    def add_file(self, name: str, data: bytes) -> None:
        """Adds another file that is published together with the shards.

        Args:
            name: The file's name, without a separator; not the name of a shard or of the index.
            data: The file's content.

        Raises:
            ValueError: The name is not allowed, or was added before.
            OSError: The file could not be written. The dataset can no longer be published.
        """
        self._core.add_file(name, data)

    def close(self) -> None:
        """Writes the last shard and the index, and publishes the dataset. Closing again does nothing.

        Raises:
            FileExistsError: Another process has published there since; this writer's files are removed.
            OSError: A file could not be written; nothing is published.
        """
        self._core.finish()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
        else:
            self._core.abort()

    def _encoded(self, name: str, value: Any) -> Any:
        """Returns what the core writes for a value of a column that has an encoder in Python."""
        if isinstance(value, bytes):
            return value
        try:
            return self._encoders[name](value)
        except TypeError as error:
            raise TypeError(f"column {name!r}: {error}") from None
        except ValueError as error:
            raise ValueError(f"column {name!r}: {error}") from None


def _size_in_bytes(size: int | str | None) -> int:
    """Returns a size limit in bytes, 0 for none.

    Raises:
        ValueError: It is negative, or a text that mosaicml-streaming does not take.
    """
    if isinstance(size, str):
        match = re.fullmatch(r"(\d+)b?|(\d+\.?\d*|\.\d+)\s*([kmgt])b", size.strip().lower())
        if match is None:
            raise ValueError(f"size_limit {size!r} is not a number of bytes, kb, mb, gb or tb, such as 64mb")
        whole, number, unit = match.groups()
        return int(whole) if number is None else int(float(number) * 1024 ** ("kmgt".index(unit) + 1))
    if size is not None and size < 0:
        raise ValueError(f"size_limit {size} is negative")
    return size or 0


def _array_values(values: NDArray[Any], dtype: str, shape: list[int]) -> Any:
    """Returns the bytes of an array (N, *shape) in C order; if its dtype or shape differs, a list of its N values.

    Args:
        values: The array, of any dtype and memory order.
        dtype: NumPy's name of the column's dtype.
        shape: Shape of one value.
    """
    if values.dtype.name != dtype or list(values.shape[1:]) != shape:
        return list(values)
    return np.ascontiguousarray(values, np.dtype(dtype)).reshape(-1).view(np.uint8)
