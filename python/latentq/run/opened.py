"""Opening a dataset to look at it: a folder as it is, and a URL by downloading what is needed."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TextIO

import numpy as np

from latentq._core import LatentqError
from latentq.store.cache import ShardCache, is_remote
from latentq.store.local import bytes_below
from latentq.system.progress import BriefProgress, Progress


class OpenedDataset:
    """A dataset that is open for commands which read a folder.

    Args:
        name: The dataset as the user named it.
        folder: Its folder; for a URL, the folder that files are downloaded into.
        cache: The files of a URL; None for a folder.
        progress: Stream for progress, or None.
        options: The options of a URL's object store.

    Attributes:
        name: The dataset as the user named it.
        folder: The folder. For a URL it has card and index until more is asked for.
        options: The options of a URL's object store.
    """

    def __init__(
        self,
        name: str,
        folder: Path,
        cache: ShardCache | None,
        progress: TextIO | None,
        options: Mapping[str, str] | None = None,
    ) -> None:
        self.name, self.folder, self.options = name, folder, options or {}
        self._cache, self._progress = cache, progress

    def need_samples(self, indices: Sequence[int]) -> None:
        """Makes sure that some samples are in the folder. Indices out of range are skipped.

        Raises:
            FormatError: A shard is damaged.
            OSError: A shard cannot be downloaded.
        """
        if self._cache is not None:
            count = sum(shard.samples for shard in self._cache.shards)
            inside = np.array([index % count for index in indices if -count <= index < count], np.int64)
            pins = self._cache.pin(self._cache.shards_of(inside))
            with contextlib.closing(pins):
                pins.wait()

    @property
    def absolute_name(self) -> str:
        """The dataset for other processes: an absolute path, or the URL."""
        return str(self.folder.absolute()) if self._cache is None else self.name

    def need_unit(self, name: str) -> None:
        """Makes sure that the shards of one unit are in the folder. Raises as `need_samples`."""
        if self._cache is not None:
            shards = enumerate(self._cache.shards)
            pins = self._cache.pin([number for number, shard in shards if shard.name.startswith(f"{name}/")])
            with contextlib.closing(pins):
                pins.wait()

    def need_others(self) -> None:
        """Makes sure that everything but the shards is in the folder. Raises as `need_samples`."""
        if self._cache is not None:
            self._cache.fetch_others()

    def need_all(self) -> None:
        """Makes sure that everything is in the folder. Raises as `need_samples`."""
        if self._cache is not None:
            self.need_others()
            with Progress(
                self._cache.nbytes, "download", self._progress, noun="byte", unit="B", unit_scale=True
            ) as bar:
                self._cache.fetch_all(bar.update)

    def samples(self) -> int | None:
        """Returns the number of samples of a URL; None for a folder, whose reader tells."""
        return None if self._cache is None else sum(shard.samples for shard in self._cache.shards)

    def nbytes(self) -> int:
        """Returns the bytes of all files of the dataset, where it is."""
        if self._cache is not None:
            return sum(size for _, size in self._cache.files())
        with BriefProgress(None, "add up", self._progress, noun="item") as bar:
            return bytes_below(self.folder, bar)


@contextlib.contextmanager
def opened(
    path: str | os.PathLike[str],
    *,
    cache: str | os.PathLike[str] | None = None,
    options: Mapping[str, str] | None = None,
    progress: TextIO | None = None,
) -> Iterator[OpenedDataset]:
    """Opens a dataset in a folder, on an object store or on the Hub.

    Args:
        path: A folder, or a URL: see `LatentDataset`.
        cache: For a URL: the folder to keep files in; None for a temporary one.
        options: For the URL of an object store: see `ObjectStore`.
        progress: Stream for progress, or None.

    Yields:
        The dataset. Errors name the URL in place of the folder of its files.

    Raises:
        LatentqError: There is no dataset at the URL.
        OSError: The URL cannot be read.
        ValueError: Options are given without a URL, or not valid.
    """
    if not is_remote(path):
        if cache is not None or options:
            raise ValueError(f"a cache and storage options are for URLs, and {os.fspath(path)} is none")
        yield OpenedDataset(os.fspath(path), Path(path), None, progress)
        return
    with contextlib.ExitStack() as stack:
        folder = cache or stack.enter_context(tempfile.TemporaryDirectory(prefix="latentq-"))
        shards = ShardCache(str(path), folder, options=options)
        stack.callback(shards.close)
        try:
            yield OpenedDataset(shards.url, shards.folder, shards, progress, options)
        except LatentqError as error:
            error.args = tuple(
                part.replace(str(shards.folder), shards.url) if isinstance(part, str) else part for part in error.args
            )
            raise
