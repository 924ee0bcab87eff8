"""LightningDiT's safetensors shards: raw latents of images and their mirror images, labels, and `latents_stats.pt`.

From hustvl/LightningDiT, commit 2725fed: extract_features.py and datasets/img_latent_dataset.py.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from latentq._core import FormatError
from latentq.converting.buffers import Buffers
from latentq.converting.incoming import Arrays, Incoming, float_column, float_kind, key_and_labels
from latentq.converting.known import autoencoder_of
from latentq.converting.options import ReadOptions
from latentq.converting.outgoing import Outgoing
from latentq.converting.safetensors_file import SafetensorsFile, SafetensorsWriter, is_safetensors
from latentq.converting.torch_tensors import floats_of
from latentq.converting.work import Work
from latentq.format.normalization import Normalization
from latentq.format.safe_torch_file import TensorRecord, TorchFile
from latentq.sources import Sample
from latentq.system.progress import Progress

NAME = "lightningdit"
TITLE = "LightningDiT's safetensors shards (latents, latents_flip, labels)"
_STATISTICS = "latents_stats.pt"
_SHARD = 10_000
_OPENED = 64  # headers that are cached
_COLUMNS = {"latent": "latents", "latent_flip": "latents_flip"}


def recognizes(path: Path) -> bool:
    """True if a folder holds a safetensors file with `latents` and `labels`."""
    files = _files(path) if path.is_dir() else []
    if not files or not is_safetensors(files[0]):
        return False
    try:
        file = SafetensorsFile(files[0])
        return {"latents", "labels"} <= set(file.names) and file.describe("latents")[0] not in ("int8", "int16")
    except FormatError:
        return len(files) > 0 and files[0].name.startswith("latents_rank")


def read(path: Path, options: ReadOptions) -> Incoming:
    """Opens a folder of shards. The key of a sample is its index.

    Args:
        path: The folder.
        options: The options.

    Raises:
        FormatError: A shard is broken or not like the first; the message names it.
        OSError: A file cannot be read.
    """
    files = {file.name: file for file in _files(path)}
    opened = lru_cache(_OPENED)(lambda name: SafetensorsFile(files[name]))
    buffers = Buffers()
    first = next(iter(files))
    dtype, shape = opened(first).describe("latents")
    kind = float_kind(dtype, files[first])
    if len(shape) != 4:
        raise FormatError(f"{files[first]}: latents must be (N, C, h, w), not {shape}")
    flipped = "latents_flip" in opened(first).names
    columns = {"latent": float_column(kind)}
    if flipped:
        columns["latent_flip"] = float_column(kind, flip=True)
    normalization, notes = _normalization(path, shape[1])
    autoencoder = autoencoder_of("va-vae", options.autoencoder, shape[1], normalization=normalization)
    height, width = shape[2] * autoencoder.reduction, shape[3] * autoencoder.reduction

    def listing() -> Iterator[Sample]:
        index = 0
        for name, file in files.items():
            labels = _labels(file, opened(name), dtype, shape[1:], flipped).tolist()
            fields = dict.fromkeys(Sample._fields, itertools.repeat(None)) | {
                "key": map(str, range(index, index + len(labels))),
                "label": labels,
                "archive": itertools.repeat(name),
                "offset": range(len(labels)),
                "fault": itertools.repeat(""),
            }
            yield from map(Sample._make, zip(*fields.values(), strict=False))  # some have no end
            index += len(labels)

    def rows(_indices: Sequence[int], samples: Sequence[Sample]) -> Arrays:
        tensors = {column: _COLUMNS[column] for column in columns}
        sizes = (len(samples), *shape[1:])
        arrays = {
            column: buffers.array(tensor, sizes, opened(first).dtype(tensor)) for column, tensor in tensors.items()
        }
        start = 0
        for (name, offset), group in itertools.groupby(enumerate(samples), key=_run):
            end = start + sum(1 for _ in group)
            for column, tensor in tensors.items():
                opened(name).rows(tensor, start + offset, end + offset, arrays[column][start:end])
            start = end
        return arrays

    return Incoming(NAME, columns | key_and_labels(), autoencoder, listing, rows, size=(height, width), notes=notes)


def _files(path: Path) -> list[Path]:
    return sorted(path.glob("*.safetensors"))


def _run(numbered: tuple[int, Sample]) -> tuple[str, int]:
    position, sample = numbered
    return sample.archive or "", (sample.offset or 0) - position


def _labels(path: Path, file: SafetensorsFile, dtype: str, shape: tuple[int, ...], flipped: bool) -> NDArray[np.int64]:
    """Returns the labels of a shard, after comparing its tensors with those of the first shard."""
    kind, counted = file.describe("labels")
    if kind not in ("int64", "int32") or len(counted) != 1:
        raise FormatError(f"{path}: labels must be integers (N,), not {kind} {counted}")
    for name in ("latents", "latents_flip")[: 1 + flipped]:
        found = file.describe(name)
        if found != (dtype, (counted[0], *shape)):
            raise FormatError(f"{path}: {name} is {found[0]} {found[1]}, and must be {dtype} {(counted[0], *shape)}")
    labels = file.array("labels").astype(np.int64)
    if len(labels) and labels.min() < 0:
        raise FormatError(f"{path}: a label is {labels.min()}, and must be at least 0")
    return labels


def _normalization(path: Path, channels: int) -> tuple[Normalization, list[str]]:
    """Returns the normalization by the statistics of a folder, and notes."""
    file = path / _STATISTICS
    if not file.exists():
        return Normalization(), [f"{file} is not there: the card's normalization changes nothing"]
    torch_file = TorchFile(file)
    loaded = torch_file.load(ignore_others=True)
    values = []
    for name in ("mean", "std"):
        record = loaded.get(name) if isinstance(loaded, dict) else None
        if not isinstance(record, TensorRecord) or record.shape not in ((1, channels, 1, 1), (channels,)):
            shape = record.shape if isinstance(record, TensorRecord) else None
            raise FormatError(f"{file}: {name} must be a tensor (1, {channels}, 1, 1), not {shape}")
        values.append(tuple(floats_of(torch_file, record, f"{file}: {name}").ravel().tolist()))
    try:
        return Normalization(1.0, values[0], values[1]), []
    except ValueError as error:
        raise FormatError(f"{file}: {error}") from None


def write(outgoing: Outgoing, work: Work, bar: Progress) -> None:
    """Writes a folder of shards of 10,000 samples, and their statistics.

    The statistics are the mean and std of the card's normalization, or else of the stored latents.

    Args:
        outgoing: A dataset with latents of images and of their mirror images, and labels.
        work: Where to write.
        bar: Counts samples.

    Raises:
        MismatchError: The dataset lacks a column, or has buckets.
        OSError: A file cannot be written.
    """
    outgoing.one_shape()
    names = {outgoing.need("latent"): "latents", outgoing.need("latent", flip=True): "latents_flip"}
    label = outgoing.need("label")
    columns = outgoing.open([*names, label])
    work.result.mkdir(exist_ok=True)
    start = work.done // _SHARD * _SHARD
    bar.skip(start)
    for first in range(start, outgoing.count, _SHARD):
        count = min(_SHARD, outgoing.count - first)
        tensors = {stored: ("float32", (count, *outgoing.facts(name).shape)) for name, stored in names.items()}
        file = work.result / f"latents_rank00_shard{first // _SHARD:03d}.safetensors"
        metadata = {"total_size": str(count), "dtype": "torch.float32", "device": "cpu"}
        with SafetensorsWriter(file, {**tensors, "labels": ("int64", (count,))}, metadata) as writer:
            for batch in columns.batches(first, first + count):
                for name, stored in names.items():
                    writer.write(stored, batch.first - first, batch.values[name])
                writer.write("labels", batch.first - first, batch.values[label])
                bar.update(len(batch))
        work.record(first + count)
    _write_statistics(outgoing, next(iter(names)), work.result / _STATISTICS)


def _write_statistics(outgoing: Outgoing, name: str, path: Path) -> None:
    import torch

    normalization = outgoing.card.autoencoder.normalization
    channels = outgoing.facts(name).shape[0]
    if len(normalization.mean) == len(normalization.std) == channels and normalization.factor == 1:
        mean, std = normalization.mean, normalization.std
    else:
        statistics = outgoing.facts(name).statistics
        assert statistics is not None  # the dataset is finished
        mean, std = statistics.mean, statistics.std
    tensors = {"mean": torch.tensor(mean).reshape(1, -1, 1, 1), "std": torch.tensor(std).reshape(1, -1, 1, 1)}
    with path.open("wb") as file:
        torch.save(tensors, file)
