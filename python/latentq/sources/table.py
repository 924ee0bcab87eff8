"""A CSV or TSV table of image paths as a source, with or without a header."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from latentq._core import LatentqError
from latentq.sources.columns import CAPTION, KEY, NamedColumns, column_of, columns_note
from latentq.sources.delimited import table_rows
from latentq.sources.folder import file_size
from latentq.sources.label_values import Classes
from latentq.sources.listing import Listing, Sample
from latentq.sources.rows import Rows


@dataclass(frozen=True)
class Table:
    """The images that a table names, in the order of its rows.

    Paths are relative to the table, or absolute. If the first row names a column of paths, it is a header. Without a
    header the first column is the path, and the other columns are ignored. A header below other lines is an error.

    Attributes:
        path: The table.
        columns: The columns that a user names.
        classes: Label and readable name of each class name in the table; None numbers the names in sorted order.
    """

    path: Path
    columns: NamedColumns = field(default_factory=NamedColumns)
    classes: Classes | None = None
    kind: str = "table"

    def data(self, sample: Sample) -> Path:
        """Returns the path of a sample's file."""
        return self.path.parent / sample.key

    def listing(self) -> Listing:
        """Reads the table.

        Raises:
            LatentqError: The table is not text, has no rows, or has a row that cannot be understood; the message names
                the line.
        """
        table = [*table_rows(self.path)]
        if not table:
            raise LatentqError(f"{self.path} has no rows: there are no images to encode")
        first = table[0][1]
        key, found = self._header(first)
        if key is None:
            self._check_no_header_follows(table)
        header = {}
        if key is not None:
            names = table.pop(0)[1]
            header = {name: names.index(column) for name, column in {"key": key, **found}.items()}
            if not table:
                raise LatentqError(f"{self.path} has no rows: there are no images to encode")
        rows = Rows(self.path, self.classes)
        for line, row in table:
            cells = {}
            for name, index in (header or {"key": 0}).items():
                if index >= len(row):
                    raise LatentqError(f"{self.path}, line {line}: the row has no {name}")
                cells[name] = row[index]
            path = cells.pop("key")
            if not path:
                raise LatentqError(f"{self.path}, line {line}: the row has no path")
            rows.add(Sample(path, file_size(self.path.parent / path)), cells)
        listing = rows.listing(("fault",), [columns_note(key, found, first)] if key is not None else [])
        return listing if any(sample.fault for sample in listing.samples) else _without_faults(listing)

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

    def _check_no_header_follows(self, table: list[tuple[int, list[str]]]) -> None:
        """Raises LatentqError if the second row is a header, below a comment or Excel's `sep=,`."""
        (_, first), (line, second) = table[0], table[min(1, len(table) - 1)]
        if column_of(KEY, second) is not None and file_size(self.path.parent / first[0]) is None:
            raise LatentqError(f"{self.path}, line {line}: the header is not in the first line: delete the lines above")


def _without_faults(listing: Listing) -> Listing:
    return Listing(listing.samples, tuple(name for name in listing.fields if name != "fault"), listing.notes)
