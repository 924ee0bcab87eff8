"""Downloads one file over HTTP: resumed, retried, verified, and published complete or not at all.

Files of the Hub are downloaded here too, because `hf_hub_download` compares no hash, ignores Retry-After, cannot resume
with Xet, and keeps caches and locks of its own.
"""

from __future__ import annotations

import base64
import contextlib
import email.utils
import errno
import hashlib
import os
import random
import re
import time
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from latentq._core import LatentqError
from latentq.store.local import sync
from latentq.system.text import counted, one_line

if TYPE_CHECKING:
    import requests

    from latentq.collect.guard import Guard

_T = TypeVar("_T")

Pause = Callable[[float, str], None]
"""Waits for a number of seconds, for a given reason, and raises if the work is to stop; 0 seconds only checks."""

_ATTEMPTS = 8  # without a new byte
_MAX_WRONG = 3  # complete downloads with the wrong content
_FIRST_WAIT, _LONGEST_WAIT = 1.0, 300.0  # seconds
_TIMEOUT = (15, 60)  # seconds: to connect; between bytes
_CHUNK = 1 << 16
_RETRYABLE_STATUSES = (408, 425, 429, 500, 502, 503, 504)
_NOT_SATISFIABLE = 416
_MAX_UNSIZED_BYTES = 1 << 35  # 32 GiB, about three times the largest archive of any collection
# The first bytes of files by suffix; a tar begins with a header whose checksum is right.
_BEGINNINGS = {".zip": b"PK", ".tgz": b"\x1f\x8b", ".gz": b"\x1f\x8b", ".parquet": b"PAR1"}
_TAR_BLOCK = 512
_NO_VALIDATOR = "unknown"
_DISK_FULL = (errno.ENOSPC, errno.EDQUOT)


@dataclass(frozen=True)
class Remote:
    """A file to download.

    Attributes:
        address: The URL.
        size: The size in bytes, if it is known in advance.
        algorithm: The algorithm of `hash`: a name of `hashlib`, `crc32`, or `git` for the SHA-1 of a git blob.
        hash: The hash in hexadecimal; empty if none is known.
        repository: The dataset on the Hub that the file belongs to, if any.
    """

    address: str
    size: int | None = None
    algorithm: str = ""
    hash: str = ""
    repository: str = ""


class FatalError(LatentqError):
    """An error that would affect every other file too: the disk is full, or access is denied."""


class MovedError(LatentqError):
    """The address no longer leads to the file."""


class StoppedError(Exception):
    """The run is stopping; partial files are kept for the next run."""


class RetryableError(Exception):
    """An error that may not occur again.

    Args:
        reason: What went wrong.
        wait: Seconds to wait before the next attempt, if the server says so.
        wrong_content: True if the whole file arrived and has the wrong content.
    """

    def __init__(self, reason: str, wait: float | None = None, *, wrong_content: bool = False) -> None:
        super().__init__(reason)
        self.wait, self.wrong_content = wait, wrong_content


def retry(attempt: Callable[[], _T], pause: Pause, progressed: Callable[[], bool] = bool) -> _T:
    """Calls `attempt` until it returns, with growing pauses after each `RetryableError`.

    Args:
        attempt: The function to call.
        pause: Waits between attempts.
        progressed: Returns True if the last attempt brought new bytes, which resets the count of failures.

    Raises:
        RetryableError: The last error, after too many failed attempts.
    """
    failures = wrong = 0
    while True:
        try:
            return attempt()
        except RetryableError as error:
            failures = 1 if progressed() else failures + 1
            wrong += error.wrong_content
            if failures >= _ATTEMPTS or wrong >= _MAX_WRONG:
                raise
            wait = _FIRST_WAIT * 2 ** (failures - 1) * random.uniform(0.5, 1.0) if error.wait is None else error.wait
            pause(min(wait, _LONGEST_WAIT), str(error))


def retryable_status(status: int, headers: Mapping[str, str]) -> RetryableError | None:
    """Returns the error for an HTTP status that may change, with the server's Retry-After; None for other statuses."""
    if status not in _RETRYABLE_STATUSES:
        return None
    return RetryableError(f"HTTP status {status}", _retry_after(headers.get("Retry-After", "")))


