"""Primus' WebDataset tars of latents and embeddings for Megatron Energon, in buckets.

From AMD-AGI/Primus, commit fd1eeabb: backends/megatron/data/diffusion/preprocessing and task_encoders/image.py, and
NVIDIA/Megatron-Energon, flavors/webdataset. A sample has `KEY.latents.pth`, a tensor (C, h, w) in the scale that models
are trained on, or `KEY.mean.pth` and `KEY.logvar.pth` of raw latents, or all three; `KEY.prompt_embeds.pth` (tokens,
width), `KEY.pooled_prompt_embeds.pth` (width,) and perhaps `KEY.caption.txt`. `.nv-meta` describes the tars.
"""

from __future__ import annotations

import io
import json
import struct
import tarfile
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from latentq._core import FormatError
from latentq.converting.incoming import (
    Arrays,
    Incoming,
    float_column,
    float_kind,
    latent_size_of,
    latent_size_text,
    moments_column,
)
from latentq.converting.known import autoencoder_of
from latentq.converting.npy_file import MAX_MEMBER
from latentq.converting.options import ReadOptions
from latentq.converting.outgoing import Outgoing
from latentq.converting.texts import EMBEDDING, POOLED, Embeddings, fits, one_caption
from latentq.converting.torch_tensors import record_of, tensor_bytes, to_tensor
from latentq.converting.tree import walk
from latentq.converting.work import Work
from latentq.format.options import Column
from latentq.format.safe_torch_file import TensorRecord, TorchFile
from latentq.sources import Sample
from latentq.system.progress import Progress
from latentq.system.text import counted

NAME = "energon"
TITLE = "Primus' WebDataset tars for Energon (KEY.latents.pth, KEY.prompt_embeds.pth, ...)"
_TAR = ".tar"
_SHARD = 1000  # samples in a tar
_TOLD = 10  # kinds of members that are not converted
_STEP = 16  # tars between records of what is done
_LATENTS, _MEAN, _LOGVAR = "latents.pth", "mean.pth", "logvar.pth"
_EMBEDS, _POOLED, _CAPTION = "prompt_embeds.pth", "pooled_prompt_embeds.pth", "caption.txt"
_DATASET_YAML = "__module__: megatron.energon\n__class__: CrudeWebdataset\nsubflavors:\n  encoding: preencoded\n"
_BAD_TAR = (tarfile.TarError, EOFError, ValueError)


class _Group(NamedTuple):
    """The members of a tar that belong to one sample.

    Attributes:
        key: The sample's key.
        offset: Where its first member's header begins.
        members: The bytes of its members by what follows the key.
        names: What follows the key, of all members.
    """

    key: str
    offset: int
    members: dict[str, bytes]
    names: tuple[str, ...]


def recognizes(path: Path) -> bool:
    """True if a tar, or the first one in a folder, begins with a sample that has latents as `.pth`."""
    file = path
    if path.is_dir():
        name = next(walk(path, _TAR), None)
        if name is None:
            return False
        file = path / name
    elif path.suffix != _TAR:
        return False
    try:
        group = next(_groups(file, 0, ()), None)
    except FormatError:
        return False
    return group is not None and (_LATENTS in group.names or {_MEAN, _LOGVAR} <= set(group.names))


def _groups(path: Path, start: int, wanted: Sequence[str] | None) -> Iterator[_Group]:
    """Yields the samples of a tar from an offset on.

    Args:
        path: The tar.
        start: The offset of a member's header.
        wanted: The members whose bytes are read, by what follows the key; None for all.
    """
    key, offset = "", start
    members: dict[str, bytes] = {}
    names: list[str] = []
    try:
        with path.open("rb") as file:
            file.seek(start)
            with tarfile.open(fileobj=file, mode="r:") as archive:
                for member in archive:
                    if not member.isfile():
                        continue
                    folder, _, name = member.name.rpartition("/")
                    stem, _, tail = name.partition(".")
                    found = f"{folder}/{stem}" if folder else stem
                    if names and found != key:
                        yield _Group(key, offset, members, tuple(names))
                        members, names = {}, []
                    if not names:
                        key, offset = found, start + member.offset - start
                    names.append(tail)
                    if wanted is None or tail in wanted:
                        if member.size > MAX_MEMBER:
                            raise ValueError(f"{member.name} has {member.size} bytes")
                        content = archive.extractfile(member)
                        data = content.read() if content else b""
                        if len(data) != member.size:
                            raise ValueError(f"{member.name} is truncated")
                        members[tail] = data
                    archive.members = []  # type: ignore[attr-defined]  # tarfile keeps all that it has seen
    except _BAD_TAR as error:
        raise FormatError(f"{path}: not a tar, or truncated: {error}") from None
    if names:
        yield _Group(key, offset, members, tuple(names))


