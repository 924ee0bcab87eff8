"""Parquet files as sources: a row for each sample, its image's bytes in one of the columns."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TextIO

from latentq._core import FormatError, LatentqError, MismatchError
from latentq.sources.columns import CAPTION, ID, IMAGE, LABEL, caption_facts, captions_of, column_of, several
from latentq.sources.listing import Listing, Sample, unchanged_files
from latentq.system.progress import looking


def _without_rows(path: Path) -> bool:
    with opened(path) as file:
        return bool(file.metadata.num_rows == 0)


class Parquet:
    """The rows of parquet files, file by file. A sample's key is `<file>/<row>`, the row in 8 digits or more.

    The image is a column of bytes, or of the structs {bytes, path} that Hugging Face writes. Its row group is read
    when one of its rows is asked for, and kept until another is.

    Args:
        files: The files in order, by the names they go by.
        caption: The column of captions; found by its name where None.
        progress: Where looking through them is told, if it takes long; None tells nothing.
    """

    kind = "parquet"

    def __init__(
        self, files: Sequence[tuple[str, Path]], caption: str | None = None, progress: TextIO | None = None
    ) -> None:
        self.files = dict(files)
        self._progress = progress
        self._caption = caption
        self._open: tuple[str, Any, str] | None = None
        self._rows: tuple[str, range, Any] | None = None
        self._lock = threading.Lock()

    def listing(self) -> Listing:
        """Reads every column that is needed but the images.

        Raises:
            OSError: A file cannot be read.
            FormatError: A file is no parquet.
            LatentqError: There is no column of images, or no row.
        """
        samples: list[Sample] = []
        found: set[str] = set()
        for name, path in looking(self.files.items(), self._progress):
            with opened(path) as file:
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
                known = {what: column for what, column in chosen.items() if column is not None}
                found |= known.keys()
                size, row = path.stat().st_size, 0
                for batch in rows_of(path, file, list(known.values())):
                    for values in batch:
                        facts = facts_of({what: values[column] for what, column in known.items()})
                        key = f"{name}/{row:08}"
                        samples.append(Sample(key, None, archive=name, archive_bytes=size, offset=row, **facts))
                        row += 1
        if not samples:
            raise LatentqError(f"{next(iter(self.files.values()))} has no rows: there are no images")
        fields = tuple(name for name in ("label", "caption", "id") if name in found)
        return Listing(tuple(samples), (*fields, *several(samples), "archive", "archive_bytes", "offset", "fault"))

    def unchanged(self, listing: Listing) -> bool:
        """As of `unchanged_files`."""
        return unchanged_files(self.files, listing, lambda _, path: _without_rows(path))

    def data(self, sample: Sample) -> bytes:
        """The image in a row.

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
        with opened(path) as file:
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


def facts_of(values: dict[str, Any]) -> dict[str, Any]:
    """Caption, label and id of a row as a sample has them, and a fault where one of the first two is missing."""
    facts = dict(values)
    faults = []
    if "caption" in facts:
        facts |= caption_facts(captions_of(facts["caption"]))
        if not facts["caption"]:
            faults.append("no caption")
    if "label" in facts and (not isinstance(facts["label"], int) or facts["label"] < 0):
        facts["label"] = None
        faults.append("no label")
    if facts.get("id") is not None:
        facts["id"] = str(facts["id"])
    return {**facts, "fault": " and ".join(faults)}


def image_bytes(value: Any) -> bytes:
    """The image in a cell: bytes, or a struct {bytes, path} with a file of its own where it has no bytes.

    Raises:
        FormatError: There is none.
    """
    if isinstance(value, dict):
        if value.get("bytes") is None and value.get("path"):
            try:
                return Path(value["path"]).read_bytes()
            except (OSError, ValueError) as error:
                raise FormatError(f"no image: {getattr(error, 'strerror', None) or error}") from None
        value = value.get("bytes")
    if not isinstance(value, bytes):
        raise FormatError("no image in this row")
    return value


def opened(path: Path) -> Any:
    """A parquet file, open. Raises FormatError where it is none."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return pq.ParquetFile(path)
    except pa.ArrowException as error:
        raise FormatError(f"{path}: not a parquet file: {str(error).partition(chr(10))[0]}") from None


def _image_column(path: Path, file: Any) -> str:
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


def rows_of(path: Path, file: Any, columns: list[str]) -> Iterator[list[dict[str, Any]]]:
    """The rows as dicts of these columns, some at a time. Raises FormatError where they are broken."""
    import pyarrow as pa

    if not columns:
        yield [{}] * file.metadata.num_rows
        return
    try:
        for batch in file.iter_batches(batch_size=1024, columns=columns):
            yield batch.to_pylist()
    except (pa.ArrowException, OSError) as error:
        raise FormatError(f"{path}: {error}") from None
