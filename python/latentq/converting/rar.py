"""RAR's JSON lines of tokens: {"class_id": 3, "tokens": [5, 1, ...]} for each image or augmentation.

From bytedance/1d-tokenizer, scripts/pretokenization.py and data/webdataset_reader.py. The tokens are of MaskGIT's VQGAN
with a codebook of 1024.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from latentq._core import FormatError
from latentq.converting.foreign import ForeignAutoencoder
from latentq.converting.incoming import Arrays, Incoming, key_and_labels
from latentq.converting.llamagen import token_columns, token_shape
from latentq.converting.options import ReadOptions
from latentq.converting.outgoing import Outgoing
from latentq.converting.work import Work
from latentq.format.normalization import Normalization
from latentq.sources import Sample
from latentq.system.progress import Progress

NAME = "rar"
TITLE = 'RAR\'s JSON lines {"class_id", "tokens"}'
_CODEBOOK = 1024
_MAX_LINE = 1 << 22  # bytes


def recognizes(path: Path) -> bool:
    """True if a file begins with a line of JSON that has tokens."""
    if path.is_dir():
        return False
    with path.open("rb") as file:
        start = file.readline(_MAX_LINE)
    return start.startswith(b"{") and b'"tokens"' in start and b'"class_id"' in start


def read(path: Path, options: ReadOptions) -> Incoming:
    """Opens a file. The key of a sample is its index.

    Args:
        path: The file.
        options: The options.

    Raises:
        FormatError: A line is something else, or has another number of tokens than the first; the message names it.
        OSError: The file cannot be read.
    """
    with path.open("rb") as file:
        _, tokens = _parsed(path, 1, file.readline(_MAX_LINE), None)
    count = len(tokens)
    shape = token_shape(count)
    side = shape[0] * 16 if shape[0] > 1 else 256
    autoencoder = ForeignAutoencoder(
        options.autoencoder or "fun-research/TiTok/maskgit-vqgan-imagenet-f16-256",
        "MaskGIT-VQGAN",
        Normalization(),
        (0.0, 1.0),
        (256, *shape),
        options.codebook or _CODEBOOK,
    )

    def listing() -> Iterator[Sample]:
        offset = index = 0
        with path.open("rb") as file:
            while line := file.readline(_MAX_LINE):
                if line.strip():
                    label, _ = _parsed(path, index + 1, line, count)
                    yield Sample(str(index), None, label, archive=path.name, offset=offset)
                    index += 1
                offset += len(line)

    def rows(indices: Sequence[int], samples: Sequence[Sample]) -> Arrays:
        tokens = np.empty((len(samples), count), np.int64)
        with path.open("rb") as file:
            for row, (index, sample) in enumerate(zip(indices, samples, strict=True)):
                file.seek(sample.offset or 0)
                _, tokens[row] = _parsed(path, index + 1, file.readline(_MAX_LINE), count)
        return {"tokens": tokens.reshape(-1, *shape)}

    return Incoming(NAME, token_columns(1) | key_and_labels(), autoencoder, listing, rows, size=(side, side))


def _parsed(path: Path, line: int, data: bytes, count: int | None) -> tuple[int, NDArray[np.int64]]:
    """Returns the label and tokens of a line."""
    try:
        item = json.loads(data)
        label, tokens = item["class_id"], item["tokens"]
        if type(label) is not int or label < 0:
            raise ValueError("class_id is not the number of a class")
        if not isinstance(tokens, list) or set(map(type, tokens)) != {int}:
            raise ValueError("tokens are not a list of integers")
        if count is not None and len(tokens) != count:
            raise ValueError(f"it has {len(tokens)} tokens, and the first line {count}")
        return label, np.array(tokens, np.int64)
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
        raise FormatError(f"{path}, line {line}: not a class_id with tokens: {error}") from None


def write(outgoing: Outgoing, work: Work, bar: Progress) -> None:
    """Writes a file with a line for each column of tokens of each sample.

    Args:
        outgoing: A dataset with tokens and labels.
        work: Where to write.
        bar: Counts samples.

    Raises:
        MismatchError: The dataset lacks a column, or has buckets.
        OSError: The file cannot be written.
    """
    outgoing.one_shape()
    outgoing.need("tokens")
    tokens, label = list(outgoing.card.tokens), outgoing.need("label")
    columns = outgoing.open([*tokens, label])
    work.restart()
    with work.result.open("w", encoding="utf-8") as file:
        for batch in columns.batches():
            rows = [batch.values[name].reshape(len(batch), -1).tolist() for name in tokens]
            for class_id, *lists in zip(batch.values[label].tolist(), *rows, strict=True):
                file.writelines(f"{json.dumps({'class_id': class_id, 'tokens': one})}\n" for one in lists)
            bar.update(len(batch))
