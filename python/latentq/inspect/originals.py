"""The images that a dataset was made from, found in the source and encoded again without quantization."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from latentq import image
from latentq._core import LatentqError
from latentq.choices import Size
from latentq.encoding.latents import LatentEncoder
from latentq.format.card import Card
from latentq.inspect.stored import Stored, StoredSamples, source_of
from latentq.models.autoencoders import Autoencoder
from latentq.sources import Sample, Source
from latentq.sources.listing import connections_of, deferred_read
from latentq.system.threads import in_order


class Originals:
    """The source of a finished dataset, indexed as the dataset's samples are.

    Args:
        path: The dataset.
        card: Its card.
        column: A column of latents, moments or tokens, by its name in the shards.
        source: The dataset's source: a path or URL for `open_source`, or a `Source`.
        network: The autoencoder that made the dataset.
        device: The device to compute on.

    Raises:
        OSError: The list, the index or the source cannot be read.
        LatentqError: The kind of the source is unknown, or the list or the index is broken.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        card: Card,
        column: str,
        source: str | os.PathLike[str] | Source,
        network: Autoencoder,
        *,
        device: str = "cpu",
    ) -> None:
        self.network = network
        self._stored = StoredSamples(path, card)
        self._source = source_of(card, source)
        self._card, self._column = card, column
        self._encoder = LatentEncoder(network, card.recipe.autoencoder, device)

    def sample(self, index: int) -> Sample:
        """Returns the listing of a stored sample."""
        return self._stored.find(index)[1]

    def bucket(self, index: int) -> int:
        """Returns the bucket of a stored sample; 0 without buckets."""
        return self._stored.bucket(index) if self._card.buckets else 0

    @property
    def fault(self) -> str:
        """Why samples cannot be encoded again as they were; empty if they can."""
        column = self._card.recipe.columns[self._column]
        is_drawn = column.content == "latent" and column.store == "sample" and hasattr(self.network, "posterior")
        if not (is_drawn and self._card.source.revision):
            return ""
        return (
            "a posterior's samples that were drawn before an update cannot be drawn again: their noise depends on the "
            "list as it was then"
        )

    def encode(self, indices: Sequence[int]) -> tuple[NDArray[np.uint8], NDArray[Any]]:
        """Encodes stored samples again, without quantization.

        Args:
            indices: The samples' indices in the dataset; with buckets, all of one.

        Returns:
            The pixels that were encoded, (n, 3, H, W) uint8, mirrored if the column is; and the raw latents (n, C,
            h, w), for moments their means, or the tokens (n, h, w).

        Raises:
            LatentqError: An original is missing, or cannot be decoded.
        """
        if self.fault:
            raise LatentqError(self.fault)
        column, size = self._card.recipe.columns[self._column], self._size(indices)
        chosen = [self._stored.find(index) for index in indices]
        pixels = self._load(chosen, size)
        stream = list(self._card.recipe.encoded()).index(self._column)
        on_device = torch.from_numpy(pixels).to(self._encoder.device)
        encoded = self._encoder.encode(
            on_device, replace(column, scaled=False, size=size), [n for n, _ in chosen], stream
        )
        if column.content == "moments":
            encoded = encoded.chunk(2, 1)[0]
        latents = encoded.cpu().numpy()
        return self._flipped(pixels), latents

    def pixels(self, indices: Sequence[int]) -> NDArray[np.uint8]:
        """Loads stored samples' originals as they were encoded: (n, 3, H, W) uint8, mirrored if the column is.

        Raises:
            LatentqError: An original is missing, or cannot be decoded.
        """
        return self._flipped(self._load([self._stored.find(index) for index in indices], self._size(indices)))

    def _size(self, indices: Sequence[int]) -> Size:
        """Returns the size that samples were encoded at, which must be one."""
        buckets = sorted({self.bucket(index) for index in indices})
        if len(buckets) > 1:
            raise ValueError(f"samples of the buckets {buckets}: encode those of one bucket")
        sizes = self._card.recipe.bucket_sizes()
        return sizes[buckets[0]] if sizes else self._card.recipe.columns[self._column].size

    def _load(self, chosen: Sequence[Stored], size: Size) -> NDArray[np.uint8]:
        data = self._read([sample for _, sample in chosen])
        pixels, errors = image.load_batch(data, size, **self._card.recipe.image.options())
        for error, (_, sample) in zip(errors, chosen, strict=True):
            if error is not None:
                raise LatentqError(
                    f"the original {sample.text} cannot be read: {error} (is this the source of the dataset?)"
                )
        return pixels

    def _read(self, samples: Sequence[Sample]) -> list[bytes | Path]:
        """Reads the files of samples; from a store several at once."""
        reads = ((sample, deferred_read(self._source, sample)) for sample in samples)
        begun = (partial(_same, self._source.data(sample)) if read is None else read for sample, read in reads)
        connections = connections_of(self._source)
        if not connections:
            return [read() for read in begun]
        return [*in_order(lambda read: read(), begun, connections)]

    def _flipped(self, pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        flip = self._card.recipe.columns[self._column].flip
        return np.ascontiguousarray(pixels[..., ::-1]) if flip else pixels


def _same(data: bytes | Path) -> bytes | Path:
    return data
