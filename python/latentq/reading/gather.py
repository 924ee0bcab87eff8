"""How a batch comes together: columns gathered by the compiled core, by the caller or ahead of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from latentq import _core
from latentq.quantizer import Quantizer
from latentq.reading.buffers import Empty

_LINE = 64  # bytes of a cache line


@dataclass(frozen=True)
class Column:
    """One column of a batch.

    Attributes:
        name: Its name in the batch.
        place: Its number where it is read from.
        shape: Of one of its values in the batch, if it is a tensor's; None for a list.
        dtype: Of the tensor.
        quantizer: What its stored codes mean; None where the stored bytes are the values.
        is_code: Whether that is for `Layout.decode_batch` to find out.
        convert: What makes the values of those that were read; None where nothing is to be done.
    """

    name: str
    place: int
    shape: tuple[int, ...] | None
    dtype: torch.dtype = torch.uint8
    quantizer: Quantizer | None = None
    is_code: bool = False
    convert: Callable[[Any, NDArray[np.int64]], Any] | None = None


class Gatherer:
    """Gathers batches of some columns. What is the same for all batches is worked out once.

    Args:
        samples: What they are read from.
        columns: What a batch has.

    Attributes:
        is_whole: Whether its batches have nothing left to decode.
    """

    def __init__(self, samples: _core.MdsReader | _core.MemoryTables, columns: Sequence[Column]) -> None:
        self._samples = samples
        self._columns = columns
        self.is_whole = not any(column.is_code for column in columns)
        self._places = [column.place for column in columns]
        self._kernels = [
            None if column.quantizer is None else column.quantizer.kernel(column.dtype == torch.bfloat16)
            for column in columns
        ]

    def nbytes(self, count: int) -> int:
        """The bytes of the tensors of a batch of so many samples, each rounded up to whole cache lines."""
        sizes = (
            count * prod(column.shape) * column.dtype.itemsize for column in self._columns if column.shape is not None
        )
        return sum(-(-size // _LINE) * _LINE for size in sizes)

    def begin(
        self, indices: NDArray[np.int64], empty: Empty, threads: _core.Threads | None = None
    ) -> Callable[[], dict[str, Any]]:
        """Begins a batch; what is returned waits for it and gives it.

        Args:
            indices: Of its samples.
            empty: Makes its tensors.
            threads: That gather it, and must not end before; None for the caller's, at once.
        """
        count, tensors, outs = len(indices), [], []
        for column in self._columns:
            tensor = None if column.shape is None else empty((count, *column.shape), column.dtype)
            tensors.append(tensor)
            outs.append(None if tensor is None else _buffer(tensor, column))
        gathering = _core.gather(self._samples, indices, self._places, outs, self._kernels, threads)

        def batch() -> dict[str, Any]:
            values = {}
            for column, tensor, listed in zip(self._columns, tensors, gathering.result(), strict=True):
                value = listed if tensor is None else tensor
                values[column.name] = value if column.convert is None else column.convert(value, indices)
            return values

        return batch


_AS_THEY_ARE = ((torch.uint8, 2), (torch.int64, 1))


def _buffer(tensor: torch.Tensor, column: Column) -> NDArray[Any]:
    """A tensor's memory as the core takes it: values of 16 bits as uint16, and most that is stored as rows of bytes."""
    if column.quantizer is None:
        array = tensor.numpy()
        return array if (tensor.dtype, tensor.ndim) in _AS_THEY_ARE else rows(array)
    return tensor.numpy() if tensor.dtype == torch.float32 else tensor.view(torch.uint16).numpy()


def rows(array: NDArray[Any]) -> NDArray[np.uint8]:
    """The memory of an array (N, ...) as uint8 (N, bytes)."""
    return array.view(np.uint8).reshape(len(array), array.strides[0])
