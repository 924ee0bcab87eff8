"""EDM2's and REPA's .npy files of moments, `00000/img-mean-std-00000000.npy`, and `dataset.json`, in a folder or zip.

From NVlabs/edm2, dataset_tool.py and training/encoders.py, and sihyun-yu/REPA, commit 67f7145: preprocessing and
dataset.py. A file is float32 (2C, h, w), the posterior's mean and then its standard deviation, of raw latents.
"""

from __future__ import annotations

import json
import re
import zipfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from latentq._core import FormatError
from latentq.converting.incoming import Arrays, Incoming, float_kind, key_and_labels, moments_column
from latentq.converting.known import autoencoder_of
from latentq.converting.npy_file import MAX_MEMBER, load_npy, npy_array, npy_bytes
from latentq.converting.options import ReadOptions
from latentq.converting.outgoing import Outgoing, OutgoingBatch
from latentq.converting.tree import first_file, walk
from latentq.converting.work import Work
from latentq.format.normalization import Normalization
from latentq.sources import Sample
from latentq.system.progress import Progress

_DATASET = "dataset.json"
_NAME = re.compile(r"(.*/)?img-mean-std-\d{8}\.npy")
_Save: TypeAlias = Callable[[str, bytes], object]
_STEP = 16_384  # samples between records of what is done
_BAD_ZIP = (zipfile.BadZipFile, ValueError, EOFError, KeyError, NotImplementedError, RuntimeError)

# EDM2: (x - raw_mean) * 0.5 / raw_std of pixels in [0, 1]; REPA: x * 0.18215 of pixels in [-1, 1].
EDM2 = (Normalization(0.5, (5.81, 3.25, 0.12, -2.15), (4.17, 4.62, 3.71, 3.28)), (0.0, 1.0))
REPA = (Normalization(0.18215), (-1.0, 1.0))


