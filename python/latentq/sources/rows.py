"""Rows as samples: the same rules for parquet, MDS shards, Hugging Face datasets and tables."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from latentq._core import FormatError
from latentq.sources.columns import caption_facts, captions_in
from latentq.sources.label_values import Classes, with_labels
from latentq.sources.listing import Sample
from latentq.store.files import Stores, is_stored
from latentq.store.local import read_regular
from latentq.system.faults import is_file_fault

NO_CAPTION = "no caption"
# The names of Arrow's types. Polars and DuckDB write views.
BYTE_TYPES = ("binary", "large_binary", "binary_view")
TEXT_TYPES = ("string", "large_string", "string_view")


def samples_of_rows(
    source: object, rows: Iterable[tuple[Sample, Mapping[str, object]]], classes: Classes | None, notes: list[str]
) -> Iterator[Sample]:
    """Yields the samples of a source of rows, once all rows are taken.

    Args:
        source: The source, for messages.
        rows: Samples, each with the cells of its row: any of `caption`, `label`, `label_text` and `id`.
        classes: Label and readable name of each class name; None numbers the names.
        notes: Gets the notes about labels.

    Raises:
        MismatchError: `classes` does not have a class name.
    """
    described = ((_described(sample, cells), cells.get("label")) for sample, cells in rows)
    return with_labels(source, described, classes, notes)


def _described(sample: Sample, cells: Mapping[str, object]) -> Sample:
    """Returns a sample with the facts in the cells of its row, except its label."""
    texts = {name: cells.get(name) for name in ("label_text", "id")}
    facts: dict[str, Any] = {name: None if cell is None else str(cell) or None for name, cell in texts.items()}
    if "caption" in cells:
        captions = captions_in(cells["caption"])
        facts |= {**caption_facts(captions), "fault": sample.fault or ("" if captions else NO_CAPTION)}
    return sample._replace(**facts)


def image_bytes(cell: object, stores: Stores | None = None) -> bytes:
    """Returns the image in a cell: bytes, or a struct {bytes, path} that names a file or URL if it has no bytes.

    Args:
        cell: The cell.
        stores: Opens URLs.

    Raises:
        FormatError: The cell has no image.
        OSError: The machine cannot read.
    """
    if isinstance(cell, dict):
        if cell.get("bytes") is None and cell.get("path"):
            try:
                if is_stored(cell["path"]):
                    return (stores or Stores()).get(cell["path"])
                return read_regular(Path(cell["path"]))
            except (OSError, ValueError) as error:
                if isinstance(error, OSError) and not is_file_fault(error):
                    raise
                reason = getattr(error, "strerror", None) or error
                raise FormatError(
                    f"the row has no bytes, and its file {cell['path']} cannot be read: {reason}"
                ) from None
        cell = cell.get("bytes")
    if not isinstance(cell, bytes):
        raise FormatError("no image in this row")
    return cell
