"""A dataset on an object store or on the Hub, whose shards are downloaded into a folder when they are needed.

Several processes may share the folder. A shard appears in it whole, with the hash that the index has: it is downloaded
under another name, by one process at a time, which holds a lock that ends with the process. Shards in use are locked
too, and are not evicted.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import re
import secrets
import threading
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from latentq._core import FormatError, LatentqError, image_hash
from latentq.store.hub import HubDataset, is_hub_url
from latentq.store.objects import ObjectStore, is_url
from latentq.system.text import counted, size_text

_INDEX = "index.json"
_CARDS = ("latents.toml", "latents.next.toml", "shards.toml", "empty_caption.npz", "normalization.npy")
_SEPARATOR = b"\0"
_OF_AN_ATTEMPT = re.compile(r"(.+)\.([0-9a-f]{16})")  # a unit's file, with the hash of the index that it is of
_LOCKS = ".locks"
_PART = ".part"
_HASH = "xxh3_64"
_DOWNLOADS = 3  # of a shard whose bytes are not those of the index
_THREADS = 16
_UPTIME: int = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)  # macOS has only the latter


class Remote(Protocol):
    """The files of a dataset elsewhere."""

    @property
    def url(self) -> str:
        """The URL of the dataset."""

    def get(self, name: str) -> bytes:
        """Returns the bytes of a file. Raises FileNotFoundError if there is none."""

    def download(self, name: str, path: Path) -> None:
        """Downloads a file to a path, replacing a file there. Raises FileNotFoundError if there is none."""

    def files(self) -> Iterator[tuple[str, int]]:
        """Yields the name and the bytes of every file."""


def is_remote(path: object) -> bool:
    """True if a path names a dataset on an object store or on the Hub."""
    return is_url(path) or is_hub_url(path)


def open_remote(url: str, options: Mapping[str, str] | None = None, *, patient: bool = True) -> Remote:
    """Opens the place of a dataset.

    Args:
        url: `s3://`, `gs://`, `az://` or `hf://datasets/OWNER/NAME[@REVISION]`.
        options: For object stores: see `ObjectStore`.
        patient: See `ObjectStore`.

    Raises:
        ValueError: The URL or an option is not valid.
        MissingPackageError: The package for it is not installed.
    """
    if is_hub_url(url):
        if options:
            raise ValueError("storage options are for object stores: the Hub takes HF_TOKEN and HF_ENDPOINT")
        return HubDataset(url)
    return ObjectStore(url, options, patient=patient)


@dataclass(frozen=True)
class RemoteShard:
    """A shard of the index.

    Attributes:
        name: Its path in the dataset.
        size: The bytes of the stored file.
        hash: Its xxh3_64 in hexadecimal, or empty if the index has none.
        samples: The number of its samples.
    """

    name: str
    size: int
    hash: str
    samples: int


class ShardCache:
    """The shards of a dataset elsewhere, in a local folder that a reader opens as a dataset.

    Each version of a dataset has a folder of its own in the cache, named by the URL and the hash of URL and index.

    Args:
        url: See `open_remote`.
        cache: The folder of caches, which is made if there is none.
        cache_bytes: The bytes of shards to keep: the least recently used are evicted. None keeps all. Shards in use are
            never evicted, so that more is kept if more is in use at once.
        options: See `open_remote`.

    Attributes:
        url: The URL.
        folder: The folder of this dataset.
        shards: The shards in the order of the index.
        starts: The index of the first sample of each shard, (S,) int64.
        evicts: True if the dataset is larger than `cache_bytes`.

    Raises:
        LatentqError: There is no dataset at the URL.
        FormatError: The index is damaged.
        OSError: The URL or the folder cannot be read.
        ValueError: An argument is not valid, or the largest shard exceeds `cache_bytes`.
    """

    def __init__(
        self,
        url: str,
        cache: str | os.PathLike[str],
        *,
        cache_bytes: int | None = None,
        options: Mapping[str, str] | None = None,
    ) -> None:
        self._remote = open_remote(url, options)
        self.url = self._remote.url
        name = re.sub(r"[^A-Za-z0-9_.-]", "-", self.url.rpartition("/")[2])[:40]
        complete = _complete_version(Path(cache).absolute(), name, self.url)
        try:
            index, cards = _index_and_cards(
                self._remote if complete is None else open_remote(url, options, patient=False)
            )
        except OSError as error:
            if complete is None or isinstance(error, FileNotFoundError | PermissionError):
                raise
            warnings.warn(
                f"{self.url} cannot be asked for its newest version; the one in {complete} is read: {error}",
                stacklevel=4,
            )
            index = (complete / _INDEX).read_bytes()
            cards = [(complete / name).read_bytes() if (complete / name).exists() else None for name in _CARDS]
        self.shards = tuple(_shards(self.url, index))
        samples = np.array([shard.samples for shard in self.shards], np.int64)
        self.starts: NDArray[np.int64] = np.cumsum(samples) - samples
        key = _version(name, self.url, index)
        self.folder = Path(cache).absolute() / key
        self.cache_bytes = cache_bytes
        largest = max((shard.size for shard in self.shards), default=0)
        if cache_bytes is not None and cache_bytes < largest:
            raise ValueError(f"cache_bytes is {cache_bytes}, and the largest shard of {self.url} has {largest} bytes")
        self.evicts = cache_bytes is not None and self.nbytes > cache_bytes
        self.on_release: Callable[[int], None] = _nothing
        self._here = np.zeros(len(self.shards), bool)  # shards that stay: none are evicted
        self._locks = self.folder.with_name(f"{key}{_LOCKS}")  # apart: the folder holds the dataset's files alone
        self._locks.mkdir(parents=True, exist_ok=True)
        self.folder.mkdir(exist_ok=True)
        self._paths = frozenset(str(self.folder / shard.name) for shard in self.shards)
        self._folders = frozenset(map(os.path.dirname, self._paths))
        for folder in self._folders:
            Path(folder).mkdir(exist_ok=True)
        for name, data in zip(_CARDS, cards, strict=True):
            if data is None:
                (self.folder / name).unlink(missing_ok=True)
            else:
                _place(self.folder / name, data)
        _place(self.folder / _INDEX, index)
        os.utime(self.folder / _INDEX)  # the version that is read without the store, if there are several
        self._booted = time.time() - time.clock_gettime(_UPTIME)
        if not self.evicts:
            self._here[:] = [self._is_present(shard, trusted=True) for shard in self.shards]
        self._start()

    def _start(self) -> None:
        """Begins without threads and pins: when opened, in a forked child, and after unpickling."""
        self._process = os.getpid()
        self._lock = threading.Lock()
        self._pool: ThreadPoolExecutor | None = None
        self._pins: Counter[int] = Counter()
        self._brought: dict[int, Future[int | None]] = {}
        self._arriving: Counter[int] = Counter()  # bytes of shards that are being downloaded

    def __getstate__(self) -> dict[str, Any]:
        own = ("_process", "_lock", "_pool", "_pins", "_brought", "_arriving", "on_release")
        return {name: value for name, value in self.__dict__.items() if name not in own}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self.on_release = _nothing
        self._start()

    def __repr__(self) -> str:
        return f"ShardCache({self.url!r}, {str(self.folder)!r})"

    @property
    def is_complete(self) -> bool:
        """True if every shard is in the folder, and stays there."""
        return bool(self._here.all())

    @property
    def nbytes(self) -> int:
        """The bytes of all shards."""
        return sum(shard.size for shard in self.shards)

    def shards_of(self, indices: NDArray[np.int64]) -> list[int]:
        """Returns the numbers of the shards that hold some samples, each once, in the order of their first sample.

        Args:
            indices: Indices of samples, (N,), each from 0.
        """
        return list(dict.fromkeys((np.searchsorted(self.starts, indices, side="right") - 1).tolist()))

    def pin(self, numbers: Iterable[int]) -> Pins:
        """Begins to download what is missing of some shards, and keeps all of them until `Pins.release`."""
        if os.getpid() != self._process:
            self._start()  # a forked child has none of its parent's threads and locks
        pinned = [number for number in numbers if not self._here[number]]
        futures = []
        with self._lock:
            for number in pinned:
                self._pins[number] += 1
                future = self._brought.get(number)
                if future is None or (future.done() and future.exception() is not None):
                    future = self._brought[number] = self._kept_at_once(number) or self._threads().submit(
                        self._bring, number
                    )
                futures.append(future)
        return Pins(self, pinned, futures)

    def _threads(self) -> ThreadPoolExecutor:
        if self._pool is None:
            self._pool = ThreadPoolExecutor(_THREADS, "latentq: download")
        return self._pool

    def _kept_at_once(self, number: int) -> Future[int | None] | None:
        """Returns what `_bring` will, if a shard is there: a thread might come after one that evicts it."""
        if not self._is_present(self.shards[number], trusted=True):
            return None
        future: Future[int | None] = Future()
        if not self.evicts:
            self._here[number] = True
            future.set_result(None)
            return future
        with contextlib.suppress(FileNotFoundError):  # it was evicted since
            future.set_result(_kept(self.folder / self.shards[number].name))
            return future
        return None

    def has_room(self, numbers: Sequence[int]) -> bool:
        """True if shards may be asked for ahead of need: few are being downloaded, and they fit next to those in use.

        Args:
            numbers: The numbers of the shards.
        """
        with self._lock:
            if sum(not future.done() for future in self._brought.values()) > 2 * _THREADS:
                return False
            if not self.evicts or self.cache_bytes is None:
                return True
            return sum(self.shards[number].size for number in self._pins.keys() | set(numbers)) <= self.cache_bytes

    def check_windows(self, window: int, buckets: int) -> None:
        """Checks that the cache holds a window of shards of each bucket.

        Args:
            window: The shards in a window.
            buckets: The number of buckets.

        Raises:
            ValueError: It does not.
        """
        largest = sum(sorted((shard.size for shard in self.shards), reverse=True)[: window * buckets])
        if self.evicts and self.cache_bytes is not None and largest > self.cache_bytes:
            of_buckets = f" of each of {counted(buckets, 'bucket')}" if buckets > 1 else ""
            raise ValueError(
                f"cache_bytes is {size_text(self.cache_bytes)}, and {counted(window, 'shard')}{of_buckets} may have "
                f"{size_text(largest)}: give a smaller window, or a larger cache (with room for two windows, the "
                "next one is downloaded while one is read)"
            )

    def fetch_all(self, progress: Callable[[int], object] = lambda _: None) -> None:
        """Downloads every shard that is missing.

        Args:
            progress: Called with the bytes of each shard that is there.
        """
        ahead: list[Pins] = []
        for number in range(len(self.shards)):
            ahead.append(self.pin([number]))
            if len(ahead) > 2 * _THREADS:
                self._finish(ahead.pop(0), progress)
        while ahead:
            self._finish(ahead.pop(0), progress)

    def fetch(self, name: str) -> Path:
        """Downloads another file of the dataset, such as a part of its list, unless it is there.

        Args:
            name: Its path in the dataset.

        Returns:
            Its local path.

        Raises:
            FileNotFoundError: There is no such file.
            OSError: It cannot be downloaded.
        """
        path = self.folder / name
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            _place(path, self._remote.get(name))
        return path

    def files(self) -> Iterator[tuple[str, int]]:
        """Yields the name and the bytes of every file there, shards and others."""
        return self._remote.files()

    def fetch_others(self) -> None:
        """Downloads every file that is no shard of the index: lists, facts of units, rejects.

        Where two attempts at a unit met on a store, the files of the one that its index is of take their usual names,
        and what the other left is removed: see `latentq.run.mirror`.
        """
        shards = {shard.name for shard in self.shards}
        names = [name for name, _ in self.files() if name not in shards and name != _INDEX and _is_safe(name)]
        with ThreadPoolExecutor(_THREADS, "latentq: download") as pool:
            for _ in pool.map(self.fetch, names):
                pass
        for name in names:
            unit, _, file = name.partition("/")
            found = _OF_AN_ATTEMPT.fullmatch(file)
            if found is not None and (self.folder / unit / _INDEX).exists():
                index = (self.folder / unit / _INDEX).read_bytes()
                if found[2] == f"{image_hash(index):016x}":
                    (self.folder / name).replace(self.folder / unit / found[1])
                else:
                    (self.folder / name).unlink()
            elif file.endswith(".mds") and f"{unit}/{_INDEX}" in names:
                listed = _shards(f"{self.url}/{unit}", (self.folder / unit / _INDEX).read_bytes())
                if file not in {shard.name for shard in listed}:
                    (self.folder / name).unlink()

    def close(self) -> None:
        """Ends the threads."""
        if self._process == os.getpid() and self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
            self._pool = None

    def release(self, numbers: Iterable[int]) -> None:
        """Ends a pin: see `Pins.release`."""
        if os.getpid() != self._process:
            return
        for number in numbers:
            with self._lock:
                self._pins[number] -= 1
                if self._pins[number] > 0:
                    continue
                del self._pins[number]
                future = self._brought.pop(number, None)
            if self.evicts:  # an open file would keep its space when another process evicts it
                self.on_release(number)
            if future is not None and not future.cancel():
                future.add_done_callback(_close_lock)

    def _finish(self, pins: Pins, progress: Callable[[int], object]) -> None:
        with contextlib.closing(pins):
            pins.wait()
            progress(sum(self.shards[number].size for number in pins.numbers))

    def _bring(self, number: int) -> int | None:
        """Brings a shard into the folder, and returns a descriptor that keeps it there, if shards are evicted."""
        shard = self.shards[number]
        path = self.folder / shard.name
        while True:
            if self._is_present(shard):
                if not self.evicts:
                    self._here[number] = True
                    return None
                with contextlib.suppress(FileNotFoundError):  # it was evicted since
                    return _kept(path)
            self._download(number, shard, path)

    def _is_present(self, shard: RemoteShard, *, trusted: bool = False) -> bool:
        """True if a shard is in the folder, whole.

        Downloads are not fsynced, so the hash of a file from before the machine's last start is checked once.

        Args:
            shard: The shard.
            trusted: True to count a file whose hash would have to be checked as missing.
        """
        path = self.folder / shard.name
        try:
            status = path.stat()
        except FileNotFoundError:
            return False
        if status.st_size != shard.size:
            return False
        if status.st_mtime < self._booted:
            if trusted or _problem(path, shard):
                return False
            os.utime(path)
        return True

    def _download(self, number: int, shard: RemoteShard, path: Path) -> None:
        """Downloads a shard, unless another process has done it while this one waited."""
        part = path.with_name(path.name + _PART)
        with _locked(self._locks / str(number)):
            if self._is_present(shard):
                return
            self._make_room(number, shard.size)
            try:
                for attempt in range(1, _DOWNLOADS + 1):
                    self._remote.download(shard.name, part)
                    problem = _problem(part, shard)
                    if not problem:
                        break
                    if attempt == _DOWNLOADS:
                        raise FormatError(f"{self.url}/{shard.name}: {problem}: it is damaged, there or on the way")
                part.replace(path)
            except OSError as error:
                if error.errno == errno.ENOSPC:
                    raise OSError(errno.ENOSPC, "no space is left for the cache", str(self.folder)) from None
                raise
            finally:
                part.unlink(missing_ok=True)
                with self._lock:
                    del self._arriving[number]

    def _make_room(self, number: int, size: int) -> None:
        """Evicts the least recently used shards that nobody uses, until another one fits."""
        with self._lock:
            self._arriving[number] = size
            arriving = sum(self._arriving.values())
        if not self.evicts or self.cache_bytes is None:
            return
        with _locked(self._locks / "evict"):
            present = sorted(self._present())
            excess = sum(entry[1] for entry in present) + arriving - self.cache_bytes
            for _, nbytes, path in present:
                if excess <= 0:
                    return
                if _evict(path):
                    excess -= nbytes

    def _present(self) -> Iterator[tuple[float, int, str]]:
        """Yields when each shard in the folder was last used, its bytes and its path."""
        for folder in self._folders:
            with os.scandir(folder) as entries:
                for entry in entries:
                    if entry.path in self._paths:
                        with contextlib.suppress(FileNotFoundError):
                            status = entry.stat()
                            yield status.st_mtime, status.st_size, entry.path


class Pins:
    """Shards that are kept until `release`.

    Attributes:
        numbers: The numbers of the shards.
    """

    def __init__(self, cache: ShardCache, numbers: Sequence[int], futures: Sequence[Future[int | None]]) -> None:
        self.numbers = numbers
        self._cache, self._futures = cache, futures
        self._held = True

    @property
    def missing(self) -> int:
        """The number of shards that are not there yet."""
        return sum(not future.done() for future in self._futures)

    def wait(self) -> None:
        """Waits until all shards are there.

        Raises:
            FormatError: A shard is damaged.
            OSError: A shard cannot be downloaded, or the folder is full.
        """
        for future in self._futures:
            future.result()

    def release(self) -> None:
        """Lets the shards be evicted, and drops downloads that have not begun. A second call does nothing."""
        if self._held:
            self._held = False
            self._cache.release(self.numbers)

    close = release


def _nothing(_: int) -> None:
    pass


def _version(name: str, url: str, index: bytes) -> str:
    """Returns the name of the folder of one version of a dataset in a cache."""
    return f"{name}-{hashlib.sha256(url.encode() + _SEPARATOR + index).hexdigest()[:16]}"


def _complete_version(cache: Path, name: str, url: str) -> Path | None:
    """Returns the folder of the version of a dataset that was opened last of those that a cache has whole, or None."""
    complete = []
    for folder in cache.glob(f"{name}-*"):
        with contextlib.suppress(OSError, FormatError):
            index = (folder / _INDEX).read_bytes()
            if folder.name == _version(name, url, index) and all(
                (folder / shard.name).stat().st_size == shard.size for shard in _shards(url, index)
            ):
                complete.append(((folder / _INDEX).stat().st_mtime, folder))
    return max(complete)[1] if complete else None


def _index_and_cards(remote: Remote) -> tuple[bytes, list[bytes | None]]:
    """Returns the index of a dataset, and those of `_CARDS` that it has.

    Raises:
        LatentqError: There is no index.
        OSError: The store cannot be read.
    """

    def get(name: str) -> bytes | None:
        try:
            return remote.get(name)
        except FileNotFoundError:
            return None

    with ThreadPoolExecutor(len(_CARDS), "latentq: download") as pool:
        cards = pool.map(get, _CARDS)
        try:
            index = remote.get(_INDEX)
        except FileNotFoundError as error:
            if error.filename == remote.url:  # there is no such bucket
                raise
            raise LatentqError(f"{remote.url} holds no finished dataset: it has no {_INDEX}") from None
        return index, list(cards)


def _shards(url: str, index: bytes) -> Iterator[RemoteShard]:
    """Yields the shards of an index.

    Raises:
        FormatError: It is no index, or names a file outside its folder.
    """
    try:
        for entry in json.loads(index)["shards"]:
            stored = entry.get("zip_data") or entry["raw_data"]
            name, size, samples = stored["basename"], stored["bytes"], entry["samples"]
            if not _is_safe(name):
                raise FormatError(f"{url}/{_INDEX}: a shard may not be called {name!r}")
            if type(size) is not int or type(samples) is not int or size < 0 or samples < 0:
                raise FormatError(f"{url}/{_INDEX}: {name} has {size!r} bytes and {samples!r} samples")
            yield RemoteShard(name, size, str(stored.get("hashes", {}).get(_HASH, "")), samples)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise FormatError(f"{url}/{_INDEX}: not an index of shards: {type(error).__name__}: {error}") from None


def _place(path: Path, data: bytes) -> None:
    """Makes a file appear whole, unless it has these bytes already."""
    if path.exists() and path.read_bytes() == data:
        return
    part = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        part.write_bytes(data)
        part.replace(path)
    except OSError as error:
        part.unlink(missing_ok=True)
        if error.errno == errno.ENOSPC:
            raise OSError(errno.ENOSPC, "no space is left for the cache", str(path.parent)) from None
        raise


def _is_safe(name: str) -> bool:
    """True if a name is that of a file in the dataset's folder, or in a folder there."""
    parts = name.split("/")
    return len(parts) <= 2 and not {"", ".", ".."} & set(parts) and "\0" not in name and "\\" not in name


