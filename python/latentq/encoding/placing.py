"""Put the images of units into buckets by the sizes in their headers, a unit ahead of encoding."""

from __future__ import annotations

import errno
import os
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeAlias

from latentq import image
from latentq._core import LatentqError, image_hash
from latentq.format.buckets import Buckets
from latentq.sources import Sample, Source
from latentq.sources.listing import connections_of, deferred_read, read_sample

Refusal: TypeAlias = tuple[str, Exception]
"""The stage that rejects a sample, and its error."""
Read: TypeAlias = Callable[[], bytes | Path]

OPEN_ARCHIVES = 64
"""The maximum number of archives of a unit that are kept open; the samples of more are read in order."""
SPOOL_BYTES = 1 << 28
"""The maximum bytes of a unit's files that are read in order and kept in memory; the rest is kept on disk."""


@dataclass(frozen=True)
class PlacedSample:
    """A sample and its bucket.

    Attributes:
        bucket: The bucket's number; the first bucket if the size is unknown, so that loading the image tells why.
        read: Reads the file, on any thread; None if the sample is refused.
        is_file: True if `read` only names a file of its own.
        refusal: The refusal, if the sample is refused without loading it.
        content_hash: The xxh3_64 of the file of a sample that is refused for its size; otherwise 0.
    """

    bucket: int = 0
    read: Read | None = None
    is_file: bool = False
    refusal: Refusal | None = None
    content_hash: int = 0


@dataclass(frozen=True)
class PlacedUnit:
    """A unit, or samples to calibrate on, with the bucket of each.

    Attributes:
        indices: Numbers of the samples in the list.
        samples: The samples.
        places: Their places.
    """

    indices: Sequence[int]
    samples: Sequence[Sample]
    places: Sequence[PlacedSample]


class Placing:
    """Finds the buckets of the images of units, each unit while the unit before is encoded.

    Images that are files of their own, or in archives that are read at any place, are read again when they are loaded.
    Those of a source that must be read in order, or on a store, are read once: a unit's first `SPOOL_BYTES` stay in
    memory, and the rest goes to an unnamed temporary file.

    Args:
        source: The source.
        buckets: The recipe's buckets.
        orient: True if images are turned upright.
        threads: The number of threads that read headers.
        folder: An existing folder for temporary files.
    """

    def __init__(self, source: Source, buckets: Buckets, *, orient: bool, threads: int, folder: Path) -> None:
        self._source = source
        self._buckets = buckets
        self._orient = orient
        self._folder = folder
        self._pool = ThreadPoolExecutor(threads, "latentq: sizes")
        connections = connections_of(source)
        self._fetchers = ThreadPoolExecutor(connections, "latentq: fetch") if connections else None
        self._stopped = False

    def units(self, units: Iterable[tuple[Sequence[int], Sequence[Sample]]]) -> Iterator[PlacedUnit]:
        """Yields the units in order. The next unit is placed while one is used; nothing is done further ahead."""
        placed = (PlacedUnit(indices, samples, self._places(samples)) for indices, samples in units)
        try:
            with ThreadPoolExecutor(1, "latentq: buckets") as ahead:
                future: Future[PlacedUnit | None] = ahead.submit(next, placed, None)
                while (unit := future.result()) is not None:
                    future = ahead.submit(next, placed, None)
                    yield unit
        finally:
            self.close()

    def close(self) -> None:
        """Ends the threads; a unit that is being placed is dropped."""
        self._stopped = True
        self._pool.shutdown(cancel_futures=True)
        if self._fetchers is not None:
            self._fetchers.shutdown(cancel_futures=True)

    def _places(self, samples: Sequence[Sample]) -> list[PlacedSample]:
        spool = _Spool(self._folder)
        keeps_open = len({sample.archive for sample in samples}) <= OPEN_ARCHIVES
        places = [self._begin(sample, spool, keeps_open=keeps_open) for sample in samples]
        return [place if isinstance(place, PlacedSample) else place.result() for place in places]

    def _begin(self, sample: Sample, spool: _Spool, *, keeps_open: bool) -> PlacedSample | Future[PlacedSample]:
        """Begins to place a sample. Samples are begun in the order of the list, as sources expect."""
        if self._stopped:
            return PlacedSample()
        read = deferred_read(self._source, sample) if keeps_open else None
        if read is not None:
            if self._fetchers is None:
                return self._pool.submit(self._placed_by_reading, read)
            return self._fetchers.submit(self._placed_by_reading, read, spool)
        data, refusal = read_sample(self._source, sample)
        if refusal is not None:
            return PlacedSample(refusal=refusal)
        if isinstance(data, Path):
            return self._pool.submit(self._placed, data, partial(_path, data), is_file=True)
        return self._placed(data, spool.add(data))

    def _placed_by_reading(self, read: Callable[[], bytes], spool: _Spool | None = None) -> PlacedSample:
        try:
            data = read()
        except (OSError, LatentqError):
            return PlacedSample(read=read)  # what is wrong is found again when the image is loaded
        return self._placed(data, read if spool is None else spool.add(data))

    def _placed(self, data: bytes | Path, read: Read, *, is_file: bool = False) -> PlacedSample:
        try:
            height, width = image.upright_size(data, orient=self._orient)
            bucket, fits = self._buckets.choose(height, width)
            if fits:
                return PlacedSample(bucket, read, is_file)
            content_hash = image_hash(data if isinstance(data, bytes) else str(data))
        except (OSError, LatentqError):
            return PlacedSample(read=read, is_file=is_file)
        return PlacedSample(bucket, refusal=("size", self._too_small(height, width, bucket)), content_hash=content_hash)

    def _too_small(self, height: int, width: int, bucket: int) -> LatentqError:
        tall, wide = self._buckets.all[bucket]
        smaller = f"its bucket of {tall} x {wide}" if self._buckets.small == "reject" else "every bucket"
        return LatentqError(f"{height} x {width} pixels (height x width), smaller than {smaller}")


