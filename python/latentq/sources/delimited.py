"""Tables of text: CSV with any usual delimiter, and TSV with or without quoting."""

from __future__ import annotations

import csv
import itertools
from collections import deque
from collections.abc import Iterator

from latentq._core import LatentqError
from latentq.format.tsv import tsv_values
from latentq.sources.columns import KEY, column_of
from latentq.store.files import File

DELIMITERS = {".csv": ",", ".tsv": "\t"}
_CSV_DELIMITERS = ",;\t|"  # Excel writes semicolons where the comma is the decimal separator
_MAX_CELL = 1 << 24  # characters; the csv module's own limit of 131,072 is too low for some captions and embeddings
_OWN_MARK = '# {"first_unit": '  # begins a part of a list of latentq, whose escapes are latentq's
_OWN_HEADER = "key\tbytes"  # begins its second line
_CHUNK = 1 << 20


def table_rows(path: File) -> Iterator[tuple[int, list[str]]]:
    """Yields the rows of a table that are not blank, each with the line number where it ends.

    A CSV is separated by commas, or by the semicolon, tab or bar that gives its header a column of image names.

    Lines end with LF, CRLF or CR.

    A TSV is read with quoting only if it is quoted consistently: every cell with a quotation mark is in quotation
    marks, with those inside it doubled. Otherwise each line is a row, and quotation marks are text, as most writers of
    TSV have it. A list that latentq wrote is read with its own escapes.

    Raises:
        OSError: The file cannot be read.
        LatentqError: The file is not text, or a quotation mark in a CSV is never closed.
    """
    delimiter = DELIMITERS[path.suffix.lower()]
    csv.field_size_limit(max(csv.field_size_limit(), _MAX_CELL))
    try:
        if delimiter == "\t" and not _is_quoted(path):
            yield from _plain_rows(path)
        else:
            yield from _quoted_rows(path, _csv_delimiter(path) if delimiter == "," else delimiter)
    except UnicodeDecodeError:
        raise LatentqError(f"{path} is not UTF-8 text") from None
    except csv.Error as error:
        raise LatentqError(f"{path}: not a table: {error}") from None


def _csv_delimiter(path: File) -> str:
    """Returns the delimiter that a CSV's header uses; the comma if it has no header."""
    with path.open(encoding="utf-8-sig", newline="") as file:
        header = file.readline()
    for delimiter in _CSV_DELIMITERS:
        names = next(csv.reader([header], delimiter=delimiter), [])
        if len(names) > 1 and column_of(KEY, names) is not None:
            return delimiter
    return ","


def _line_end(path: File) -> str:
    """Returns the character that ends a TSV's lines: CR, as on an old Mac, if there is no LF in the file, else LF."""
    with path.open(encoding="utf-8-sig", newline="\n") as file:
        line = file.readline()
    return "\r" if "\r" in line and not line.endswith("\n") else "\n"


def _plain_rows(path: File) -> Iterator[tuple[int, list[str]]]:
    header = _own_header(path)
    with path.open(encoding="utf-8-sig", newline=_line_end(path)) as file:
        if header:
            for number, line in enumerate(file, start=1):
                if number >= header and (text := line.rstrip("\r\n")):
                    yield number, tsv_values(text)
        else:
            for number, line in enumerate(file, start=1):
                if not line.isspace():
                    yield number, line.rstrip("\r\n").split("\t")


def _quoted_rows(path: File, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(file, delimiter=delimiter)
        start = end = 0
        last: list[str] | None = None
        for row in reader:
            if last is not None:
                yield end, last
            start, end = end + 1, reader.line_num
            last = row if row and (row[0].strip() or any(cell.strip() for cell in row)) else None
    if end and _unclosed(path, delimiter, start):  # it has taken every line after it for its cell
        raise csv.Error(f"the quotation mark in line {start} is never closed")
    if last is not None:
        yield end, last


def _unclosed(path: File, delimiter: str, start: int) -> bool:
    """True if a quotation mark of a row is still open at the end of the file."""
    with path.open(encoding="utf-8-sig", newline="") as file:
        deque(itertools.islice(file, start - 1), maxlen=0)
        try:
            next(csv.reader(file, delimiter=delimiter, strict=True), None)
        except csv.Error as error:
            return "unexpected end" in str(error)
    return False


def _is_quoted(path: File) -> bool:
    """True if a TSV uses quotation marks for quoting, and does so consistently."""
    if not _has_quotation_mark(path) or _own_header(path):
        return False
    columns = None
    quoted = ragged = False
    consistent = True
    with path.open(encoding="utf-8-sig", newline=_line_end(path)) as file:
        for line in file:
            cells = line.rstrip("\r\n").split("\t")
            columns = columns or len(cells)
            ragged |= len(cells) != columns and cells != [""]
            for cell in cells:
                if '"' in cell:
                    quoted = True
                    consistent &= _is_quoted_cell(cell)
    if not quoted or consistent:
        return quoted
    return ragged and _reads_with_quotes(path, columns or 0)


def _has_quotation_mark(path: File) -> bool:
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            if b'"' in chunk:
                return True
    return False


def _own_header(path: File) -> int:
    """Returns the line number of the header if latentq wrote the table; otherwise 0."""
    with path.open(encoding="utf-8-sig", newline="\n") as file:
        number, line = 1, file.readline()
        if line.startswith(_OWN_MARK):
            number, line = 2, file.readline()
    line = line.rstrip("\r\n")
    return number if f"{line}\t".startswith(f"{_OWN_HEADER}\t") else 0


def _is_quoted_cell(cell: str) -> bool:
    inside = cell[1:-1]
    return len(cell) >= 2 and cell[0] == cell[-1] == '"' and '"' not in inside.replace('""', "")


def _reads_with_quotes(path: File, columns: int) -> bool:
    """True if a TSV with cells of several lines is quoted: strictly parsed, every row has as many columns."""
    with path.open(encoding="utf-8-sig", newline="") as file:
        try:
            return all(len(row) in (0, columns) for row in csv.reader(file, delimiter="\t", strict=True))
        except csv.Error:
            return False