def _retry_after(value: str) -> float | None:
    """Returns the seconds to wait, from a number of seconds or a date; None if the value is neither."""
    if value.strip().isdecimal():
        return float(value)
    with contextlib.suppress(ValueError, TypeError):
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    return None


@dataclass(frozen=True)
class Download:
    """A download of one file: its destination, and callbacks for progress and pauses.

    Attributes:
        remote: The file.
        path: The destination of the complete file, which must not exist.
        partials: The path of partial files, on the same file system and without the tag.
        headers: Headers for the address, which are not sent to another host that it redirects to.
        report: Called as bytes arrive, with the number received so far and the total.
        pause: Waits between attempts.
    """

    remote: Remote
    path: Path
    partials: Path
    headers: Mapping[str, str]
    report: Callable[[int, int | None], None]
    pause: Pause

    def run(self) -> None:
        """Downloads the file, or continues an earlier download.

        Received bytes are kept in `partials`.TAG. The tag is derived from the hash or the server's validator, so that
        a download is resumed only with the same content. One rename publishes the file once its size and hash are
        right.

        Raises:
            LatentqError: The file cannot be downloaded; `FatalError` if no other file could be either.
            StoppedError: `pause` raised it.
            OSError: The partial or complete file cannot be read or written.
        """
        seen = 0

        def progressed() -> bool:
            nonlocal seen
            before, seen = seen, _size(_find_partial(self.partials))
            return seen > before

        progressed()
        try:
            partial = retry(self._attempt, self.pause, progressed)
            if os.path.lexists(self.path):
                raise LatentqError(f"{self.path} appeared during the download")
            partial.rename(self.path)
            sync(self.path.parent)
        except RetryableError as error:
            raise LatentqError(f"{error}; gave up after several attempts") from None
        except OSError as error:
            if error.errno in _DISK_FULL:
                raise FatalError(
                    f"{self.path.parent}: no space left for {self.path.name}: make room, and run the same command again"
                    " to continue"
                ) from None
            raise

    def _attempt(self) -> Path:
        """Makes one attempt, and returns the complete, verified partial file."""
        import requests

        from latentq.collect.guard import Guard

        remote, partial = self.remote, _find_partial(self.partials)
        if partial is not None and remote.hash and partial != _partial_path(self.partials, remote.hash):
            partial.unlink()
            partial = None
        if partial is not None and _size(partial) == remote.size:
            return _verified(remote, partial)
        # Request from the last byte on, so that the server can answer even if nothing is missing.
        start = max(0, _size(partial) - 1)
        headers = {**self.headers, "Accept-Encoding": "identity", **({"Range": f"bytes={start}-"} if start else {})}
        try:
            guard = Guard()
            with (
                guard.session() as session,
                session.get(remote.address, headers=headers, stream=True, timeout=_TIMEOUT) as response,
            ):
                if response.status_code == _NOT_SATISFIABLE and partial is not None:
                    partial.unlink()
                    raise RetryableError("the server's file is shorter than the partial file")
                remote, target, begin = _begin(response, remote, self.partials)
                if partial is not None and partial != target:
                    partial.unlink()
                if begin and (partial != target or begin != start):
                    raise RetryableError("the server's file differs from the partial file")
                self._receive(response, guard, remote, target, begin)
        except (requests.exceptions.InvalidSchema, requests.exceptions.MissingSchema, requests.exceptions.InvalidURL):
            raise LatentqError(
                f"{remote.address} is not an address: it must begin with http:// or https:// and a host"
            ) from None
        except requests.RequestException as error:
            raise RetryableError(f"the connection broke: {root_cause(error)}") from None
        return _verified(remote, target)

    def _receive(self, response: requests.Response, guard: Guard, remote: Remote, target: Path, begin: int) -> None:
        """Appends the body to the partial file, from byte `begin` on.

        Args:
            response: The response, whose body begins at byte `begin` of the file.
            guard: Ends a connection that is too slow.
            remote: The file as the server describes it.
            target: The partial file; it is cut at `begin` first.
            begin: An offset in bytes.
        """
        limit = _MAX_UNSIZED_BYTES if remote.size is None else remote.size
        self.report(begin, remote.size)
        with target.open("ab") as file:
            file.truncate(begin)
            done = begin
            for chunk in response.iter_content(_CHUNK):
                self.pause(0, "")
                guard.content(len(chunk))
                file.write(chunk)
                if done == 0 and not remote.hash and not _begins_as_named(chunk, self.path.name):
                    target.unlink()
                    raise MovedError(f"the server sent something other than a {self.path.suffix} file")
                done += len(chunk)
                self.report(done, remote.size)
                if done > limit:
                    break
        if remote.size is None and done > limit:
            target.unlink()
            raise LatentqError(f"the server gave no size and sent more than {counted(limit, 'byte')}")


