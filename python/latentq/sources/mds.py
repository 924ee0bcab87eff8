"""A folder of MDS shards as a source: a column of images, and optional captions and labels."""

from __future__ import annotations

import bisect
import json
from pathlib import Path

import numpy as np

from latentq import mds
from latentq._core import LatentqError, MismatchError
from latentq.sources.columns import CAPTION, ID, IMAGE, LABEL, LABEL_TEXT, captions_field, column_of
from latentq.sources.listing import Listing, Sample
from latentq.sources.parquet import row_facts

_CHUNK = 4096  # samples per read


class Mds:
    """The samples of MDS shards, in their order. A sample's key is its number, in at least 8 digits.

    Args:
        path: The folder.
        caption: The column of captions; None takes the first with a usual name, or one that begins with `caption`.
    """

    kind = "mds"

    def __init__(self, path: Path, caption: str | None = None) -> None:
        self._path = path
        self._reader = mds.Reader(path)
        columns = self._reader.columns
        images = [name for name, encoding in columns.items() if encoding in ("jpeg", "png", "bytes")]
        image = column_of(IMAGE, images) or next((name for name in images if columns[name] != "bytes"), None)
        if image is None and len(self._reader):
            raise LatentqError(f"{path} has no column of images: it has {', '.join(columns)}")
        self._image = image or ""
        begins = next((name for name in columns if name.startswith("caption")), None)
        self._columns = {
            "caption": caption or column_of(CAPTION, columns) or begins,
            "label": column_of(LABEL, columns),
            "label_text": column_of(LABEL_TEXT, columns),
            "id": column_of(ID, columns),
        }
        if caption is not None and caption not in columns:
            raise LatentqError(f"{path} has no column {caption!r} of captions: it has {', '.join(columns)}")
        # Each shard's end, name and size, which identify the folder.
        self._shards: list[tuple[int, str, int]] = []
        stop = 0
        for shard in json.loads((path / "index.json").read_bytes())["shards"]:
            stop += shard["samples"]
            self._shards.append((stop, shard["raw_data"]["basename"], shard["raw_data"]["bytes"]))

    def listing(self) -> Listing:
        """Reads every needed column except the images.

        Raises:
            FormatError: A shard is broken.
            LatentqError: There are no samples.
        """
        total = len(self._reader)
        if not total:
            raise LatentqError(f"{self._path} holds no samples")
        known = {field: column for field, column in self._columns.items() if column is not None}
        samples: list[Sample] = []
        for start in range(0, total, _CHUNK):
            indices = np.arange(start, min(start + _CHUNK, total))
            values = self._reader.gather(indices, list(known.values()))
            for row_index, number in enumerate(indices.tolist()):
                row = {field: values[column][row_index] for field, column in known.items()}
                if "label" in row:
                    row["label"] = int(row["label"]) if str(row["label"]).isdecimal() else None
                _, shard, size = self._shard(number)
                facts = row_facts(row)
                samples.append(Sample(f"{number:08}", None, archive=shard, archive_bytes=size, offset=number, **facts))
        fields = (*(field for field in ("label", "label_text", "caption", "id") if field in known), "archive")
        return Listing(tuple(samples), (*fields, *captions_field(samples), "archive_bytes", "offset", "fault"))

    def data(self, sample: Sample) -> bytes:
        """Returns the stored bytes of an image.

        Raises:
            MismatchError: The shards are not the listed ones.
            FormatError: The shard is broken.
        """
        assert sample.offset is not None
        listed = (sample.archive, sample.archive_bytes)
        if sample.offset >= len(self._reader) or self._shard(sample.offset)[1:] != listed:
            raise MismatchError(
                f"{self._path}: sample {sample.offset} is listed in {sample.archive} of {sample.archive_bytes} bytes,"
                " but the shards have changed since"
            )
        data = self._reader.stored(sample.offset, self._image)
        assert isinstance(data, bytes)
        return data

    def _shard(self, number: int) -> tuple[int, str, int]:
        """The end, name and size of the shard that holds a sample."""
        return self._shards[bisect.bisect_right(self._shards, number, key=lambda shard: shard[0])]