class _Tensors:
    """The tensors of one sample."""

    def __init__(self, path: Path, group: _Group) -> None:
        self.where = f"{path}/{group.key}"
        self._group = group

    def opened(self, name: str, axes: int) -> tuple[TorchFile, TensorRecord]:
        """Returns the file and record of a tensor of floats."""
        where = f"{self.where}.{name}"
        data = self._group.members.get(name)
        if data is None:
            raise FormatError(f"{where}: it is not there, unlike in the first sample")
        file = TorchFile.of_bytes(data, where)
        return file, record_of(file.load(), where, axes)

    def described(self, name: str, axes: int) -> tuple[tuple[int, ...], str]:
        """Returns shape and dtype of a tensor."""
        record = self.opened(name, axes)[1]
        return record.shape, record.dtype

    def array(self, name: str, shape: tuple[int, ...], dtype: str) -> NDArray[Any]:
        """Reads a tensor of a shape and dtype."""
        file, record = self.opened(name, len(shape))
        if (record.shape, record.dtype) != (shape, dtype):
            raise FormatError(f"{self.where}.{name}: {record.dtype} {record.shape}, listed as {dtype} {shape}")
        return file.read(record)


def read(path: Path, options: ReadOptions) -> Incoming:
    """Opens a folder of tars, or one tar. The key of a sample is that in its tar.

    Args:
        path: The folder or tar.
        options: The options.

    Raises:
        FormatError: A tar is broken, holds other objects, or a sample is not like the first; the message names it.
        OSError: A file cannot be read.
    """
    root, names = (path, list(walk(path, _TAR))) if path.is_dir() else (path.parent, [path.name])
    group = next((group for name in names for group in _groups(root / name, 0, None)), None)
    if group is None:
        raise FormatError(f"{path}: it has no samples")
    first = _Tensors(path, group)
    parts = [name for name in (_LATENTS, _MEAN, _LOGVAR) if name in group.names]
    if _LATENTS not in parts and len(parts) < 2:
        raise FormatError(f"{first.where}: it has neither {_LATENTS} nor {_MEAN} and {_LOGVAR}")
    has_moments = {_MEAN, _LOGVAR} <= set(parts)
    shape, dtype = first.described(parts[0], 3)
    channels = shape[0]
    autoencoder = autoencoder_of("flux", options.autoencoder, channels)
    columns: dict[str, Column] = {}
    if _LATENTS in parts:
        columns["latent"] = float_column(float_kind(dtype, first.where), scaled=True)
    if has_moments:
        columns["moments"] = moments_column(float_kind(first.described(_MEAN, 3)[1], first.where), spread="logvar")
    columns |= {"key": Column("key", "str"), "caption": Column("caption", "str", optional=True)}
    embeddings = _embeddings(first, group)
    notes: list[str] = []
    if embeddings is not None:
        columns |= embeddings.columns()

    def listing() -> Iterator[Sample]:
        others: Counter[str] = Counter()
        converted = {_CAPTION, _EMBEDS, _POOLED, *(parts if has_moments else parts[:1])}
        wanted = (*parts[:1], _CAPTION, *((_EMBEDS, _POOLED) if embeddings else ()))
        for name in names:
            for found in _groups(root / name, 0, wanted):
                tensors = _Tensors(root / name, found)
                have = tensors.described(parts[0], 3)
                if have[1] != dtype or have[0][0] != channels:
                    raise FormatError(f"{tensors.where}: {have[1]} {have[0]}, others {dtype} of {channels} channels")
                caption = found.members.get(_CAPTION, b"").decode("utf-8", "replace")
                others.update(set(found.names) - converted)
                if embeddings is not None:
                    embeddings.check(*_described(tensors, found))
                size = latent_size_text(*have[0][1:])
                yield Sample(found.key, None, caption=caption or None, id=size, archive=name, offset=found.offset)
        if embeddings is not None:
            embeddings.drop(columns, notes)
        notes.extend(f"{name} of {counted(others[name], 'sample')} is not converted" for name in sorted(others)[:_TOLD])

    def rows(_: Sequence[int], samples: Sequence[Sample]) -> Arrays:
        return _rows(root, samples, columns, channels)

    text = embeddings.text_encoder() if embeddings else None
    return Incoming(NAME, columns, autoencoder, listing, rows, text=text, notes=notes)


def _described(tensors: _Tensors, group: _Group) -> tuple[Any, Any]:
    """Returns shape and dtype of the embedding, and size and dtype of the pooled one; None for what is not there."""
    embedding = tensors.described(_EMBEDS, 2) if _EMBEDS in group.names else None
    pooled = tensors.described(_POOLED, 1) if _POOLED in group.names else None
    return embedding, (pooled[0][0], pooled[1]) if pooled else None


def _embeddings(tensors: _Tensors, group: _Group) -> Embeddings | None:
    embedding, pooled = _described(tensors, group)
    return Embeddings("unknown", embedding, pooled) if embedding and fits(embedding[0]) else None


