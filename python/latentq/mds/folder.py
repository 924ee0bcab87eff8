"""Operations on the folder of a dataset: merge, verify and repair."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from latentq import _core
from latentq._core import FormatError
from latentq.mds.reader import Reader
from latentq.mds.values import IMAGE_ENCODINGS, NOT_ABOUT_THE_VALUE
from latentq.system.progress import BriefProgress


@dataclass(frozen=True)
class Finding:
    """A fault in a file of a dataset.

    Attributes:
        file: The file's path relative to the dataset's folder.
        offset: Bytes from the start of the file; in a compressed shard that could be decompressed, from the start of
            its uncompressed form.
        message: One line.
    """

    file: str
    offset: int
    message: str


@dataclass(frozen=True)
class Repair:
    """The result of `repair`.

    Attributes:
        shards: The number of shards in the new index.
        samples: The number of samples in these shards.
        skipped: The shards that could not be listed, with the reason. Their files are not changed.
        kept: The names, relative to the folder, under which the previous indexes are kept.
    """

    shards: int
    samples: int
    skipped: list[Finding]
    kept: list[str]


def merge(path: str | os.PathLike[str], folders: Sequence[str] | None = None) -> None:
    """Makes one dataset of several: publishes `path/index.json`, with the bytes that mosaicml's `merge_index` writes.

    Args:
        path: The folder that holds the datasets.
        folders: The names of the datasets, in the order of the samples. By default, every immediate subfolder with an
            index.json whose name does not begin with a dot, in the order of their names.

    Raises:
        FileNotFoundError: A folder has no index.json, or no folder has one.
        latentq.FormatError: The index of a folder violates its format.
        ValueError: A name is not that of an immediate subfolder.
    """
    if folders is None and not any(Path(path).glob("[!.]*/index.json")):
        raise FileNotFoundError(errno.ENOENT, "no subfolder holds an index.json", os.fspath(path))
    _core.mds_merge(os.fspath(path), None if folders is None else list(folders))


def merged_index(path: str | os.PathLike[str], folders: Iterable[str]) -> Iterator[bytes]:
    """Yields the bytes that `merge(path, folders)` would write, a piece for each dataset, and raises the same errors.

    Args:
        path: The folder that holds the datasets.
        folders: The names of the datasets, in the order of the samples.
    """
    merged = _core.MdsMergedIndex(os.fspath(path))
    yield merged.start()
    yield from map(merged.folder, folders)
    yield merged.end()


def samples_by_folder(path: str | os.PathLike[str]) -> list[tuple[str, int]]:
    """Returns the number of samples in each dataset of a merged one, in the order of the samples.

    The index is read piece by piece.

    Args:
        path: The folder of the merged dataset.

    Returns:
        The name of each subfolder with its number of samples; shards of the folder itself have an empty name.

    Raises:
        FileNotFoundError: There is no index.json.
        latentq.FormatError: The index is not valid.
    """
    return _core.mds_samples_by_folder(os.fspath(path))


def verify(path: str | os.PathLike[str]) -> list[Finding]:
    """Checks everything in a dataset: index, sizes, every hash, counts, and every value of every sample.

    Columns of images are decoded with Pillow.

    Args:
        path: The dataset's folder.

    Returns:
        All faults; empty if there are none.

    Raises:
        FileNotFoundError: The folder has no index.json.
        OSError: A file cannot be read.
        ImportError: There are columns of images, and Pillow is not installed.
    """
    findings = [Finding(*finding) for finding in _core.mds_verify(os.fspath(path))]
    if any(finding.file == "index.json" for finding in findings):
        return findings
    reader = Reader(path)
    columns = [name for name, encoding in reader.columns.items() if encoding in IMAGE_ENCODINGS]
    return findings + _verify_images(reader, columns, {finding.file for finding in findings}) if columns else findings


def repair(
    path: str | os.PathLike[str],
    *,
    folders: Sequence[str] | None = None,
    allow_fewer_samples: bool = False,
    progress: TextIO | None = None,
) -> Repair:
    """Makes an index.json from the shards in a folder. Deletes nothing.

    If the shards are not in the folder itself but in its subfolders, each subfolder without an index gets one, and
    the folder gets the merged index. Shards that mosaicml-streaming has downloaded and decompressed keep their entries
    in the index, with the compressed files of the remote.

    Args:
        path: The folder.
        folders: The names of the subfolders, in the order of the samples; those without shards are skipped. By default
            all subfolders, in the order of their names.
        allow_fewer_samples: True if an index may be replaced by one with fewer samples, because shards are missing or
            broken.
        progress: The stream for progress, or None.

    Raises:
        latentq.FormatError: No shard in the folder can be listed, or the shards hold fewer samples than the present
            index lists. Nothing is written then.
        OSError: A file cannot be read or written.
    """
    names = None if folders is None else list(folders)
    with _Steps(progress) as steps:
        shards, samples, skipped, kept = _core.mds_repair(os.fspath(path), names, allow_fewer_samples, steps.at)
    return Repair(shards, samples, [Finding(*finding) for finding in skipped], kept)


class _Steps(contextlib.ExitStack):
    """The progress of a repair: a bar for each thing that is counted.

    Args:
        stream: The stream for progress, or None.
    """

    def __init__(self, stream: TextIO | None) -> None:
        super().__init__()
        self._stream = stream
        self._noun, self._done = "", 0
        self._bar: BriefProgress | None = None

    def at(self, noun: str, done: int, total: int) -> None:
        """Sets the number of steps that are done.

        Args:
            noun: The plural of what is counted.
            done: Their number so far.
            total: Their total number.
        """
        if self._bar is None or noun != self._noun:
            self.close()
            self._noun, self._done = noun, 0
            self._bar = self.enter_context(BriefProgress(total, "repair", self._stream, noun=noun))
        self._bar.update(done - self._done)
        self._done = done


def _verify_images(reader: Reader, columns: list[str], faulty: set[str]) -> list[Finding]:
    """Returns findings for images that Pillow cannot decode, except in `faulty` files, which have findings already."""
    findings = []
    for index in range(len(reader)):
        for name in columns:
            try:
                value = reader.stored(index, name)
            except FormatError:
                continue  # the core has reported it
            try:
                decoded = reader._decoders[name](value)
                for image in decoded if isinstance(decoded, list) else [decoded]:
                    image.load()
            except NOT_ABOUT_THE_VALUE:
                raise
            except Exception as error:  # Pillow's plugins raise many types: as in `Reader._decoded`
                file, offset = reader._core.location(index, reader.resolve_column(name)[0])
                if file not in faulty:
                    findings.append(Finding(file, offset, f"sample {index}, column {name!r}: {error}"))
    return findings
