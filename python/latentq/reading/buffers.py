"""Where the tensors of a batch lie."""

from __future__ import annotations

import weakref
from collections import defaultdict
from collections.abc import Callable
from math import prod
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import get_worker_info

# Makes a tensor of a shape and dtype, its values not set.
Empty = Callable[[tuple[int, ...], torch.dtype], torch.Tensor]


_NUMPY: dict[torch.dtype, Any] = {
    torch.float32: np.float32,
    torch.float16: np.float16,
    torch.bfloat16: np.uint16,
    torch.uint8: np.uint8,
    torch.int64: np.int64,
}


_SMALL = 1 << 14  # bytes, below which memory is used again by the allocator's own doing


def private(shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    """Fresh memory of this process."""
    return torch.empty(shape, dtype=dtype)


def shareable(shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    """Fresh memory; in a DataLoader's worker it is shared, so that sending the tensor copies nothing."""
    if get_worker_info() is None:
        return torch.empty(shape, dtype=dtype)
    untyped: Any = torch.UntypedStorage  # its _new_shared, by which torch's own default_collate does the same
    storage: torch.UntypedStorage = untyped._new_shared(prod(shape) * dtype.itemsize, device="cpu")
    return torch.empty(0, dtype=dtype).set_(storage).view(shape)


def pinned(shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    """Page-locked memory, from torch's own cache."""
    return torch.empty(shape, dtype=dtype, pin_memory=True)


class _Loan(weakref.ref[NDArray[Any]]):
    """A lent array's weak reference, with the memory that becomes free when the array is gone."""

    memory: NDArray[np.uint8]


class Recycled:
    """Memory that is used again once nobody holds the tensor in it: fresh pages cost more than filling them.

    Tensors may be asked for, kept and dropped by any thread.
    """

    def __init__(self) -> None:
        self._loans: dict[int, _Loan] = {}
        self._free: defaultdict[int, list[_Loan]] = defaultdict(list)

    def __call__(self, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        """A tensor in memory that was used before, or else in fresh memory."""
        nbytes = prod(shape) * dtype.itemsize
        if nbytes < _SMALL:
            return torch.empty(shape, dtype=dtype)
        free = self._free[nbytes]
        try:
            ended = free.pop()
            memory = ended.memory
            del self._loans[id(ended)]
        except IndexError:
            memory = np.empty(nbytes, np.uint8)
        # The tensor, and every view of it, keeps this array alive, and nothing else does. What is called when it is
        # gone must be C alone: in Python code of a callback a Ctrl-C would be lost. Views are NumPy's, since torch's
        # would hand the interpreter to another thread and wait for it.
        lent = memory.view(_NUMPY[dtype]).reshape(shape)
        loan = _Loan(lent, free.append)
        loan.memory = memory
        self._loans[id(loan)] = loan
        tensor = torch.from_numpy(lent)
        return tensor.view(dtype) if dtype == torch.bfloat16 else tensor
