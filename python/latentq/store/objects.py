"""Object stores: S3, Google Cloud Storage and Azure, through obstore.

There is no rename and no lock. An object appears whole or not at all, and `put_once` puts an object only if its name is
free, which is enough to publish units: see `latentq.store.mirror`.
"""

from __future__ import annotations

import errno
import itertools
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from latentq._core import LatentqError, MismatchError
from latentq.system.extras import needed_for
from latentq.system.faults import DeniedError

_URL = re.compile(r"(s3a?|gs|az|azure|abfss?)://", re.IGNORECASE)
# Options of connections, which obstore takes apart from those of a store; all but those here come as text.
_CLIENT_OPTIONS = {
    "allow_http": bool, "allow_invalid_certificates": bool, "connect_timeout": str, "http1_only": bool,
    "http2_only": bool, "pool_idle_timeout": str, "pool_max_idle_per_host": str, "proxy_ca_certificate": str,
    "proxy_url": str, "timeout": str, "user_agent": str,
}  # fmt: skip
_DENIED = re.compile("ExpiredToken|RequestTimeTooSkewed|InvalidAccessKeyId|SignatureDoesNotMatch|AccessDenied")
# Machines of a cloud get credentials there; obstore asks if it has no others.
_NO_CREDENTIALS = re.compile(r"//(169\.254\.169\.254|metadata(\.google\.internal)?)/")
_ATTEMPTS = 5  # obstore repeats failed requests itself; these are for responses that were cut off
_FIRST_WAIT, _LONGEST_WAIT = 0.2, 10.0  # seconds
_PATIENCE = 180.0  # seconds in which a store that cannot be reached is asked again
_UNREACHABLE = "error sending request"  # in the message: obstore does not repeat a conditional put for it
_RETRIES = {"max_retries": 10, "retry_timeout": timedelta(minutes=3)}  # of obstore
_FEW_RETRIES = {"max_retries": 3, "retry_timeout": timedelta(seconds=5)}
_PAGE = 1000  # objects of a listing at once, as many as S3 returns
_PIECE = 1 << 22  # bytes that are written at once
_TOO_LONG = 500  # characters of a message that are shown

# obstore's threads, one set for the process, begin with its first request. In a child that is forked later they are
# missing, and requests would wait for ever, also those of a new store.
_begun_in: dict[str, int] = {}

_T = TypeVar("_T")


def is_url(path: object) -> bool:
    """True if a path names an object store: `s3://`, `gs://`, `az://` and the like."""
    return isinstance(path, str) and _URL.match(path) is not None


class StoredObject(NamedTuple):
    """An object in a listing.

    Attributes:
        name: Its name below the store's URL.
        size: Its size in bytes.
        version: Its ETag, which another object of this name does not have; empty if the store gives none.
    """

    name: str
    size: int
    version: str = ""


