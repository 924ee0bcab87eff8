"""The TSV of tokens that VQGAN-f16-16384's page writes: columns image_file and encoding, `[1,2,...]`."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Iterator, Sequence
from math import isqrt
from pathlib import Path
from typing import TextIO

import numpy as np
from numpy.typing import NDArray

from latentq._core import FormatError, LatentqError, MismatchError
from latentq.converting.foreign import KNOWN_LAYOUTS, ForeignAutoencoder, ForeignDataset, batches, open_columns
from latentq.format.card import Card
from latentq.format.normalization import Normalization
from latentq.format.recipe import Recipe
from latentq.sources import Sample
from latentq.system.progress import BriefProgress, Progress
from latentq.system.text import counted

RECIPE = "vqgan-f16-16384"
SUFFIX = ".tsv"
HEADER = ("image_file", "encoding")
CODEBOOK_SIZE = 16384
_REDUCTION = 16  # pixels per token, along each side


def read(path: Path, progress: TextIO | None) -> ForeignDataset:
    """Reads the TSV of tokens; they are kept in memory, two bytes each.

    Args:
        path: The file.
        progress: The stream for progress, or None.

    Raises:
        FormatError: It has another header, or a row is not a path and as many tokens as in the first row; the message
            names the file and the line.
        OSError: It cannot be read.
    """
    samples: list[Sample] = []
    rows: list[NDArray[np.uint16]] = []
    with (
        path.open(encoding="utf-8", errors="surrogateescape", newline="") as file,
        BriefProgress(path.stat().st_size, "read", progress, noun="byte") as bar,
    ):
        lines = _lines(path, _counted(file, bar))
        header = next(lines, (1, []))[1]
        if tuple(header) != HEADER:
            found = " and ".join(map(repr, header[:3])) or "nothing"
            problem = f"the header must be image_file and encoding, not {found[:80]}"
            raise FormatError(f"{path}, line 1: {problem}. {KNOWN_LAYOUTS}")
        for line, cells in lines:
            if not cells:  # a blank line, which pandas skips too
                continue
            try:
                key, tokens = _row(cells, len(rows[0]) if rows else None)
            except ValueError as error:
                raise FormatError(f"{path}, line {line}: {error}") from None
            samples.append(Sample(key, bytes=None))
            rows.append(tokens)
    if not rows:
        raise FormatError(f"{path}: holds no samples")
    side = isqrt(len(rows[0]))
    if side * side != len(rows[0]):
        raise FormatError(f"{path}: {len(rows[0])} tokens for an image do not form a square")
    recipe = Recipe.load(RECIPE)
    if (side, side) not in [column.shape for column in recipe.tokens().values()]:
        recipe = recipe.override(size=side * _REDUCTION)
    low, high = recipe.autoencoder.pixel_range
    shape = (1, side, side)
    autoencoder = ForeignAutoencoder(
        recipe.autoencoder.model, "taming.VQModel", Normalization(), (low, high), shape, CODEBOOK_SIZE
    )

    def read_stored(indices: Sequence[int]) -> NDArray[np.uint16]:
        return np.stack([rows[index] for index in indices]).reshape(-1, side, side)

    return ForeignDataset("TSV of tokens", recipe, autoencoder, samples, read_stored)


def _counted(file: TextIO, bar: Progress) -> Iterator[str]:
    """Yields the lines of a file; the bar counts their characters, which are nearly all of one byte."""
    for line in file:
        yield line
        bar.update(len(line))


def _lines(path: Path, file: Iterable[str]) -> Iterator[tuple[int, list[str]]]:
    """Yields the rows of a TSV as pandas writes it, each with the line where it ends."""
    reader = csv.reader(file, delimiter="\t")
    try:
        for cells in reader:
            yield reader.line_num, cells
    except csv.Error as error:
        raise FormatError(f"{path}, line {reader.line_num}: not a TSV: {error}") from None


def _row(cells: list[str], count: int | None) -> tuple[str, NDArray[np.uint16]]:
    """Returns a row's path and its `count` tokens, or raises ValueError."""
    if len(cells) != len(HEADER):
        raise ValueError(f"must have {len(HEADER)} columns, not {len(cells)}")
    key, text = cells
    try:
        key.encode()
    except UnicodeEncodeError:
        raise ValueError("the path is not UTF-8") from None
    try:
        tokens = json.loads(text)
    except (ValueError, RecursionError):
        hint = ": NumPy has abbreviated it" if "..." in text else ""
        raise ValueError(f"the encoding must be a list of tokens like [1,2,3], not {text[:40]!r}{hint}") from None
    if not isinstance(tokens, list) or set(map(type, tokens)) != {int}:
        raise ValueError(f"the encoding must be a list of integers, not {text[:40]!r}")
    if min(tokens) < 0 or max(tokens) >= CODEBOOK_SIZE:
        wrong = next(token for token in tokens if not 0 <= token < CODEBOOK_SIZE)
        raise ValueError(f"token {wrong} is outside the codebook of {CODEBOOK_SIZE}")
    if count is not None and len(tokens) != count:
        raise ValueError(f"has {counted(len(tokens), 'token')}, and the first row has {count}")
    return key, np.array(tokens, np.uint16)


def write_rows(file: TextIO, keys: Iterable[str], tokens: NDArray[np.int64]) -> None:
    """Writes rows of the TSV, byte for byte as pandas does.

    Args:
        file: The file, opened with newline="".
        keys: The n paths.
        tokens: (n, ...) integers.
    """
    rows = tokens.reshape(len(tokens), -1).tolist()
    encodings = (json.dumps(row, separators=(",", ":")) for row in rows)
    csv.writer(file, delimiter="\t", lineterminator="\n").writerows(zip(keys, encodings, strict=True))


def write(dataset: Path, out: Path, progress: TextIO | None) -> int:
    """Writes the TSV of tokens from a dataset.

    Args:
        dataset: The dataset.
        out: The file, which must not exist.
        progress: The stream for progress, or None.

    Returns:
        The number of samples written.

    Raises:
        LatentqError: The dataset has no tokens or no keys.
        MismatchError: Its codebook is larger than the layout's.
    """
    card = Card.load(dataset)
    if not card.tokens:
        raise LatentqError(f"{dataset} holds no tokens, and a {SUFFIX} needs them")
    name, facts = next(iter(card.tokens.items()))
    if facts.codebook_size > CODEBOOK_SIZE:
        sizes = f"a codebook of {facts.codebook_size}, the layout of {RECIPE} of {CODEBOOK_SIZE}"
        raise MismatchError(f"{dataset} has {sizes}")
    opened = open_columns(dataset, name, RECIPE, ["key"])
    with (
        out.open("x", encoding="utf-8", newline="") as file,
        Progress(len(opened), "convert", progress) as bar,
    ):
        csv.writer(file, delimiter="\t", lineterminator="\n").writerow(HEADER)
        for batch in batches(range(len(opened))):
            tokens, keys = opened.batch(batch).values()
            write_rows(file, keys, tokens.numpy())
            bar.update(len(batch))
    return len(opened)
