"""A spool: rows of a listing in a temporary file, until all of them are known."""

from __future__ import annotations

import itertools
import marshal
import tempfile
from collections.abc import Iterable, Iterator
from typing import Any

_BATCH = 1024  # rows
_MEMORY_BYTES = 1 << 24
_LENGTH_BYTES = 8


def spooled(rows: Iterable[tuple[Any, ...]]) -> Iterator[tuple[Any, ...]]:
    """Takes all rows, then yields them again in order: for decisions that need all rows before the first is used.

    Up to 16 MiB are kept in memory, more in an unnamed file in the folder for temporary files (TMPDIR).

    Args:
        rows: Tuples of None, bool, int, float, str, bytes and tuples of these; named tuples come back as plain ones.
    """
    rows = iter(rows)
    with tempfile.SpooledTemporaryFile(_MEMORY_BYTES, prefix="latentq-") as file:
        while batch := [*map(tuple, itertools.islice(rows, _BATCH))]:
            data = marshal.dumps(batch)
            file.write(len(data).to_bytes(_LENGTH_BYTES, "little") + data)
        file.seek(0)
        while length := file.read(_LENGTH_BYTES):
            yield from marshal.loads(file.read(int.from_bytes(length, "little")))
