"""Memory for the tensors of a batch: private, shared with another process, page-locked, or recycled."""

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

from latentq.system.arrays import new_array

# Allocates an uninitialized CPU tensor of a shape and dtype.
Allocate = Callable[[tuple[int, ...], torch.dtype], torch.Tensor]

_NUMPY: dict[torch.dtype, Any] = {
    torch.float32: np.float32,
    torch.float16: np.float16,
    torch.bfloat16: np.uint16,
    torch.uint8: np.uint8,
    torch.int32: np.int32,
    torch.int64: np.int64,
}
RECYCLED = _NUMPY.keys()
"""The dtypes of tensors whose memory is reused."""

_CPU = torch.device("cpu")  # whatever torch.set_default_device says
_SMALL = 1 << 14  # bytes; the system's allocator already recycles smaller blocks
_MOST_ROOM = 4  # times the size of a tensor; less memory is faster allocated
_MOST_KEPT = 128 << 20  # bytes from one epoch to the next
CACHE_LINE = 64  # bytes


def whole_lines(nbytes: int) -> int:
    """Rounds a number of bytes up to whole cache lines."""
    return -(-nbytes // CACHE_LINE) * CACHE_LINE


def shared_storage(nbytes: int) -> torch.UntypedStorage:
    """Allocates memory that another process can map, as torch's `default_collate` does in a DataLoader worker."""
    untyped: Any = torch.UntypedStorage
    storage: torch.UntypedStorage = untyped._new_shared(nbytes, device="cpu")
    return storage


def private(shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    """Allocates memory that only this process sees: recycled, where it is large and its pages would be new.

    NumPy's, since torch aligns its own: before glibc 2.38, an aligned block finds no room where one of nearly the same
    size was freed once anything small was allocated in between, so that each kept loss cost as much memory as a batch.
    """
    if dtype not in _NUMPY:
        return torch.empty(shape, dtype=dtype, device=_CPU)
    tensor = torch.from_numpy(new_array(tuple(shape), _NUMPY[dtype]))
    return tensor.view(dtype) if dtype == torch.bfloat16 else tensor


def shareable(shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    """Allocates memory; in a DataLoader worker it is shared memory, so that sending the tensor copies nothing."""
    if get_worker_info() is None:
        return private(shape, dtype)
    storage = shared_storage(prod(shape) * dtype.itemsize)
    return torch.empty(0, dtype=dtype, device=_CPU).set_(storage).view(shape)


def pinned_for(device: torch.device | None) -> Allocate:
    """Returns an allocator of page-locked memory from torch's own cache.

    Args:
        device: The GPU that the memory is copied to; None for the current GPU of this thread. Other threads may call
            the allocator: their own current GPU is 0, on which it must not open a context.
    """
    index = torch.cuda.current_device() if device is None or device.index is None else device.index

    def pinned(shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        with torch.cuda.device(index):
            return torch.empty(shape, dtype=dtype, device=_CPU, pin_memory=True)

    return pinned


def _size_class(nbytes: int) -> int:
    """Rounds a size up by less than an eighth, so that batches of nearly the same size share memory."""
    step = 1 << max(nbytes.bit_length() - 4, 0)
    return -(-nbytes // step) * step


def _new(nbytes: int) -> NDArray[np.uint8]:
    """Allocates memory that begins with a cache line: stores of vectors across two lines are slower."""
    memory = np.empty(nbytes + CACHE_LINE, np.uint8)
    start = -memory.ctypes.data % CACHE_LINE
    return memory[start : start + nbytes]


class _Loan(weakref.ref[NDArray[Any]]):
    """A weak reference to a lent array, with the memory that becomes free when the array is gone."""

    memory: NDArray[np.uint8]


class RecycledMemory:
    """An allocator that reuses the memory of unreferenced tensors.

    Allocating new pages costs more than filling them.

    Any thread may allocate, keep and drop tensors. A copy or a pickle has no memory yet.
    """

    def __init__(self) -> None:
        self._loans: dict[int, _Loan] = {}
        self._free: defaultdict[int, list[_Loan]] = defaultdict(list)

    def __reduce__(self) -> tuple[type[RecycledMemory], tuple[()]]:
        return RecycledMemory, ()

    def __call__(self, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        """Allocates a tensor, reusing free memory if there is enough in one piece."""
        nbytes = prod(shape) * dtype.itemsize
        if nbytes < _SMALL:
            return private(shape, dtype)
        memory = self._reused(_size_class(nbytes))
        # Only the tensor and its views keep this array alive. The callback that runs when it is gone must be pure C:
        # a Ctrl-C during a Python callback would be lost. NumPy makes the view, since torch's would release the GIL
        # and wait to reacquire it.
        lent = memory[:nbytes].view(_NUMPY[dtype]).reshape(shape)
        loan = _Loan(lent, self._free[len(memory)].append)
        loan.memory = memory
        self._loans[id(loan)] = loan
        tensor = torch.from_numpy(lent)
        return tensor.view(dtype) if dtype == torch.bfloat16 else tensor

    def trim(self) -> None:
        """Forgets memory until it is at most 128 MiB: what is free, then that of the tensors that were made first.

        A loader keeps its allocator. Once it had lent a whole dataset, to a caller who kept all batches of an epoch, it
        would hold that much for good.
        """
        excess = sum(len(loan.memory) for loan in tuple(self._loans.values())) - _MOST_KEPT
        for room in tuple(self._free):
            free = self._free[room]
            while free and excess > 0:
                excess -= room
                self._take(free)
        for key, loan in tuple(self._loans.items()):
            if excess <= 0:
                return
            excess -= len(loan.memory)
            self._loans.pop(key, None)  # without the reference nothing is told when the tensor is gone

    def _reused(self, room: int) -> NDArray[np.uint8]:
        """Returns free memory of at least `room` bytes, or else new memory of that size.

        A bucket's last batch is smaller than the others, and takes their memory.
        """
        free = self._free[room]
        if not free:
            sizes = sorted(size for size in tuple(self._free) if room < size <= _MOST_ROOM * room)
            free = next((self._free[size] for size in sizes if self._free[size]), free)
        memory = self._take(free)
        return _new(room) if memory is None else memory

    def _take(self, free: list[_Loan]) -> NDArray[np.uint8] | None:
        """Takes memory from a list of what is free; None if there is none, or another thread was faster."""
        try:
            ended = free.pop()
        except IndexError:
            return None
        self._loans.pop(id(ended), None)  # `trim` may have forgotten it while it ended
        return ended.memory