def _begin(response: requests.Response, remote: Remote, partials: Path) -> tuple[Remote, Path, int]:
    """Returns the file as the server describes it, its partial file, and the offset at which the body begins."""
    _check_status(response, remote)
    if response.headers.get("Content-Type", "").startswith("text/html"):
        raise MovedError("the server sent a web page instead of the file")
    begin, total = _range_of(response)
    if remote.size is not None and total not in (None, remote.size):
        raise RetryableError(f"the server offers {counted(total, 'byte')} instead of {remote.size}")
    if remote.hash:
        return remote, _partial_path(partials, remote.hash), begin
    algorithm, checksum = _checksum(response, whole=response.status_code == 200)
    described = replace(remote, size=total if remote.size is None else remote.size, algorithm=algorithm, hash=checksum)
    return described, _partial_path(partials, _validator(response)), begin


def _check_status(response: requests.Response, remote: Remote) -> None:
    status = response.status_code
    if status in (200, 206):
        return
    retryable = retryable_status(status, response.headers)
    if retryable is not None:
        raise retryable
    denied = status in (401, 403)
    if denied and remote.repository:
        if response.history:  # a store that the Hub redirects to, whose address expires
            raise RetryableError(f"HTTP status {status}")
        message = response.headers.get("X-Error-Message") or f"HTTP status {status}"
        gated = response.headers.get("X-Error-Code") == "GatedRepo"
        endpoint = remote.address.partition("/datasets/")[0]
        # A missing or refused token affects every file; status 403 may concern this file only.
        failure = FatalError if gated or status == 401 else LatentqError
        raise failure(access_advice(remote.repository, endpoint, "" if gated else message))
    kind = MovedError if (denied or status in (404, 410)) and not remote.repository else LatentqError
    raise kind(f"HTTP status {status} {response.reason or ''}".strip())


def access_advice(repository: str, endpoint: str, message: str = "") -> str:
    """Returns the message for a dataset that needs a token; without the Hub's own message, the dataset is gated.

    Args:
        repository: The dataset on the Hub, `owner/name`.
        endpoint: The address of the Hub.
        message: The Hub's own message; empty for a gated dataset.
    """
    page, how = f"{endpoint}/datasets/{repository}", "(HF_TOKEN, or hf auth login)"
    if message:
        return f"{page}: {message}: give a token that may read it {how}"
    return f"{repository} is gated: accept its terms at {page}, and give a token of that account {how}"


def _range_of(response: requests.Response) -> tuple[int, int | None]:
    """Returns the offset at which the body begins in the file, and the file's size, if the server says it."""
    length = response.headers.get("Content-Length", "")
    if response.status_code == 200:
        return 0, int(length) if length.isdecimal() else None
    match = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", response.headers.get("Content-Range", "").strip())
    if match is None:
        raise RetryableError("the server sent part of the file without saying which part")
    return int(match[1]), int(match[2]) if match[2] != "*" else None


