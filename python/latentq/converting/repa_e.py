"""REPA-E's HDF5 of moments: a dataset `00000/img-mean-std-00000000.npy` for each image, and `dataset.json` as bytes.

From End2End-Diffusion/REPA-E, commit 3ad8046: cache_latents.py and dataset.py. Each is float32 (2C, h, w), the
posterior's mean and then its standard deviation, with 32 channels at 1/16 of the size, or 4 at 1/8. A JSON file next to
it, `NAME_h5.json`, lists the keys. Latents are normalized by statistics that lie next to the autoencoder, and not here.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from latentq._core import FormatError
from latentq.converting.edm2 import labels_json, labels_of
from latentq.converting.incoming import Arrays, Incoming, float_kind, key_and_labels, moments_column
from latentq.converting.known import KNOWN, autoencoder_of
from latentq.converting.npy_file import MAX_MEMBER
from latentq.converting.options import ReadOptions
from latentq.converting.outgoing import Outgoing
from latentq.converting.work import Work
from latentq.sources import Sample
from latentq.store.local import check_regular
from latentq.system.extras import needed_for
from latentq.system.progress import Progress

NAME = "repa-e"
TITLE = "REPA-E's NAME.h5 of moments and NAME_h5.json"
_DATASET = "dataset.json"
_MAGIC = b"\x89HDF\r\n\x1a\n"
_OUT = "latents"
_BAD = (OSError, KeyError, ValueError, RuntimeError, TypeError)  # that h5py raises for broken files


def recognizes(path: Path) -> bool:
    """True if a file is an HDF5, or a folder holds one with its list of keys."""
    file = _file(path)
    if file is None or not file.is_file():
        return False
    with file.open("rb") as opened:
        return opened.read(len(_MAGIC)) == _MAGIC


def _file(path: Path) -> Path | None:
    """Returns the HDF5 file of moments: a path itself, or the one in a folder that has a list of keys."""
    if not path.is_dir():
        return path
    files = [file for file in sorted(path.glob("*.h5")) if file.name != "images.h5" and _keys_file(file).exists()]
    return files[0] if len(files) == 1 else None


def _keys_file(path: Path) -> Path:
    return path.with_name(f"{path.stem}_h5.json")


def read(path: Path, options: ReadOptions) -> Incoming:
    """Opens a file, or the one in a folder. The key of a sample is its key in the file without `.npy`.

    Args:
        path: The file, or a folder with one.
        options: The options.

    Raises:
        FormatError: The file is broken, or an array not like the first; the message names it.
        MissingPackageError: h5py is not installed.
        OSError: A file cannot be read.
    """
    with needed_for("reading HDF5 files"):
        import h5py
    file = _file(path)
    if file is None:
        raise FormatError(f"{path}: it does not have one file NAME.h5 with a NAME_h5.json")
    check_regular(file)
    file.stat()
    try:
        opened = h5py.File(file, "r")
    except _BAD as error:
        raise FormatError(f"{file}: not an HDF5 file, or truncated: {error}") from None
    names = sorted(name for name in _names(file, opened) if name.lower().endswith(".npy"))
    labels = labels_of(_bytes(file, opened, _DATASET), f"{file}/{_DATASET}") if _DATASET in opened else None
    if not names:
        raise FormatError(f"{file}: it has no arrays called *.npy")
    shape, dtype = _described(file, opened, names[0])
    if len(shape) != 3 or shape[0] % 2:
        raise FormatError(f"{file}/{names[0]}: must be (2C, h, w), mean and std, not {shape}")
    kind = float_kind(dtype, f"{file}/{names[0]}")
    channels = shape[0] // 2
    usual = "e2e-invae" if channels == KNOWN["e2e-invae"].shape[0] else "e2e-sdvae"
    autoencoder = autoencoder_of(usual, options.autoencoder, channels)
    notes = []
    if options.autoencoder is None:
        notes.append(f"the normalization is not in {file.name}, but in the autoencoder's NAME-latents-stats.pt")

    def listing() -> Iterator[Sample]:
        for name in names:
            if labels is not None and name not in labels:
                raise FormatError(f"{file}/{name}: {_DATASET} has no label of it")
            yield Sample(name.removesuffix(".npy"), None, None if labels is None else labels[name])

    def rows(_: Sequence[int], samples: Sequence[Sample]) -> Arrays:
        moments = np.empty((len(samples), *shape), dtype)
        for row, sample in enumerate(samples):
            moments[row] = _array(file, opened, f"{sample.key}.npy", shape, dtype)
        return {"moments": moments}

    size = (shape[1] * autoencoder.reduction, shape[2] * autoencoder.reduction)
    columns = {"moments": moments_column(kind, spread="std")} | key_and_labels()
    return Incoming(NAME, columns, autoencoder, listing, rows, size=size, notes=notes)


def _names(path: Path, opened: Any) -> list[str]:
    """Returns the keys of all arrays: those in the list next to the file, or else in the file."""
    listed = _keys_file(path)
    if listed.is_file():
        try:
            names = json.loads(listed.read_bytes())
            if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
                raise ValueError("it is no list of names")
        except (ValueError, RecursionError) as error:
            raise FormatError(f"{listed}: not the keys of {path.name}: {error}") from None
        return names
    names = []
    try:
        opened.visit(names.append)
    except _BAD as error:
        raise FormatError(f"{path}: cannot be read: {error}") from None
    return names


def _described(path: Path, opened: Any, name: str) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Returns shape and dtype of an array, before it is read."""
    try:
        return tuple(opened[name].shape), np.dtype(opened[name].dtype)
    except (*_BAD, AttributeError) as error:
        raise FormatError(f"{path}/{name}: no array: {error}") from None