def _problem(part: Path, shard: RemoteShard) -> str:
    """Returns what is wrong with a downloaded shard; empty if nothing is."""
    size = part.stat().st_size
    if size != shard.size:
        return f"{counted(size, 'byte')} arrived, the index says {size_text(shard.size)} ({shard.size})"
    if not shard.hash:
        return ""
    found = f"{image_hash(str(part)):016x}"
    return f"its hash is {found}, the index has {shard.hash}" if found != shard.hash else ""


def _kept(path: Path) -> int:
    """Returns a descriptor with a shared lock on a shard, and marks it as used now.

    Raises:
        FileNotFoundError: It was evicted.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH)
        os.utime(path)
        if os.fstat(descriptor).st_nlink == 0:
            raise FileNotFoundError(errno.ENOENT, "was evicted", str(path))
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _close_lock(future: Future[int | None]) -> None:
    """Ends what `_kept` began."""
    if not future.cancelled() and future.exception() is None:
        descriptor = future.result()
        if descriptor is not None:
            os.close(descriptor)


def _evict(path: str) -> bool:
    """Removes a shard unless some process uses it. Returns True if it is gone."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.unlink(path)  # noqa: PTH108  (a str)
        return True
    except BlockingIOError:
        return False
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Holds a lock that ends with the process. The file stays, so that all processes lock the same one."""
    with path.open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
