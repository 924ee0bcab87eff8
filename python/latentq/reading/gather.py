"""Building batches: columns gathered by the compiled core, on the caller's thread or on background threads."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from latentq import _core
from latentq._core import FormatError
from latentq.quantizer import AnyQuantizer
from latentq.reading.buffers import Allocate, whole_lines
from latentq.reading.samples import Batch, ColumnDict


@dataclass(frozen=True)
class GatheredColumn:
    """The gathering of one column of a batch.

    Attributes:
        name: The column's name in the batch.
        position: Its position among the columns it is read from.
        shape: The shape of one sample's value in the batch's tensor; None if the batch has a list.
        dtype: The tensor's dtype.
        quantizer: Dequantizes the stored codes; None if the stored bytes are copied.
        needs_decoding: True if `Layout.decode_batch` must decode the copied bytes.
        convert: Converts the gathered values of a batch, given them and the indices; None if they are left as gathered.
    """

    name: str
    position: int
    shape: tuple[int, ...] | None
    dtype: torch.dtype = torch.uint8
    quantizer: AnyQuantizer | None = None
    needs_decoding: bool = False
    convert: Callable[[Any, NDArray[np.int64]], Any] | None = None


class Pinned(Protocol):
    """Files that are kept while samples are read from them."""

    @property
    def missing(self) -> int:
        """The number of files that are not there yet."""

    def wait(self) -> None:
        """Waits until they are there."""

    def release(self) -> None:
        """Ends keeping them."""


class Gatherer:
    """Gathers batches of some columns. Whatever is the same for all batches is computed once.

    Args:
        samples: The samples to read.
        columns: The columns of a batch.
        rows: Maps indices of samples to rows of `samples`; None if they are the same.
        pin: Keeps the files of some samples, given their indices; None if all files are there.
        name_damage: Raises an error that names the damaged one of some samples, given their indices; None if the
            core's error does.

    Attributes:
        gives_decoded: True if its batches need no further decoding.
    """

    def __init__(
        self,
        samples: _core.MdsReader | _core.MemoryTables,
        columns: Sequence[GatheredColumn],
        rows: Callable[[NDArray[np.int64]], NDArray[np.int64]] | None = None,
        pin: Callable[[NDArray[np.int64]], Pinned | None] | None = None,
        name_damage: Callable[[NDArray[np.int64]], None] | None = None,
    ) -> None:
        self._samples = samples
        self._rows = rows
        self._pin = pin
        self._name_damage = name_damage
        self._columns = columns
        self.gives_decoded = not any(column.needs_decoding for column in columns)
        self._positions = [column.position for column in columns]
        self._quantizers = [
            None if column.quantizer is None else column.quantizer.for_gather(column.dtype == torch.bfloat16)
            for column in columns
        ]

    def nbytes(self, count: int) -> int:
        """Returns the bytes of the tensors in a batch of `count` samples, each rounded up to whole cache lines."""
        sizes = (
            count * prod(column.shape) * column.dtype.itemsize for column in self._columns if column.shape is not None
        )
        return sum(map(whole_lines, sizes))

    def begin(
        self,
        indices: NDArray[np.int64],
        allocate: Allocate,
        threads: _core.Threads | None = None,
        pinned: Pinned | None = None,
    ) -> Callable[[], Batch]:
        """Begins to gather a batch.

        Args:
            indices: The indices of its samples.
            allocate: Allocates its tensors.
            threads: The threads that gather it, which must not end before it is done; None gathers it at once, on the
                caller's thread.
            pinned: The files of the samples, if the caller keeps them until the batch is there; None to keep them here.

        Returns:
            A function that waits for the batch and returns it. Call it once.
        """
        count, tensors, outs = len(indices), [], []
        for column in self._columns:
            tensor = None if column.shape is None else allocate((count, *column.shape), column.dtype)
            tensors.append(tensor)
            outs.append(None if tensor is None else _buffer(tensor, column))
        found = indices if self._rows is None else self._rows(indices)
        own = self._pin(found) if self._pin is not None and pinned is None else None
        try:
            for files in (pinned, own):
                if files is not None:
                    files.wait()
            gathering = _core.gather(self._samples, found, self._positions, outs, self._quantizers, threads)
        except BaseException as error:
            if own is not None:
                own.release()
            self._explain(error, indices)
            raise

        def batch() -> Batch:
            values = ColumnDict()
            try:
                gathered = gathering.result()
            except FormatError as error:
                self._explain(error, indices)
                raise
            finally:
                if own is not None:
                    own.release()
            for column, tensor, listed in zip(self._columns, tensors, gathered, strict=True):
                value = listed if tensor is None else tensor
                values[column.name] = value if column.convert is None else column.convert(value, indices)
            return values

        return batch

    def _explain(self, error: BaseException, indices: NDArray[np.int64]) -> None:
        """Raises a better error for a damaged sample, if there is one."""
        if self._name_damage is not None and isinstance(error, FormatError):
            self._name_damage(indices)


_UNCHANGED = ((torch.uint8, 2), (torch.int64, 1))  # dtypes and dimensions that the core takes as they are


def _buffer(tensor: torch.Tensor, column: GatheredColumn) -> NDArray[Any]:
    """Returns a tensor's memory as the core takes it: 16-bit floats as uint16, other copied values as rows of bytes."""
    if column.quantizer is None:
        array = tensor.numpy()
        return array if (tensor.dtype, tensor.ndim) in _UNCHANGED else rows(array)
    return tensor.numpy() if tensor.dtype == torch.float32 else tensor.view(torch.uint16).numpy()


def rows(array: NDArray[Any]) -> NDArray[np.uint8]:
    """Views the memory of an array (N, ...) as uint8 (N, bytes)."""
    return array.view(np.uint8).reshape(len(array), array.strides[0])
