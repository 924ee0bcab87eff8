"""Memory for batches that is used again."""

from __future__ import annotations

import threading
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray


class Buffers(threading.local):
    """Arrays of each thread, whose memory is used again: memory that is new to a process takes longer than reading."""

    def __init__(self) -> None:
        self._memory: dict[str, NDArray[np.uint8]] = {}

    def array(self, name: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
        """Returns an array of any content. It is overwritten after the thread's next call with the same name.

        Args:
            name: The name of the memory.
            shape: The shape of the array.
            dtype: Its dtype.
        """
        nbytes = prod(shape) * dtype.itemsize
        if name not in self._memory or len(self._memory[name]) < nbytes:
            self._memory[name] = np.empty(nbytes, np.uint8)
        return self._memory[name][:nbytes].view(dtype).reshape(shape)
