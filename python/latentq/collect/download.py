"""Fetching one file by HTTP: resumed where it stopped, tried again with patience, checked, and published whole.

Every collection's bytes come this way, the hub's too: `hf_hub_download` compares no hash, does not heed Retry-After,
cannot resume under Xet, and keeps caches and locks of its own.
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

if TYPE_CHECKING:
    import requests

_T = TypeVar("_T")


Pause = Callable[[float, str], None]


"""Waits so many seconds, for the reason given, or raises where the work is to stop; 0 only looks whether it is."""


_ATTEMPTS = 8  # without a new byte


_WRONG = 3  # times that a file came whole and was not what it should be


_FIRST_WAIT, _LONGEST_WAIT = 1.0, 300.0  # seconds


_TIMEOUT = (15, 60)  # seconds: to connect; between bytes


_CHUNK = 1 << 16


_LATER = (408, 425, 429, 500, 502, 503, 504)


_NOT_SATISFIABLE = 416


_UNKNOWN = "unknown"


_FULL = (errno.ENOSPC, errno.EDQUOT)


@dataclass(frozen=True)
class Remote:
    """A file to fetch.

    Attributes:
        address: Its URL.
        size: Its bytes, where they are known before.
        algorithm: Of `hash`: a name of `hashlib`, `crc32`, or `git` for the SHA-1 of a git blob.
        hash: In hexadecimal; empty where none is known.
        repository: The hub's data set that it belongs to.
    """

    address: str
    size: int | None = None
    algorithm: str = ""
    hash: str = ""
    repository: str = ""


class HopelessError(LatentqError):
    """What every other file would meet too: the disk is full, the data set is closed to us."""


class MovedError(LatentqError):
    """The address no longer leads to the file."""


class StoppedError(Exception):
    """The work is to stop; what has come is kept for the next time."""


class TryAgainError(Exception):
    """What may be otherwise in a while.

    Args:
        reason: What went wrong.
        wait: In how many seconds, if the server says so.
        wrong: Whether all came, and was not what it should be.
    """

    def __init__(self, reason: str, wait: float | None = None, *, wrong: bool = False) -> None:
        super().__init__(reason)
        self.wait, self.wrong = wait, wrong


def retried(once: Callable[[], _T], pause: Pause, progressed: Callable[[], bool] = bool) -> _T:
    """What `once` gives, called again after growing pauses while it raises `TryAgainError`.

    Args:
        once: What is tried.
        pause: How to wait.
        progressed: Whether the last try brought something, so that patience begins anew.

    Raises:
        TryAgainError: The last of too many.
    """
    failures = wrong = 0
    while True:
        try:
            return once()
        except TryAgainError as again:
            failures = 1 if progressed() else failures + 1
            wrong += again.wrong
            if failures >= _ATTEMPTS or wrong >= _WRONG:
                raise
            wait = _FIRST_WAIT * 2 ** (failures - 1) * random.uniform(0.5, 1.0) if again.wait is None else again.wait
            pause(min(wait, _LONGEST_WAIT), str(again))


def again_of(status: int, headers: Mapping[str, str]) -> TryAgainError | None:
    """What to do about an HTTP status: try again, and when; None where that is of no use."""
    if status not in _LATER:
        return None
    return TryAgainError(f"HTTP status {status}", _retry_after(headers.get("Retry-After", "")))


def _retry_after(value: str) -> float | None:
    """Seconds, from seconds or a date."""
    if value.strip().isdecimal():
        return float(value)
    with contextlib.suppress(ValueError, TypeError):
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    return None


def fetch(
    remote: Remote,
    path: Path,
    partials: Path,
    *,
    headers: Mapping[str, str],
    tell: Callable[[int, int | None], None],
    pause: Pause,
) -> None:
    """Fetches a file to a path where there is none yet.

    What has come lies at `partials`.TAG, where the tag stands for the hash or the server's validator: only of the same
    content is the rest fetched. It gets its name once its size and its hash are right, by one rename.

    Args:
        remote: The file.
        path: Where it goes.
        partials: Where its parts go: a path on the same file system, without the tag.
        headers: Sent to the address, and not to another host that it leads to.
        tell: Is told how many bytes are there, and of how many, as they come.
        pause: How to wait.

    Raises:
        LatentqError: It cannot be had; `HopelessError` where no other file could.
        StoppedError: `pause` said so.
        OSError: The machine fails.
    """
    seen = 0

    def progressed() -> bool:
        nonlocal seen
        before, seen = seen, _size(_partial(partials))
        return seen > before

    progressed()
    try:
        partial = retried(lambda: _attempt(remote, partials, headers, tell, pause), pause, progressed)
        if os.path.lexists(path):
            raise LatentqError(f"{path} appeared while it was being fetched")
        partial.rename(path)
        sync(path.parent)
    except TryAgainError as error:
        raise LatentqError(f"{error}; given up after several attempts") from None
    except OSError as error:
        if error.errno in _FULL:
            raise HopelessError(
                f"{path.parent}: no space left for {path.name}: make room, and the same command goes on from there"
            ) from None
        raise


def _attempt(
    remote: Remote,
    partials: Path,
    headers: Mapping[str, str],
    tell: Callable[[int, int | None], None],
    pause: Pause,
) -> Path:
    """The file as it is at the end of the attempt, whole and checked."""
    import requests

    partial = _partial(partials)
    if partial is not None and remote.hash and partial != _named(partials, remote.hash):
        partial.unlink()
        partial = None
    if partial is not None and _size(partial) == remote.size:
        return _checked(remote, partial)
    # From the last byte on: a server has an answer to that also where nothing is missing.
    start = max(0, _size(partial) - 1)
    asked = {**headers, "Accept-Encoding": "identity", **({"Range": f"bytes={start}-"} if start else {})}
    try:
        with requests.get(remote.address, headers=asked, stream=True, timeout=_TIMEOUT) as response:
            if response.status_code == _NOT_SATISFIABLE and partial is not None:
                partial.unlink()
                raise TryAgainError("the server has a shorter file than the one begun")
            remote, target, begin = _begin(response, remote, partials)
            if partial is not None and partial != target:
                partial.unlink()
            if begin and (partial != target or begin != start):
                raise TryAgainError("the server has another file than the one begun")
            tell(begin, remote.size)
            with target.open("ab") as file:
                file.truncate(begin)
                for chunk in response.iter_content(_CHUNK):
                    pause(0, "")
                    file.write(chunk)
                    begin += len(chunk)
                    tell(begin, remote.size)
                    if remote.size is not None and begin > remote.size:
                        break
    except (requests.exceptions.InvalidSchema, requests.exceptions.MissingSchema, requests.exceptions.InvalidURL):
        raise LatentqError(
            f"{remote.address} is no address: it must begin with http:// or https:// and a host"
        ) from None
    except requests.RequestException as error:
        raise TryAgainError(f"the connection broke: {cause(error)}") from None
    return _checked(remote, target)


def _begin(response: requests.Response, remote: Remote, partials: Path) -> tuple[Remote, Path, int]:
    """What is known of the file now, where its bytes go, and from which one they come."""
    _check_status(response, remote)
    if response.headers.get("Content-Type", "").startswith("text/html"):
        raise MovedError("a page came instead of the file")
    begin, total = _range_of(response)
    if remote.size is not None and total not in (None, remote.size):
        raise TryAgainError(f"{total} bytes are offered of {remote.size}")
    if remote.hash:
        return remote, _named(partials, remote.hash), begin
    algorithm, checksum = _checksum(response, whole=response.status_code == 200)
    found = replace(remote, size=total if remote.size is None else remote.size, algorithm=algorithm, hash=checksum)
    return found, _named(partials, _validator(response)), begin


def _check_status(response: requests.Response, remote: Remote) -> None:
    status = response.status_code
    if status in (200, 206):
        return
    again = again_of(status, response.headers)
    if again is not None:
        raise again
    denied = status in (401, 403)
    if denied and remote.repository:
        if response.history:  # a store that the hub leads to, by an address that is good for a while
            raise TryAgainError(f"HTTP status {status}")
        message = response.headers.get("X-Error-Message") or f"HTTP status {status}"
        gated = response.headers.get("X-Error-Code") == "GatedRepo"
        endpoint = remote.address.partition("/datasets/")[0]
        raise HopelessError(denial(remote.repository, endpoint, "" if gated else message))
    kind = MovedError if (denied or status in (404, 410)) and not remote.repository else LatentqError
    raise kind(f"HTTP status {status} {response.reason or ''}".strip())


def denial(repository: str, endpoint: str, message: str = "") -> str:
    """What to do about a data set that the hub gives to some only; it is gated where the hub says nothing else."""
    page, how = f"{endpoint}/datasets/{repository}", "(HF_TOKEN, or hf auth login)"
    if message:
        return f"{page}: {message}: a token that may read it is needed {how}"
    return f"{repository} is gated: accept its terms at {page}, and give a token of that account {how}"


def _range_of(response: requests.Response) -> tuple[int, int | None]:
    """Where the body begins in the file, and the file's size."""
    length = response.headers.get("Content-Length", "")
    if response.status_code == 200:
        return 0, int(length) if length.isdecimal() else None
    match = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", response.headers.get("Content-Range", "").strip())
    if match is None:
        raise TryAgainError("the server sends a part and does not say which")
    return int(match[1]), int(match[2]) if match[2] != "*" else None


