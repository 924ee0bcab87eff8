"""Bytes at an offset of a file: of one on this machine, or of an object that is read by ranges."""

from __future__ import annotations

import io
import os
import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Protocol

BLOCK = 1 << 22
"""The bytes of one request of an object that is read in order."""
_KEPT = 24  # blocks in memory
_AHEAD = 14  # blocks that are asked for before they are needed, once reading goes on in order
_THREADS = 16


class RandomBytes(Protocol):
    """The bytes of a file. Several threads may read at once.

    Attributes:
        size: The size of the file.
    """

    size: int

    def read(self, offset: int, count: int) -> bytes:
        """Reads up to `count` bytes from `offset`; fewer only at the end of the file.

        Raises:
            OSError: They cannot be read.
            MismatchError: The object was replaced since it was found.
        """
        ...

    def reaches(self, offset: int) -> bool:
        """True if the file has at least `offset` bytes."""
        ...

    def close(self) -> None:
        """Ends reading."""
        ...


class FileBytes:
    """The bytes of a file on this machine.

    Raises:
        OSError: It cannot be opened.
    """

    def __init__(self, path: Path) -> None:
        self._file = path.open("rb", buffering=0)
        weakref.finalize(self, self._file.close)  # once no thread reads from it
        self.size = os.fstat(self._file.fileno()).st_size

    def read(self, offset: int, count: int) -> bytes:
        """See `RandomBytes`."""
        return os.pread(self._file.fileno(), count, offset)

    def reaches(self, offset: int) -> bool:
        """See `RandomBytes`."""
        return offset <= self.size

    def close(self) -> None:
        """Closes the file."""
        self._file.close()


class BlockBytes:
    """The bytes of an object, read block by block. The last blocks are kept in memory.

    Blocks are asked for ahead of need while reading goes on in order, the more the longer it does.

    Args:
        fetch: Returns the bytes from a start to a stop.
        size: The size of the object.
        block: The bytes of a block. A read of more blocks than are kept takes its bytes alone.
        kept: The blocks in memory, at least one, besides those that threads are reading from.
        ahead: The most blocks that are asked for ahead.
    """

    def __init__(
        self,
        fetch: Callable[[int, int], bytes],
        size: int,
        *,
        block: int = BLOCK,
        kept: int = _KEPT,
        ahead: int = _AHEAD,
    ) -> None:
        self.size = size
        self._fetch = fetch
        self._block, self._kept, self._ahead = block, kept, ahead
        self._lock = threading.Lock()
        self._blocks: OrderedDict[int, Future[bytes]] = OrderedDict()
        self._last, self._streak = -1, 0
        self._pool = ThreadPoolExecutor(_THREADS, "latentq: ranges")  # its threads begin with the first request
        weakref.finalize(self, self._pool.shutdown, wait=False, cancel_futures=True)

    def read(self, offset: int, count: int) -> bytes:
        """See `RandomBytes`."""
        stop = min(offset + count, self.size)
        if stop <= offset:
            return b""
        first, last = offset // self._block, (stop - 1) // self._block
        if last - first >= self._kept:
            return self._read_apart(offset, stop)
        parts = []
        for number, future in self._wanted(first, last):
            start = number * self._block
            parts.append(self._result(number, future)[max(offset - start, 0) : stop - start])
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def reaches(self, offset: int) -> bool:
        """See `RandomBytes`."""
        return offset <= self.size

    def close(self) -> None:
        """Drops the blocks and ends the threads. A read that has begun may still end."""
        self._pool.shutdown(wait=False, cancel_futures=True)
        with self._lock:
            self._blocks.clear()

    def _read_apart(self, offset: int, stop: int) -> bytes:
        """Reads a long range in pieces, which are not kept."""
        starts = range(offset, stop, BLOCK)
        return b"".join(self._pool.map(lambda start: self._fetch(start, min(start + BLOCK, stop)), starts))

    def _wanted(self, first: int, last: int) -> list[tuple[int, Future[bytes]]]:
        """Returns blocks, asked for if they are not there, and asks for those that will be read next."""
        with self._lock:
            if self._last - 2 <= first <= self._last + 1:  # threads do not read quite in order
                self._streak += max(last - self._last, 0)
            else:
                self._streak = 0
            self._last = max(last, self._last) if self._streak else last
            ahead = min(self._streak, self._ahead, self._kept - 1 - (last - first))
            blocks = -(-self.size // self._block)
            for number in range(first, min(self._last + 1 + ahead, blocks)):
                if number in self._blocks:
                    self._blocks.move_to_end(number)
                elif number <= last or number > self._last:
                    self._blocks[number] = self._pool.submit(self._fetch_block, number)
            wanted = [(number, self._blocks[number]) for number in range(first, last + 1)]
            while len(self._blocks) > self._kept:
                self._blocks.popitem(last=False)
            return wanted

    def _fetch_block(self, number: int) -> bytes:
        return self._fetch(number * self._block, min((number + 1) * self._block, self.size))

    def _result(self, number: int, future: Future[bytes]) -> bytes:
        try:
            return future.result()
        except BaseException:
            with self._lock:
                if self._blocks.get(number) is future:  # another read asks again
                    del self._blocks[number]
            raise


class ByteStream(io.RawIOBase):
    """The bytes of a file as a stream, for libraries that read files.

    Args:
        data: The bytes.
    """

    def __init__(self, data: RandomBytes) -> None:
        super().__init__()
        self._data = data
        self._position = 0

    def readable(self) -> bool:
        """Returns True."""
        return True

    def seekable(self) -> bool:
        """Returns True."""
        return True

    def tell(self) -> int:
        """Returns the position in bytes."""
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Moves the position; see `io.IOBase.seek`."""
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._data.size}[whence]
        self._position = max(start + offset, 0)
        return self._position

    def read(self, count: int | None = -1) -> bytes:
        """Reads up to `count` bytes, or all if it is negative or None."""
        rest = max(self._data.size - self._position, 0)
        data = self._data.read(self._position, rest if count is None or count < 0 else min(count, rest))
        self._position += len(data)
        return data

    def readall(self) -> bytes:
        """Reads the rest."""
        return self.read()

    def readinto(self, buffer: object) -> int:
        """Fills a buffer; see `io.RawIOBase.readinto`."""
        view = memoryview(buffer).cast("B")  # type: ignore[arg-type]  # a buffer
        data = self.read(len(view))
        view[: len(data)] = data
        return len(data)

    def close(self) -> None:
        """Closes the bytes too."""
        if not self.closed:
            self._data.close()
        super().close()
