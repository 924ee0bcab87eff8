"""A CSV or TSV table of image paths as a source, with or without a header."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TextIO

from latentq._core import LatentqError
from latentq.sources.columns import CAPTION, KEY, NamedColumns, column_of, columns_note
from latentq.sources.delimited import table_rows
from latentq.sources.folder import file_size, read_object
from latentq.sources.label_values import Classes, with_labels
from latentq.sources.listing import Listing, Sample
from latentq.sources.rows import NO_CAPTION
from latentq.store.files import CONNECTIONS, File, StoredFile, StoredFolder, Stores, is_stored
from latentq.system.progress import counting_progress
from latentq.system.threads import in_order


@dataclass(frozen=True)
class Table:
    """The images that a table names, in the order of its rows.

    Paths are relative to the table, absolute, or URLs. If the first row names a column of paths, it is a header.
    Without a header the first column is the path, and the other columns are ignored. A header below other lines is an
    error.

    Attributes:
        path: The table.
        columns: The columns that a user names.
        classes: Label and readable name of each class name in the table; None numbers the names in sorted order.
        progress: The stream for progress, if listing takes long; None prints nothing.
        stores: Opens the URLs.
        connections: See `Source.data`.
    """

    path: File
    columns: NamedColumns = field(default_factory=NamedColumns)
    classes: Classes | None = None
    progress: TextIO | None = None
    stores: Stores = field(default_factory=Stores)
    kind: str = "table"
    connections: int = CONNECTIONS  # for URLs alone: files are not deferred

    def data(self, sample: Sample) -> bytes | Path:
        """Returns the path of a sample's file; the bytes of an object on a store.

        Raises:
            MismatchError: The object is not the one that was listed.
            OSError: It cannot be read.
        """
        if isinstance(self.path, Path) and not is_stored(sample.key):
            return self.path.parent / sample.key
        return read_object(self._read, sample)

    def deferred(self, sample: Sample) -> Callable[[], bytes] | None:
        """Returns a function that reads an object on a store; None for a file of its own."""
        if isinstance(self.path, Path) and not is_stored(sample.key):
            return None
        return partial(read_object, self._read, sample)

    def _read(self, key: str, size: int) -> bytes:
        folder, name = self._place(key)
        return folder.read(name, size)

    def _place(self, key: str) -> tuple[StoredFolder, str]:
        """Returns the folder on a store that a path is relative to, and the path below it."""
        if is_stored(key):
            return self.stores.place(key)
        assert isinstance(self.path, StoredFile)
        return self.path.parent, key

    def listing(self) -> Listing:
        """Reads the table row by row.

        The samples raise LatentqError if the table is not text, has no rows, or has a row that cannot be understood;
        the message names the line.
        """
        notes: list[str] = []
        return Listing(self._samples(notes), notes)

    def _samples(self, notes: list[str]) -> Iterator[Sample]:
        table = table_rows(self.path)
        if (first := next(table, None)) is None:
            raise LatentqError(f"{self.path} has no rows: there are no images to encode")
        key, found = self._header(first[1])
        header = {"key": 0}
        if key is None:
            second = [*itertools.islice(table, 1)]
            for line, row in second:
                self._check_is_no_header(line, row, first[1])
            table = itertools.chain([first], second, table)
        else:
            header = {name: first[1].index(column) for name, column in {"key": key, **found}.items()}
            if (second_row := next(table, None)) is None:
                raise LatentqError(f"{self.path} has no rows: there are no images to encode")
            table = itertools.chain([second_row], table)
            notes.append(columns_note(key, found, first[1]))
        rows = counting_progress(self._sized(self._rows(table, header)), self.progress)
        if "label" in header:
            yield from with_labels(self.path, rows, self.classes, notes)
        else:  # nothing has to wait for the last row
            yield from (sample for sample, _ in rows)

    def _sized(self, rows: Iterator[tuple[Sample, str | None]]) -> Iterator[tuple[Sample, str | None]]:
        """Yields samples and labels with the sizes of the objects, which stores are asked for."""
        first = [*itertools.islice(rows, 1)]
        rows = itertools.chain(first, rows)
        if isinstance(self.path, Path) and not (first and is_stored(first[0][0].key)):
            return map(self._with_size, rows)
        return in_order(self._with_size, rows, CONNECTIONS)

    def _with_size(self, row: tuple[Sample, str | None]) -> tuple[Sample, str | None]:
        sample, label = row
        if isinstance(self.path, Path) and not is_stored(sample.key):
            return row
        return sample._replace(bytes=self._size(sample.key)), label

    def _size(self, key: str) -> int | None:
        """Returns the size of a row's file or object; None if there is none."""
        if isinstance(self.path, Path) and not is_stored(key):
            return file_size(self.path.parent / key)
        folder, name = self._place(key)
        found = folder.find(name)
        return None if found is None else found.size

    def _rows(
        self, table: Iterable[tuple[int, list[str]]], header: Mapping[str, int]
    ) -> Iterator[tuple[Sample, str | None]]:
        """Yields each row's sample, without its label, and its label. There may be many millions.

        Objects on stores are without their sizes.
        """
        is_local = isinstance(self.path, Path)
        folder = f"{self.path.parent}/"
        needed = max(header.values())
        key = header["key"]
        label, label_text, caption = (header.get(name) for name in ("label", "label_text", "caption"))
        for line, row in table:
            if needed >= len(row):
                lacking = next(name for name, index in header.items() if index >= len(row))
                raise LatentqError(f"{self.path}, line {line}: the row has no {lacking}")
            path = row[key]
            if not path:
                raise LatentqError(f"{self.path}, line {line}: the row has no path")
            text = None if caption is None else row[caption].strip() or None  # UTF-8 has no lone surrogates
            size: int | None
            if not is_local:
                if path[0] == "/":
                    raise LatentqError(
                        f"{self.path}, line {line}: {path} is a path on this machine: a table on a store has paths "
                        "relative to it, or URLs"
                    )
                size = None
            else:
                try:
                    size = os.stat(path if path[0] == "/" else folder + path).st_size  # noqa: PTH116  (a Path is slow)
                except (OSError, ValueError):
                    size = self._size(path) if path[-1] in "/." else None  # a Path drops `/` and `/.`
            sample = Sample(
                path,
                size,
                None,
                None if label_text is None else row[label_text] or None,
                text,
                fault="" if text or caption is None else NO_CAPTION,
            )
            yield sample, None if label is None else row[label]

    def _header(self, first: list[str]) -> tuple[str | None, dict[str, str]]:
        """Returns the column of paths and the columns of facts; None and nothing if the first row is not a header."""
        names = NamedColumns(label=self.columns.label, caption=self.columns.caption)
        texts = [column for column in first if column.strip().lower() in CAPTION]
        key = self.columns.image or column_of(KEY, first)
        if key is not None:
            if key not in first:
                raise LatentqError(f"{self.path} has no column {key!r} of images: it has {', '.join(first)}")
            found = names.find(self.path, first, texts)
            return key, {name: column for name, column in found.items() if name != "id" and column != key}
        if NamedColumns().find(self.path, first, texts):
            raise LatentqError(f"{self.path}: the header {first} names no column of image paths ({', '.join(KEY)})")
        return None, {}

    def _check_is_no_header(self, line: int, second: list[str], first: list[str]) -> None:
        """Raises LatentqError if the second row is a header, below a comment or Excel's `sep=,`."""
        if column_of(KEY, second) is not None and self._size(first[0]) is None:
            raise LatentqError(f"{self.path}, line {line}: the header is not in the first line: delete the lines above")