def _begins_as_named(chunk: bytes, name: str) -> bool:
    """True if the first bytes of a file may be those of a file of this name."""
    suffix = Path(name).suffix.lower()
    if suffix != ".tar":
        return chunk.startswith(_BEGINNINGS.get(suffix, b""))
    if chunk.startswith(_BEGINNINGS[".gz"]) or not 0 < len(chunk[:_TAR_BLOCK]) == _TAR_BLOCK:
        return chunk.startswith(_BEGINNINGS[".gz"])
    header = chunk[:_TAR_BLOCK]
    digits = header[148:156].strip(b" \0")
    checksum = sum(header) - sum(header[148:156]) + 8 * ord(" ")
    return not any(header) or (digits.isdigit() and all(digit < 56 for digit in digits) and int(digits, 8) == checksum)


def _validator(response: requests.Response) -> str:
    """Returns the server's strong ETag, or its date of the content; empty if it gives neither."""
    etag = response.headers.get("ETag", "")
    return etag if etag and not etag.startswith("W/") else response.headers.get("Last-Modified", "")


def _checksum(response: requests.Response, *, whole: bool) -> tuple[str, str]:
    """Returns the algorithm and hash that the server gives for the file; empty if it gives none."""
    headers = response.headers
    given = {
        "sha256": re.search(r"sha-256=:([\w+/=]+):", headers.get("Repr-Digest", "")),
        "md5": re.search(r"md5=([\w+/=]+)", headers.get("x-goog-hash", "")),
    }
    found = {algorithm: match[1] for algorithm, match in given.items() if match}
    if whole:  # in a partial response, these headers describe only the part
        names = (("sha256", "x-amz-checksum-sha256"), ("crc32", "x-amz-checksum-crc32"), ("md5", "Content-MD5"))
        found |= {algorithm: headers[name] for algorithm, name in names if name in headers}
    for algorithm, value in found.items():
        with contextlib.suppress(ValueError):
            return algorithm, base64.b64decode(value, validate=True).hex()
    return "", ""


def _verified(remote: Remote, partial: Path) -> Path:
    """Returns the partial file, fsynced, if its size and hash are right. Raises RetryableError if they are not."""
    size = _size(partial)
    if remote.size is not None and size < remote.size:
        raise RetryableError(f"the connection broke after {size} of {counted(remote.size, 'byte')}")
    if remote.size is not None and size > remote.size:
        partial.unlink()
        raise RetryableError(f"received {counted(size, 'byte')} instead of {remote.size}", wrong_content=True)
    if remote.hash and (found := _hash_of(partial, remote.algorithm)) != remote.hash:
        partial.unlink()
        raise RetryableError(f"its {remote.algorithm} is {found}, not {remote.hash}", wrong_content=True)
    sync(partial)
    return partial


def _hash_of(path: Path, algorithm: str) -> str:
    with path.open("rb") as file:
        if algorithm == "crc32":
            crc = 0
            while chunk := file.read(_CHUNK):
                crc = zlib.crc32(chunk, crc)
            return f"{crc:08x}"
        if algorithm == "git":
            digest = hashlib.sha1(b"blob %d\0" % path.stat().st_size, usedforsecurity=False)
            while chunk := file.read(_CHUNK):
                digest.update(chunk)
            return digest.hexdigest()
        return hashlib.file_digest(file, algorithm).hexdigest()


def _partial_path(partials: Path, validator: str) -> Path:
    """Returns the path of a partial file with that validator or hash."""
    tag = hashlib.sha256(validator.encode()).hexdigest()[:16] if validator else _NO_VALIDATOR
    return partials.with_name(f"{partials.name}.{tag}")


def _find_partial(partials: Path) -> Path | None:
    """Returns the partial file to continue, or None; removes a partial file without a validator."""
    for entry in partials.parent.iterdir():
        if entry.name.rpartition(".")[0] == partials.name:
            if entry != _partial_path(partials, ""):
                return entry
            entry.unlink()
    return None


def _size(partial: Path | None) -> int:
    return partial.stat().st_size if partial is not None else 0


def root_cause(error: BaseException) -> str:
    """Returns the innermost error's message, in one line."""
    while (inner := error.__cause__ or error.__context__) is not None:
        error = inner
    return one_line(error)
