"""Sources: ordered collections of samples, each a key and an image, with an optional label and caption."""

from __future__ import annotations

import errno
import glob
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TextIO

from latentq._core import LatentqError
from latentq.format.files import INDEX, SHARDS
from latentq.sources.archives import Archives
from latentq.sources.captions import Captions, WithCaptions
from latentq.sources.columns import NamedColumns
from latentq.sources.datasets import PREFIX, Datasets
from latentq.sources.delimited import DELIMITERS
from latentq.sources.folder import Folder, read_class_names
from latentq.sources.kinds import image_by_name
from latentq.sources.label_values import Classes
from latentq.sources.listing import Listing, Sample, Source
from latentq.sources.mds import Mds
from latentq.sources.parquet import Parquet
from latentq.sources.sidecars import SidecarRule
from latentq.sources.table import Table
from latentq.store.files import File, StoredFile, StoredFolder, Stores, has_wildcard, is_stored
from latentq.store.local import check_regular

__all__ = ["Captions", "Listing", "Sample", "Source", "exists", "open_source"]

_SUFFIXES = {".tar": "tar", ".tar.gz": "tar", ".tgz": "tar", ".zip": "zip", ".parquet": "parquet"}


def open_source(
    path: str | os.PathLike[str],
    *,
    class_names: str | os.PathLike[str] | None = None,
    classes: dict[str, tuple[int, str]] | None = None,
    exclude: str | os.PathLike[str] | None = None,
    captions: str | Captions | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
    progress: TextIO | None = None,
    storage_options: Mapping[str, str] | None = None,
) -> Source:
    """Opens the source at a path.

    Args:
        path: A folder of images; a CSV or TSV table of image paths; .tar, .tgz, .zip or .parquet files, named by one
            file, a pattern (`cc12m/*.tar`) or a folder that holds nothing else; a folder of MDS shards; a dataset
            written by Hugging Face's `save_to_disk`, or on the Hub as `hf:NAME` or `hf:NAME:SPLIT`. All but the last
            two may be the URL, or a pattern of a URL, of a store: `s3://`, `gs://`, `az://`,
            `hf://datasets/OWNER/NAME/...`.
        class_names: For a folder: a file of two columns, folder name and readable name.
        classes: Label and readable name of each class, by the name of its folder or its name in a table. None numbers
            the names in sorted order.
        exclude: For a folder: a folder inside it to skip, such as the output.
        captions: Where the captions are: a file, as `Captions.parse` takes it; in folders, tars and zips `txt`, `json`
            or `json:FIELD`, for files named as the image; otherwise the name of a column. None looks in the usual
            places.
        image_column: The column of images (in a table, of their paths); in tars and zips the field of WebDataset, such
            as `image` in `0001.image.png`. None looks for a usual name.
        label_column: The column of labels; None looks for a usual name.
        progress: The stream for progress, if listing takes long; None prints nothing.
        storage_options: For URLs: see `latentq.store.objects.ObjectStore`.

    Raises:
        FileNotFoundError: There is nothing at the path.
        LatentqError: The path is of no kind that can be read, or of several.
        OSError: A store cannot be read.
        ValueError: A URL or a storage option is not valid.
    """
    if isinstance(captions, str) and (is_stored(captions) or _named_file(captions).is_file()):
        captions = Captions.parse(captions)
    if isinstance(captions, Captions) and storage_options and not captions.storage_options:
        captions = replace(captions, storage_options=storage_options)
    named = NamedColumns(image_column, label_column, captions if isinstance(captions, str) else None)
    stores = Stores(storage_options)
    opener = _open_stored if is_stored(path) else _open
    source = opener(os.fspath(path), stores, named, class_names, classes, exclude, progress)
    if class_names is not None and source.kind != "folder":
        raise LatentqError(f"class names are for a folder of class folders, which {path} is not")
    for option, value, kinds in (
        ("image", image_column, ("folder",)),
        ("label", label_column, ("folder", "tar", "zip")),
    ):
        if value is not None and source.kind in kinds:
            raise LatentqError(f"a source of kind {source.kind} has no columns: it takes no {option} column {value!r}")
    return WithCaptions(source, captions) if isinstance(captions, Captions) else source


def _named_file(captions: str) -> Path:
    return Path(captions.rpartition(":")[0] or captions)


def _open(
    path: str,
    stores: Stores,
    columns: NamedColumns,
    class_names: str | os.PathLike[str] | None,
    classes: Classes | None,
    exclude: str | os.PathLike[str] | None,
    progress: TextIO | None,
) -> Source:
    if path.startswith(PREFIX):
        return Datasets(path, columns, classes)
    folder = Path(path)
    if not folder.is_dir():
        if folder.suffix.lower() in DELIMITERS and folder.exists():
            check_regular(folder)
            return Table(folder, columns, classes, progress, stores)
        return _open_files(path, _local_files(path, _matching(path)), stores, columns, classes, progress)
    if (folder / INDEX).is_file():
        return Mds(folder, columns, classes)
    if any((folder / name).is_file() for name in ("state.json", "dataset_dict.json")):  # of save_to_disk
        return Datasets(path, columns, classes)
    if (folder / SHARDS).is_file():
        raise LatentqError(f"{path} is not finished: latentq shards must finish it")
    if files := _only_archives(folder, exclude):
        return _open_files(path, _local_files(path, files), stores, columns, classes, progress)
    names = read_class_names(stores.file(class_names)) if class_names is not None else {}
    SidecarRule.parse(columns.caption)
    return Folder(folder, names, classes, Path(exclude) if exclude is not None else None, columns, progress)


