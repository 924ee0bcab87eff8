"""LatentDataset: a latent dataset's folder as a torch map-style dataset."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from functools import cached_property, partial
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from latentq import mds
from latentq._core import FormatError, LatentqError, MismatchError, Threads, image_hash
from latentq.format import empty_caption as empty_caption_file
from latentq.format.card import CARD, open_card
from latentq.format.files import EMPTY_CAPTION, INDEX
from latentq.format.recipe import Recipe
from latentq.quantizer import Quantizer
from latentq.reading.ahead import Files
from latentq.reading.batched import BatchedDataset
from latentq.reading.buckets import BucketTable, StoredBucket
from latentq.reading.buffers import Allocate, private, shareable
from latentq.reading.columns import Scale, TokenColumn
from latentq.reading.gather import GatheredColumn, Gatherer
from latentq.reading.layout import Layout
from latentq.reading.protocol import Transform
from latentq.reading.resident import ResidentDataset
from latentq.reading.samples import Batch, Indices, checked_indices
from latentq.reading.shard_files import ShardFiles
from latentq.reading.windows import ShardRuns, Window
from latentq.reading.workers import WorkerBatch
from latentq.store.cache import Pins, ShardCache, is_remote
from latentq.system.text import counted, size_text

if TYPE_CHECKING:
    from PIL.Image import Image

    from latentq.models.autoencoders import Autoencoder


class LatentDataset(BatchedDataset):
    """A latent dataset's folder as a torch map-style dataset.

    A sample is a dict. A single latent column is called `latent` and is a (C, h, w) tensor; `tokens` is an (h, w) int64
    tensor; `label` is an int; `label_text`, `caption` and `key` are strings; `caption_embedding` is (captions, tokens,
    width), `pooled_embedding` (captions, width) and `attention_mask` (captions, tokens) uint8; `image` is a PIL image,
    or bytes if it is stored as bytes. Columns of the same kind keep their names in the shards.

    If moments are stored, each reading draws a new latent from them, with torch's own generator; a loader's noise is a
    function of (seed, epoch, sample).

    The dataset can be used in DataLoader workers under fork, spawn and forkserver; each process opens its own files.

    Args:
        path: The folder; or a URL: `s3://`, `gs://`, `az://`, or `hf://datasets/OWNER/NAME`, with `@REVISION` for a
            branch, tag or commit other than `main`. The shards of a URL are downloaded into `cache` when they are
            needed, and their hashes are checked. A dataset on the Hub is read at the commit that the revision named
            when it was opened.
        columns: The columns of a sample, by their names in samples or in the shards; None for all.
        dtype: The dtype of latents: float32, float16 or bfloat16; or uint8 for the stored codes.
        scale: `raw` for the autoencoder's own latents; `scaled` for the scale that models are trained on, by the card's
            `autoencoder.normalization`, which may change the shape; `normalized` for mean 0 and standard deviation 1 in
            each channel, by the card's statistics.
        recipe: For a folder without a card: the recipe that made it, or the recipe's name or file.
        quantizer: For a folder without a card: the quantizer of its codes. It is enough without a recipe if the latents
            are columns `ndarray:uint8:C,h,w`; samples then have all columns of the shards. With a recipe it replaces
            the recipe's.
        transform: Called with each sample; its result replaces the sample.
        cache: For a URL: the folder to keep shards in. Several processes may share it.
        cache_bytes: For a URL: the bytes of shards to keep; the least recently used are evicted, except those in use.
            None keeps all.
        storage_options: For the URL of an object store: what obstore takes for it, such as `endpoint` and `region`; the
            rest comes from the environment.

    Attributes:
        path: The folder; for a URL, the folder in the cache.
        card: The dataset's card, or None for a folder without one.
        layouts: The columns of a sample and their meaning, for each bucket; one without buckets.
        table: The bucket of each sample, and where the samples of a bucket are.
        transform: The transform, or None.

    Raises:
        LatentqError: The dataset is not finished or has no samples, or the scale needs a card that is missing.
        FormatError: The card or the index is invalid.
        RecipeError: There is neither a card nor a recipe that says enough.
        MismatchError: Recipe and shards disagree; the message names both.
        OSError: There is no such folder, or it cannot be read; or the URL cannot.
        ValueError: An argument is out of range, or a URL has no `cache`.
        MissingPackageError: The package for the URL is not installed.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        columns: Sequence[str] | None = None,
        dtype: torch.dtype = torch.float32,
        scale: Scale = "raw",
        recipe: str | os.PathLike[str] | Recipe | None = None,
        quantizer: Quantizer | None = None,
        transform: Transform | None = None,
        cache: str | os.PathLike[str] | None = None,
        cache_bytes: int | None = None,
        storage_options: Mapping[str, str] | None = None,
    ) -> None:
        self._shards = _open_cache(path, cache, cache_bytes, storage_options)
        self.path = Path(path) if self._shards is None else self._shards.folder
        self.card = open_card(self.path)
        self.transform = transform
        self._reader = mds.Reader(self.path) if self._shards is None else _reader_of(self._shards)
        self._index = (self.path / INDEX).read_bytes() if self._shards is None else b""
        if not self._is_consistent():
            self.card = open_card(self.path)  # an update may have been finished since the card was read
        if not len(self):
            raise LatentqError(f"{path} has no samples")
        if not self._is_consistent():
            counts = self.card and self.card.counts
            samples = counted(counts.samples, "sample") if counts else "nothing"
            raise FormatError(f"{path}: the card counts {samples}, the index {len(self)}")
        self._table = self._bucket_table()
        self._gatherers: dict[int, Gatherer] = {}  # of all columns, by bucket
        self._layouts = Layout.of_buckets(
            self.path,
            self._reader.columns,
            card=self.card,
            columns=columns,
            dtype=dtype,
            scale=scale,
            recipe=recipe,
            quantizer=quantizer,
        )

    def _bucket_table(self) -> BucketTable:
        """Returns where the samples of each bucket are."""
        counts = self.card and self.card.counts
        if not counts or not counts.buckets:
            return BucketTable.single(len(self))
        return BucketTable.from_groups(self.path, self._reader.groups(), counts.buckets)

    @property
    def layouts(self) -> tuple[Layout, ...]:
        """The columns of a sample and their meaning, for each bucket; one without buckets."""
        return self._layouts

    @property
    def layout(self) -> Layout:
        """The columns of a sample and their meaning; with buckets, of the first bucket."""
        return self._layouts[0]

    @property
    def table(self) -> BucketTable:
        """The bucket of each sample, and where the samples of a bucket are."""
        return self._table

    @property
    def buckets(self) -> tuple[StoredBucket, ...]:
        """Height, width and number of samples of each bucket, by its number; empty without buckets."""
        if self.card is None or not self.card.buckets:
            return ()
        counts = self._table.counts.tolist()
        return tuple(StoredBucket(*size, count) for size, count in zip(self.image_sizes, counts, strict=True))

    @property
    def image_sizes(self) -> tuple[tuple[int, int], ...]:
        """Height and width of the images of each bucket, by its number; without buckets, those of the first column."""
        recipe = self.layout.recipe
        return recipe.bucket_sizes() or tuple(column.pixels for column in list(recipe.encoded().values())[:1])

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_gatherers": {}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        if self._shards is not None:
            self._shards.on_release = self._reader.core.close_shard

    def files(self, shuffle: bool | Window = False, parts: int = 1) -> Files | None:
        """Returns what keeps the shards of samples while they are read; None if they need not be kept.

        Those of a URL are downloaded; those of windows are read ahead if two windows, but not all shards, have room.

        Args:
            shuffle: The order in which they are read.
            parts: The number of datasets that are read together, among which memory is divided.
        """
        if self._shards is not None:
            return None if self._shards.is_complete else _CachedFiles(self._shards)
        return self._window_files(shuffle, self._reader.room() // parts) if isinstance(shuffle, Window) else None

    def _window_files(self, window: Window, room: int) -> ShardFiles | None:
        shards = self._indexed_shards()
        if any(shard.get("zip_data") for shard in shards):
            return None  # the reader decompresses a shard as a whole, and caches it
        sizes = np.array([shard["raw_data"]["bytes"] for shard in shards], np.int64)
        windows = int(np.count_nonzero(self._table.counts))  # each bucket has one, unless it is empty
        largest = int(np.sort(sizes)[-window.shards * windows :].sum()) if windows else 0
        if 2 * largest > room or int(sizes.sum()) <= room:
            return None
        lengths = np.array([shard["samples"] for shard in shards], np.int64)
        paths = [self.path / shard["raw_data"]["basename"] for shard in shards]
        return ShardFiles(paths, sizes, np.cumsum(lengths) - lengths, room)

    def read_ahead(self, *, begin: bool, parts: int = 1) -> None:
        """Announces that all samples will be read in any order, or no longer will: see `mds.Reader.read_ahead`.

        Args:
            begin: False to end.
            parts: The number of datasets that are read together, among which memory is divided.
        """
        if self._shards is None or self._shards.is_complete:  # shards that are being downloaded are in memory
            self._reader.read_ahead(begin=begin, parts=parts)

    @property
    def samples_ahead(self) -> int:
        """How many samples to ask for before they are read; 0 if samples are not waited for."""
        return self._reader.core.samples_ahead

    def ask(self, indices: NDArray[np.int64], threads: Threads) -> None:
        """Asks the system on a thread for samples that will be read soon, without waiting for them.

        Args:
            indices: The indices of the samples, (N,).
            threads: The threads.
        """
        threads.ask(self._reader.core, indices, self._positions)

    @cached_property
    def _positions(self) -> list[int]:
        """The positions of the columns of a sample among those of the shards."""
        return [self._reader.resolve_column(name)[0] for name in self.layout.shard_names.values()]

    def shard_runs(self, shuffle: bool | Window) -> list[list[ShardRuns]]:
        """Returns the shards of each bucket: see `BatchedDataset.shard_runs`.

        Raises:
            ValueError: The cache is too small for this shuffle.
        """
        if self._shards is not None and self._shards.evicts and shuffle is True:
            raise ValueError(
                f"{self._shards.url} has {size_text(self._shards.nbytes)}, more than cache_bytes: shuffle=True would "
                "download every shard again and again; shuffle='window' shuffles within windows of shards"
            )
        if not isinstance(shuffle, Window):
            return []
        lengths = self._shard_lengths()
        starts = np.cumsum(lengths) - lengths
        starts, lengths = starts[lengths > 0], lengths[lengths > 0]
        buckets, ordinals = self._table.of(starts), self._table.ordinals(starts)
        of_buckets = [np.flatnonzero(buckets == bucket) for bucket in range(self._table.count)]
        if self._shards is not None:
            self._shards.check_windows(shuffle.shards, len([mine for mine in of_buckets if len(mine)]))
        return [[ShardRuns(ordinals[mine], lengths[mine])] for mine in of_buckets]

    def _shard_lengths(self) -> NDArray[np.int64]:
        """Returns the number of samples in each shard, (S,)."""
        if self._shards is not None:
            return np.array([shard.samples for shard in self._shards.shards], np.int64)
        return np.array([shard["samples"] for shard in self._indexed_shards()], np.int64)

    def _indexed_shards(self) -> list[dict[str, Any]]:
        """Returns the shards in the index of a folder, as they were when it was opened.

        Raises:
            MismatchError: An update replaced the index while the folder was opened.
        """
        if image_hash(self._index) != self._reader.core.index_hash:
            raise MismatchError(f"{self.path} was updated while it was opened: open it again")
        shards: list[dict[str, Any]] = json.loads(self._index)["shards"]
        return shards

    def _is_consistent(self) -> bool:
        """True if card and index have the same number of samples, or there is no card."""
        counts = self.card and self.card.counts
        return not counts or counts.samples == len(self)

    def __len__(self) -> int:
        return len(self._reader)

    def __repr__(self) -> str:
        layout = self.layout
        others = len(self._layouts) - 1
        more = f" and {counted(others, 'other shape')}" if others else ""
        latents = ", ".join(f"{name}: {column.shape}{more}" for name, column in layout.encoded.items())
        samples = counted(len(self), "sample")
        return (
            f"LatentDataset({str(self.path)!r}, {samples}, {latents or 'no latents'}, "
            f"dtype={layout.dtype}, scale={layout.scale!r}, columns={list(layout.shard_names)})"
        )

    def _worker_batch(self, indices: NDArray[np.int64], bucket: int) -> WorkerBatch | None:
        if not self.is_plain or not self.layout.has_fixed_bytes:
            return None
        nbytes = self.stored_bytes(len(indices), bucket=bucket)
        return WorkerBatch(self._layouts[bucket], nbytes, partial(self.read, indices))

    def batch(self, indices: Indices, *, noise: Batch | None = None, allocate: Allocate = shareable) -> Batch:
        """Reads a batch and decodes its latents. The transform is not applied.

        Args:
            indices: The indices of its samples, in any order, each from -len(self) to len(self) - 1.
            noise: Noise from `noise_of`, to draw latents from moments; None draws it by torch's own generator.
            allocate: Allocates the batch's tensors.

        Returns:
            Latents (N, C, h, w), labels (N,) int64, strings as lists.

        Raises:
            IndexError: An index is out of range.
            FormatError: A shard is broken or truncated; the message names it.
            ValueError: The samples are of several buckets.
        """
        return self._batch(checked_indices(indices, len(self)), noise, allocate)

    def _batch(self, indices: NDArray[np.int64], noise: Batch | None, allocate: Allocate) -> Batch:
        bucket = self._table.common(indices)
        gatherer = self._gatherers.get(bucket)
        if gatherer is None:
            gatherer = self._gatherers[bucket] = self.gatherer(bucket=bucket)
        batch = gatherer.begin(indices, allocate)()
        if gatherer.gives_decoded:
            return batch
        return self.decode_batch(batch | (noise or {}), bucket=bucket, allocate=allocate)

    def native_gatherer(self, *, decoded: bool = True, bucket: int = 0) -> Gatherer | None:
        """Returns the native gatherer of a bucket, or None if building a batch needs Python.

        Args:
            decoded: True to dequantize latents while gathering where that is one pass over them.
            bucket: The bucket of the samples.
        """
        # The CPU decodes a transform: on the gatherer's threads, not on the one that waits for the batch.
        decoded = decoded or bool(self.layout.on_host)
        return self.gatherer(decoded=decoded, bucket=bucket) if self.is_plain else None

    @property
    def is_plain(self) -> bool:
        """True if building a batch needs no Python: there is no transform, and all encoded columns hold codes."""
        return self.transform is None and self.layout.is_plain

    def gatherer(self, *, names: Sequence[str] | None = None, decoded: bool = True, bucket: int = 0) -> Gatherer:
        """Returns a gatherer of some columns; `decode_batch` decodes what it leaves as stored.

        Args:
            names: The columns, by their names in samples; None for all.
            decoded: True to dequantize latents while gathering where that is one pass over them.
            bucket: The bucket of the samples.
        """
        layout = self._layouts[bucket]
        columns = [self._gathered_column(layout, name, decoded) for name in names or layout.shard_names]
        files = self.files()
        return Gatherer(self._reader.core, columns, pin=None if files is None else files.pin)

    def stored_bytes(self, count: int, *, bucket: int = 0) -> int:
        """Returns the bytes of the tensors that `read` makes for `count` samples, each rounded up to cache lines.

        Args:
            count: The number of samples.
            bucket: Their bucket.
        """
        return self.gatherer(decoded=False, bucket=bucket).nbytes(count)

    def read(self, indices: Indices, *, names: Sequence[str] | None = None, allocate: Allocate = private) -> Batch:
        """Reads a batch with its latents as stored, uint8 (N, bytes), for `decode_batch`.

        Args:
            indices: The indices of its samples: see `batch`.
            names: The columns, by their names in samples; None for all.
            allocate: Allocates the tensors to read into.
        """
        checked = checked_indices(indices, len(self))
        bucket = self._table.common(checked)
        return self.gatherer(names=names, decoded=False, bucket=bucket).begin(checked, allocate)()

    @cached_property
    def empty_caption(self) -> Batch:
        """The embedding, attention mask and pooled embedding of an empty caption, for `caption_dropout`.

        A dict of tensors of a sample's shape, by their names in samples.

        Raises:
            LatentqError: The dataset has none: other tools' datasets do not.
        """
        return empty_caption(self.path, self.layout)

    @property
    def resident_bytes(self) -> int:
        """The memory that `to_device` takes: the latents as stored, and 8 bytes for each label or pair of sizes."""
        total: int = sum(
            count
            * (sum(column.nbytes for column in layout.encoded.values()) + 8 * len(layout.labels + layout.conditioning))
            for count, layout in zip(self._table.counts.tolist(), self._layouts, strict=True)
        )
        varying = [name for name, column in self.layout.encoded.items() if not column.nbytes]
        for bucket, count in enumerate(self._table.counts.tolist() if varying else ()):
            if count:  # about: the longest of some, to which all are padded
                some = self._table.indices(bucket, np.linspace(0, count - 1, min(count, 256)).astype(np.int64))
                total += count * sum(stored.shape[1] for stored in self.read(some, names=varying).values())
        return total

    def to_device(self, device: str | torch.device = "cuda") -> ResidentDataset:
        """Copies the latents and labels of all samples to a device's memory, latents as stored.

        Args:
            device: The device to copy to.

        Raises:
            MemoryError: The device has less than `resident_bytes` free.
            ValueError: This dataset has a transform, or columns of strings only.
        """
        return ResidentDataset(self, device)

    def decode(self, index: int, *, autoencoder: Autoencoder | None = None) -> Image:
        """Decodes a sample's latent or tokens to a picture: the mean of moments, the first column of several.

        Args:
            index: The sample's index.
            autoencoder: The autoencoder to decode with; None loads the one that the card names.

        Raises:
            IndexError: The index is out of range.
            LatentqError: The autoencoder cannot be loaded, there is no card to name one, or no column holds latents.
        """
        from PIL.Image import fromarray

        from latentq.models.decode import decode_latents
        from latentq.models.match import autoencoder_for

        if not self.layout.pictures:
            raise LatentqError(f"{self.path}: no latents are among the columns {', '.join(self.layout.shard_names)}")
        if autoencoder is None:
            if self.card is None:
                raise LatentqError(f"{self.path} has no {CARD} to name an autoencoder: give one, autoencoder=...")
            autoencoder = autoencoder_for(self.card)
        return fromarray(decode_latents(autoencoder, self.decodable([index]))[0])

    def decodable(self, indices: Indices) -> torch.Tensor:
        """Returns what an autoencoder decodes: the first column of latents or tokens of some samples.

        Args:
            indices: Indices of the samples, in any order, each from -len(self) to len(self) - 1.

        Returns:
            Raw latents, (N, C, h, w) float32, the means of moments; or tokens, (N, h, w) int64.

        Raises:
            ValueError: The samples are of several buckets.
        """
        layout = self._layouts[self.bucket_of(indices)]
        name, column = next(iter(layout.pictures.items()))
        stored = self.read(indices)[name]
        if isinstance(column, TokenColumn):
            return column.decode(stored)
        column = column.in_scale(self.path, self.card, "raw")
        noise = torch.zeros(len(stored), *column.shape, device=stored.device)
        with layout.naming(name, indices):
            return column.decode(stored, torch.float32, noise=noise)

    def _gathered_column(self, layout: Layout, name: str, decoded: bool) -> GatheredColumn:
        """Returns how a column is gathered.

        Raises:
            FormatError: The card and the shards disagree about the size of its samples.
        """
        shard_name, encoded = layout.shard_names[name], layout.encoded.get(name)
        position, fixed = self._reader.resolve_column(shard_name)
        if encoded is not None:
            if fixed is not None and (size := fixed[0].itemsize * prod(fixed[1])) != encoded.nbytes:
                described = counted(encoded.nbytes, "byte") if encoded.nbytes else "any number of bytes"
                found = f"{counted(size, 'byte')} a sample in the shards"
                raise FormatError(f"{self.path}: column {shard_name} has {found}, and by the card {described}")
            quantizer = encoded.direct_quantizer(layout.dtype) if decoded else None
            if quantizer is not None:
                return GatheredColumn(name, position, encoded.shape, layout.dtype, quantizer)
            if not encoded.nbytes:
                return GatheredColumn(name, position, None, needs_decoding=True, convert=lambda rows, _: _padded(rows))
            return GatheredColumn(name, position, (encoded.nbytes,), needs_decoding=True)
        if name in layout.labels and fixed == (np.dtype(np.int64), ()):
            return GatheredColumn(name, position, (), torch.int64)
        if fixed is None:
            reader = self._reader
            return GatheredColumn(
                name,
                position,
                None,
                convert=lambda values, indices: _value(layout, name, reader.decoded_list(shard_name, values, indices)),
            )
        dtype, shape = fixed
        size = dtype.itemsize * prod(shape)
        return GatheredColumn(
            name,
            position,
            (size,),
            convert=lambda stored, _: _value(layout, name, stored.numpy().view(dtype).reshape(-1, *shape)),
        )


def _value(layout: Layout, name: str, values: Any) -> Any:
    """Converts labels to an int64 tensor, and other arrays to tensors."""
    if name not in layout.labels:
        return torch.from_numpy(values) if isinstance(values, np.ndarray) else values
    try:
        return torch.from_numpy(np.asarray(values, dtype=np.int64))
    except (ValueError, OverflowError):
        wrong = next((value for value in values if not str(value).lstrip("-").isdecimal()), "a number too large")
        raise FormatError(
            f"{layout.path}: column {layout.shard_names[name]!r} holds {wrong!r}, which is no class number"
        ) from None


def _padded(rows: Sequence[bytes]) -> torch.Tensor:
    """Returns byte strings as uint8 (N, bytes of the longest), the others padded with zeros."""
    longest = max(map(len, rows), default=0)
    return torch.from_numpy(
        np.frombuffer(bytearray().join(row.ljust(longest, b"\0") for row in rows), np.uint8).reshape(len(rows), longest)
    )


def empty_caption(path: Path, layout: Layout) -> Batch:
    """Loads the embedding of an empty caption: see `LatentDataset.empty_caption`."""
    file = path / EMPTY_CAPTION
    if not layout.texts or not file.is_file():
        raise LatentqError(f"{path} has no embedding of an empty caption")
    arrays = empty_caption_file.load(file)
    try:
        return {
            name: column.from_array(arrays[column.shard_name], layout.dtype) for name, column in layout.texts.items()
        }
    except (KeyError, ValueError, TypeError) as error:
        raise FormatError(f"{file} does not go with the columns of the dataset: {error!r}") from None


class _CachedFiles:
    """The shards of a dataset in a cache: see `Files`."""

    def __init__(self, shards: ShardCache) -> None:
        self._shards = shards

    def pin(self, indices: NDArray[np.int64], *, within: bool = False) -> Pins | None:
        numbers = self._shards.shards_of(indices)
        return None if within and not self._shards.has_room(numbers) else self._shards.pin(numbers)


def _open_cache(
    path: str | os.PathLike[str],
    cache: str | os.PathLike[str] | None,
    cache_bytes: int | None,
    options: Mapping[str, str] | None,
) -> ShardCache | None:
    """Opens the dataset of a URL; returns None for a folder."""
    if not is_remote(path):
        if cache is not None or cache_bytes is not None or options:
            raise ValueError(f"cache, cache_bytes and storage_options are for URLs, and {os.fspath(path)} is a folder")
        return None
    if cache is None:
        raise ValueError(f"{path} needs a folder to keep its shards in: cache=...")
    return ShardCache(str(path), cache, cache_bytes=cache_bytes, options=options)


def _reader_of(shards: ShardCache) -> mds.Reader:
    """Opens the shards of a cache. Shards that may be evicted are not kept in memory either."""
    reader = mds.Reader(shards.folder, **({"cache_bytes": 0} if shards.evicts else {}))
    shards.on_release = reader.core.close_shard
    return reader
