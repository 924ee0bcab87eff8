"""A dataset of Hugging Face `datasets` as a source: a folder written by `save_to_disk`, or a name on the Hub."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from latentq._core import LatentqError, MismatchError
from latentq.sources.columns import NamedColumns, columns_note
from latentq.sources.label_values import Classes
from latentq.sources.listing import Listing, Sample
from latentq.sources.rows import BYTE_TYPES, TEXT_TYPES, image_bytes, samples_of_rows
from latentq.system.extras import needed_for

PREFIX = "hf:"


class Datasets:
    """The rows of a dataset, split by split in the order of their names. A sample's key is `<split>/<row>`.

    Args:
        name: A folder, or `hf:NAME` or `hf:NAME:SPLIT` for a dataset on the Hub.
        columns: The columns that a user names.
        classes: Label and readable name of each class name; None numbers the names.
    """

    kind = "datasets"

    def __init__(self, name: str, columns: NamedColumns | None = None, classes: Classes | None = None) -> None:
        with needed_for("a dataset of Hugging Face"):
            import datasets

        self._name = name
        self._columns = columns or NamedColumns()
        self._classes = classes
        self._splits: dict[str, tuple[str, Any]] = {}
        splits = _splits_of(name)
        for split in sorted(splits, key=str.encode):
            dataset = splits[split].with_format(None)  # a saved format would change the values
            images = [name for name, kind in dataset.features.items() if isinstance(kind, datasets.Image)]
            # Parquet that was not written by `datasets` has bytes, without the type Image.
            binary = [name for name, kind in dataset.features.items() if _holds_bytes(kind)]
            image = self._columns.find_image(name, dataset.features, images or binary)
            if image in images:  # the stored bytes, not Pillow's decoded image
                dataset = dataset.cast_column(image, datasets.Image(decode=False))
            self._splits[split] = (image, dataset)

    def listing(self) -> Listing:
        """Reads every needed column except the images.

        The samples raise LatentqError if there are no rows, or a named column does not exist.
        """
        notes: list[str] = []
        return Listing(samples_of_rows(self._name, self._rows(notes), self._classes, notes), notes)

    def _rows(self, notes: list[str]) -> Iterator[tuple[Sample, Mapping[str, object]]]:
        """Yields a sample for each row, with its cells."""
        for split, (image, dataset) in self._splits.items():
            texts = {name for name, kind in dataset.features.items() if _holds_texts(kind)}
            known = self._columns.find(self._name, dataset.column_names, texts)
            if (note := columns_note(image, known, dataset.column_names)) not in notes:
                notes.append(note)
            class_names = getattr(dataset.features.get(known.get("label")), "names", None)
            narrow = dataset.select_columns(list(known.values()))
            for row in range(len(dataset)):
                values = narrow[row] if known else {}
                cells = {field: values[column] for field, column in known.items()}
                if class_names:
                    label = cells["label"]
                    named = isinstance(label, int) and 0 <= label < len(class_names)
                    cells["label_text"] = class_names[label] if named else None
                yield Sample(f"{split}/{row:08}", None, archive=split, offset=row), cells
        if not any(len(dataset) for _, dataset in self._splits.values()):
            raise LatentqError(f"{self._name} has no rows: there are no images")

    def data(self, sample: Sample) -> bytes:
        """Returns the image in a row.

        Raises:
            MismatchError: There is no such split or row.
            FormatError: The row has no image.
        """
        assert sample.archive is not None
        assert sample.offset is not None
        image, dataset = self._splits.get(sample.archive, ("", ()))
        if sample.offset >= len(dataset):
            raise MismatchError(f"{self._name} is listed with a row {sample.offset} of {sample.archive!r}")
        return image_bytes(dataset[sample.offset][image])


def _splits_of(name: str) -> dict[str, Any]:
    """Loads the splits of a dataset by name."""
    import datasets

    split = ""
    try:
        if name.startswith(PREFIX):
            hub_name, _, split = name.removeprefix(PREFIX).partition(":")
            loaded = datasets.load_dataset(hub_name, split=split or None)
        else:
            loaded = datasets.load_from_disk(name)
    except (OSError, ValueError) as error:
        raise LatentqError(f"{name}: {str(error).partition(chr(10))[0]}") from None
    return loaded if isinstance(loaded, dict) else {split or str(loaded.split or "all"): loaded}


def _holds_bytes(kind: Any) -> bool:
    """True if a column holds bytes, or structs {bytes, path}."""
    if isinstance(kind, dict):
        kind = kind.get("bytes")
    return getattr(kind, "dtype", None) in BYTE_TYPES


def _holds_texts(kind: Any) -> bool:
    """True if a column holds texts or lists of texts."""
    while isinstance(kind, list) or hasattr(kind, "feature"):
        kind = kind[0] if isinstance(kind, list) else kind.feature
    return getattr(kind, "dtype", None) in TEXT_TYPES