def _rows(root: Path, samples: Sequence[Sample], columns: dict[str, Column], channels: int) -> Arrays:
    size = latent_size_of(samples[0])
    wanted = {"latent": (_LATENTS,), "moments": (_MEAN, _LOGVAR), EMBEDDING: (_EMBEDS,), POOLED: (_POOLED,)}
    found: dict[str, list[NDArray[Any]]] = {name: [] for name in wanted if name in columns}
    members = [member for name in found for member in wanted[name]]
    for sample in samples:
        path = root / (sample.archive or "")
        group = next(_groups(path, sample.offset or 0, members), None)
        if group is None or group.key != sample.key:
            raise FormatError(f"{path}: {sample.key} is not where it was listed")
        tensors = _Tensors(path, group)
        for name, rows in found.items():
            kind = str(columns[name].quantizer["kind"])
            if columns[name].is_latent:
                halves = [tensors.array(member, (channels, *size), kind) for member in wanted[name]]
                rows.append(np.concatenate(halves))
            else:
                (member,) = wanted[name]
                shape, dtype = tensors.described(member, 2 if name == EMBEDDING else 1)
                rows.append(tensors.array(member, shape, dtype))
    return {
        name: np.stack(rows) if columns[name].is_latent else one_caption(np.stack(rows)) for name, rows in found.items()
    }


def write(outgoing: Outgoing, work: Work, bar: Progress) -> None:
    """Writes a folder of tars of 1,000 samples with their indexes, and `.nv-meta`.

    Args:
        outgoing: A dataset with latents or moments, and embeddings and pooled embeddings of captions.
        work: Where to write.
        bar: Counts samples.

    Raises:
        MismatchError: The dataset lacks a column.
        OSError: A file cannot be written.
    """
    latent, moments = outgoing.find("latent"), outgoing.find("moments")
    if latent is None and moments is None:
        outgoing.need("latent")
    names = {
        content: name
        for content, name in (
            ("latent", latent),
            ("moments", moments),
            ("caption", outgoing.find("caption")),
            (EMBEDDING, outgoing.need(EMBEDDING)),
            (POOLED, outgoing.need(POOLED)),
        )
        if name is not None
    }
    columns = outgoing.open(list(names.values()), scale="scaled", spread="logvar")
    work.result.mkdir(exist_ok=True)
    start = recorded = work.done // _SHARD * _SHARD
    bar.skip(start)
    counts = {}
    for first in range(0, outgoing.count, _SHARD):
        count = min(_SHARD, outgoing.count - first)
        tar = f"{first // _SHARD:06d}{_TAR}"
        counts[tar] = count
        if first < start:
            continue
        offsets = []
        with (work.result / tar).open("wb") as file:
            for batch in columns.batches(first, first + count):
                for row in range(len(batch)):
                    offsets.append(file.tell())
                    key = f"{first // _SHARD:06d}_{batch.first + row - first:06d}"
                    values = {content: batch.values[name][row] for content, name in names.items()}
                    for tail, data in _members(outgoing, names, values):
                        _add(file, f"{key}.{tail}", data)
                bar.update(len(batch))
            offsets.append(file.tell())
            file.write(bytes(2 * tarfile.BLOCKSIZE))
        (work.result / f"{tar}.idx").write_bytes(struct.pack(f"<{len(offsets)}Q", *offsets))
        recorded = work.record_every(_STEP * _SHARD, first + count, recorded)
    folder = work.result / ".nv-meta"
    folder.mkdir(exist_ok=True)
    (folder / "dataset.yaml").write_text(_DATASET_YAML)
    info = {"energon_version": "", "shard_counts": counts}
    (folder / ".info.json").write_text(json.dumps(info, indent=2))
    parts = "".join(f"  - {tar}\n" for tar in counts)
    (folder / "split.yaml").write_text(f"exclude: []\nsplit_parts:\n  train:\n{parts}  val: []\n  test: []\n")


def _members(outgoing: Outgoing, names: dict[str, str], values: dict[str, Any]) -> Iterator[tuple[str, bytes]]:
    """Yields the members of a sample: what follows the key, and the bytes."""
    if "latent" in values:
        yield _LATENTS, tensor_bytes(to_tensor(values["latent"], _latent_dtype(outgoing, names["latent"])))
    yield _EMBEDS, tensor_bytes(to_tensor(values[EMBEDDING][0], outgoing.embedding_dtype(EMBEDDING)))
    yield _POOLED, tensor_bytes(to_tensor(values[POOLED][0], outgoing.embedding_dtype(POOLED)))
    if "moments" in values:
        dtype = _latent_dtype(outgoing, names["moments"])
        for tail, half in zip((_MEAN, _LOGVAR), np.split(values["moments"], 2), strict=True):
            yield tail, tensor_bytes(to_tensor(half, dtype))
    if values.get("caption"):
        yield _CAPTION, values["caption"].encode()


def _latent_dtype(outgoing: Outgoing, name: str) -> str:
    kind = outgoing.facts(name).quantizer.kind
    return kind if kind in ("float16", "bfloat16") else "float32"


def _add(file: io.BufferedWriter, name: str, data: bytes) -> None:
    """Writes a member of a tar, with nothing in its header that could differ between two runs."""
    member = tarfile.TarInfo(name)
    member.size = len(data)
    member.mode = 0o444
    file.write(member.tobuf(tarfile.GNU_FORMAT))
    file.write(data)
    file.write(bytes(-len(data) % tarfile.BLOCKSIZE))
