"""Rows as samples: the same rules for parquet, MDS shards, Hugging Face datasets and tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from latentq._core import FormatError
from latentq.sources.columns import caption_facts, captions_field, captions_in
from latentq.sources.label_values import Classes, labels_note, with_labels
from latentq.sources.listing import Listing, Sample
from latentq.store.local import read_regular
from latentq.system.faults import FILE_ERRNOS

NO_CAPTION = "no caption"
# The names of Arrow's types. Polars and DuckDB write views.
BYTE_TYPES = ("binary", "large_binary", "binary_view")
TEXT_TYPES = ("string", "large_string", "string_view")


@dataclass
class Rows:
    """The samples of a source of rows, collected row by row.

    Attributes:
        source: The source, for messages.
        classes: Label and readable name of each class name; None numbers the names.
    """

    source: object
    classes: Classes | None = None
    _samples: list[Sample] = field(default_factory=list)
    _labels: list[object] = field(default_factory=list)
    _fields: set[str] = field(default_factory=set)

    def __len__(self) -> int:
        return len(self._samples)

    def add(self, sample: Sample, cells: Mapping[str, object]) -> None:
        """Adds a sample with the cells of its row: any of `caption`, `label`, `label_text` and `id`."""
        if "caption" in cells:
            captions = captions_in(cells["caption"])
            fault = sample.fault or ("" if captions else NO_CAPTION)
            sample = replace(sample, **caption_facts(captions), fault=fault)
        label_text, identifier = (
            None if (cell := cells.get(name)) is None else str(cell) for name in ("label_text", "id")
        )
        sample = replace(sample, label_text=label_text, id=identifier)
        self._fields |= cells.keys() - {"label"}
        self._samples.append(sample)
        self._labels.append(cells.get("label"))

    def listing(self, location_fields: Sequence[str], notes: Sequence[str] = ()) -> Listing:
        """Returns the listing of all rows.

        Args:
            location_fields: The fields that say where a sample is.
            notes: Lines for the user.

        Raises:
            MismatchError: `classes` does not have a class name.
        """
        samples, label_fields = with_labels(self.source, self._samples, self._labels, self.classes)
        known = self._fields | set(label_fields)
        fields = tuple(name for name in ("label", "label_text", "caption", "id") if name in known)
        notes = (*notes, *labels_note(samples, self._labels))
        return Listing(tuple(samples), (*fields, *captions_field(samples), *location_fields), notes)


def image_bytes(cell: object) -> bytes:
    """Returns the image in a cell: bytes, or a struct {bytes, path} that names a file if it has no bytes.

    Raises:
        FormatError: The cell has no image.
        OSError: The machine cannot read.
    """
    if isinstance(cell, dict):
        if cell.get("bytes") is None and cell.get("path"):
            try:
                return read_regular(Path(cell["path"]))
            except (OSError, ValueError) as error:
                if isinstance(error, OSError) and error.errno not in FILE_ERRNOS:
                    raise
                reason = getattr(error, "strerror", None) or error
                raise FormatError(
                    f"the row has no bytes, and its file {cell['path']} cannot be read: {reason}"
                ) from None
        cell = cell.get("bytes")
    if not isinstance(cell, bytes):
        raise FormatError("no image in this row")
    return cell
