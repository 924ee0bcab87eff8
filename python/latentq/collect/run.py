"""`latentq collect`: the files of a collection, fetched side by side into a folder, as often as it takes."""

from __future__ import annotations

import contextlib
import functools
import os
import shutil
import threading
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import TextIO
from urllib.parse import quote

import tomli_w

from latentq._core import FormatError, LatentqError, MismatchError
from latentq.collect.base import Collection, Request, Subset
from latentq.collect.collections import COLLECTIONS
from latentq.collect.download import HopelessError, MovedError, Remote, StoppedError, fetch
from latentq.collect.file import File
from latentq.collect.hub import Hub
from latentq.format.tsv import tsv_line, tsv_values
from latentq.store.local import replace_file
from latentq.system.progress import Transfer, size_text

CARD = "collect.toml"


FAILED = "failed.tsv"


_PARTS = ".partial"


_ASK_AGAIN = "a proxy or a login page may be in between; when it is not, --retry-failed takes it again"


_LOST = "no longer among the files: give the list that names it, or take its line out of failed.tsv"


_WORTH_TELLING = 2.0  # seconds of a pause


@dataclass(frozen=True)
class Failure:
    """A file that could not be had: what it is called, its address, and why."""

    id: str
    address: str
    reason: str


@dataclass(frozen=True)
class Collected:
    """What a run has done.

    Attributes:
        files: How many of the files that it was asked for are there now.
        bytes: How many bytes they have.
        failed: The others.
    """

    files: int
    bytes: int
    failed: list[Failure]


def collect(
    name: str,
    folder: str | os.PathLike[str],
    *,
    subset: Subset = "all",
    ids: Sequence[int] | None = None,
    retry_failed: bool = False,
    links: str | os.PathLike[str] | None = None,
    site: str | None = None,
    threads: int = 8,
    progress: TextIO | None = None,
) -> Collected:
    """Fetches the files of a public collection into a folder, or goes on where an earlier run stopped.

    A file that is there is not fetched again. Those of the hub lie where they lie in their repository, at the commit
    that the folder was begun with (`collect.toml`). What cannot be had is listed in `failed.tsv`, until it is there.
    Nothing is written outside the folder.

    Args:
        name: One of `COLLECTIONS`.
        folder: Where the files go; made if absent.
        subset: `small`, about 1% of it, or `all`.
        ids: The numbers of the archives instead.
        retry_failed: Takes those of `failed.tsv` instead.
        links: For sa1b: the list of links from its page.
        site: For coco: another address than its own.
        threads: How many files are fetched at once.
        progress: Where progress is told; None tells nothing.

    Raises:
        LatentqError: Nothing can be fetched, or no more: one line that says what to do.
        OSError: The folder cannot be written.
        ValueError: An argument is out of range.
        ModuleNotFoundError: `huggingface_hub` or `requests` is missing.
    """
    if name not in COLLECTIONS:
        raise ValueError(f"unknown collection {name!r}: {', '.join(COLLECTIONS)}")
    if threads < 1:
        raise ValueError(f"threads must be at least 1, not {threads}")
    collection, folder = COLLECTIONS[name], Path(folder)
    request = Request(subset, ids, None if links is None else os.fspath(links), site)
    _check_request(name, collection, request)
    folder.mkdir(parents=True, exist_ok=True)
    with _alone(folder):
        run = _Run(name, collection, folder, progress)
        with run.bar:
            return run(request, retry_failed=retry_failed, threads=threads)


