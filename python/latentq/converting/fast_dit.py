"""fast-DiT's .npy files, one of scaled latents and one of the label for each image, named by numbers.

From chuanyangjin/fast-DiT, extract_features.py and train.py: `imagenet256_features/0.npy` is float32 (1, C, h, w), a
sample of the posterior times 0.18215, and `imagenet256_labels/0.npy` int64 (1,).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from latentq._core import FormatError
from latentq.converting.incoming import Arrays, Incoming, float_column, float_kind, key_and_labels
from latentq.converting.known import KNOWN, autoencoder_of
from latentq.converting.npy_file import load_npy, npy_bytes
from latentq.converting.options import ReadOptions
from latentq.converting.outgoing import Outgoing
from latentq.converting.tree import integer_files
from latentq.converting.work import Work
from latentq.sources import Sample
from latentq.system.progress import Progress

NAME = "fast-dit"
TITLE = "fast-DiT's imagenet256_features/0.npy and imagenet256_labels/0.npy"
_FEATURES, _LABELS = "_features", "_labels"
_STEP = 16_384  # samples between records of what is done


def recognizes(path: Path) -> bool:
    """True if a folder has a pair of folders `*_features` and `*_labels`."""
    return path.is_dir() and pair_of(path, _FEATURES) is not None


def pair_of(path: Path, suffix: str) -> tuple[Path, Path] | None:
    """Returns the folders of arrays and of labels in a folder, which have one prefix; None if there are none.

    Args:
        path: The folder, or the folder of arrays itself.
        suffix: The end of the name of the folder of arrays; that of labels ends with `_labels`.
    """
    for folder in [path, *sorted(path.glob(f"*{suffix}"))]:
        labels = folder.with_name(folder.name.removesuffix(suffix) + _LABELS)
        if folder.name.endswith(suffix) and folder.is_dir() and labels.is_dir():
            return folder, labels
    return None


def numbered_pair(path: Path, suffix: str) -> tuple[Path, Path, list[int]]:
    """Returns the folders of arrays and of labels, and the numbers of the files in them.

    Args:
        path: As for `pair_of`.
        suffix: As for `pair_of`.

    Raises:
        FormatError: There are no such folders, or no files in them.
    """
    pair = pair_of(path, suffix)
    numbers = integer_files(pair[0], ".npy") if pair else []
    if pair is None or not numbers:
        raise FormatError(f"{path}: it has no folders NAME{suffix} and NAME_labels of files 0.npy, 1.npy, ...")
    return *pair, numbers


def label_of(path: Path) -> int:
    """Returns the label in a file, int64 (1,).

    Raises:
        FormatError: It holds something else.
        OSError: It cannot be read.
    """
    label = load_npy(path)
    if label.dtype.kind not in "iu" or label.size != 1 or int(label.ravel()[0]) < 0:
        raise FormatError(f"{path}: must be one number of a class, not {label.dtype} {label.shape}")
    return int(label.ravel()[0])


def read(path: Path, options: ReadOptions) -> Incoming:
    """Opens a folder. The key of a sample is the number of its file.

    Args:
        path: The folder with the two folders.
        options: The options.

    Raises:
        FormatError: A file is broken or not like the first; the message names it.
        OSError: A file cannot be read.
    """
    features, labels, numbers = numbered_pair(path, _FEATURES)
    first = load_npy(features / f"{numbers[0]}.npy")
    if first.ndim != 4 or len(first) != 1:
        raise FormatError(f"{features / f'{numbers[0]}.npy'}: must be (1, C, h, w), not {first.shape}")
    kind = float_kind(first.dtype, features / f"{numbers[0]}.npy")
    usual = None if options.autoencoder else KNOWN["sd"].normalization  # extract_features.py has its factor in the code
    autoencoder = autoencoder_of("sd", options.autoencoder, first.shape[1], normalization=usual)

    def listing() -> Iterator[Sample]:
        for number in numbers:
            yield Sample(str(number), None, label_of(labels / f"{number}.npy"))

    def rows(_: Sequence[int], samples: Sequence[Sample]) -> Arrays:
        latents = np.empty((len(samples), *first.shape[1:]), first.dtype)
        for row, sample in enumerate(samples):
            array = load_npy(features / f"{sample.key}.npy")
            if array.shape != first.shape or array.dtype != first.dtype:
                where = features / f"{sample.key}.npy"
                raise FormatError(f"{where}: {array.dtype} {array.shape}, and others are {first.dtype} {first.shape}")
            latents[row] = array[0]
        return {"latent": latents}

    size = (first.shape[2] * autoencoder.reduction, first.shape[3] * autoencoder.reduction)
    columns = {"latent": float_column(kind, scaled=True)} | key_and_labels()
    return Incoming(NAME, columns, autoencoder, listing, rows, size=size)


def write(outgoing: Outgoing, work: Work, bar: Progress) -> None:
    """Writes a folder with two folders, whose files are named by samples' indices.

    They are `imagenet256_features` and `imagenet256_labels` for images of any size, as extract_features.py names them
    and train.py expects.

    Args:
        outgoing: A dataset with latents and labels.
        work: Where to write.
        bar: Counts samples.

    Raises:
        MismatchError: The dataset lacks a column, or has buckets.
        OSError: A file cannot be written.
    """
    outgoing.one_shape()
    latent, label = outgoing.need("latent"), outgoing.need("label")
    columns = outgoing.open([latent, label], scale="scaled")
    folders = [work.result / f"imagenet256{suffix}" for suffix in (_FEATURES, _LABELS)]
    for folder in folders:
        folder.mkdir(parents=True, exist_ok=True)
    start = recorded = work.done
    bar.skip(start)
    for batch in columns.batches(start):
        for row in range(len(batch)):
            file = f"{batch.first + row}.npy"
            (folders[0] / file).write_bytes(npy_bytes(batch.values[latent][row : row + 1]))
            (folders[1] / file).write_bytes(npy_bytes(batch.values[label][row : row + 1]))
        bar.update(len(batch))
        recorded = work.record_every(_STEP, batch.first + len(batch), recorded)
