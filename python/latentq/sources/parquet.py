"""Parquet files as a source: one row per sample, with the image's bytes in one of the columns."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from latentq._core import FormatError, LatentqError, MismatchError
from latentq.sources.columns import NamedColumns, columns_note
from latentq.sources.label_values import Classes
from latentq.sources.listing import Listing, Sample, unchanged_files
from latentq.sources.rows import BYTE_TYPES, TEXT_TYPES, image_bytes, samples_of_rows
from latentq.store.files import File, Stores, open_stream, size_of
from latentq.system.extras import needed_for
from latentq.system.faults import is_file_fault
from latentq.system.progress import listing_progress

if TYPE_CHECKING:
    from pyarrow.parquet import ParquetFile

_BLOCK = 1 << 16  # bytes of the smallest request: a column of captions lies between large ones of images


class Parquet:
    """The rows of parquet files, file by file. A sample's key is `<file>/<row>`, the row in at least 8 digits.

    The image is a column of bytes, or of the structs {bytes, path} that Hugging Face writes. A row group is read when
    one of its rows is asked for, and cached until a row of another group is.

    Args:
        files: The files in order, by their names in the source.
        columns: The columns that a user names.
        classes: Label and readable name of each class name; None numbers the names.
        progress: The stream for progress, if listing takes long; None prints nothing.
        stores: Opens the URLs of images that are not in the files.
    """

    kind = "parquet"

    def __init__(
        self,
        files: Sequence[tuple[str, File]],
        columns: NamedColumns | None = None,
        classes: Classes | None = None,
        progress: TextIO | None = None,
        stores: Stores | None = None,
    ) -> None:
        self.files = dict(files)
        self._columns = columns or NamedColumns()
        self._classes = classes
        self._progress = progress
        self._stores = stores or Stores()
        self._rows: tuple[str, range, Any] | None = None
        self._lock = threading.Lock()

    def listing(self) -> Listing:
        """Reads every needed column except the images.

        The samples raise OSError if a file cannot be read, FormatError if it is not parquet, and LatentqError if there
        is no column of images, or no row.
        """
        notes: list[str] = []
        first = next(iter(self.files.values()))
        return Listing(samples_of_rows(first, self._listed_rows(notes), self._classes, notes), notes)

    def _listed_rows(self, notes: list[str]) -> Iterator[tuple[Sample, Mapping[str, object]]]:
        """Yields a sample for each row, with its cells."""
        empty = True
        for name, path in listing_progress(self.files.items(), self._progress):
            with open_parquet(path) as file:
                image = _image_column(path, file, self._columns)
                known = self._columns.find(path, file.schema_arrow.names, _text_columns(file))
                if (note := columns_note(image, known, file.schema_arrow.names)) not in notes:
                    notes.append(note)
                size, row = size_of(path), 0
                for batch in rows_of(path, file, list(known.values())):
                    for values in batch:
                        sample = Sample(f"{name}/{row:08}", None, archive=name, archive_bytes=size, offset=row)
                        yield sample, {field: values[column] for field, column in known.items()}
                        row += 1
                empty = empty and not row
        if empty:
            raise LatentqError(f"{next(iter(self.files.values()))} has no rows: there are no images")

    def unchanged(self, samples: Iterable[Sample]) -> bool:
        """True if the files are those of the listed samples, as `unchanged_files` compares them."""
        return unchanged_files(self.files, samples, lambda _, path: _has_no_rows(path))

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
            return image_bytes(values[sample.offset - rows.start].as_py(), self._stores)

    def _read_group(self, sample: Sample, row: int) -> tuple[range, Any]:
        """Returns the rows of the row group that holds a row, and their images."""
        path = self.files.get(sample.archive or "")
        if path is None or (isinstance(path, Path) and not path.exists()):
            raise MismatchError(f"{path or sample.archive} is listed and is not there")
        if size_of(path) != sample.archive_bytes:
            raise MismatchError(f"{path} is listed with {sample.archive_bytes} bytes and has {size_of(path)} bytes now")
        with open_parquet(path) as file:
            column = _image_column(path, file, self._columns)
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
                _raise_machine_fault(error)
                raise FormatError(f"row group {group}: {error}") from None
        return range(start, stop), table.column(0)


def _has_no_rows(path: File) -> bool:
    with open_parquet(path) as file:
        return bool(file.metadata.num_rows == 0)


def _raise_machine_fault(error: Exception) -> None:
    """Raises an error again that is not of the file. Errors of Arrow about a file are without a number."""
    if isinstance(error, OSError) and error.errno is not None and not is_file_fault(error):
        raise error


def open_parquet(path: File) -> ParquetFile:
    """Opens a parquet file. Raises FormatError if it is not one."""
    with needed_for("a parquet file"):
        import pyarrow as pa
        import pyarrow.parquet as pq

    try:
        return pq.ParquetFile(path if isinstance(path, Path) else open_stream(path, block=_BLOCK))
    except pa.ArrowException as error:
        raise FormatError(f"{path}: not a parquet file: {str(error).partition(chr(10))[0]}") from None


def _image_column(path: File, file: ParquetFile, columns: NamedColumns) -> str:
    import pyarrow.types as types

    def holds_bytes(kind: Any) -> bool:
        if types.is_struct(kind):
            return any(
                kind.field(i).name == "bytes" and holds_bytes(kind.field(i).type) for i in range(kind.num_fields)
            )
        return str(kind) in BYTE_TYPES

    schema = file.schema_arrow
    return columns.find_image(path, schema.names, [field.name for field in schema if holds_bytes(field.type)])


def _text_columns(file: ParquetFile) -> set[str]:
    """Returns the columns of texts or of lists of texts."""

    def holds_texts(kind: Any) -> bool:
        while hasattr(kind, "value_type"):  # lists of any kind, and dictionaries
            kind = kind.value_type
        return str(kind) in TEXT_TYPES

    return {field.name for field in file.schema_arrow if holds_texts(field.type)}


def rows_of(path: File, file: ParquetFile, columns: list[str]) -> Iterator[list[dict[str, Any]]]:
    """Yields batches of rows, each row a dict of the columns. Raises FormatError if the file is broken."""
    import pyarrow as pa

    if not columns:
        yield [{}] * file.metadata.num_rows
        return
    try:
        for batch in file.iter_batches(batch_size=1024, columns=columns):
            yield batch.to_pylist()
    except (pa.ArrowException, OSError) as error:
        _raise_machine_fault(error)
        raise FormatError(f"{path}: {error}") from None