class MeanStdLayout:
    """The layout of EDM2 or REPA, which differ in the autoencoder's pixels and in how latents are scaled.

    Args:
        name: The layout's name.
        title: The layout in a few words.
        scaling: The normalization, and the pixel values of black and white.
    """

    def __init__(self, name: str, title: str, scaling: tuple[Normalization, tuple[float, float]]) -> None:
        self.NAME = name
        self.TITLE = title
        self._normalization, self._pixel_range = scaling

    def recognizes(self, path: Path) -> bool:
        """True if a folder or zip holds a file called as EDM2's and REPA's are."""
        if path.is_dir():
            file = first_file(_features(path), ".npy", depth=2)
            return file is not None and _NAME.fullmatch(file.name) is not None
        if not zipfile.is_zipfile(path):
            return False
        with zipfile.ZipFile(path) as archive:
            return any(map(_NAME.fullmatch, archive.namelist()))

    def read(self, path: Path, options: ReadOptions) -> Incoming:
        """Opens a folder or zip. The key of a sample is its path without `.npy`.

        Args:
            path: The folder, also REPA's data folder with `vae-sd` in it, or the zip.
            options: The options.

        Raises:
            FormatError: A file is broken or not like the first; the message names it.
            OSError: A file cannot be read.
        """
        files = _Folder(_features(path)) if path.is_dir() else _Zip(path)
        labels = _labels(files)
        first = next(iter(files.names()), None)
        if first is None:
            raise FormatError(f"{path}: it has no .npy files")
        shape, kind = self._moments_shape(files, first)
        normalization = self._normalization
        if len(normalization.mean) not in (1, shape[0] // 2):
            normalization = Normalization()
        autoencoder = autoencoder_of(
            "sd", options.autoencoder, shape[0] // 2, normalization=normalization, pixel_range=self._pixel_range
        )
        columns = {"moments": moments_column(kind, spread="std")}

        def listing() -> Iterator[Sample]:
            for name in files.names():
                if labels is not None and name not in labels:
                    raise FormatError(f"{files.text(name)}: {_DATASET} has no label of it")
                yield Sample(name.removesuffix(".npy"), None, None if labels is None else labels[name])

        def rows(_: Sequence[int], samples: Sequence[Sample]) -> Arrays:
            moments = np.empty((len(samples), *shape), np.float32 if kind == "float32" else np.float16)
            for row, sample in enumerate(samples):
                array = files.load(f"{sample.key}.npy")
                if array.shape != shape or array.dtype != moments.dtype:
                    where = files.text(f"{sample.key}.npy")
                    raise FormatError(f"{where}: {array.dtype} {array.shape}, and others are {kind} {shape}")
                moments[row] = array
            return {"moments": moments}

        size = (shape[1] * autoencoder.reduction, shape[2] * autoencoder.reduction)
        return Incoming(self.NAME, columns | key_and_labels(), autoencoder, listing, rows, size=size)

    def _moments_shape(self, files: _Folder | _Zip, name: str) -> tuple[tuple[int, ...], Any]:
        array = files.load(name)
        if array.ndim != 3 or array.shape[0] % 2:
            raise FormatError(f"{files.text(name)}: must be (2C, h, w), mean and std, not {array.shape}")
        kind = float_kind(array.dtype, files.text(name))
        return array.shape, kind

    def write(self, outgoing: Outgoing, work: Work, bar: Progress) -> None:
        """Writes a folder, or a zip if the output's name ends with `.zip`. Files are named by the samples' indices.

        Args:
            outgoing: A dataset with moments.
            work: Where to write.
            bar: Counts samples.

        Raises:
            MismatchError: The dataset has no moments, or has buckets.
            OSError: A file cannot be written.
        """
        outgoing.one_shape()
        moments = outgoing.need("moments")
        columns = outgoing.open([moments], spread="std")
        if work.out.suffix == ".zip":
            work.restart()
            with zipfile.ZipFile(work.result, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:

                def save(name: str, data: bytes) -> None:
                    archive.writestr(zipfile.ZipInfo(name), data)

                self._write_samples(columns.batches(), moments, save, bar, None)
                with archive.open(zipfile.ZipInfo(_DATASET), "w", force_zip64=True) as file:
                    for piece in _dataset_json(outgoing):
                        file.write(piece)
            return
        start = work.done
        bar.skip(start)
        work.result.mkdir(exist_ok=True)
        made: set[str] = set()

        def save_file(name: str, data: bytes) -> None:
            folder = name[:5]
            if folder not in made:
                (work.result / folder).mkdir(exist_ok=True)
                made.add(folder)
            (work.result / name).write_bytes(data)

        self._write_samples(columns.batches(start), moments, save_file, bar, work)
        with (work.result / _DATASET).open("wb") as file:
            file.writelines(_dataset_json(outgoing))

    def _write_samples(
        self, batches: Iterator[OutgoingBatch], moments: str, save: _Save, bar: Progress, work: Work | None
    ) -> None:
        recorded = 0
        for batch in batches:
            for row, values in enumerate(batch.values[moments]):
                save(_file_name(batch.first + row), npy_bytes(values))
            bar.update(len(batch))
            if work is not None:
                recorded = work.record_every(_STEP, batch.first + len(batch), recorded)


class _Folder:
    """The files of a folder."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def names(self) -> Iterator[str]:
        """Yields the paths of the .npy files, sorted."""
        return walk(self._root, ".npy")

    def load(self, name: str) -> NDArray[Any]:
        """Reads an array."""
        return load_npy(self._root / name)

    def json(self) -> bytes | None:
        """Returns the bytes of dataset.json, or None."""
        path = self._root / _DATASET
        return path.read_bytes() if path.is_file() else None

    def text(self, name: str) -> str:
        """Returns a file's name for messages."""
        return str(self._root / name)


class _Zip:
    """The files of a zip."""

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self._archive = zipfile.ZipFile(path)
        except _BAD_ZIP as error:
            raise FormatError(f"{path}: not a zip, or truncated: {error}") from None
        self._names = sorted(name for name in self._archive.namelist() if name.lower().endswith(".npy"))

    def names(self) -> Iterator[str]:
        """Yields the paths of the .npy files, sorted."""
        return iter(self._names)

    def load(self, name: str) -> NDArray[Any]:
        """Reads an array."""
        try:
            return npy_array(self._read(name, MAX_MEMBER))
        except (*_BAD_ZIP, OSError) as error:
            raise FormatError(f"{self.text(name)}: {error}") from None

    def json(self) -> bytes | None:
        """Returns the bytes of dataset.json, or None."""
        try:
            return self._read(_DATASET, 1 << 32) if _DATASET in self._archive.NameToInfo else None
        except _BAD_ZIP as error:
            raise FormatError(f"{self.text(_DATASET)}: {error}") from None

    def text(self, name: str) -> str:
        """Returns a file's name for messages."""
        return f"{self._path}/{name}"

    def _read(self, name: str, limit: int) -> bytes:
        info = self._archive.getinfo(name)
        if info.file_size > limit or info.file_size > 1032 * max(1, info.compress_size):  # more than deflate can
            raise ValueError(f"it claims {info.file_size} bytes")
        with self._archive.open(info) as member:
            return member.read()


def _features(path: Path) -> Path:
    """Returns the folder of a dataset's features: REPA's data folder has it as `vae-sd`."""
    return path / "vae-sd" if (path / "vae-sd").is_dir() else path


def _labels(files: _Folder | _Zip) -> dict[str, int] | None:
    """Returns the label of each file, or None if there are no labels."""
    data = files.json()
    return None if data is None else labels_of(data, files.text(_DATASET))


def labels_of(data: bytes, where: str) -> dict[str, int] | None:
    """Returns the labels in the bytes of dataset.json: {"labels": [[file name, label], ...]}; None if they are null.

    Args:
        data: The bytes.
        where: The file, for messages.

    Raises:
        FormatError: They are something else.
    """
    try:
        labels = json.loads(data)["labels"]
        if labels is None:
            return None
        found = {name.replace("\\", "/"): label for name, label in labels}
        if not all(type(label) is int and label >= 0 for label in found.values()):
            raise ValueError("a label is not a number of a class")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise FormatError(f"{where}: not the labels of a dataset: {error}") from None
    return found


def _file_name(index: int) -> str:
    text = f"{index:08d}"
    return f"{text[:5]}/img-mean-std-{text}.npy"


def _dataset_json(outgoing: Outgoing) -> Iterator[bytes]:
    """Yields the bytes of dataset.json, as json.dumps writes them."""
    return labels_json(outgoing, _file_name)


def labels_json(outgoing: Outgoing, name_of: Callable[[int], str]) -> Iterator[bytes]:
    """Yields the bytes of dataset.json, as json.dumps writes them, piece by piece.

    Args:
        outgoing: The dataset.
        name_of: The name of the file of each sample, by index.
    """
    label = outgoing.find("label")
    if label is None:
        yield b'{"labels": null}'
        return
    yield b'{"labels": ['
    for batch in outgoing.open([label]).batches():
        pairs = [[name_of(batch.first + row), value] for row, value in enumerate(batch.values[label].tolist())]
        yield (b", " if batch.first else b"") + json.dumps(pairs)[1:-1].encode()
    yield b"]}"


repa = MeanStdLayout("repa", "REPA's img-mean-std-*.npy (folder or zip)", REPA)
edm2 = MeanStdLayout("edm2", "EDM2's img-mean-std-*.npy (folder or zip)", EDM2)
