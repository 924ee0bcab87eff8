"""PRX's MDS folders of moments and embeddings, one for each aspect ratio or one alone. Read only.

From Photoroom/PRX, commit 1a052fd: prx/dataset/dataset.py, mds_dataset.py and mds_patches/encoding_patch.py. Columns:
`img_latent` (2C, h, w), the posterior's mean and then its standard deviation; captions as `str`;
`latent_CAPTION_TOWER` (tokens, width), the valid ones only if there is `attention_mask_CAPTION_TOWER`;
`original_height` and `original_width`. Its own encoding `bf16` is the number of axes (u32), the shape (i32), and the
values.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from latentq import mds
from latentq._core import FormatError
from latentq.converting.incoming import (
    Arrays,
    Incoming,
    float_kind,
    latent_size_of,
    latent_size_text,
    moments_column,
)
from latentq.converting.known import autoencoder_of
from latentq.converting.options import ReadOptions
from latentq.converting.texts import EMBEDDING, MASK, Embeddings, fits, one_caption
from latentq.format.files import INDEX
from latentq.format.options import CONDITIONING_ENCODING, Column
from latentq.sources import Sample

NAME = "prx"
TITLE = "PRX's MDS folders (img_latent, captions)"
_LATENT = "img_latent"
_LISTED = 256  # samples that are read at once
_CAPTION = re.compile(r"caption|\A(enhanced_)?prompt\Z|\Ate?xt\Z")  # columns of text that are captions


def recognizes(path: Path) -> bool:
    """True if a folder, or a folder in it, is an MDS with a column `img_latent`."""
    folders = _folders(path) if path.is_dir() else []
    return bool(folders) and f'"{_LATENT}"' in (path / folders[0] / INDEX).read_text(errors="replace")


def _folders(path: Path) -> list[str]:
    """Returns the folders with an index, as `get_split_folders`: the folder itself, or else those in it."""
    if (path / INDEX).is_file():
        return ["."]
    return sorted(entry.name for entry in path.iterdir() if (entry / INDEX).is_file())


def read(path: Path, options: ReadOptions) -> Incoming:
    """Opens a folder. The key of a sample is its folder and its index there.

    Only the first caption and its first embedding are converted.

    Args:
        path: The folder.
        options: The options.

    Raises:
        FormatError: A shard is broken, or a value is not like the first; the message names it.
        OSError: A file cannot be read.
    """
    readers = {name: mds.Reader(path / name) for name in _folders(path)}
    folder, reader = next(iter(readers.items()))
    _check_columns(path, readers)
    where = path / folder
    moments = _values(where, reader, _LATENT, [0])[0]
    if moments.ndim != 3 or len(moments) % 2:
        raise FormatError(f"{where}: {_LATENT} must be (2C, h, w), mean and std, not {moments.shape}")
    kind = float_kind("bfloat16" if moments.dtype == np.uint16 else moments.dtype, where)
    autoencoder = autoencoder_of("flux", options.autoencoder, len(moments) // 2)
    columns = {"moments": moments_column(kind, spread="std"), "key": Column("key", "str")}
    texts = _Texts(where, reader)
    notes = texts.notes
    if texts.caption:
        columns["caption"] = Column("caption", "str", optional=True)
    if texts.embeddings:
        columns |= texts.embeddings.columns()
    if {"original_height", "original_width"} <= reader.columns.keys():
        columns["original_size"] = Column("original_size", CONDITIONING_ENCODING)

    def listing() -> Iterator[Sample]:
        for name, opened in readers.items():
            for start in range(0, len(opened), _LISTED):
                indices = list(range(start, min(start + _LISTED, len(opened))))
                arrays = _values(path / name, opened, _LATENT, indices)
                captions = opened.gather(indices, texts.caption) if texts.caption else [None] * len(indices)
                for index, array, caption in zip(indices, arrays, captions, strict=True):
                    if array.ndim != 3 or len(array) != len(moments) or array.dtype != moments.dtype:
                        have = f"{array.dtype} {array.shape}"
                        raise FormatError(f"{path / name}: sample {index}: {_LATENT} is {have}, unlike the first")
                    key = f"{index}" if name == "." else f"{name}/{index}"
                    size = latent_size_text(*array.shape[1:])
                    yield Sample(key, None, caption=caption or None, id=size, archive=name, offset=index)

    def rows(_: Sequence[int], samples: Sequence[Sample]) -> Arrays:
        values: dict[str, list[Any]] = {}
        for sample in samples:
            name = sample.archive or "."
            for column, value in _sample(path / name, readers[name], sample.offset or 0, columns, texts).items():
                values.setdefault(column, []).append(value)
        size = latent_size_of(samples[0])
        for value in values["moments"]:
            if value.shape[1:] != size:
                raise FormatError(f"{path}: {_LATENT} is {value.shape}, listed as {size}")
        return {
            name: one_caption(np.stack(rows)) if name in (EMBEDDING, MASK) else np.stack(rows)
            for name, rows in values.items()
        }

    text = texts.embeddings.text_encoder() if texts.embeddings else None
    return Incoming(NAME, columns, autoencoder, listing, rows, text=text, notes=notes)


def _check_columns(path: Path, readers: dict[str, mds.Reader]) -> None:
    first = next(iter(readers.values()))
    for name, reader in readers.items():
        if not len(reader):
            raise FormatError(f"{path / name}: it has no samples")
        if reader.columns.keys() != first.columns.keys():
            raise FormatError(f"{path / name}: its columns are {', '.join(reader.columns)}, and others differ")


class _Texts:
    """The first caption of an MDS, and its first embedding.

    Args:
        where: The folder, for messages.
        reader: The folder, opened.
    """

    def __init__(self, where: Path, reader: mds.Reader) -> None:
        texts = [name for name, encoding in reader.columns.items() if encoding == "str"]
        self.embedding = self.mask = self.caption = ""
        self.embeddings: Embeddings | None = None
        self.notes: list[str] = []
        embedded = {name: _caption_of(name, texts) for name in reader.columns}
        found = ((text, name) for text in texts for name in reader.columns if embedded[name] == text)
        self.caption, self.embedding = next(found, (next(filter(_CAPTION.search, texts), ""), ""))
        mask = f"attention_mask_{self.embedding.removeprefix('latent_')}"
        self.mask = mask if mask in reader.columns else ""
        others = [name for name in texts if name != self.caption]
        others += [name for name in reader.columns if name.startswith("latent_") and name != self.embedding]
        if others:
            self.notes.append(f"not converted: {', '.join(others)}")
        if not self.embedding:
            return
        first = _values(where, reader, self.embedding, [0])[0]
        tokens = _values(where, reader, self.mask, [0])[0].size if self.mask else len(first)
        dtype = "bfloat16" if first.dtype == np.uint16 else str(first.dtype)
        if first.ndim == 2 and fits((tokens, first.shape[1])):
            tower = self.embedding.removeprefix(f"latent_{self.caption}_")
            kind = float_kind(dtype, where)
            self.embeddings = Embeddings(tower, ((tokens, first.shape[1]), kind), None, bool(self.mask))
        else:
            self.notes.append(f"{self.embedding} is not converted: its shape is {first.shape}, not (tokens, width)")


def _caption_of(name: str, texts: Sequence[str]) -> str:
    """Returns the caption that a column embeds: `caption_long` for `latent_caption_long_TOWER`; else nothing."""
    return max((text for text in texts if name.startswith(f"latent_{text}_")), key=len, default="")


def _sample(path: Path, reader: mds.Reader, index: int, columns: dict[str, Column], texts: _Texts) -> dict[str, Any]:
    """Reads the arrays of a sample, by column of the dataset."""
    values: dict[str, Any] = {"moments": _values(path, reader, _LATENT, [index])[0]}
    if EMBEDDING in columns and texts.embeddings:
        (tokens, width), _ = texts.embeddings.embedding
        embedding = _values(path, reader, texts.embedding, [index])[0]
        if embedding.ndim != 2 or embedding.shape[1] != width or len(embedding) > tokens:
            raise FormatError(f"{path}: sample {index}: {texts.embedding} is {embedding.shape}, others {tokens, width}")
        padded = np.zeros((tokens, width), embedding.dtype)
        padded[: len(embedding)] = embedding
        values[EMBEDDING] = padded
        if texts.mask:
            mask = _values(path, reader, texts.mask, [index])[0].ravel()
            if len(mask) != tokens:
                raise FormatError(f"{path}: sample {index}: {texts.mask} has {len(mask)} tokens, others {tokens}")
            values[MASK] = (mask != 0).astype(np.uint8)
    if "original_size" in columns:
        sides = [reader.gather([index], name)[0] for name in ("original_height", "original_width")]
        values["original_size"] = np.array(sides, np.int32)
    return values


def _values(path: Path, reader: mds.Reader, column: str, indices: Sequence[int]) -> list[NDArray[Any]]:
    """Returns the arrays of a column; bfloat16 as its bits in uint16."""
    values = list(reader.gather(indices, column))
    if reader.columns[column] != "bf16":
        return [np.asarray(value) for value in values]
    return [_bf16(value, f"{path}: sample {index}: {column}") for index, value in zip(indices, values, strict=True)]


def _bf16(data: bytes, where: str) -> NDArray[np.uint16]:
    """Returns the array of PRX's encoding `bf16`."""
    axes = int.from_bytes(data[:4], "little")
    start = 4 + 4 * axes
    if len(data) < 4 or axes > 8 or len(data) < start:
        raise FormatError(f"{where}: not of the encoding bf16, or truncated")
    shape = np.frombuffer(data, "<i4", axes, 4).tolist()
    if min(shape, default=0) < 0 or len(data) - start != 2 * prod(shape):
        raise FormatError(f"{where}: {len(data) - start} bytes for the shape {tuple(shape)}")
    return np.frombuffer(data, "<u2", offset=start).reshape(shape)
