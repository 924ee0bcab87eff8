"""A CSV or TSV table of image paths as a source, with or without a header."""

from __future__ import annotations

import csv
import re
from dataclasses import dataclass
from pathlib import Path

from latentq._core import LatentqError, MismatchError
from latentq.sources.columns import KEY, LABEL, LABEL_TEXT
from latentq.sources.folder import file_size
from latentq.sources.listing import Listing, Sample

DELIMITERS = {".csv": ",", ".tsv": "\t"}

_MAX_DIGITS = 18  # every number of 18 digits is an int64
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?", re.IGNORECASE)
# The names of each column in a header, in any case.
_NAMES = {"key": KEY, "label": LABEL, "label_text": LABEL_TEXT, "caption": ("caption", "text", "prompt")}


@dataclass(frozen=True)
class Table:
    """The images that a table names, in the order of its rows.

    Paths are relative to the table, or absolute. If the first row names a column of paths, it is a header. Without a
    header the first column is the path, and the other columns are ignored.

    Attributes:
        path: The table.
        classes: Label and readable name of each class name in the table; None numbers the names in sorted order.
    """

    path: Path
    classes: dict[str, tuple[int, str]] | None = None
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
        rows = self._rows()
        columns, rows = self._header(rows)
        if not rows:
            raise LatentqError(f"{self.path} has no rows: there are no images to encode")
        cells: dict[str, list[str]] = {field: [] for field in columns}
        for line, row in rows:
            for field, index in columns.items():
                if index >= len(row):
                    raise LatentqError(f"{self.path}, line {line}: the row has no {field}")
                cells[field].append(row[index])
        if "" in cells["key"]:
            raise LatentqError(f"{self.path}, line {rows[cells['key'].index('')][0]}: the row has no path")
        texts = cells.get("label_text")
        labels = None
        if "label" in cells:
            labels, names = self._labels(cells["label"], [line for line, _ in rows])
            texts = texts or names
        samples = tuple(
            Sample(
                key=key,
                bytes=file_size(self.path.parent / key),
                label=labels[i] if labels else None,
                label_text=texts[i] if texts else None,
                caption=cells["caption"][i] if "caption" in cells else None,
            )
            for i, key in enumerate(cells["key"])
        )
        present = {"label": labels, "label_text": texts, "caption": cells.get("caption")}
        return Listing(samples, tuple(field for field, values in present.items() if values))

    def _rows(self) -> list[tuple[int, list[str]]]:
        """The rows that are not blank, each with the line number where it ends."""
        try:
            with self.path.open(encoding="utf-8-sig", newline="") as file:
                reader = csv.reader(file, delimiter=DELIMITERS[self.path.suffix.lower()])
                return [(reader.line_num, row) for row in reader if row]
        except UnicodeDecodeError:
            raise LatentqError(f"{self.path} is not UTF-8 text") from None
        except csv.Error as error:
            raise LatentqError(f"{self.path}: not a table: {error}") from None

    def _header(self, rows: list[tuple[int, list[str]]]) -> tuple[dict[str, int], list[tuple[int, list[str]]]]:
        """The column index of each field, and the rows below the header."""
        if not rows:
            return {"key": 0}, []
        first = [cell.strip().lower() for cell in rows[0][1]]
        columns = {field: first.index(name) for field, names in _NAMES.items() for name in names if name in first}
        if "key" in columns:
            return columns, rows[1:]
        if columns:
            known = ", ".join(_NAMES["key"])
            raise LatentqError(f"{self.path}: the header {rows[0][1]} names no column of image paths ({known})")
        return {"key": 0}, rows

    def _labels(self, cells: list[str], lines: list[int]) -> tuple[list[int], list[str] | None]:
        """The labels as numbers, and their names unless every label is a number already."""
        if all(cell.strip().isdecimal() for cell in cells):
            for cell, line in zip(cells, lines, strict=True):
                if len(cell.strip()) > _MAX_DIGITS:
                    raise LatentqError(f"{self.path}, line {line}: the label {cell[:30]} is too large")
            return [int(cell) for cell in cells], None
        for cell, line in zip(cells, lines, strict=True):
            if not cell:
                raise LatentqError(f"{self.path}, line {line}: the row has no label")
            if _NUMBER.fullmatch(cell.strip()) and not cell.strip().isdecimal():
                raise LatentqError(
                    f"{self.path}, line {line}: the label {cell} is neither a whole number of at least 0 nor a name"
                )
        classes = self.classes or {name: (number, name) for number, name in enumerate(sorted(set(cells)))}
        if unknown := sorted(set(cells) - classes.keys()):
            raise MismatchError(f"{self.path} has a class {unknown[0]!r} that the dataset of --like does not have")
        return [classes[cell][0] for cell in cells], [classes[cell][1] for cell in cells]