def _path(path: Path) -> Path:
    return path


class _Spool:
    """Files that were read once, for threads to read again: the first in memory, the rest in a temporary file.

    Args:
        folder: The folder of the temporary file.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._in_memory = 0
        self._file: _TemporaryFile | None = None
        self._lock = threading.Lock()

    def add(self, data: bytes) -> Read:
        """Keeps a file; returns what reads it. Any thread may call it."""
        with self._lock:
            if self._in_memory + len(data) <= SPOOL_BYTES:
                self._in_memory += len(data)
                return partial(bytes, data)
            self._file = self._file or _TemporaryFile(self._folder)
            return partial(self._file.read, self._file.append(data), len(data))


class _TemporaryFile:
    """A file without a name, which is gone with this object or with the process.

    Args:
        folder: A folder on the disk that it takes.

    Raises:
        OSError: It cannot be made.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._end = 0
        with tempfile.TemporaryFile(dir=folder) as file:
            self._descriptor = os.dup(file.fileno())

    def __del__(self) -> None:
        if hasattr(self, "_descriptor"):
            os.close(self._descriptor)

    def append(self, data: bytes) -> int:
        """Writes data at the end; returns where it begins."""
        start, rest = self._end, memoryview(data)
        while rest:
            try:
                written = os.pwrite(self._descriptor, rest, self._end)
            except OSError as error:
                raise OSError(error.errno, error.strerror, str(self._folder)) from None
            self._end += written
            rest = rest[written:]
        return start

    def read(self, start: int, length: int) -> bytes:
        """Reads a part, on any thread."""
        parts = []
        while length:
            parts.append(os.pread(self._descriptor, length, start))
            if not parts[-1]:
                raise OSError(errno.EIO, "a temporary file ended early", str(self._folder))
            start, length = start + len(parts[-1]), length - len(parts[-1])
        return b"".join(parts)
