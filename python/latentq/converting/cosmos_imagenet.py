"""fal's cosmos-imagenet: one safetensors file of int8 latents, or of int16 tokens, with labels.

From the card of huggingface.co/datasets/fal/cosmos-imagenet: `latents` int8 (N, 16, 32, 32), whose values are the
integers times 16 / 255, or int16 (N, 32, 32), the bits of uint16 tokens; `labels` int64 (N,).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from latentq._core import FormatError, MismatchError
from latentq.converting.foreign import ForeignAutoencoder
from latentq.converting.incoming import Arrays, Incoming, key_and_labels
from latentq.converting.options import ReadOptions
from latentq.converting.outgoing import Outgoing
from latentq.converting.safetensors_file import SafetensorsFile, SafetensorsWriter, is_safetensors
from latentq.converting.tree import first_file, walk
from latentq.converting.work import Work
from latentq.format.normalization import Normalization
from latentq.format.options import Column
from latentq.quantizer import Quantizer
from latentq.sources import Sample
from latentq.system.progress import Progress

NAME = "cosmos-imagenet"
TITLE = "fal's cosmos-imagenet (safetensors with int8 latents or int16 tokens, and labels)"
_SUFFIX = ".safetensors"
_CODEBOOK = 64_000
_STEP = 16 / 255
_QUANTIZER = {"kind": "uniform", "low": -128 * _STEP, "high": 127 * _STEP, "bits": 8, "rounding": "nearest"}
_LABELS = 4096  # that are read at once


def recognizes(path: Path) -> bool:
    """True if a file, or the first one of a folder, is a safetensors with `latents` of int8 or int16, and `labels`."""
    file = first_file(path, _SUFFIX, depth=1) if path.is_dir() else path
    if file is None or not is_safetensors(file):
        return False
    try:
        tensors = SafetensorsFile(file)
        return {"latents", "labels"} <= set(tensors.names) and tensors.describe("latents")[0] in ("int8", "int16")
    except FormatError:
        return path.suffix == _SUFFIX


def read(path: Path, options: ReadOptions) -> Incoming:
    """Opens a file. The key of a sample is its index.

    Args:
        path: The file, or the folder that holds it.
        options: The options.

    Raises:
        FormatError: The file is broken, or has other tensors.
        MismatchError: The folder holds several files.
        OSError: It cannot be read.
    """
    path = _file(path)
    file = SafetensorsFile(path)
    dtype, shape = file.describe("latents")
    labels_dtype, labels_shape = file.describe("labels")
    discrete = dtype == "int16"
    if dtype not in ("int8", "int16") or len(shape) != (3 if discrete else 4):
        raise FormatError(f"{path}: latents must be int8 (N, C, h, w) or int16 (N, h, w), not {dtype} {shape}")
    if labels_shape != shape[:1] or labels_dtype not in ("int64", "int32"):
        raise FormatError(f"{path}: labels must be integers {shape[:1]}, not {labels_dtype} {labels_shape}")
    model = options.autoencoder or f"nvidia/Cosmos-0.1-Tokenizer-{'DI' if discrete else 'CI'}8x8"
    height, width = shape[-2:]
    autoencoder = ForeignAutoencoder(
        model,
        "Cosmos-Tokenizer",
        Normalization(),
        (-1.0, 1.0),
        (6, height, width) if discrete else (shape[1], height, width),
        (options.codebook or _CODEBOOK) if discrete else 0,
    )
    column = Column("tokens") if discrete else Column("latent", quantizer=_QUANTIZER)
    name = "tokens" if discrete else "latent"

    def listing() -> Iterator[Sample]:
        for start in range(0, shape[0], _LABELS):
            for row, label in enumerate(file.rows("labels", start, min(start + _LABELS, shape[0])).tolist()):
                if label < 0:
                    raise FormatError(f"{path}: label {label} of sample {start + row} is not a class")
                yield Sample(str(start + row), None, label, archive=path.name, offset=start + row)

    def rows(indices: Sequence[int], _: Sequence[Sample]) -> Arrays:
        first, last = indices[0], indices[-1]
        if last - first == len(indices) - 1:
            stored = file.rows("latents", first, last + 1)
        else:  # to calibrate on
            stored = np.concatenate([file.rows("latents", index, index + 1) for index in indices])
        return {name: stored.astype(np.int64) & 0xFFFF if discrete else stored.view(np.uint8) ^ np.uint8(0x80)}

    columns = {name: column} | key_and_labels()
    return Incoming(NAME, columns, autoencoder, listing, rows, size=(height * 8, width * 8))


def _file(path: Path) -> Path:
    """Returns a file, or the only one of a folder."""
    if not path.is_dir():
        return path
    files = sorted(path / name for name in walk(path, _SUFFIX) if "/" not in name)
    if len(files) != 1:
        names = ", ".join(file.name for file in files[:5]) or f"no {_SUFFIX}"
        raise MismatchError(f"{path} holds {names}: name one file of {NAME}")
    return files[0]


def write(outgoing: Outgoing, work: Work, bar: Progress) -> None:
    """Writes a file of tokens, or of latents whose codes mean the same as those of the layout.

    Args:
        outgoing: A dataset with tokens or latents, and labels.
        work: Where to write.
        bar: Counts samples.

    Raises:
        MismatchError: The dataset lacks a column, has buckets, or codes of another meaning.
        OSError: The file cannot be written.
    """
    outgoing.one_shape()
    tokens, label = outgoing.find("tokens"), outgoing.need("label")
    name = tokens or outgoing.need("latent")
    if tokens:
        facts = outgoing.card.tokens[name]
        if facts.codebook_size > 1 << 16:
            raise MismatchError(f"{outgoing.path} has a codebook of {facts.codebook_size}, and int16 holds 65536")
        shape, dtype = facts.shape, "int16"
    else:
        shape, dtype = outgoing.facts(name).shape, "int8"
        _check_quantizer(outgoing, name)
    columns = outgoing.open([name, label], codes=True)
    tensors = {"latents": (dtype, (outgoing.count, *shape)), "labels": ("int64", (outgoing.count,))}
    work.restart()
    with SafetensorsWriter(work.result, tensors, {}) as writer:
        for batch in columns.batches():
            values = batch.values[name]
            stored = values.astype(np.uint16).view(np.int16) if tokens else (values ^ np.uint8(0x80)).view(np.int8)
            writer.write("latents", batch.first, stored)
            writer.write("labels", batch.first, batch.values[label])
            bar.update(len(batch))


def _check_quantizer(outgoing: Outgoing, name: str) -> None:
    quantizer = outgoing.facts(name).quantizer
    low, high = (float(np.float32(_QUANTIZER[edge])) for edge in ("low", "high"))  # type: ignore[arg-type]
    if isinstance(quantizer, Quantizer) and quantizer.kind in ("uniform", "affine") and quantizer.bits == 8:
        edges = zip(quantizer.low, quantizer.high, strict=True)
        if all(abs(a - low) < 1e-6 and abs(b - high) < 1e-6 for a, b in edges):
            return
    raise MismatchError(
        f"{outgoing.path} cannot be written as {NAME}, because codes are copied unchanged: the layout has 8 bits, "
        f"uniform from {low:.4f} to {high:.4f}, and {name} something else"
    )
