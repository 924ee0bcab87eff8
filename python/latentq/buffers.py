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


class Recycled:
    """Memory that is used again once nobody holds the tensor in it: fresh pages cost more than filling them.

    Tensors may be asked for, kept and dropped by any thread.
    """

    def __init__(self) -> None:
        self._free: defaultdict[int, list[NDArray[np.uint8]]] = defaultdict(list)

    def __call__(self, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        """A tensor in memory that was used before, or else in fresh memory."""
        free = self._free[prod(shape) * dtype.itemsize]
        try:
            memory = free.pop()
        except IndexError:
            memory = np.empty(prod(shape) * dtype.itemsize, np.uint8)
        # The tensor, and every view of it, keeps this array alive, and nothing else does.
        lent = memory[:]
        weakref.finalize(lent, free.append, memory).atexit = False
        return torch.from_numpy(lent).view(dtype).view(shape)
