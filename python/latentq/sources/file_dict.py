"""A dict for the names in a source, of which there may be too many for memory."""

from __future__ import annotations

import errno
import marshal
import sqlite3
import weakref
from collections.abc import Iterator
from typing import Any, Generic, TypeVar, cast

_Value = TypeVar("_Value")

_MEMORY_BYTES = 1 << 24
_ITEM_BYTES = 150  # of memory, without the bytes of key and value
_CACHE_KIB = 1 << 13
_SET = "INSERT INTO items VALUES (?, ?) ON CONFLICT (key) DO UPDATE SET value = excluded.value"


class FileDict(Generic[_Value]):
    """A dict of plain values by text. Above 16 MiB, they move to an unnamed temporary file of SQLite.

    Values are None, bool, int, str, bytes, and tuples and dicts of these. They are copies: set a value again to change
    it. SQLite chooses the folder of the file by SQLITE_TMPDIR and TMPDIR.

    Every method raises OSError if the file cannot be written or read.
    """

    __slots__ = ("__weakref__", "_bytes", "_file", "_items")

    def __init__(self) -> None:
        self._items: dict[bytes, bytes] = {}  # those that are not in the file, or changed since
        self._bytes = 0
        self._file: sqlite3.Connection | None = None

    def __setitem__(self, key: str, value: _Value) -> None:
        encoded, data = _encoded(key), marshal.dumps(cast("Any", value))
        self._items[encoded] = data
        self._bytes += _ITEM_BYTES + len(encoded) + len(data)
        if self._bytes > _MEMORY_BYTES:
            self._move_to_file()

    def get(self, key: str) -> _Value | None:
        """Returns the value of a key, or None."""
        encoded = _encoded(key)
        data = self._items.get(encoded)
        if data is None and self._file is not None:
            (data,) = self._run("SELECT value FROM items WHERE key = ?", encoded).fetchone() or (None,)
        return None if data is None else marshal.loads(data)

    def __contains__(self, key: str) -> bool:
        encoded = _encoded(key)
        if encoded in self._items:
            return True
        return self._file is not None and self._run("SELECT 1 FROM items WHERE key = ?", encoded).fetchone() is not None

    def __bool__(self) -> bool:
        return bool(self._items) or self._file is not None

    def values(self) -> Iterator[_Value]:
        """Yields the values in the order in which their keys were first set."""
        if self._file is None:
            yield from map(marshal.loads, self._items.values())
        else:
            self._move_to_file()
            for (data,) in self._rows("SELECT value FROM items ORDER BY rowid"):
                yield marshal.loads(data)

    def sorted_keys(self) -> Iterator[str]:
        """Yields the keys in the order of their bytes."""
        if self._file is None:
            yield from map(_decoded, sorted(self._items))
        else:
            self._move_to_file()
            for (key,) in self._rows("SELECT key FROM items ORDER BY key"):
                yield _decoded(key)

    def _move_to_file(self) -> None:
        """Moves the items in memory to the file, many at once, which is faster than one by one."""
        try:
            if self._file is None:
                self._file = sqlite3.connect("", isolation_level=None, check_same_thread=False)
                weakref.finalize(self, self._file.close)
                for setting in (f"cache_size = -{_CACHE_KIB}", "journal_mode = OFF", "synchronous = OFF"):
                    self._file.execute(f"PRAGMA {setting}")
                self._file.execute("CREATE TABLE items (key BLOB PRIMARY KEY, value BLOB)")
                self._file.execute("BEGIN")
            self._file.executemany(_SET, self._items.items())
        except sqlite3.Error as error:
            raise _file_error(error) from None
        self._items, self._bytes = {}, 0

    def _run(self, statement: str, *values: bytes) -> sqlite3.Cursor:
        assert self._file is not None
        try:
            return self._file.execute(statement, values)
        except sqlite3.Error as error:
            raise _file_error(error) from None

    def _rows(self, statement: str) -> Iterator[tuple[Any, ...]]:
        rows = self._run(statement)
        try:
            yield from rows
        except sqlite3.Error as error:
            raise _file_error(error) from None


def _file_error(error: sqlite3.Error) -> OSError:
    """Returns SQLite's error as one of the machine's."""
    full = getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_FULL
    reason = f"a temporary file of the names in the source (its folder is TMPDIR): {error}"
    return OSError(errno.ENOSPC if full else errno.EIO, reason)


def _encoded(key: str) -> bytes:
    try:
        return key.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:  # lone surrogates, from JSON
        return key.encode("utf-8", "surrogatepass")


def _decoded(key: bytes) -> str:
    return key.decode("utf-8", "surrogateescape")
