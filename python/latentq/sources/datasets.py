"""A data set of Hugging Face `datasets` as a source: a folder written by `save_to_disk`, or a name on the Hub."""

from __future__ import annotations

from typing import Any

from latentq._core import LatentqError, MismatchError
from latentq.sources.columns import CAPTION, ID, IMAGE, LABEL, captions_field, column_of
from latentq.sources.listing import Listing, Sample
from latentq.sources.parquet import image_bytes, row_facts
from latentq.system.extras import needed_for

PREFIX = "hf:"


class Datasets:
    """The rows of a data set, split by split in the order of their names. A sample's key is `<split>/<row>`.

    Args:
        name: A folder, or `hf:NAME` or `hf:NAME:SPLIT` for a data set on the Hub.
        caption: The column of captions; None looks for a usual name.
    """

    kind = "datasets"

    def __init__(self, name: str, caption: str | None = None) -> None:
        with needed_for("a dataset of Hugging Face"):
            import datasets

        self._name, self._caption = name, caption
        try:
            if name.startswith(PREFIX):
                hub_name, _, split = name.removeprefix(PREFIX).partition(":")
                loaded = datasets.load_dataset(hub_name, split=split or None)
            else:
                loaded = datasets.load_from_disk(name)
                split = ""
        except (OSError, ValueError) as error:
            raise LatentqError(f"{name}: {str(error).partition(chr(10))[0]}") from None
        splits = loaded if isinstance(loaded, dict) else {split or str(loaded.split or "all"): loaded}
        self._splits: dict[str, Any] = {}
        for split in sorted(splits, key=str.encode):
            dataset = splits[split]
            images = [name for name, kind in dataset.features.items() if isinstance(kind, datasets.Image)]
            # Parquet that was not written by `datasets` has bytes, without the type Image.
            binary = [name for name, kind in dataset.features.items() if _holds_bytes(kind)]
            image = next(iter(images), None) or column_of(IMAGE, binary) or next(iter(binary), None)
            if image is None:
                raise LatentqError(f"{name} has no column of images: it has {', '.join(dataset.features)}")
            if image in images:  # the stored bytes, not Pillow's decoded image
                dataset = dataset.cast_column(image, datasets.Image(decode=False))
            self._splits[split] = (image, dataset)

    def listing(self) -> Listing:
        """Reads every needed column except the images.

        Raises:
            LatentqError: There are no rows, or the column of captions does not exist.
        """
        samples: list[Sample] = []
        found: set[str] = set()
        for split, (_, dataset) in self._splits.items():
            columns = dataset.column_names
            if self._caption is not None and self._caption not in columns:
                raise LatentqError(f"{self._name} has no column {self._caption!r}: it has {', '.join(columns)}")
            chosen = {
                "caption": self._caption or column_of(CAPTION, columns),
                "label": column_of(LABEL, columns),
                "id": column_of(ID, columns),
            }
            chosen = {field: column for field, column in chosen.items() if column is not None}
            found |= chosen.keys()
            names = getattr(dataset.features.get(chosen.get("label")), "names", None)
            if names:
                found.add("label_text")
            narrow = dataset.select_columns(list(chosen.values()))
            for row in range(len(dataset)):
                values = narrow[row] if chosen else {}
                facts = row_facts({field: values[column] for field, column in chosen.items()})
                if names and facts.get("label") is not None and facts["label"] < len(names):
                    facts["label_text"] = names[facts["label"]]
                samples.append(Sample(f"{split}/{row:08}", None, archive=split, offset=row, **facts))
        if not samples:
            raise LatentqError(f"{self._name} has no rows: there are no images")
        fields = tuple(name for name in ("label", "label_text", "caption", "id") if name in found)
        return Listing(tuple(samples), (*fields, *captions_field(samples), "archive", "offset", "fault"))

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


def _holds_bytes(kind: Any) -> bool:
    """True if a column holds bytes, or structs {bytes, path}."""
    if isinstance(kind, dict):
        kind = kind.get("bytes")
    return getattr(kind, "dtype", None) in ("binary", "large_binary")