def _validator(response: requests.Response) -> str:
    """What changes with the content, and is strong enough to join parts by; empty where the server gives none."""
    etag = response.headers.get("ETag", "")
    return etag if etag and not etag.startswith("W/") else response.headers.get("Last-Modified", "")


def _checksum(response: requests.Response, *, whole: bool) -> tuple[str, str]:
    """Algorithm and hash that a server gives of the file."""
    headers = response.headers
    given = {
        "sha256": re.search(r"sha-256=:([\w+/=]+):", headers.get("Repr-Digest", "")),
        "md5": re.search(r"md5=([\w+/=]+)", headers.get("x-goog-hash", "")),
    }
    found = {algorithm: match[1] for algorithm, match in given.items() if match}
    if whole:  # of a part these would be the part's
        names = (("sha256", "x-amz-checksum-sha256"), ("crc32", "x-amz-checksum-crc32"), ("md5", "Content-MD5"))
        found |= {algorithm: headers[name] for algorithm, name in names if name in headers}
    for algorithm, value in found.items():
        with contextlib.suppress(ValueError):
            return algorithm, base64.b64decode(value, validate=True).hex()
    return "", ""


def _checked(remote: Remote, partial: Path) -> Path:
    """The file, on the disk, if it is what it should be."""
    size = _size(partial)
    if remote.size is not None and size < remote.size:
        raise TryAgainError(f"the connection broke after {size} of {remote.size} bytes")
    if remote.size is not None and size > remote.size:
        partial.unlink()
        raise TryAgainError(f"{size} bytes came of {remote.size}", wrong=True)
    if remote.hash and (found := _hash_of(partial, remote.algorithm)) != remote.hash:
        partial.unlink()
        raise TryAgainError(f"its {remote.algorithm} is {found}, not {remote.hash}", wrong=True)
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


def _named(partials: Path, validator: str) -> Path:
    """Where parts of that content lie."""
    tag = hashlib.sha256(validator.encode()).hexdigest()[:16] if validator else _UNKNOWN
    return partials.with_name(f"{partials.name}.{tag}")


def _partial(partials: Path) -> Path | None:
    """What has come of a file so far and can be gone on with."""
    for entry in partials.parent.iterdir():
        if entry.name.rpartition(".")[0] == partials.name:
            if entry != _named(partials, ""):
                return entry
            entry.unlink()
    return None


def _size(partial: Path | None) -> int:
    return partial.stat().st_size if partial is not None else 0


def cause(error: BaseException) -> str:
    """The innermost reason, in one line."""
    while (inner := error.__cause__ or error.__context__) is not None:
        error = inner
    return " ".join(str(error).split()) or type(error).__name__
