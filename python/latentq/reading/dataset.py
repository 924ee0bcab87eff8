"""LatentDataset: a latent dataset's folder as a torch map-style dataset."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from functools import cached_property, partial
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset, get_worker_info

from latentq import mds
from latentq._core import FormatError, LatentqError
from latentq.format import empty_caption as empty
from latentq.format.card import CARD
from latentq.format.files import EMPTY_CAPTION
from latentq.format.recipe import Recipe
from latentq.models.noise import noise
from latentq.quantizer import Quantizer
from latentq.reading.buffers import Empty, private, shareable
from latentq.reading.columns import Scale, TokenColumn
from latentq.reading.gather import Column, Gatherer
from latentq.reading.layout import Layout, noise_key
from latentq.reading.workers import Stored

if TYPE_CHECKING:
    from PIL.Image import Image

    from latentq.models.autoencoders import Autoencoder
    from latentq.reading.loader import LatentLoader
    from latentq.reading.resident import ResidentDataset
from latentq.format.card import open_card
from latentq.reading.samples import Batch, Indices, Samples, checked_indices, collate, item_or_batch, samples_of


class LatentDataset(Dataset[dict[str, Any]]):
    """A latent dataset's folder as a torch map-style dataset.

    A sample is a dict. A single latent column is called `latent` and is a (C, h, w) tensor; `tokens` is an (h, w) int64
    tensor; `label` is an int; `label_text`, `caption` and `key` are strings; `caption_embedding` is (captions, tokens,
    width), `pooled_embedding` (captions, width) and `attention_mask` (captions, tokens) uint8; `image` is a PIL image,
    or bytes where it is stored so. Where several columns hold the same kind of thing, each keeps the name it has in the
    shards.

    Where moments are stored, every reading draws a latent from them anew, by torch's own generator; a loader's noise is
    a function of (seed, epoch, sample).

    It may be used in DataLoader workers under fork, spawn and forkserver; files are opened where they are read.

    Args:
        path: The folder.
        columns: Which of the columns a sample has, by their names in samples or in the shards; None for all.
        dtype: Of latents: float32, float16 or bfloat16; or uint8, for the codes as they are stored.
        scale: `raw`, as the autoencoder gave them; `scaled`, (raw - shift factor) * scaling factor; `normalized`, to
            mean 0 and standard deviation 1 in each channel by the card's statistics.
        recipe: For a folder without a card: the recipe it was made with, or its name or file.
        quantizer: For a folder without a card: what the codes mean, where the recipe does not say or says otherwise.
        transform: Called with each sample; what it returns takes the sample's place.

    Attributes:
        path: The folder.
        card: What the dataset says of itself; None for a folder without one.
        layout: The columns of a sample, and what they mean.

    Raises:
        LatentqError: The dataset is not finished or has no samples, or the scale needs a card that is not there.
        FormatError: The card or the index cannot be understood.
        RecipeError: There is neither a card nor a recipe that says enough.
        MismatchError: Recipe and shards do not go together; both are named.
        OSError: There is no such folder, or it cannot be read.
        ValueError: An argument is out of range.
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
        transform: Callable[[dict[str, Any]], Any] | None = None,
    ) -> None:
        self.path = Path(path)
        self.card = open_card(self.path)
        self.transform = transform
        self._reader = mds.Reader(self.path)
        if not len(self):
            raise LatentqError(f"{path} has no samples")
        if self.card is not None and self.card.counts is not None and self.card.counts.samples != len(self):
            raise FormatError(f"{path}: the card counts {self.card.counts.samples} samples, the index {len(self)}")
        self.layout = Layout.resolve(
            self.path,
            self._reader.columns,
            card=self.card,
            columns=columns,
            dtype=dtype,
            scale=scale,
            recipe=recipe,
            quantizer=quantizer,
        )

    def __len__(self) -> int:
        return len(self._reader)

    def __repr__(self) -> str:
        layout = self.layout
        latents = ", ".join(f"{name}: {column.shape}" for name, column in layout.encoded.items())
        return (
            f"LatentDataset({str(self.path)!r}, {len(self):,} samples, {latents or 'no latents'}, "
            f"dtype={layout.dtype}, scale={layout.scale!r}, columns={list(layout.stored)})"
        )

    def __getitem__(self, index: int | Indices) -> Any:
        """One sample; or, of several indices, as a batch sampler in the place of a sampler gives them, their batch.

        Raises:
            IndexError: There is no such sample.
        """
        return item_or_batch(self, index)

    def __getitems__(self, indices: Indices) -> Sequence[Any]:
        """Samples, read and dequantised together. torch's DataLoader calls this with the indices of a batch.

        Returns:
            A sequence, for torch's `default_collate` or, without a copy, for `collate`.
        """
        indices = checked_indices(indices, len(self))
        if self.is_plain and get_worker_info() is not None:
            return Samples(batch=Stored(self.layout, self.stored_bytes(len(indices)), partial(self.read, indices)))
        return samples_of(self.batch(indices), self.transform)

    collate = staticmethod(collate)

    def batch(self, indices: Indices, *, noise: Batch | None = None, empty: Empty = shareable) -> Batch:
        """A batch: latents (N, C, h, w), labels (N,) int64, strings as lists. The transform is not applied.

        Args:
            indices: Of its samples, in any order, each from -len(self) to len(self) - 1.
            noise: What `noise_of` gave, where latents are drawn from moments; None draws it by torch's own generator.
            empty: Makes the tensors of the batch.

        Raises:
            IndexError: An index is out of range.
            FormatError: A shard is broken or cut short; the message names it.
        """
        begun = self.gatherer().begin(checked_indices(indices, len(self)), empty)
        return self.decode_batch(begun() | (noise or {}), empty=empty)

    def ahead(self, *, decoded: bool = True) -> Gatherer | None:
        """What gathers batches without Python; None where that has a part in them."""
        return self.gatherer(decoded=decoded) if self.is_plain else None

    @property
    def is_plain(self) -> bool:
        """Whether batches of it take no Python: no transform, and of latents only codes."""
        return self.transform is None and self.layout.is_plain

    def gatherer(self, *, names: Sequence[str] | None = None, decoded: bool = True) -> Gatherer:
        """What gathers batches of some columns.

        Args:
            names: The columns; None for all.
            decoded: Whether latents are dequantised where that is one pass over them: `decode_batch` does the rest.
        """
        columns = [self._column(name, decoded) for name in names or self.layout.stored]
        return Gatherer(self._reader.core, columns)

    def stored_bytes(self, count: int) -> int:
        """The bytes of the tensors that `read` makes for so many samples, each rounded up to whole cache lines."""
        return self.gatherer(decoded=False).nbytes(count)

    def read(self, indices: Indices, *, names: Sequence[str] | None = None, empty: Empty = private) -> Batch:
        """A batch whose latents are still as stored, uint8 (N, bytes): what `decode_batch` takes.

        Args:
            indices: As of `batch`.
            names: Which columns it has; None for all.
            empty: Makes the tensors to read into.
        """
        return self.gatherer(names=names, decoded=False).begin(checked_indices(indices, len(self)), empty)()

    def decode_batch(self, batch: Batch, *, empty: Empty = shareable) -> Batch:
        """The batch that `read` has begun, its latents decoded on the device where they are."""
        return self.layout.decode_batch(batch, empty=empty)

    def noise_of(self, indices: NDArray[np.int64], seed: int, epoch: int, *, empty: Empty = private) -> Batch:
        """The noise by which a loader draws the latents of some samples from their moments, for `decode_batch`."""
        drawn = [(name, column.shape) for name, column in self.layout.latents.items() if column.moments]
        return {
            noise_key(name): empty((len(indices), *shape), torch.float32).copy_(
                torch.from_numpy(noise(seed, indices, stream, shape, epoch=epoch))
            )
            for stream, (name, shape) in enumerate(drawn)
        }

    def loader(self, batch_size: int, **options: Any) -> LatentLoader:
        """A loader of this dataset's batches: see `LatentLoader` for the options.

        Args:
            batch_size: Samples in a batch, on each rank.
            options: `shuffle`, `seed`, `drop_last`, `device`, `threads`, `prefetch`, `pin_memory`, `rank`,
                `world_size`, `label_dropout`, `caption_dropout`.
        """
        from latentq.reading.loader import LatentLoader

        return LatentLoader(self, batch_size, **options)

    @cached_property
    def empty_caption(self) -> Batch:
        """What a sample without a caption has in the place of a caption's embedding, mask and pooled embedding.

        By their names in samples: tensors of a sample's shape, for `caption_dropout`.

        Raises:
            LatentqError: The dataset has none, as those have that other tools made.
        """
        return empty_caption(self.path, self.layout)

    @property
    def resident_bytes(self) -> int:
        """The memory that `to_device` takes: the latents as they are stored, and 8 bytes a label."""
        latents = sum(column.nbytes for column in self.layout.encoded.values())
        return len(self) * (latents + 8 * len(self.layout.labels))

    def to_device(self, device: str | torch.device = "cuda") -> ResidentDataset:
        """The latents and labels of all samples in the memory of a device, latents as they are stored.

        Raises:
            MemoryError: `resident_bytes` are more than the device has free.
            ValueError: This dataset has a transform, or columns of strings only.
        """
        from latentq.reading.resident import ResidentDataset

        return ResidentDataset(self, device)

    def decode(self, index: int, *, autoencoder: Autoencoder | None = None) -> Image:
        """A sample's latent or tokens as a picture; the first where it has several. Of moments the mean is decoded.

        Args:
            index: The sample.
            autoencoder: What decodes it; None loads the one that the card names.

        Raises:
            IndexError: There is no such sample.
            LatentqError: The autoencoder cannot be loaded, there is no card to name one, or no column holds latents.
        """
        from PIL.Image import fromarray

        from latentq.models.decode import decode_latents
        from latentq.models.match import autoencoder_for

        if not self.layout.pictures:
            raise LatentqError(f"{self.path}: no latents are among the columns {', '.join(self.layout.stored)}")
        if autoencoder is None:
            if self.card is None:
                raise LatentqError(f"{self.path} has no {CARD}: say which autoencoder decodes it")
            autoencoder = autoencoder_for(self.card)
        return fromarray(decode_latents(autoencoder, self.decodable([index]))[0])

    def decodable(self, indices: Indices) -> torch.Tensor:
        """What an autoencoder decodes of some samples, of their first latents or tokens.

        Returns:
            Unscaled latents, (N, C, h, w) float32; of moments the means; or tokens, (N, h, w) int64.
        """
        name, column = next(iter(self.layout.pictures.items()))
        raw = self.read(indices)[name]
        if isinstance(column, TokenColumn):
            return column.decode(raw, torch.int64)
        column = column.in_scale(self.path, self.card, "raw")
        return column.decode(raw, torch.float32, noise=torch.zeros(len(raw), *column.shape))

    def _column(self, name: str, decoded: bool) -> Column:
        """How a column is gathered."""
        stored, encoded = self.layout.stored[name], self.layout.encoded.get(name)
        place, fixed = self._reader.column_place(stored)
        if encoded is not None:
            quantizer = encoded.direct(self.layout.dtype) if decoded else None
            if quantizer is not None:
                return Column(name, place, encoded.shape, self.layout.dtype, quantizer)
            return Column(name, place, (encoded.nbytes,), is_code=True)
        if name in self.layout.labels and fixed == ("int64", []):
            return Column(name, place, (), torch.int64)
        if fixed is None:
            return Column(
                name,
                place,
                None,
                convert=lambda values, at: self._value(name, self._reader.decoded_list(stored, values, at)),
            )
        dtype, shape = np.dtype(fixed[0]), fixed[1]
        size = dtype.itemsize * prod(shape)
        return Column(
            name, place, (size,), convert=lambda raw, _: self._value(name, raw.numpy().view(dtype).reshape(-1, *shape))
        )

    def _value(self, name: str, values: Any) -> Any:
        if name not in self.layout.labels:
            return values
        try:
            return torch.from_numpy(np.asarray(values, dtype=np.int64))
        except (ValueError, OverflowError):
            wrong = next((value for value in values if not str(value).lstrip("-").isdecimal()), "a number too large")
            raise FormatError(
                f"{self.path}: column {self.layout.stored[name]!r} holds {wrong!r}, which is no label's number"
            ) from None


def empty_caption(path: Path, layout: Layout) -> Batch:
    """As of `LatentDataset`, of the folder at a path."""
    file = path / EMPTY_CAPTION
    if not layout.texts or not file.is_file():
        raise LatentqError(f"{path} has no embedding of an empty caption")
    arrays = empty.load(file)
    try:
        return {name: column.of_array(arrays[column.stored], layout.dtype) for name, column in layout.texts.items()}
    except (KeyError, ValueError, TypeError) as error:
        raise FormatError(f"{file} does not go with the columns of the dataset: {error!r}") from None
