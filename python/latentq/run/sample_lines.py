"""Lines of a list: samples as tab-separated values, and back."""

from __future__ import annotations

import itertools
import json
import operator
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from latentq._core import FormatError
from latentq.format.tsv import tsv_values
from latentq.sources.listing import Sample

NUMBERS = ("bytes", "label", "archive_bytes", "offset", "packed")
_PATHS = ("key", "archive", "fault")  # may hold file names, which may be any bytes
_ESCAPES = str.maketrans({"\\": "\\\\", "\t": "\\t", "\n": "\\n", "\r": "\\r"})


def columns_of(samples: Sequence[Sample]) -> dict[str, tuple[Any, ...]]:
    """Returns the values of each field."""
    return dict(zip(Sample._fields, zip(*samples, strict=True), strict=False))  # nothing if there are no samples


def present_columns(samples: Sequence[Sample]) -> dict[str, tuple[Any, ...]]:
    """Returns the values of each field that any of the samples has, and of `key` and `bytes`."""
    columns = columns_of(samples) or {"key": (), "bytes": ()}
    return {name: values for name, values in columns.items() if name in ("key", "bytes") or value_count(values)}


def value_count(values: tuple[Any, ...]) -> int:
    """Returns the number of values that are neither None nor empty."""
    present = len(values) - values.count(None)
    return present and present - values.count("")


def to_lines(columns: Mapping[str, Sequence[Any]], count: int, names: Sequence[str]) -> bytes:
    """Returns the lines of samples.

    Args:
        columns: Values by field.
        count: The number of samples.
        names: The fields in the lines; those without values are empty.
    """
    cells = (_cells(columns[name], name) if name in columns else itertools.repeat("", count) for name in names)
    lines = map("\t".join, zip(*cells, strict=True))
    return "".join(f"{line}\n" for line in lines).encode("utf-8", "surrogateescape")


def _cells(values: Sequence[Any], name: str) -> list[str]:
    """Returns the cells of a column."""
    if name in NUMBERS:
        return ["" if value is None else str(operator.index(value)) for value in values]
    if name == "captions":
        texts = ["" if value is None else json.dumps(value, ensure_ascii=False) for value in values]
    else:
        texts = ["" if value is None else str(value) for value in values]
    joined = "".join(texts)
    if not joined.isascii():
        texts = [_checked_path(text) if name in _PATHS else _without_surrogates(text) for text in texts]
    if any(character in joined for character in "\\\t\n\r"):
        texts = [text.translate(_ESCAPES) for text in texts]
    return texts


def _checked_path(text: str) -> str:
    """Returns a file name. Raises ValueError if it would not be read back as it is."""
    if not text.isascii():
        data = text.encode("utf-8", "surrogateescape")
        if data.decode("utf-8", "surrogateescape") != text:
            raise ValueError(f"{text!r}: the list cannot hold this name")
    return text


def _without_surrogates(text: str) -> str:
    """Joins surrogates, which JSON can have, to characters, or replaces them by U+FFFD."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def samples_from(name: str, columns: Sequence[str], lines: Sequence[str], numbers: Iterable[int]) -> list[Sample]:
    """Returns the samples of lines.

    Args:
        name: The file's name, for messages.
        columns: The fields in the lines.
        lines: The lines, without line breaks.
        numbers: The numbers of the lines in the file, for messages.

    Raises:
        FormatError: A line is not a sample; the message names the file and the line.
    """
    try:
        return _samples(columns, lines)
    except ValueError:
        for number, line in zip(numbers, lines, strict=True):
            try:
                _samples(columns, [line])
            except ValueError:
                raise FormatError(f"{name}, line {number}: not a sample") from None
        raise


def _samples(columns: Sequence[str], lines: Sequence[str]) -> list[Sample]:
    """Returns the samples of lines, column by column, which takes a third of the time of line by line.

    Raises:
        ValueError: A line is not a sample.
    """
    rows = [tsv_values(line) for line in lines]
    if not {len(row) for row in rows} <= {len(columns)}:
        raise ValueError
    cells = dict(zip(columns, zip(*rows, strict=True), strict=False))  # nothing if there are no lines
    absent = ("",) * len(rows)
    values = (_values(cells.get(field, absent), field) for field in Sample._fields)
    return list(map(Sample._make, zip(*values, strict=True)))


def _values(cells: Iterable[str], name: str) -> Sequence[Any]:
    """Returns the values of a column. Raises ValueError if a cell is no value of the field."""
    if name in NUMBERS:
        return [int(cell) if cell else None for cell in cells]
    if name == "captions":
        return [_captions_from(cell) for cell in cells]
    if name == "archive":
        return [sys.intern(cell) or None for cell in cells]  # one string for all samples of the archive
    return list(cells) if name in ("key", "fault") else [cell or None for cell in cells]


def _captions_from(cell: str) -> tuple[str, ...] | None:
    """Returns several captions, from a JSON list. Raises ValueError if the cell is something else."""
    captions = json.loads(cell) if cell else None
    if captions is None:
        return None
    if not isinstance(captions, list) or not all(isinstance(caption, str) for caption in captions):
        raise ValueError
    return tuple(captions)