class ObjectStore:
    """The objects whose names begin with a URL.

    Requests that fail for a reason that may pass, such as 503 or a lost connection, are repeated with growing waits for
    up to three minutes. Any other failure is an `OSError` of one line that names the object.

    Args:
        url: `s3://bucket/prefix`, `gs://bucket/prefix` or `az://container/prefix`.
        options: What obstore takes for a store or its connections: `endpoint`, `region`, `access_key_id`, `allow_http`
            (`true`), `timeout` (`30s`) and so on. Whatever is not given comes from the environment
            (`AWS_ACCESS_KEY_ID`, `AWS_ENDPOINT_URL`, `GOOGLE_SERVICE_ACCOUNT`, `AZURE_STORAGE_ACCOUNT_KEY` and so on).
        patient: False repeats requests for a few seconds only, if there is something to do without the store.

    Attributes:
        url: The URL, without a slash at its end.
        options: The options that were given.

    Raises:
        MissingPackageError: obstore is not installed.
        ValueError: The URL or an option is not valid.
    """

    def __init__(self, url: str, options: Mapping[str, str] | None = None, *, patient: bool = True) -> None:
        with needed_for(url):
            import obstore
            from obstore.exceptions import BaseError
            from obstore.store import from_url
        self.url = url.rstrip("/")
        self.options = dict(options or {})
        self._retries = _RETRIES if patient else _FEW_RETRIES
        self._attempts = _ATTEMPTS if patient else min(_ATTEMPTS, 3)
        self._patience = _PATIENCE if patient else 0.0
        self._obstore: Any = obstore
        open_store: Any = from_url  # typed by URL, which is only known here
        options = options or {}
        client = {
            name: value.lower() == "true" if _CLIENT_OPTIONS[name] is bool else value
            for name, value in options.items()
            if name in _CLIENT_OPTIONS
        }
        config = {name: value for name, value in options.items() if name not in _CLIENT_OPTIONS}
        try:
            self._store = open_store(self.url, config=config, client_options=client or None, retry_config=self._retries)
        except BaseError as error:
            raise ValueError(f"{url}: {_first_line(error)}") from None

    def __reduce__(self) -> tuple[Any, ...]:
        return ObjectStore, (self.url, self.options)

    def __repr__(self) -> str:
        return f"ObjectStore({self.url!r})"

    def get(self, name: str) -> bytes:
        """Returns the bytes of an object.

        Raises:
            FileNotFoundError: There is no such object.
            OSError: It cannot be read.
        """
        return self._call(name, lambda: bytes(self._obstore.get(self._store, name).bytes()))

    def read(self, name: str, start: int, stop: int, version: str = "") -> bytes:
        """Returns a range of an object's bytes.

        Args:
            name: The object's name.
            start: The first byte.
            stop: The end of the range, at most the size of the object and after `start`.
            version: The ETag that the object must have; empty takes any.

        Raises:
            MismatchError: The object has another ETag.
            FileNotFoundError: There is no such object.
            OSError: It cannot be read.
        """
        from obstore.exceptions import GenericError

        def is_another(found: str) -> bool:
            # Azure's listings have no quotation marks. If-Match would need the very text that a store expects.
            return bool(version and found) and found.strip('"') != version.strip('"')

        def read() -> bytes | None:
            try:
                result = self._obstore.get(self._store, name, options={"range": (start, stop)})
            except GenericError:  # of a smaller object that has no such range, for example
                now = self.find(name) if version else None
                if now is not None and is_another(now.version):
                    return None
                raise
            return None if is_another(result.meta["e_tag"] or "") else bytes(result.bytes())

        data = self._call(name, read)
        if data is None:
            raise MismatchError(f"{self.url}/{name} was replaced while it was read: run the same command again")
        return data

    def find(self, name: str) -> StoredObject | None:
        """Returns what a listing says of an object, or None if there is none. Raises OSError as `get`."""
        try:
            entry = self._call(name, lambda: self._obstore.head(self._store, name))
        except FileNotFoundError:
            return None
        return StoredObject(name, entry["size"], entry["e_tag"] or "")

    def download(self, name: str, path: Path) -> None:
        """Writes an object to a file. It is in memory at once, which is faster than `copy`. Raises as that."""
        data = self._call(name, lambda: self._obstore.get(self._store, name).bytes())
        try:
            path.write_bytes(data)  # obstore's buffer: to make bytes of it would hold the GIL for a copy
        except OSError as error:
            error.filename = error.filename or str(path)  # a failed write names no file
            raise

    def copy(self, name: str, path: Path) -> None:
        """Writes an object of any size to a file, piece by piece. Raises as `get`; also if the file cannot be written.

        Args:
            name: The object's name.
            path: The file, which is replaced if it exists.
        """

        def copy() -> None:
            pieces = self._obstore.get(self._store, name).stream(min_chunk_size=_PIECE)
            try:
                with path.open("wb") as file:
                    for piece in pieces:
                        file.write(piece)
            except OSError as error:
                error.filename = error.filename or str(path)  # a failed write names no file
                raise

        self._call(name, copy)

    def files(self) -> Iterator[tuple[str, int]]:
        """Yields the name and the bytes of every object. Raises as `get`."""
        return ((entry.name, entry.size) for entry in self.list())

    def list(self, prefix: str = "") -> Iterator[StoredObject]:
        """Yields the objects whose names begin with a prefix of whole parts, in the order of their names.

        The store's pages are read as they are needed. Raises as `get`.
        """
        last: str | None = None
        pages: Iterator[Any] | None = None

        def next_page() -> Any:
            nonlocal pages
            if pages is None:
                pages = iter(self._obstore.list(self._store, prefix or None, offset=last, chunk_size=_PAGE))
            try:
                return next(pages, None)
            except BaseException:
                pages = None  # a listing that failed would seem to end: it is continued behind the last name
                raise

        while page := self._call(prefix, next_page):
            for entry in page:
                last = entry["path"]
                yield StoredObject(last, entry["size"], entry["e_tag"] or "")

    def put_once(self, name: str, data: bytes | Path) -> bool:
        """Puts an object unless its name is taken. Returns False if another object has the name.

        An object of the same bytes counts as this one: the response of an earlier attempt may have been lost.

        Raises:
            OSError: It cannot be written.
        """
        data = data.read_bytes() if isinstance(data, Path) else data
        if self._call(name, lambda: self._put(name, data, "create")):
            return True
        return self.get(name) == data

    def put(self, name: str, data: bytes | Path) -> None:
        """Puts an object, replacing any object of its name.

        Raises:
            OSError: It cannot be written.
        """
        data = data.read_bytes() if isinstance(data, Path) else data
        self._call(name, lambda: self._put(name, data, "overwrite"))

    def delete(self, name: str) -> None:
        """Deletes an object; does nothing if there is none.

        Raises:
            OSError: It cannot be deleted.
        """

        def delete() -> None:
            try:
                self._obstore.delete(self._store, name)
            except FileNotFoundError:
                return

        self._call(name, delete)

    def _put(self, name: str, data: bytes, mode: str) -> bool:
        from obstore.exceptions import AlreadyExistsError, PreconditionError

        try:
            # Objects of several parts cannot be put conditionally.
            self._obstore.put(self._store, name, data, mode=mode, use_multipart=False if mode == "create" else None)
        except (AlreadyExistsError, PreconditionError):
            return False
        return True

    def _call(self, name: str, request: Callable[[], _T]) -> _T:
        """Makes a request; makes it again if it failed for a reason that may pass."""
        from obstore.exceptions import BaseError, InvalidPathError, PermissionDeniedError, UnauthenticatedError

        where = f"{self.url}/{name}"
        if _begun_in.setdefault("process", os.getpid()) != os.getpid():
            raise LatentqError(
                f"{where} cannot be read in a process made by fork: start DataLoader workers with "
                "multiprocessing_context='spawn', or use the dataset's own loader, which needs none"
            )
        wait, end = _FIRST_WAIT, time.monotonic() + self._patience
        for attempt in itertools.count(1):
            try:
                return request()
            except ValueError as error:
                raise LatentqError(f"{where}: {_first_line(error)}") from None
            except (FileNotFoundError, BaseError) as error:
                line = _first_line(error)
                if "NoSuchBucket" in str(error):
                    raise OSError(errno.ENOENT, "there is no such bucket", self.url) from None
                if isinstance(error, FileNotFoundError):
                    raise FileNotFoundError(errno.ENOENT, "there is no such object", where) from None
                if isinstance(error, PermissionDeniedError | UnauthenticatedError) or _DENIED.search(line):
                    raise DeniedError(errno.EACCES, line, where) from None
                if _NO_CREDENTIALS.search(line):
                    hint = (
                        "there are no credentials in the environment or the storage options, and this machine has none"
                    )
                    raise DeniedError(errno.EACCES, f"{hint}: {line}", where) from None
                if isinstance(error, InvalidPathError):  # obstore has no names such as `a//b`
                    raise LatentqError(f"{where}: {line}") from None
                may_return = _UNREACHABLE in line and time.monotonic() < end
                if attempt >= self._attempts and not may_return:
                    raise OSError(errno.EIO, line, where) from None
            time.sleep(wait)
            wait = min(2 * wait, _LONGEST_WAIT)
        raise AssertionError  # the last attempt returns or raises


def _first_line(error: BaseException) -> str:
    """Returns the message of an error of obstore on one line, with the server's own words if there are any."""
    text = str(error)
    server = re.search(r"<Code>(.*?)</Code>(?:.*?<Message>(.*?)</Message>)?", text, re.DOTALL)
    line = text.split("\n\nDebug source", 1)[0].split(": <?xml", 1)[0].replace("\n", " ").strip()
    if server:
        line = f"{line} ({': '.join(part for part in server.groups() if part)})"
    return line if len(line) <= _TOO_LONG else f"{line[:_TOO_LONG]}..."
