"""The bridge to mosaicml-streaming: its remotes, nodes, shuffles and streams, with latents dequantized."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from streaming import Stream, StreamingDataset
from streaming.base.constant import TICK
from streaming.base.format.mds.encodings import Encoding, _encodings
from streaming.base.util import wait_for_file_to_exist
from streaming.base.world import World

from latentq._core import FormatError, LatentqError
from latentq.format.card import CARD, Card
from latentq.format.files import EMPTY_CAPTION, NORMALIZATION
from latentq.format.recipe import Recipe
from latentq.quantizer import Quantizer
from latentq.reading.columns import Scale
from latentq.reading.dataset import empty_caption
from latentq.reading.layout import Layout
from latentq.reading.samples import Batch, ColumnDict
from latentq.system.text import counted


class RawUint8(Encoding):  # type: ignore[misc]  # streaming has no types
    """imagenet.int8's encoding `uint8`: the bytes of an array, decoded as a flat uint8 array."""

    def encode(self, obj: Any) -> bytes:
        """Returns the bytes of an array."""
        return bytes(obj.tobytes())

    def decode(self, data: bytes) -> Any:
        """Returns a flat uint8 array."""
        return np.frombuffer(data, np.uint8)


def register_raw_uint8() -> None:
    """Registers imagenet.int8's encoding `uint8` with mosaicml-streaming, in this process.

    It replaces streaming's own scalar `uint8`, as the loader on that dataset's page does.
    """
    _encodings["uint8"] = RawUint8


class LatentStreamingDataset(StreamingDataset):  # type: ignore[misc]  # streaming has no types
    """A `StreamingDataset` with the samples of `LatentDataset`: latents dequantized, labels as integers.

    The card is fetched from the remote as the index is. Several streams must agree, as in a mixture. With buckets,
    samples are of several shapes, which `StreamingDataset` puts in no order: only `batch_size=1` or the user's own
    `collate_fn` makes batches of them.

    Args:
        columns: The columns of a sample: see `LatentDataset`.
        dtype: The dtype of latents: see `LatentDataset`.
        scale: The scale of latents: see `LatentDataset`.
        recipe: The recipe of data without a card; if it or a quantizer is given, no card is fetched.
        quantizer: The quantizer of data without a card: see `LatentDataset`.
        raw_uint8: True calls `register_raw_uint8`, for data with that encoding.
        **options: Options of `StreamingDataset`: `remote`, `local`, `streams`, `batch_size`, `shuffle` and so on.

    Attributes:
        layouts: The layout of each stream; with buckets, of its first bucket.

    Raises:
        LatentqError: As in `LatentDataset`; or a remote has no card and no recipe is given.
    """

    def __init__(
        self,
        *,
        columns: Sequence[str] | None = None,
        dtype: torch.dtype = torch.float32,
        scale: Scale = "raw",
        recipe: str | os.PathLike[str] | Recipe | None = None,
        quantizer: Quantizer | None = None,
        raw_uint8: bool = False,
        **options: Any,
    ) -> None:
        if raw_uint8:
            register_raw_uint8()
        super().__init__(**options)
        self._bucket_layouts: list[tuple[Layout, ...]] = []
        for stream, first in zip(self.streams, self.shard_offset_per_stream, strict=True):
            path = Path(stream.local, stream.split)
            shard = self.shards[first]
            card = _fetch_card(stream, path) if recipe is None and quantizer is None else None
            if card is not None and card.autoencoder.normalization.positions:
                _fetch(stream, path / NORMALIZATION)
            of_buckets = Layout.of_buckets(
                path,
                dict(zip(shard.column_names, shard.column_encodings, strict=True)),
                card=card,
                columns=columns,
                dtype=dtype,
                scale=scale,
                recipe=recipe,
                quantizer=quantizer,
            )
            self._bucket_layouts.append(of_buckets)
            if of_buckets[0].texts and of_buckets[0].card is not None:
                _fetch(stream, path / EMPTY_CAPTION)
        self.layouts = [of_buckets[0] for of_buckets in self._bucket_layouts]
        with_buckets = any(len(of_buckets) > 1 for of_buckets in self._bucket_layouts)
        for other in self.layouts[1:]:
            self.layouts[0].check_agreement(other, shapes=not with_buckets)
        self._raw_uint8 = raw_uint8

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        if self._raw_uint8:  # a spawned process has not registered it yet
            register_raw_uint8()

    @property
    def empty_caption(self) -> Batch:
        """The first stream's empty caption: see `LatentDataset.empty_caption`."""
        return empty_caption(self.layouts[0].path, self.layouts[0])

    def get_item(self, sample_id: int, retry: int = 7) -> dict[str, Any]:
        """Returns a sample by its index, after fetching its shard if it is not cached.

        Args:
            sample_id: The index of the sample in all streams.
            retry: How often to fetch its shard before giving up.
        """
        stored = super().get_item(sample_id, retry)
        layout = self._layout_of(self.spanner[sample_id][0])
        return ColumnDict(
            (name, _value(layout, name, stored[column], sample_id)) for name, column in layout.shard_names.items()
        )

    def _layout_of(self, shard: int) -> Layout:
        """Returns the layout of a shard's samples, by the bucket in its name."""
        of_buckets: tuple[Layout, ...] = self._bucket_layouts[self.stream_per_shard[shard]]
        if len(of_buckets) == 1:
            return of_buckets[0]
        name = Path(self.shards[shard].raw_data.basename).name
        group = name.removeprefix("shard.").partition(".")[0]
        if not group.isdecimal() or int(group) >= len(of_buckets):
            raise FormatError(f"{of_buckets[0].path}: {name} is of none of the buckets 000 to {len(of_buckets) - 1:03}")
        return of_buckets[int(group)]


def _value(layout: Layout, name: str, value: Any, index: int) -> Any:
    if name in layout.labels:
        return int(value)
    column = layout.encoded.get(name)
    if column is None:
        return torch.from_numpy(value.copy()) if isinstance(value, np.ndarray) else value
    data = np.frombuffer(value if isinstance(value, bytes) else np.ascontiguousarray(value).tobytes(), np.uint8)
    if column.nbytes and data.size != column.nbytes:
        hint = ": raw_uint8=True reads the encoding of imagenet.int8" if data.size == 1 else ""
        raise FormatError(
            f"{layout.path}: column {column.shard_name!r} gave {counted(data.size, 'byte')}, not {column.nbytes}{hint}"
        )
    with layout.naming(name, [index]):
        return column.decode(torch.from_numpy(data.copy()).unsqueeze(0), layout.dtype)[0]


def _fetch(stream: Stream, file: Path) -> None:
    """Fetches a file at the root of a stream from its remote, by one process of each node, as the index is."""
    if file.exists() or stream.remote is None:
        return
    if World.detect().is_local_leader:
        try:
            part = stream._download_file(file.name, f"{file.name}.tmp")
        except Exception as error:  # each kind of remote has its own errors
            raise LatentqError(f"{stream.remote} has no {file.name}, or it cannot be fetched: {error}") from error
        Path(part).rename(file)
    else:
        wait_for_file_to_exist(str(file), TICK, stream.download_timeout, f"{file} took too long to be fetched")


def _fetch_card(stream: Stream, folder: Path) -> Card | None:
    """Fetches and loads a stream's card, or returns None if a local folder has none."""
    file = folder / CARD
    _fetch(stream, file)
    if not file.exists():
        return None
    card = Card.load(file)
    if not card.complete:
        raise LatentqError(f"{stream.remote or folder} is not finished")
    return card
