"""NeMo AutoModel's caches of images: `WIDTHxHEIGHT/HASH.meta` by torch.save, listed in JSON, in buckets.

From NVIDIA-NeMo/Automodel 0.7, commit 36044ad: tools/diffusion/preprocessing_multiprocess.py and processors,
components/datasets/diffusion. A file is a dict: `latent` (C, h, w) float16 in the scale that models are trained on,
`prompt_embeds` (1, tokens, width) or of FLUX.2 (tokens, width), perhaps `pooled_prompt_embeds` (1, width), `prompt`,
`image_path`, `crop_offset` (left, top) and so on. `metadata.json` names the lists, `metadata_shard_0000.json` and so
on, of 10,000 entries each.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from latentq._core import FormatError
from latentq.converting.incoming import Arrays, Incoming, float_column, float_kind, latent_size_of, latent_size_text
from latentq.converting.known import KNOWN, autoencoder_of
from latentq.converting.options import ReadOptions
from latentq.converting.outgoing import Outgoing, OutgoingBatch
from latentq.converting.texts import EMBEDDING, POOLED, Embeddings, fits, one_caption
from latentq.converting.torch_tensors import array_dtype, open_torch, record_of, tensor_bytes, to_tensor
from latentq.converting.work import Work
from latentq.format.options import CONDITIONING_ENCODING, Column
from latentq.format.safe_torch_file import TensorRecord, TorchFile
from latentq.sources import Sample
from latentq.system.progress import Progress

NAME = "nemo"
TITLE = "NeMo AutoModel's WIDTHxHEIGHT/HASH.meta with metadata.json"
_METADATA = "metadata.json"
_SHARD = 10_000
_TYPES = {"flux": "flux", "qwen_image": "qwen-image", "qwen-image": "qwen-image", "flux2": "flux2"}
_IGNORED = ("clip_tokens", "clip_hidden", "t5_tokens")
_TEXTS = (("", 2), ("pooled_", 1))  # what begins a name that ends with prompt_embeds, and the axes of one caption's


def recognizes(path: Path) -> bool:
    """True if a folder has a metadata.json that names shards called `metadata_shard_`."""
    if not path.is_dir() or not (path / _METADATA).is_file():
        return False
    try:
        shards = json.loads((path / _METADATA).read_bytes())["shards"]
        return bool(shards) and all(name.startswith("metadata_shard_") for name in shards)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return False


def read(path: Path, options: ReadOptions) -> Incoming:
    """Opens a folder. The key of a sample is the path of its image.

    Args:
        path: The folder.
        options: The options.

    Raises:
        FormatError: A file is broken, holds other objects, or is not like the first; the message names it.
        OSError: A file cannot be read.
    """
    first = next(_items(path), None)
    if first is None:
        raise FormatError(f"{path / _METADATA}: it lists no samples")
    where = path / first.file
    data = _loaded(where)[1]
    record = _latent(data, where)
    kind = float_kind(record.dtype, where)
    channels = record.shape[0]
    usual = _TYPES.get(str(data.get("model_type")), "flux")
    autoencoder = autoencoder_of(
        usual, options.autoencoder, channels, reduction=first.bucket[0] // record.shape[2] or None
    )
    columns = {
        "latent": float_column(kind, scaled=True),
        "key": Column("key", "str"),
        "caption": Column("caption", "str", optional=True),
        "original_size": Column("original_size", CONDITIONING_ENCODING),
        "crop_top_left": Column("crop_top_left", CONDITIONING_ENCODING),
    }
    embeddings = _embeddings(data)
    notes = [f"{name} is not converted" for name in _IGNORED if name in data]
    if embeddings is not None:
        columns |= embeddings.columns()
    elif "prompt_embeds" in data:
        notes.append("prompt_embeds is not converted: it is not of shape (1, tokens, width) or (tokens, width)")

    def listing() -> Iterator[Sample]:
        for item in _items(path):
            _, loaded = _loaded(path / item.file)
            found = _latent(loaded, path / item.file)
            if found.dtype != record.dtype or found.shape[0] != channels:
                have = f"{found.dtype} of {found.shape[0]} channels"
                raise FormatError(f"{path / item.file}: {have}, others {record.dtype} of {channels}")
            if embeddings is not None:
                embeddings.check(*_described(loaded))
            size = latent_size_text(*found.shape[1:])
            yield Sample(item.image, None, caption=item.prompt or None, id=size, archive=item.file)
        if embeddings is not None:
            embeddings.drop(columns, notes)

    def rows(_: Sequence[int], samples: Sequence[Sample]) -> Arrays:
        return _rows(path, samples, columns, record.dtype, channels)

    text = embeddings.text_encoder() if embeddings else None
    return Incoming(NAME, columns, autoencoder, listing, rows, text=text, notes=notes)


class _Item:
    """An entry of the lists: file (relative to the folder), image, prompt, bucket (width, height)."""

    def __init__(self, path: Path, where: str, entry: Any) -> None:
        try:
            file = Path(entry["cache_file"])
            self.image = str(entry.get("image_path") or file.stem)
            self.prompt = str(entry.get("prompt") or "")
            width, height = entry["bucket_resolution"] if "bucket_resolution" in entry else entry["crop_resolution"]
            self.bucket = int(width), int(height)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise FormatError(f"{where}: an entry is not a sample: {error!r}") from None
        # The lists have absolute paths, and the folder may have been moved.
        parts = file.parts
        while parts and not (path / Path(*parts)).resolve().is_relative_to(path.resolve()):
            parts = parts[1:]
        inside = [Path(*parts[start:]) for start in range(len(parts)) if not Path(*parts[start:]).is_absolute()]
        found = next((name for name in inside if ".." not in name.parts and (path / name).is_file()), None)
        if found is None:
            raise FormatError(f"{where}: {file} is not in {path}")
        self.file = str(found)


def _items(path: Path) -> Iterator[_Item]:
    """Yields the entries of the lists; one list at a time is in memory."""
    try:
        names = json.loads((path / _METADATA).read_bytes())["shards"]
        shards = [Path(name).name for name in names]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise FormatError(f"{path / _METADATA}: it names no lists: {error!r}") from None
    for name in shards:
        try:
            entries = json.loads((path / name).read_bytes())
        except (ValueError, RecursionError) as error:
            raise FormatError(f"{path / name}: not JSON: {error}") from None
        if not isinstance(entries, list):
            raise FormatError(f"{path / name}: not a list of samples")
        for entry in entries:
            yield _Item(path, str(path / name), entry)


def _loaded(path: Path) -> tuple[TorchFile, dict[str, Any]]:
    file = open_torch(path)
    data = file.load()
    if not isinstance(data, dict):
        raise FormatError(f"{path}: must be a dict, not {type(data).__name__}")
    return file, data


def _latent(data: dict[str, Any], path: Path) -> TensorRecord:
    """Returns the record of a latent, of shape (C, h, w)."""
    record = record_of(data.get("latent"), f"{path}: latent")
    if len(record.shape) == 4 and record.shape[1] == 1:
        shape, strides = record.shape, record.strides
        record = record._replace(shape=(shape[0], *shape[2:]), strides=(strides[0], *strides[2:]))
    if len(record.shape) != 3:
        raise FormatError(f"{path}: a latent of shape {record.shape} is not that of an image, (C, h, w)")
    return record


def _described(data: dict[str, Any]) -> tuple[Any, Any]:
    """Returns shape and dtype of the embedding, and size and dtype of the pooled one; None for what is not there."""
    embedding, pooled = (_without_batch(data.get(f"{name}prompt_embeds"), axes) for name, axes in _TEXTS)
    return (
        None if embedding is None else (embedding.shape, embedding.dtype),
        None if pooled is None else (pooled.shape[0], pooled.dtype),
    )


def _without_batch(value: Any, axes: int) -> TensorRecord | None:
    """Returns the record of a tensor without its first axis if that is one more, of one element; None if it differs."""
    if not isinstance(value, TensorRecord) or len(value.shape) not in (axes, axes + 1):
        return None
    if len(value.shape) == axes:
        return value
    return value._replace(shape=value.shape[1:], strides=value.strides[1:]) if value.shape[0] == 1 else None


def _embeddings(data: dict[str, Any]) -> Embeddings | None:
    embedding, pooled = _described(data)
    if embedding is None or embedding[1] not in ("float32", "float16", "bfloat16") or not fits(embedding[0]):
        return None
    return Embeddings("unknown", embedding, pooled)


def _rows(path: Path, samples: Sequence[Sample], columns: dict[str, Column], dtype: str, channels: int) -> Arrays:
    latents = np.empty((len(samples), channels, *latent_size_of(samples[0])), array_dtype(dtype))
    sizes, offsets = np.empty((2, len(samples), 2), np.int32)
    texts: dict[str, list[Any]] = {name: [] for name in (EMBEDDING, POOLED) if name in columns}
    for row, sample in enumerate(samples):
        where = path / (sample.archive or "")
        file, data = _loaded(where)
        record = _latent(data, where)
        if record.shape != latents.shape[1:] or record.dtype != dtype:
            raise FormatError(f"{where}: {record.dtype} {record.shape}, listed as {dtype} {latents.shape[1:]}")
        latents[row] = file.read(record)
        sizes[row] = _pair(data, "original_resolution", where)[::-1]
        offsets[row] = _pair(data, "crop_offset", where)[::-1]
        for name, (start, axes) in zip((EMBEDDING, POOLED), _TEXTS, strict=True):
            if name in texts:
                found = _without_batch(data.get(f"{start}prompt_embeds"), axes)
                texts[name].append(file.read(record_of(found, f"{where}: {start}prompt_embeds")))
    values = {"latent": latents, "original_size": sizes, "crop_top_left": offsets}
    return values | {name: one_caption(np.stack(rows)) for name, rows in texts.items()}


def _pair(data: dict[str, Any], name: str, path: Path) -> list[int]:
    pair = data.get(name)
    if not isinstance(pair, list | tuple) or len(pair) != 2 or not all(type(value) is int for value in pair):
        raise FormatError(f"{path}: {name} must be two whole numbers, not {pair!r}")
    return list(pair)


def write(outgoing: Outgoing, work: Work, bar: Progress) -> None:
    """Writes a folder of torch files and their lists. The lists have the absolute paths of the output.

    Args:
        outgoing: A dataset with latents, captions and original sizes; embeddings of captions if it has them.
        work: Where to write.
        bar: Counts samples.

    Raises:
        MismatchError: The dataset lacks a column.
        OSError: A file cannot be written.
    """
    names = {"latent": outgoing.need("latent"), "caption": outgoing.need("caption")}
    names["original_size"] = outgoing.need("original_size")
    for content in ("key", "crop_top_left", EMBEDDING, POOLED):
        if (name := outgoing.find(content)) is not None:
            names[content] = name
    columns = outgoing.open(list(names.values()), scale="scaled")
    work.result.mkdir(exist_ok=True)
    start = work.done // _SHARD * _SHARD
    bar.skip(start)
    model = next((kind for kind, known in _TYPES.items() if KNOWN[known].name == outgoing.card.autoencoder.name), "")
    for first in range(start, outgoing.count, _SHARD):
        entries: list[dict[str, Any]] = []
        stop = min(first + _SHARD, outgoing.count)
        for batch in columns.batches(first, stop):
            values = {content: batch.values[name] for content, name in names.items()}
            entries += [_write_sample(outgoing, work, batch, values, row, model) for row in range(len(batch))]
            bar.update(len(batch))
        shard = work.result / f"metadata_shard_{first // _SHARD:04d}.json"
        shard.write_text(json.dumps(entries, indent=2), encoding="utf-8")
        work.record(stop)
    shards = [f"metadata_shard_{number:04d}.json" for number in range(-(-outgoing.count // _SHARD))]
    metadata = {
        "processor": model,
        "model_name": outgoing.card.autoencoder.name,
        "model_type": model,
        "total_items": outgoing.count,
        "num_shards": len(shards),
        "shard_size": _SHARD,
        "shards": shards,
    }
    (work.result / _METADATA).write_text(json.dumps(metadata, indent=2), encoding="utf-8")


def _write_sample(
    outgoing: Outgoing, work: Work, batch: OutgoingBatch, values: dict[str, Any], row: int, model: str
) -> dict[str, Any]:
    """Writes a sample's file, and returns its entry in the list."""
    height, width = batch.size
    original_height, original_width = map(int, values["original_size"][row])
    if "crop_top_left" in values:
        top, left = map(int, values["crop_top_left"][row])
    else:  # as MultiTierBucketCalculator.resize_and_crop
        scale = max(width / original_width, height / original_height)
        top, left = (int(original_height * scale) - height) // 2, (int(original_width * scale) - width) // 2
    key = values["key"][row] if "key" in values else str(batch.first + row)
    resolution = f"{width}x{height}"
    name = f"{resolution}/{hashlib.md5(f'{key}_{resolution}'.encode(), usedforsecurity=False).hexdigest()}.meta"
    buckets = sorted(outgoing.sizes, key=lambda size: size[1] / size[0])
    facts: dict[str, Any] = {
        "original_resolution": (original_width, original_height),
        "bucket_resolution": (width, height),
        "crop_offset": (left, top),
        "prompt": values["caption"][row],
        "image_path": key,
        "bucket_id": buckets.index((height, width)),
        "aspect_ratio": width / height,
    }
    data: dict[str, Any] = {"latent": to_tensor(values["latent"][row], "float16")}
    for content, stored in ((POOLED, "pooled_prompt_embeds"), (EMBEDDING, "prompt_embeds")):
        if content in values:
            data[stored] = to_tensor(values[content][row], outgoing.embedding_dtype(content))
    file = work.result / name
    file.parent.mkdir(exist_ok=True)
    file.write_bytes(tensor_bytes(data | facts | {"model_type": model}))
    return {
        "cache_file": str(work.out.absolute() / name),
        "image_path": key,
        "bucket_resolution": [width, height],
        "original_resolution": [original_width, original_height],
        "prompt": facts["prompt"],
        "bucket_id": facts["bucket_id"],
        "aspect_ratio": facts["aspect_ratio"],
        "pixels": width * height,
        "model_type": model,
    }
