"""Parquet files as a source: one row per sample, with the image's bytes in one of the columns."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from latentq._core import FormatError, LatentqError, MismatchError
from latentq.sources.columns import CAPTION, ID, IMAGE, LABEL, caption_facts, captions_field, captions_in, column_of
from latentq.sources.listing import Listing, Sample, unchanged_files
from latentq.system.extras import needed_for
from latentq.system.progress import listing_progress

if TYPE_CHECKING:
    from pyarrow.parquet import ParquetFile


class Parquet:
    """The rows of parquet files, file by file. A sample's key is `<file>/<row>`, the row in at least 8 digits.

    The image is a column of bytes, or of the structs {bytes, path} that Hugging Face writes. A row group is read when
    one of its rows is asked for, and cached until a row of another group is.

    Args:
        files: The files in order, by their names in the source.
        caption: The column of captions; None looks for a usual name.
        progress: The stream for progress, if listing takes long; None prints nothing.
    """

    kind = "parquet"

    def __init__(
        self, files: Sequence[tuple[str, Path]], caption: str | None = None, progress: TextIO | None = None
    ) -> None:
        self.files = dict(files)
        self._progress = progress
        self._caption = caption
        self._rows: tuple[str, range, Any] | None = None
        self._lock = threading.Lock()

    def listing(self) -> Listing:
        """Reads every needed column except the images.

        Raises:
            OSError: A file cannot be read.
            FormatError: A file is not parquet.
            LatentqError: There is no column of images, or no row.
        """
        samples: list[Sample] = []
        found: set[str] = set()
        for name, path in listing_progress(self.files.items(), self._progress):
            with open_parquet(path) as file:
                columns = file.schema_arrow.names
                _image_column(path, file)
                chosen = {
                    "caption": self._caption or column_of(CAPTION, columns),
                    "label": column_of(LABEL, columns),
                    "id": column_of(ID, columns),
                }
                if self._caption is not None and self._caption not in columns:
                    raise LatentqError(
                        f"{path} has no column {self._caption!r} of captions: it has {', '.join(columns)}"
                    )
                known = {field: column for field, column in chosen.items() if column is not None}
                found |= known.keys()
                size, row = path.stat().st_size, 0
                for batch in rows_of(path, file, list(known.values())):
                    for values in batch:
                        facts = row_facts({field: values[column] for field, column in known.items()})
                        key = f"{name}/{row:08}"
                        samples.append(Sample(key, None, archive=name, archive_bytes=size, offset=row, **facts))
                        row += 1
        if not samples:
            raise LatentqError(f"{next(iter(self.files.values()))} has no rows: there are no images")
        fields = tuple(name for name in ("label", "caption", "id") if name in found)
        return Listing(
            tuple(samples), (*fields, *captions_field(samples), "archive", "archive_bytes", "offset", "fault")
        )

    def unchanged(self, listing: Listing) -> bool:
        """True if the files are those of a listing, as `unchanged_files` compares them."""
        return unchanged_files(self.files, listing, lambda _, path: _has_no_rows(path))

    def data(self, sample: Sample) -> bytes:
        """Returns the image in a row.

        Raises:
            MismatchError: The file is not the one that was listed.
            FormatError: The row group is broken, or the row has no image.
        """
        assert sample.archive is not None
        assert sample.offset is not None
        with self._lock:
            if self._rows is None or self._rows[0] != sample.archive or sample.offset not in self._rows[1]:
                self._rows = (sample.archive, *self._read_group(sample, sample.offset))
            _, rows, values = self._rows
            return image_bytes(values[sample.offset - rows.start].as_py())

    def _read_group(self, sample: Sample, row: int) -> tuple[range, Any]:
        path = self.files.get(sample.archive or "")
        if path is None or not path.exists():
            raise MismatchError(f"{path or sample.archive} is listed and is not there")
        if path.stat().st_size != sample.archive_bytes:
            raise MismatchError(
                f"{path} is listed with {sample.archive_bytes} bytes and has {path.stat().st_size} bytes now"
            )
        with open_parquet(path) as file:
            column = _image_column(path, file)
            start = 0
            for group in range(file.num_row_groups):
                stop = start + file.metadata.row_group(group).num_rows
                if row < stop:
                    break
                start = stop
            else:
                raise FormatError(f"{path} has no row {row}")
            import pyarrow as pa

            try:
                table = file.read_row_group(group, columns=[column])
            except (pa.ArrowException, OSError) as error:
                raise FormatError(f"row group {group}: {error}") from None
        return range(start, stop), table.column(0)


def row_facts(values: dict[str, Any]) -> dict[str, Any]:
    """The caption, label and id of a row as fields of a sample, with a fault if the caption or label is missing."""
    facts = dict(values)
    faults = []
    if "caption" in facts:
        facts |= caption_facts(captions_in(facts["caption"]))
        if not facts["caption"]:
            faults.append("no caption")
    if "label" in facts and (not isinstance(facts["label"], int) or facts["label"] < 0):
        facts["label"] = None
        faults.append("no label")
    if facts.get("id") is not None:
        facts["id"] = str(facts["id"])
    return {**facts, "fault": " and ".join(faults)}


def image_bytes(cell: object) -> bytes:
    """Returns the image in a cell: bytes, or a struct {bytes, path} that names a file if it has no bytes.

    Raises:
        FormatError: The cell has no image.
    """
    if isinstance(cell, dict):
        if cell.get("bytes") is None and cell.get("path"):
            try:
                return Path(cell["path"]).read_bytes()
            except (OSError, ValueError) as error:
                raise FormatError(f"no image: {getattr(error, 'strerror', None) or error}") from None
        cell = cell.get("bytes")
    if not isinstance(cell, bytes):
        raise FormatError("no image in this row")
    return cell


def _has_no_rows(path: Path) -> bool:
    with open_parquet(path) as file:
        return bool(file.metadata.num_rows == 0)


def open_parquet(path: Path) -> ParquetFile:
    """Opens a parquet file. Raises FormatError if it is not one."""
    with needed_for("a parquet file"):
        import pyarrow as pa
        import pyarrow.parquet as pq

    try:
        return pq.ParquetFile(path)
    except pa.ArrowException as error:
        raise FormatError(f"{path}: not a parquet file: {str(error).partition(chr(10))[0]}") from None


def _image_column(path: Path, file: ParquetFile) -> str:
    import pyarrow.types as types

    def holds_bytes(kind: Any) -> bool:
        if types.is_struct(kind):
            return any(
                kind.field(i).name == "bytes" and holds_bytes(kind.field(i).type) for i in range(kind.num_fields)
            )
        return bool(types.is_binary(kind) or types.is_large_binary(kind))

    fields = {field.name: field.type for field in file.schema_arrow}
    candidates = [name for name, kind in fields.items() if holds_bytes(kind)]
    column = column_of(IMAGE, candidates) or next(iter(candidates), None)
    if column is None:
        raise LatentqError(f"{path} has no column of image bytes: it has {', '.join(fields)}")
    return column


def rows_of(path: Path, file: ParquetFile, columns: list[str]) -> Iterator[list[dict[str, Any]]]:
    """Yields batches of rows, each row a dict of the columns. Raises FormatError if the file is broken."""
    import pyarrow as pa

    if not columns:
        yield [{}] * file.metadata.num_rows
        return
    try:
        for batch in file.iter_batches(batch_size=1024, columns=columns):
            yield batch.to_pylist()
    except (pa.ArrowException, OSError) as error:
        raise FormatError(f"{path}: {error}") from None
