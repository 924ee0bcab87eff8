"""A folder of MDS shards as a source: a column of images, and optional captions and labels."""

from __future__ import annotations

import bisect
import json
import tempfile
import weakref
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from latentq import mds
from latentq._core import LatentqError, MismatchError
from latentq.format.files import INDEX
from latentq.sources.columns import IMAGE, NamedColumns, column_of, columns_note
from latentq.sources.label_values import Classes
from latentq.sources.listing import Listing, Sample
from latentq.sources.rows import samples_of_rows
from latentq.store.cache import Pins, ShardCache
from latentq.store.files import StoredFolder

_CHUNK = 4096  # samples per read
_CACHE_BYTES = 1 << 32


class Mds:
    """The samples of MDS shards, in their order. A sample's key is its number, in at least 8 digits.

    Args:
        path: The folder. Of a folder on a store the shards are downloaded when they are needed, into a temporary folder
            (in TMPDIR) of at most 4 GiB, or four of the largest shards.
        columns: The columns that a user names.
        classes: Label and readable name of each class name; None numbers the names.
        options: For a store: see `latentq.store.objects.ObjectStore`.
    """

    kind = "mds"

    def __init__(
        self,
        path: Path | StoredFolder,
        columns: NamedColumns | None = None,
        classes: Classes | None = None,
        options: Mapping[str, str] | None = None,
    ) -> None:
        self._path = path
        self._classes = classes
        self._cache: ShardCache | None
        self._pins: Sequence[Pins] = ()
        self._kept: frozenset[int] = frozenset()  # the numbers of the shards that are here
        if isinstance(path, Path):
            self._cache, folder = None, path
            self._reader = mds.Reader(folder)
        else:
            self._cache = _cache_of(self, path, options)
            folder = self._cache.folder
            self._reader = mds.Reader(folder, cache_bytes=0)
            self._cache.on_release = self._reader.core.close_shard
        encodings = self._reader.columns
        columns = columns or NamedColumns()
        images = [name for name, encoding in encodings.items() if encoding in ("jpeg", "png", "bytes")]
        # Bytes may be anything: they are images only by their name.
        typed = [name for name in images if encodings[name] != "bytes"]
        named = columns.image is not None or column_of(IMAGE, images) is not None
        self._image = columns.find_image(path, encodings, images if named else typed) if len(self._reader) else ""
        texts = {name for name, encoding in encodings.items() if encoding in ("str", "json")}
        self._columns = columns.find(path, list(encodings), texts)
        # Each shard's end, name and size, which identify the folder.
        self._shards: list[tuple[int, str, int]] = []
        stop = 0
        for shard in json.loads((folder / INDEX).read_bytes())["shards"]:
            stop += shard["samples"]
            self._shards.append((stop, shard["raw_data"]["basename"], shard["raw_data"]["bytes"]))

    def listing(self) -> Listing:
        """Reads every needed column except the images.

        The samples raise FormatError if a shard is broken, and LatentqError if there are none.
        """
        notes: list[str] = []
        return Listing(samples_of_rows(self._path, self._rows(notes), self._classes, notes), notes)

    def _rows(self, notes: list[str]) -> Iterator[tuple[Sample, Mapping[str, object]]]:
        """Yields every sample with the cells of its row."""
        total = len(self._reader)
        if not total:
            raise LatentqError(f"{self._path} holds no samples")
        notes.append(columns_note(self._image, self._columns, self._reader.columns))
        for start in range(0, total, _CHUNK):
            indices = np.arange(start, min(start + _CHUNK, total))
            self._bring(indices)
            values = self._reader.gather(indices, list(self._columns.values()))
            for row_index, number in enumerate(indices.tolist()):
                cells = {field: values[column][row_index] for field, column in self._columns.items()}
                _, shard, size = self._shard(number)
                yield Sample(f"{number:08}", None, archive=shard, archive_bytes=size, offset=number), cells

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
        self._bring(np.array([sample.offset]))
        data = self._reader.stored(sample.offset, self._image)
        assert isinstance(data, bytes)
        return data

    def _bring(self, indices: NDArray[np.int64]) -> None:
        """Brings the shards of some samples into the cache, and begins to download the shard after them."""
        if self._cache is None:
            return
        needed = self._cache.shards_of(indices)
        if self._kept.issuperset(needed):
            return
        following = needed[-1] + 1
        pins = [self._cache.pin(needed), self._cache.pin(range(following, min(following + 1, len(self._shards))))]
        for old in self._pins:
            old.release()
        self._pins, self._kept = pins, frozenset()
        pins[0].wait()
        self._kept = frozenset(needed)

    def _shard(self, number: int) -> tuple[int, str, int]:
        """Returns the end, name and size of the shard that holds a sample."""
        return self._shards[bisect.bisect_right(self._shards, number, key=lambda shard: shard[0])]


def _cache_of(owner: object, path: StoredFolder, options: Mapping[str, str] | None) -> ShardCache:
    """Opens the shards below a URL, in a temporary folder that is gone with its owner."""
    index = path.find(INDEX)
    shards = json.loads(index.read_bytes())["shards"] if index is not None else ()
    largest = max(((shard.get("zip_data") or shard["raw_data"])["bytes"] for shard in shards), default=0)
    folder = tempfile.TemporaryDirectory(prefix="latentq-")
    weakref.finalize(owner, folder.cleanup)
    cache = ShardCache(str(path), folder.name, cache_bytes=max(_CACHE_BYTES, 4 * largest), options=options)
    weakref.finalize(owner, cache.close)
    return cache