class _Run:
    """One run on a folder."""

    def __init__(self, name: str, collection: Collection, folder: Path, progress: TextIO | None) -> None:
        self._name, self._collection, self._folder = name, collection, folder
        self.bar = Transfer(progress)
        self._stop = threading.Event()
        self._hub = Hub(_commits(name, folder), functools.partial(self._pause, "the hub"))
        self._headers = self._hub.headers()

    def __call__(self, request: Request, *, retry_failed: bool, threads: int) -> Collected:
        for name in (CARD, FAILED):
            for dead in self._folder.glob(f".{name}.????????"):  # of a run that was killed
                dead.unlink()
        before = _read_failures(self._folder)
        lost: list[Failure] = []
        files = self._collection.files(request, self._hub)
        if retry_failed:
            again = {failure.id for failure in before}
            files = [file for file in files if file.id in again]
            lost = [failure for failure in before if failure.id not in {file.id for file in files}]
        remotes = self._hub.remotes(file for file in files if file.repository)
        remotes |= {file.path: Remote(file.address) for file in files if file.address}
        replace_file(self._folder / CARD, _card(self._name, self._hub.commits))
        reasons = {file: reason for file in files if (reason := self._unlike(file, remotes.get(file.path)))}
        todo = [file for file in files if file not in reasons and not (self._folder / file.path).exists()]
        (self._folder / _PARTS).mkdir(exist_ok=True)
        for file, reason in reasons.items():
            self.bar.note(f"failed: {file.id}: {reason}")
        total = sum(remotes[file.path].size or 0 for file in todo)
        self.bar.expect(len(todo), total)
        if todo:
            known = f", {size_text(total)}" if total else ""
            free = size_text(shutil.disk_usage(self._folder).free)
            self.bar.note(f"to fetch: {len(todo)} of {len(files)} files{known}; {free} are free in {self._folder}")
        reasons |= self._fetch_all(todo, remotes, threads)
        with contextlib.suppress(OSError):  # the parts of what has failed stay
            (self._folder / _PARTS).rmdir()
        failed = [
            Failure(file.id, remotes[file.path].address if file.path in remotes else file.repository, reasons[file])
            for file in files
            if file in reasons
        ]
        failed += [replace(failure, reason=_LOST) for failure in lost]
        tried = {file.id for file in files} | {failure.id for failure in lost}
        _write_failures(self._folder, [failure for failure in before if failure.id not in tried] + failed)
        there = [self._folder / file.path for file in files if file not in reasons]
        return Collected(len(there), sum(path.stat().st_size for path in there), failed)

    def _unlike(self, file: File, remote: Remote | None) -> str:
        """Why a file need not be asked for; empty where it may."""
        if remote is None:
            return f"{file.path} is not in {file.repository} at {file.revision}"
        path = self._folder / file.path
        if (place := PurePosixPath(file.path)).is_absolute() or ".." in place.parts:
            return f"{file.path} would lie outside {self._folder}"
        if os.path.lexists(path) and not path.is_file():
            return f"{path} is there and is no file: move it away"
        if remote.size is not None and path.exists() and path.stat().st_size != remote.size:
            return f"{path} is there with {path.stat().st_size} bytes instead of {remote.size}: move it away"
        return ""

    def _fetch_all(self, files: list[File], remotes: dict[str, Remote], threads: int) -> dict[File, str]:
        """Fetches files, some at once; gives those that failed, and why."""
        reasons = {}
        pool = ThreadPoolExecutor(threads)
        try:
            futures = {pool.submit(self._fetch, file, remotes[file.path]): file for file in files}
            for future in as_completed(futures):
                with contextlib.suppress(StoppedError):  # the one for which all stopped comes as well
                    if reason := future.result():
                        reasons[futures[future]] = reason
        finally:
            self._stop.set()
            pool.shutdown(cancel_futures=True)
        return reasons

    def _fetch(self, file: File, remote: Remote) -> str:
        """Fetches a file; gives why it failed, if it did."""
        path = self._folder / file.path
        self.bar.begin(file.path, remote.size)
        reason = ""
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            fetch(
                remote,
                path,
                self._folder / _PARTS / quote(file.path, safe=""),
                headers=self._headers if remote.repository else {},
                tell=lambda done, size: self.bar.at(file.path, done, size),
                pause=functools.partial(self._pause, file.path),
            )
        except (HopelessError, OSError):
            self._stop.set()
            raise
        except MovedError as error:
            reason = f"{error}: {self._collection.advice or _ASK_AGAIN}"
        except LatentqError as error:
            reason = " ".join(str(error).split())
        self.bar.end(file.path, reason)
        return reason

    def _pause(self, name: str, seconds: float, reason: str) -> None:
        if seconds >= _WORTH_TELLING:
            self.bar.note(f"{name}: {reason}; again in {seconds:.0f} s")
        if self._stop.wait(seconds) if seconds else self._stop.is_set():
            raise StoppedError


def _check_request(name: str, collection: Collection, request: Request) -> None:
    """Refuses what the collection has no use for. Raises ValueError."""
    for what in ("ids", "links", "site"):
        if getattr(request, what) is not None and what not in collection.takes:
            raise ValueError(f"{name} takes no {what}")
    if "links" in collection.takes and request.links is None:
        raise ValueError(f"{name} needs its list of links, from the data set's page: --links FILE")


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Keeps a second process off the folder meanwhile."""
    import fcntl

    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise LatentqError(f"another latentq collect is at work in {folder}") from None
        except OSError:  # a file system without locks on folders
            pass
        yield
    finally:
        os.close(descriptor)


def _commits(name: str, folder: Path) -> dict[str, dict[str, str]]:
    """The commits that the folder was begun with."""
    path = folder / CARD
    if not path.exists():
        return {}
    try:
        data = tomllib.loads(path.read_bytes().decode())
        collection: str = data["collection"]
        commits = {str(repository): dict(held) for repository, held in data.get("commits", {}).items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise FormatError(f"{path}: not what latentq collect wrote: {error}") from None
    if collection != name:
        raise MismatchError(f"{folder} holds {collection}; {name} needs a folder of its own")
    return commits


def _card(name: str, commits: Mapping[str, Mapping[str, str]]) -> bytes:
    data = {"collection": name, "commits": {repository: commits[repository] for repository in sorted(commits)}}
    return (
        "# Files fetched by `latentq collect`: of what, and at which commits of the hub.\n" + tomli_w.dumps(data)
    ).encode()


def _read_failures(folder: Path) -> list[Failure]:
    path = folder / FAILED
    if not path.exists():
        return []
    try:
        return [Failure(*tsv_values(line)) for line in path.read_bytes().decode().splitlines()]
    except (ValueError, TypeError):
        raise FormatError(f"{path}: not lines of id, address and reason") from None


def _write_failures(folder: Path, failures: list[Failure]) -> None:
    """The file is there if and only if something failed."""
    path = folder / FAILED
    if failures:
        lines = (tsv_line((failure.id, failure.address, failure.reason)) for failure in failures)
        replace_file(path, "".join(f"{line}\n" for line in lines).encode())
    else:
        path.unlink(missing_ok=True)
