"""Operations on the folder of a dataset: merge, verify and repair."""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from latentq import _core
from latentq._core import FormatError
from latentq.mds.reader import Reader
from latentq.mds.values import IMAGE_ENCODINGS, NOT_ABOUT_THE_VALUE


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


def merged_index(path: str | os.PathLike[str], folders: Sequence[str]) -> bytes:
    """Returns the bytes that `merge(path, folders)` would write, and raises the same errors.

    Args:
        path: The folder that holds the datasets.
        folders: The names of the datasets, in the order of the samples.
    """
    return _core.mds_merged_index(os.fspath(path), list(folders))


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


def repair(path: str | os.PathLike[str], *, allow_fewer_samples: bool = False) -> Repair:
    """Makes an index.json from the shards in a folder. Deletes nothing.

    If the shards are not in the folder itself but in its subfolders, each subfolder without an index gets one, and
    the folder gets the merged index. Shards that mosaicml-streaming has downloaded and decompressed keep their entries
    in the index, with the compressed files of the remote.

    Args:
        path: The folder.
        allow_fewer_samples: True if an index may be replaced by one with fewer samples, because shards are missing or
            broken.

    Raises:
        latentq.FormatError: No shard in the folder can be listed, or the shards hold fewer samples than the present
            index lists. Nothing is written then.
        OSError: A file cannot be read or written.
    """
    shards, samples, skipped, kept = _core.mds_repair(os.fspath(path), allow_fewer_samples)
    return Repair(shards, samples, [Finding(*finding) for finding in skipped], kept)


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
