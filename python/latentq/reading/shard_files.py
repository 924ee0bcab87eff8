"""Reading whole shards of a folder ahead, for an order within windows of shards.

A file is read as a whole in a fraction of the time of its samples one by one, and all samples of a window's shards come
before those of the next window. So the files of the next window are read during the current one. Those of the last one
leave memory then: the system would rather keep them, since they were used, and drop what was read ahead. Files whose
samples were not read yet stay in memory when they are released: the next epoch begins with them.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

_PIECE = 1 << 19  # bytes read at a time: they stay in the processor's cache
_PATIENCE = 0.5  # seconds that samples wait for the first files: single reads in between would cut the large ones
_PAUSE = 0.02  # seconds that a step waits later


class ShardFiles:
    """The shards of a folder that are read ahead as a whole, on one thread: see `Files`.

    A file that cannot be read is skipped: reading its samples reports the error.

    Args:
        paths: The files of the shards.
        sizes: Their bytes, (S,).
        starts: The index of the first sample of each, ascending, (S,).
        room: How many bytes may be read ahead, at most: the memory for files.
    """

    def __init__(self, paths: Sequence[Path], sizes: NDArray[np.int64], starts: NDArray[np.int64], room: int) -> None:
        self._paths, self._sizes, self._starts, self._room = paths, sizes, starts, room
        self._holders = np.zeros(len(paths), np.int64)
        self._is_there = np.zeros(len(paths), bool)  # True for those that are held and were read
        self._is_used = np.zeros(len(paths), bool)  # True for those in memory whose samples were waited for
        self._bytes = 0  # of the shards that are held
        self._coming: deque[int] = deque()  # to be read, or to leave memory if nobody holds them
        self._is_running = False  # True if there is a thread, which ends when nothing is left to do
        self._changed = threading.Condition()
        self._patient_until = time.monotonic() + _PATIENCE
        self._is_finalizing = sys.is_finalizing  # kept, since at the interpreter's end modules lose their imports

    def pin(self, indices: NDArray[np.int64], *, within: bool = False) -> HeldFiles | None:
        """Begins to read the shards of some samples, unless they are held: see `Files`."""
        numbers = np.unique(np.searchsorted(self._starts, indices, side="right") - 1)
        with self._changed:
            new = numbers[self._holders[numbers] == 0]
            size = int(self._sizes[new].sum())
            if within and self._bytes + size > self._room:
                return None
            self._holders[numbers] += 1
            self._bytes += size
            self._work(new)
        return HeldFiles(self, numbers)

    def release(self, numbers: NDArray[np.int64]) -> None:
        """Ends holding shards once. One that nobody holds any longer is not read to its end."""
        if self._is_finalizing():
            return  # the thread is gone, perhaps with the lock
        with self._changed:
            self._holders[numbers] -= 1
            left = numbers[self._holders[numbers] == 0]
            self._is_there[left] = False
            self._bytes -= int(self._sizes[left].sum())
            self._work(left[self._is_used[left]])

    def missing(self, numbers: NDArray[np.int64]) -> int:
        """Returns how many of some shards that are held were not read yet."""
        return len(numbers) - int(np.count_nonzero(self._is_there[numbers]))

    def wait(self, numbers: NDArray[np.int64]) -> None:
        """Waits until shards that are held are read, but not for long: their samples can be read one by one."""
        self._is_used[numbers] = True
        if self.missing(numbers):
            with self._changed:
                patience = max(self._patient_until - time.monotonic(), _PAUSE)
                self._changed.wait_for(lambda: not self.missing(numbers), patience)

    def _work(self, numbers: NDArray[np.int64]) -> None:
        """Has the thread read some shards, or drop used ones that nobody holds by then. Needs the lock."""
        self._coming.extend(numbers.tolist())
        if self._coming and not self._is_running:
            try:
                # A daemon: the interpreter does not wait for it at its end.
                threading.Thread(target=self._run, name="latentq-files", daemon=True).start()
            except RuntimeError:  # the system has no thread left: samples are read one by one
                left = list(self._coming)
                self._is_there[left] = self._holders[left] > 0
                self._coming.clear()
            else:
                self._is_running = True

    def _run(self) -> None:
        piece = bytearray(_PIECE)
        while True:
            with self._changed:
                if not self._coming:
                    self._is_running = False
                    return
                number = self._coming.popleft()
            with suppress(OSError), self._paths[number].open("rb", buffering=0) as file:
                while self._holders[number] and file.readinto(piece):
                    pass
                if not self._holders[number] and self._is_used[number] and hasattr(os, "posix_fadvise"):
                    self._is_used[number] = False
                    os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            with self._changed:
                self._is_there[number] = self._holders[number] > 0
                self._changed.notify_all()


class HeldFiles:
    """Shards of a `ShardFiles` that are kept: see `Pinned`.

    Args:
        files: The shards.
        numbers: Their numbers, (n,).
    """

    def __init__(self, files: ShardFiles, numbers: NDArray[np.int64]) -> None:
        self._files, self._numbers = files, numbers
        self._is_held = True

    @property
    def missing(self) -> int:
        """The number of files that were not read yet; 0 after `release`."""
        return self._files.missing(self._numbers) if self._is_held else 0

    def wait(self) -> None:
        """Waits until all are read, but not for long."""
        self._files.wait(self._numbers)

    def release(self) -> None:
        """Ends keeping them. A second call does nothing."""
        if self._is_held:
            self._is_held = False
            self._files.release(self._numbers)
