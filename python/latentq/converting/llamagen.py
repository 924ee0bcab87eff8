"""LlamaGen's .npy files of tokens, one for each image, with one row for each augmentation, and of labels.

From FoundationVision/LlamaGen, autoregressive/train/extract_codes_c2i.py and dataset/imagenet.py:
`imagenet256_codes/0.npy` is int64 (1, augmentations, tokens): the image and its mirror image, or the ten crops of
torchvision's TenCrop, of which the last five are mirrored; `imagenet256_labels/0.npy` is int64 (1,).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from math import isqrt
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from latentq._core import FormatError
from latentq.converting.fast_dit import label_of, numbered_pair, pair_of
from latentq.converting.foreign import ForeignAutoencoder
from latentq.converting.incoming import Arrays, Incoming, key_and_labels
from latentq.converting.npy_file import load_npy, npy_bytes
from latentq.converting.options import ReadOptions
from latentq.converting.outgoing import Outgoing
from latentq.converting.work import Work
from latentq.format.normalization import Normalization
from latentq.format.options import Column
from latentq.sources import Sample
from latentq.system.progress import Progress

NAME = "llamagen"
TITLE = "LlamaGen's imagenet256_codes/0.npy and imagenet256_labels/0.npy"
_CODES, _LABELS = "_codes", "_labels"
_CODEBOOK = 16384
_STEP = 16_384  # samples between records of what is done


def recognizes(path: Path) -> bool:
    """True if a folder has a pair of folders `*_codes` and `*_labels`."""
    return path.is_dir() and pair_of(path, _CODES) is not None


def token_columns(count: int) -> dict[str, Column]:
    """Returns the columns of the tokens of augmentations, the second half of which is of mirrored images."""
    if count <= 2:
        return {
            name: Column("tokens", flip=bool(index)) for index, name in enumerate(("tokens", "tokens_flip")[:count])
        }
    return {f"tokens_{index}": Column("tokens", flip=index >= count // 2) for index in range(count)}


def token_shape(count: int) -> tuple[int, int]:
    """Returns (h, w) of a number of tokens: a square if there is one, else one row."""
    side = isqrt(count)
    return (side, side) if side * side == count else (1, count)


def read(path: Path, options: ReadOptions) -> Incoming:
    """Opens a folder. The key of a sample is the number of its file.

    Args:
        path: The folder with the two folders.
        options: The options.

    Raises:
        FormatError: A file is broken or not like the first; the message names it.
        OSError: A file cannot be read.
    """
    codes, labels, numbers = numbered_pair(path, _CODES)
    first = _codes(codes / f"{numbers[0]}.npy", None)
    columns = token_columns(first.shape[1])
    shape = token_shape(first.shape[2])
    found = re.search(r"(\d+)$", codes.name.removesuffix(_CODES))
    size = int(found[1]) if found else shape[0] * 16
    autoencoder = ForeignAutoencoder(
        options.autoencoder or "FoundationVision/LlamaGen",
        "VQModel",
        Normalization(),
        (-1.0, 1.0),
        (8, *shape),
        options.codebook or _CODEBOOK,
    )

    def listing() -> Iterator[Sample]:
        for number in numbers:
            yield Sample(str(number), None, label_of(labels / f"{number}.npy"))

    def rows(_: Sequence[int], samples: Sequence[Sample]) -> Arrays:
        tokens = np.empty((len(columns), len(samples), first.shape[2]), np.int64)
        for row, sample in enumerate(samples):
            tokens[:, row] = _codes(codes / f"{sample.key}.npy", first.shape)[0]
        shaped = tokens.reshape(len(columns), len(samples), *shape)
        return dict(zip(columns, shaped, strict=True))

    return Incoming(NAME, columns | key_and_labels(), autoencoder, listing, rows, size=(size, size))


def _codes(path: Path, shape: tuple[int, ...] | None) -> NDArray[Any]:
    codes = load_npy(path)
    if codes.dtype.kind not in "iu" or codes.ndim != 3 or len(codes) != 1 or not codes.size:
        raise FormatError(f"{path}: must be integers (1, augmentations, tokens), not {codes.dtype} {codes.shape}")
    if shape is not None and codes.shape != shape:
        raise FormatError(f"{path}: has the shape {codes.shape}, and others {shape}")
    return codes


def write(outgoing: Outgoing, work: Work, bar: Progress) -> None:
    """Writes a folder with two folders, `imagenetSIZE_codes` and `imagenetSIZE_labels`, named by samples' indices.

    Args:
        outgoing: A dataset with tokens and labels; each column of tokens is an augmentation.
        work: Where to write.
        bar: Counts samples.

    Raises:
        MismatchError: The dataset lacks a column, or has buckets.
        OSError: A file cannot be written.
    """
    outgoing.one_shape()
    outgoing.need("tokens")
    tokens, label = list(outgoing.card.tokens), outgoing.need("label")
    columns = outgoing.open([*tokens, label])
    name = f"imagenet{outgoing.size_text(tokens[0])}"
    folders = [work.result / f"{name}{suffix}" for suffix in (_CODES, _LABELS)]
    for folder in folders:
        folder.mkdir(parents=True, exist_ok=True)
    start = recorded = work.done
    bar.skip(start)
    for batch in columns.batches(start):
        codes = np.stack([batch.values[column].reshape(len(batch), -1) for column in tokens], axis=1)
        for row in range(len(batch)):
            file = f"{batch.first + row}.npy"
            (folders[0] / file).write_bytes(npy_bytes(codes[row : row + 1]))
            (folders[1] / file).write_bytes(npy_bytes(batch.values[label][row : row + 1]))
        bar.update(len(batch))
        recorded = work.record_every(_STEP, batch.first + len(batch), recorded)
