"""MAR's .npz files of moments, one for each image, in folders of classes.

From LTH14/mar, commit fe470ac: main_cache.py and util/loader.py. A file holds `moments` and `moments_flip`, float32
(2C, h, w): the posterior's mean and then its log-variance, of raw latents.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from latentq._core import FormatError, MismatchError
from latentq.converting.incoming import Arrays, Incoming, float_kind, key_and_labels, moments_column
from latentq.converting.known import KNOWN, autoencoder_of
from latentq.converting.npy_file import any_of, load_npz, npz_bytes
from latentq.converting.options import ReadOptions
from latentq.converting.outgoing import Outgoing
from latentq.converting.tree import class_folders, first_file, walk
from latentq.converting.work import Work
from latentq.sources import Sample
from latentq.system.progress import Progress

NAME = "mar"
TITLE = "MAR's CLASS/FILE.npz (moments, moments_flip)"
_SUFFIX = ".npz"
_STEP = 16_384  # samples between records of what is done
_ARRAYS = {"moments": "moments", "moments_flip": "moments_flip"}


def recognizes(path: Path) -> bool:
    """True if a folder has folders with an .npz that holds `moments`."""
    file = first_file(path, _SUFFIX, depth=2) if path.is_dir() else None
    if file is None or file.parent == path:
        return False
    try:
        return "moments" in load_npz(file, any_of(_ARRAYS))
    except FormatError:
        return False


def read(path: Path, options: ReadOptions) -> Incoming:
    """Opens a folder. The key of a sample is its path without `.npz`; classes are numbered as torchvision does.

    Args:
        path: The folder.
        options: The options.

    Raises:
        FormatError: A file is broken or not like the first; the message names it.
        OSError: A file cannot be read.
    """
    classes = class_folders(path)
    name = next((name for folder in classes for name in walk(path / folder, _SUFFIX, f"{folder}/")), None)
    if name is None:
        raise FormatError(f"{path}: no folder in it has an {_SUFFIX} file")
    first = path / name
    arrays = load_npz(first, any_of(_ARRAYS))
    if "moments" not in arrays:
        raise FormatError(f"{first}: it has no array 'moments'")
    shape, dtype = arrays["moments"].shape, arrays["moments"].dtype
    if len(shape) != 3 or shape[0] % 2:
        raise FormatError(f"{first}: moments must be (2C, h, w), mean and log-variance, not {shape}")
    kind = float_kind(dtype, first)
    columns = {name: moments_column(kind, spread="logvar", flip=name == "moments_flip") for name in arrays}
    usual = None if options.autoencoder else KNOWN["mar"].normalization  # engine_mar.py has its factor in the code
    autoencoder = autoencoder_of("mar", options.autoencoder, shape[0] // 2, normalization=usual)
    numbers = {name: number for number, name in enumerate(classes)}

    def listing() -> Iterator[Sample]:
        for name in walk(path, _SUFFIX):
            folder, _, rest = name.partition("/")
            if not rest:
                raise FormatError(f"{path / name}: it is in no folder of a class")
            yield Sample(name.removesuffix(_SUFFIX), None, numbers[folder], folder)

    def rows(_: Sequence[int], samples: Sequence[Sample]) -> Arrays:
        values = {name: np.empty((len(samples), *shape), dtype) for name in columns}
        for row, sample in enumerate(samples):
            file = path / f"{sample.key}{_SUFFIX}"
            found = load_npz(file, any_of(columns))
            for name, rows in values.items():
                array = found.get(name)
                if array is None or array.shape != shape or array.dtype != dtype:
                    have = "missing" if array is None else f"{array.dtype} {array.shape}"
                    raise FormatError(f"{file}: {name} is {have}, and in others {dtype} {shape}")
                rows[row] = array
        return values

    size = (shape[1] * autoencoder.reduction, shape[2] * autoencoder.reduction)
    return Incoming(NAME, columns | key_and_labels(texts=True), autoencoder, listing, rows, size=size)


def write(outgoing: Outgoing, work: Work, bar: Progress) -> None:
    """Writes a folder of .npz files, each in the folder of its class.

    A file is called by the sample's key if all keys are paths in folders of classes, as in a converted dataset;
    otherwise by its index, in a folder of the class's name or number.

    Args:
        outgoing: A dataset with moments of images and of their mirror images, and labels.
        work: Where to write.
        bar: Counts samples.

    Raises:
        MismatchError: The dataset lacks a column, has buckets, or has a key that leaves the folder.
        OSError: A file cannot be written.
    """
    outgoing.one_shape()
    names = {outgoing.need("moments"): "moments", outgoing.need("moments", flip=True): "moments_flip"}
    label, key, text = outgoing.need("label"), outgoing.find("key"), outgoing.find("label_text")
    columns = outgoing.open([*names, label, *filter(None, (key, text))], spread="logvar")
    start = work.done
    bar.skip(start)
    work.result.mkdir(exist_ok=True)
    recorded, made = start, set()
    for batch in columns.batches(start):
        for row in range(len(batch)):
            folder = batch.values[text][row] if text else str(int(batch.values[label][row]))
            path = batch.values[key][row] if key else ""
            if path.split("/")[0] != folder or path.count("/") != 1:
                path = f"{folder}/{batch.first + row:08d}"
            target = safe_path(work.result, f"{path}{_SUFFIX}", outgoing)
            if target.parent not in made:
                target.parent.mkdir(parents=True, exist_ok=True)
                made.add(target.parent)
            target.write_bytes(npz_bytes({stored: batch.values[name][row] for name, stored in names.items()}))
        bar.update(len(batch))
        recorded = work.record_every(_STEP, batch.first + len(batch), recorded)


def safe_path(root: Path, name: str, outgoing: Outgoing) -> Path:
    """Returns the path of a file in a folder.

    Raises:
        MismatchError: The name, which comes from a dataset's key, would leave the folder.
    """
    if name.startswith("/") or ".." in name.split("/") or "\0" in name:
        raise MismatchError(f"{outgoing.path}: the key {name!r} is not a path in a folder")
    return root / name