def _open_stored(
    path: str,
    stores: Stores,
    columns: NamedColumns,
    class_names: str | os.PathLike[str] | None,
    classes: Classes | None,
    exclude: str | os.PathLike[str] | None,
    progress: TextIO | None,
) -> Source:
    """Opens the source at a URL, by the rules of `_open`."""
    folder = stores.folder(path)
    named_a_file = Path(path).suffix.lower() in DELIMITERS or _kind(path) is not None
    if (named_a_file or has_wildcard(path)) and (file := stores.find(path)) is not None:
        if file.suffix.lower() in DELIMITERS:
            return Table(file, columns, classes, progress, stores)
        return _open_files(path, [(file.name, file)], stores, columns, classes, progress)
    if has_wildcard(path):
        return _open_files(path, stores.matching(path), stores, columns, classes, progress)
    if folder.find(INDEX) is not None:
        return Mds(folder, columns, classes, stores.options)
    if any(folder.find(name) is not None for name in ("state.json", "dataset_dict.json")):  # of save_to_disk
        raise LatentqError(f"{path} is a folder of datasets' save_to_disk: copy it to this machine, and name the copy")
    if folder.find(SHARDS) is not None:
        raise LatentqError(f"{path} is not finished: latentq shards must finish it")
    if files := _only_stored_archives(folder, exclude):
        return _open_files(path, files, stores, columns, classes, progress)
    if next(folder.objects(), None) is None:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
    names = read_class_names(stores.file(class_names)) if class_names is not None else {}
    SidecarRule.parse(columns.caption)
    return Folder(folder, names, classes, None if exclude is None else os.fspath(exclude), columns, progress)


def exists(path: str) -> bool:
    """True if a path exists or a pattern matches; the name of a dataset on the Hub, or a URL, is not checked."""
    return path.startswith(PREFIX) or is_stored(path) or bool(_matching(path))


def _matching(path: str) -> list[Path]:
    """Returns the file at a path, or the files that a pattern matches."""
    if os.path.lexists(path):
        return [Path(path)]
    return [Path(found) for found in glob.glob(path, recursive=True)]  # noqa: PTH207  (pathlib takes no absolute patterns)


def _root(path: str) -> Path:
    """Returns the folder that file names are relative to, the same whichever files of a pattern exist."""
    parts = Path(path).parts
    fixed = next((n for n, part in enumerate(parts) if glob.has_magic(part) and not os.path.lexists(path)), len(parts))
    root = Path(*parts[:fixed])
    return root if root.is_dir() else root.parent


def _local_files(path: str, files: Iterable[Path]) -> list[tuple[str, File]]:
    """Returns files by their names in the source.

    Raises:
        FormatError: One is not a regular file.
        LatentqError: One is of no known kind.
        OSError: One is not there.
    """
    root = _root(path)
    for file in files:
        if _kind(file.name) is None:
            file.stat()  # FileNotFoundError, PermissionError
            raise _unknown_kind(file)
        check_regular(file)
    return [(file.relative_to(root).as_posix(), file) for file in files]


def _only_archives(folder: Path, exclude: str | os.PathLike[str] | None) -> list[Path]:
    """Returns the archives of a folder that holds neither images nor folders, apart from `exclude`; otherwise none."""
    archives = []
    with os.scandir(folder) as entries:
        for entry in entries:
            excluded = exclude is not None and Path(entry.path).resolve() == Path(exclude).resolve()
            if entry.name.startswith(".") or excluded:
                continue
            if entry.is_dir() or image_by_name(entry.name):
                return []
            if _kind(entry.name) is not None:
                archives.append(Path(entry.path))
    return archives


def _only_stored_archives(folder: StoredFolder, exclude: str | os.PathLike[str] | None) -> list[tuple[str, StoredFile]]:
    """Does what `_only_archives` does for a folder on a store."""
    archives = []
    for entry in folder.objects():
        excluded = exclude is not None and f"{folder}/{entry.name}".startswith(f"{os.fspath(exclude)}/")
        if entry.name.startswith(".") or excluded:
            continue
        if "/" in entry.name or image_by_name(entry.name):
            return []
        if _kind(entry.name) is not None:
            archives.append((entry.name, folder.file(entry)))
    return archives


def _kind(name: str) -> str | None:
    return next((kind for suffix, kind in _SUFFIXES.items() if name.lower().endswith(suffix)), None)


def _unknown_kind(file: File) -> LatentqError:
    known = ", ".join((".csv", ".tsv", *_SUFFIXES))
    return LatentqError(f"{file} is neither a folder of images nor a table nor an archive ({known})")


def _open_files(
    path: str,
    files: Sequence[tuple[str, File]],
    stores: Stores,
    columns: NamedColumns,
    classes: Classes | None,
    progress: TextIO | None,
) -> Source:
    """Returns the source that files make, given by their names in it, in the order of these as bytes."""
    if not files:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
    unknown = next((file for _, file in files if _kind(file.name) is None), None)
    if unknown is not None:
        raise _unknown_kind(unknown)
    kinds = sorted({str(_kind(file.name)) for _, file in files})
    if len(kinds) > 1:
        raise LatentqError(f"{path} holds files of several kinds ({', '.join(kinds)}): name files of one kind")
    named = sorted(files, key=lambda file: os.fsencode(file[0]))
    if kinds == ["parquet"]:
        return Parquet(named, columns, classes, progress, stores)
    return Archives("tar" if kinds == ["tar"] else "zip", named, columns, classes, progress)