def _array(path: Path, opened: Any, name: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
    found = _described(path, opened, name)
    if found != (shape, dtype):
        raise FormatError(f"{path}/{name}: {found[1]} {found[0]}, and others are {dtype} {shape}")
    try:
        array: NDArray[Any] = opened[name][()]
    except _BAD as error:
        raise FormatError(f"{path}/{name}: cannot be read: {error}") from None
    return array


def _bytes(path: Path, opened: Any, name: str) -> bytes:
    try:
        if opened[name].nbytes > 16 * MAX_MEMBER:
            raise ValueError(f"it has {opened[name].nbytes} bytes")
        return np.array(opened[name]).tobytes()
    except (*_BAD, AttributeError) as error:
        raise FormatError(f"{path}/{name}: cannot be read: {error}") from None


def write(outgoing: Outgoing, work: Work, bar: Progress) -> None:
    """Writes a folder with `latents.h5` and `latents_h5.json`.

    Args:
        outgoing: A dataset with moments.
        work: Where to write.
        bar: Counts samples.

    Raises:
        MismatchError: The dataset has no moments, or has buckets.
        MissingPackageError: h5py is not installed.
        OSError: A file cannot be written.
    """
    with needed_for("writing HDF5 files"):
        import h5py
    outgoing.one_shape()
    moments = outgoing.need("moments")
    columns = outgoing.open([moments], spread="std")
    work.restart()
    work.result.mkdir()
    with _Output(work.result / f"{_OUT}.h5") as output:
        with h5py.File(output, "w") as file:
            for batch in columns.batches():
                for row, values in enumerate(batch.values[moments]):
                    file.create_dataset(_name(batch.first + row), data=values)
                    output.check()
                bar.update(len(batch))
            text = b"".join(labels_json(outgoing, _name))
            file.create_dataset(_DATASET, data=np.array(text, dtype="S"))
        output.check()
    with (work.result / f"{_OUT}_h5.json").open("w", encoding="utf-8") as keys:
        json.dump([*map(_name, range(outgoing.count)), _DATASET], keys, indent=2)


class _Output(io.FileIO):
    """A file for HDF5 that keeps the error of a write for `check`: on a full disk HDF5 itself ends in a crash.

    Args:
        path: The file, which is made.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path, "w+")
        self._path = path
        self._error: OSError | None = None

    def write(self, data: Any) -> int:
        """Writes all bytes; after an error pretends to."""
        view = memoryview(data).cast("B")
        written = 0
        while written < len(view) and self._error is None:
            try:
                written += super().write(view[written:])
            except OSError as error:
                self._error = error
        return len(view)

    def truncate(self, size: int | None = None) -> int:
        """Sets the size; after an error pretends to."""
        try:
            return super().truncate(size)
        except OSError as error:
            self._error = self._error or error
            return 0 if size is None else size

    def check(self) -> None:
        """Raises the OSError of a write that failed."""
        if self._error is not None:
            raise OSError(self._error.errno, self._error.strerror, str(self._path))


def _name(index: int) -> str:
    text = f"{index:08d}"
    return f"{text[:5]}/img-mean-std-{text}.npy"
