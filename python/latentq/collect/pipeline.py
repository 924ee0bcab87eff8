"""`latentq collect`: downloads the files of a collection into a folder, several at once, and continues earlier runs."""

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
from latentq.collect.download import Download, FatalError, MovedError, Remote, StoppedError
from latentq.collect.file import File
from latentq.collect.hub_files import HubFiles
from latentq.format.tsv import tsv_line, tsv_values
from latentq.store.local import replace_file
from latentq.system.extras import needed_for
from latentq.system.progress import TransferProgress
from latentq.system.text import counted, one_line, size_text

RECORD = "collect.toml"
FAILED = "failed.tsv"

_PARTIALS = ".partial"
_RETRY_ADVICE = "a proxy or a login page may be in between; once that is solved, --retry-failed tries again"
_LOST = "no longer among the files: give the list that names it, or remove its line from failed.tsv"
_SHORTEST_NOTED_PAUSE = 2.0  # seconds


@dataclass(frozen=True)
class Failure:
    """A file that could not be downloaded: its id, its address, and the reason."""

    id: str
    address: str
    reason: str


@dataclass(frozen=True)
class Collected:
    """The result of a run.

    Attributes:
        files: How many of the requested files are there now.
        bytes: The total size of those files in bytes.
        failed: The requested files that are missing.
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
    """Downloads the files of a public collection into a folder, or continues an earlier run.

    A file that is there is not downloaded again. Files of the Hub keep their path in the repository, at the commit that
    the folder was begun with (`collect.toml`). Files that could not be downloaded are
    listed in `failed.tsv` until they are there.
    Nothing is written outside the folder.

    Args:
        name: One of `COLLECTIONS`.
        folder: Where the files go; created if absent.
        subset: `small` (about 1%) or `all`.
        ids: The numbers of the archives, instead of a subset.
        retry_failed: Takes the files of `failed.tsv` instead of a subset.
        links: For sa1b: the list of links from its page.
        site: For coco: the address of a mirror.
        threads: How many files are downloaded at once.
        progress: The stream for progress; None prints nothing.

    Raises:
        LatentqError: Nothing can be downloaded, or nothing more; the message says what to do.
        OSError: The folder cannot be written.
        ValueError: An argument is out of range.
        MissingPackageError: `huggingface_hub` or `requests` is not installed.
    """
    if name not in COLLECTIONS:
        raise ValueError(f"there is no collection {name!r}: name one of {', '.join(COLLECTIONS)}")
    if threads < 1:
        raise ValueError(f"threads must be at least 1, not {threads}")
    collection, folder = COLLECTIONS[name], Path(folder)
    request = Request(subset, ids, None if links is None else os.fspath(links), site)
    _check_request(name, collection, request)
    folder.mkdir(parents=True, exist_ok=True)
    with _locked(folder), needed_for("latentq collect"):
        run = _Run(name, collection, folder, progress)
        with run.bar:
            return run(request, retry_failed=retry_failed, threads=threads)


class _Run:
    """One run on a folder."""

    def __init__(self, name: str, collection: Collection, folder: Path, progress: TextIO | None) -> None:
        self._name, self._collection, self._folder = name, collection, folder
        self.bar = TransferProgress(progress)
        self._stop = threading.Event()
        self._hub = HubFiles(_commits(name, folder), functools.partial(self._pause, "the Hub"))
        self._headers = self._hub.headers()

    def __call__(self, request: Request, *, retry_failed: bool, threads: int) -> Collected:
        for name in (RECORD, FAILED):
            for temporary in self._folder.glob(f".{name}.????????"):  # of a run that was killed
                temporary.unlink()
        earlier = _read_failures(self._folder)
        lost: list[Failure] = []
        files = self._collection.files(request, self._hub)
        if retry_failed:
            failed_ids = {failure.id for failure in earlier}
            files = [file for file in files if file.id in failed_ids]
            lost = [failure for failure in earlier if failure.id not in {file.id for file in files}]
            if not earlier:
                self.bar.note(
                    f"there is no {FAILED}: without --retry-failed, the same command downloads what is missing"
                )
        remotes = self._hub.remotes(file for file in files if file.repository)
        remotes |= {file.path: Remote(file.address) for file in files if file.address}
        replace_file(self._folder / RECORD, _record_toml(self._name, self._hub.commits))
        reasons = {file: reason for file in files if (reason := self._obstacle(file, remotes.get(file.path)))}
        missing = [file for file in files if file not in reasons and not (self._folder / file.path).exists()]
        self._announce(reasons, missing, len(files), sum(remotes[file.path].size or 0 for file in missing))
        try:
            self._download_all(missing, remotes, threads, reasons)
        except (LatentqError, OSError) as error:  # it ends the run: every file that is not there yet has failed
            for file in missing:
                if not (self._folder / file.path).exists():
                    reasons.setdefault(file, one_line(error))
            with contextlib.suppress(OSError):  # the disk may be full
                self._record_failures(files, remotes, reasons, earlier, lost)
            raise
        failed = self._record_failures(files, remotes, reasons, earlier, lost)
        complete = [self._folder / file.path for file in files if file not in reasons]
        return Collected(len(complete), sum(path.stat().st_size for path in complete), failed)

    def _record_failures(
        self,
        files: list[File],
        remotes: dict[str, Remote],
        reasons: dict[File, str],
        earlier: list[Failure],
        lost: list[Failure],
    ) -> list[Failure]:
        """Writes failed.tsv: the failures of this run, and earlier ones of other files. Returns those of this run.

        Args:
            files: The files of this run.
            remotes: Address and size of the files on their servers, by path.
            reasons: Why each file that failed in this run did.
            earlier: The failures in failed.tsv before this run.
            lost: Those of them that the collection no longer has a file for.
        """
        failed = [
            Failure(file.id, remotes[file.path].address if file.path in remotes else file.repository, reasons[file])
            for file in files
            if file in reasons
        ]
        failed += [replace(failure, reason=_LOST) for failure in lost]
        tried = {file.id for file in files} | {failure.id for failure in lost}
        _write_failures(self._folder, [failure for failure in earlier if failure.id not in tried] + failed)
        return failed

    def _announce(self, reasons: dict[File, str], missing: list[File], count: int, total: int) -> None:
        """Tells which files cannot be requested, and how much there is to download.

        Args:
            reasons: Why each file that cannot be requested cannot.
            missing: The files to download.
            count: The number of all files of the request.
            total: The known bytes of the missing files; 0 if none is known.
        """
        for file, reason in reasons.items():
            self.bar.note(f"failed: {file.id}: {reason}")
        self.bar.expect(len(missing), total)
        if missing:
            known = f", {size_text(total)}" if total else ""
            free = size_text(shutil.disk_usage(self._folder).free)
            files = counted(count, "file")
            self.bar.note(f"to download: {len(missing)} of {files}{known}; {free} are free in {self._folder}")

    def _obstacle(self, file: File, remote: Remote | None) -> str:
        """Returns why a file cannot be requested; empty if it can."""
        if remote is None:
            return f"{file.path} is not in {file.repository} at {file.revision}"
        path = self._folder / file.path
        if (relative := PurePosixPath(file.path)).is_absolute() or ".." in relative.parts:
            return f"{file.path} would lie outside {self._folder}"
        if os.path.lexists(path) and not path.is_file():
            return f"{path} exists and is not a file: move it away"
        if remote.size is not None and path.exists() and path.stat().st_size != remote.size:
            return f"{path} exists with {counted(path.stat().st_size, 'byte')} instead of {remote.size}: move it away"
        return ""

    def _download_all(
        self, files: list[File], remotes: dict[str, Remote], threads: int, reasons: dict[File, str]
    ) -> None:
        """Downloads files, several at once, and adds the reasons of those that failed.

        Args:
            files: The files to download.
            remotes: Address and size of the files on their servers, by path.
            threads: How many files are downloaded at once.
            reasons: Why each file that failed did; extended in place.
        """
        (self._folder / _PARTIALS).mkdir(exist_ok=True)
        pool = ThreadPoolExecutor(threads)
        try:
            futures = {pool.submit(self._download, file, remotes[file.path]): file for file in files}
            for future in as_completed(futures):
                with contextlib.suppress(StoppedError):  # the error that stopped the run is raised by its own future
                    if reason := future.result():
                        reasons[futures[future]] = reason
        finally:
            self._stop.set()
            pool.shutdown(cancel_futures=True)
        with contextlib.suppress(OSError):  # partial files of failed downloads stay
            (self._folder / _PARTIALS).rmdir()

    def _download(self, file: File, remote: Remote) -> str:
        """Downloads a file. Returns why it failed, or empty."""
        path = self._folder / file.path
        self.bar.begin(file.path, remote.size)
        reason = ""
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            Download(
                remote,
                path,
                self._folder / _PARTIALS / quote(file.path, safe=""),
                headers=self._headers if remote.repository else {},
                report=lambda done, size: self.bar.at(file.path, done, size),
                pause=functools.partial(self._pause, file.path),
            ).run()
        except (FatalError, OSError):
            self._stop.set()
            raise
        except MovedError as error:
            reason = one_line(f"{error}: {self._collection.advice or _RETRY_ADVICE}")
        except LatentqError as error:
            reason = one_line(error)
        self.bar.end(file.path, reason)
        return reason

    def _pause(self, name: str, seconds: float, reason: str) -> None:
        if seconds >= _SHORTEST_NOTED_PAUSE:
            self.bar.note(f"{name}: {reason}; trying again in {seconds:.0f} s")
        if self._stop.wait(seconds) if seconds else self._stop.is_set():
            raise StoppedError


def _check_request(name: str, collection: Collection, request: Request) -> None:
    """Raises ValueError if the request has an option that the collection does not take, or lacks one it needs."""
    for option in ("ids", "links", "site"):
        if getattr(request, option) is not None and option not in collection.takes:
            raise ValueError(f"{name} takes no {option}")
    if "links" in collection.takes and request.links is None:
        raise ValueError(f"{name} needs its list of links, from the dataset's page: --links FILE")


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Locks a folder against a second process."""
    import fcntl

    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise LatentqError(f"another latentq collect is working in {folder}") from None
        except OSError:  # a file system without locks on folders
            pass
        yield
    finally:
        os.close(descriptor)


def _commits(name: str, folder: Path) -> dict[str, dict[str, str]]:
    """Returns the pinned commits of a folder, by repository and revision."""
    path = folder / RECORD
    if not path.exists():
        return {}
    try:
        data = tomllib.loads(path.read_bytes().decode())
        collection: str = data["collection"]
        commits = {str(repository): dict(pinned) for repository, pinned in data.get("commits", {}).items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise FormatError(f"{path}: not what latentq collect wrote: {error}") from None
    if collection != name:
        raise MismatchError(f"{folder} holds {collection}; {name} needs a folder of its own")
    return commits


def _record_toml(name: str, commits: Mapping[str, Mapping[str, str]]) -> bytes:
    data = {"collection": name, "commits": {repository: commits[repository] for repository in sorted(commits)}}
    return (
        "# Written by `latentq collect`: the collection, and the commit of each repository on the Hub.\n"
        + tomli_w.dumps(data)
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
    """Writes failed.tsv, or removes it if nothing failed."""
    path = folder / FAILED
    if failures:
        lines = (tsv_line((failure.id, failure.address, failure.reason)) for failure in failures)
        replace_file(path, "".join(f"{line}\n" for line in lines).encode())
    else:
        path.unlink(missing_ok=True)
