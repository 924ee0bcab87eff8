"""HTTP connections that fail if the server sends content too slowly, or too many bytes that are not content."""

from __future__ import annotations

import io
import time
from typing import Any

import requests
from requests.adapters import HTTPAdapter
from urllib3 import PoolManager
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool

_MAX_OVERHEAD_BYTES = 1 << 18  # of headers, trailers and chunk sizes, next to _MAX_OVERHEAD_RATIO of the content
_MAX_OVERHEAD_RATIO = 8
_STALL_SECONDS = 300.0  # without a chunk of content


class StalledError(OSError):
    """The server sends no content."""


class Guard:
    """Counts the bytes that connections receive, and compares them with the content in them.

    One guard is for one request with its redirects, which one thread makes.
    """

    def __init__(self) -> None:
        self._received = self._content = 0
        self._deadline = time.monotonic() + _STALL_SECONDS

    def content(self, count: int) -> None:
        """Adds bytes of content."""
        self._content += count
        self._deadline = time.monotonic() + _STALL_SECONDS

    def received(self, count: int) -> None:
        """Adds bytes that a connection received.

        Raises:
            StalledError: Too few of the bytes are content, or none has come for too long.
        """
        self._received += count
        if self._received > _MAX_OVERHEAD_BYTES + _MAX_OVERHEAD_RATIO * self._content:
            raise StalledError(f"the server sent {self._received} bytes with {self._content} bytes of content in them")
        if time.monotonic() > self._deadline:
            raise StalledError(f"the server sent no content for {_STALL_SECONDS:.0f} s")

    def session(self) -> requests.Session:
        """Returns a session whose connections are guarded."""
        session = requests.Session()
        for scheme in ("http://", "https://"):
            session.mount(scheme, _Adapter(self))
        return session


class _Adapter(HTTPAdapter):
    """Makes guarded connections, also through proxies."""

    def __init__(self, guard: Guard) -> None:
        self._guard = guard
        super().__init__()

    def init_poolmanager(self, *arguments: Any, **options: Any) -> None:
        super().init_poolmanager(*arguments, **options)
        self._set_pools(self.poolmanager)

    def proxy_manager_for(self, proxy: str, **options: Any) -> Any:
        manager = super().proxy_manager_for(proxy, **options)
        self._set_pools(manager)
        return manager

    def _set_pools(self, manager: PoolManager) -> None:
        pools = {"http": HTTPConnectionPool, "https": HTTPSConnectionPool}
        manager.pool_classes_by_scheme = {scheme: _guarded(pool, self._guard) for scheme, pool in pools.items()}


def _guarded(pool: Any, guard: Guard) -> Any:
    """Returns a class of connection pools whose connections tell the guard what they receive."""

    class Connection(pool.ConnectionCls):  # type: ignore[misc]
        sock: Any

        def connect(self) -> None:
            super().connect()
            self.sock = _Socket(self.sock, guard)

    return type(f"Guarded{pool.__name__}", (pool,), {"ConnectionCls": Connection})


class _Socket:
    """A socket whose files tell the guard what they read."""

    def __init__(self, sock: Any, guard: Guard) -> None:
        self._sock, self._guard = sock, guard

    def __getattr__(self, name: str) -> Any:
        return getattr(self._sock, name)

    def makefile(self, mode: str, *_: Any, **__: Any) -> io.BufferedReader:
        return io.BufferedReader(_Received(self._sock.makefile(mode, buffering=0), self._guard))


class _Received(io.RawIOBase):
    def __init__(self, raw: Any, guard: Guard) -> None:
        self._raw, self._guard = raw, guard

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        count: int | None = self._raw.readinto(buffer)
        self._guard.received(count or 0)
        return count

    def fileno(self) -> int:
        return int(self._raw.fileno())

    def close(self) -> None:
        self._raw.close()
        super().close()
