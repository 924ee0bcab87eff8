"""The pictures that a dataset was made from, found again and encoded again without quantising."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from latentq import image
from latentq._core import LatentqError
from latentq.encoding.latents import LatentEncoder
from latentq.format.card import Card
from latentq.format.files import REJECTS, SAMPLES
from latentq.format.tsv import tsv_line
from latentq.models.autoencoders import Autoencoder
from latentq.sources import Listing, Sample, open_source


def stored_samples(path: str | os.PathLike[str]) -> list[tuple[int, Sample]]:
    """What a finished dataset's list says of its samples, rejects left out, and their numbers in the source."""
    file = Path(path) / SAMPLES
    listing = Listing.from_tsv(file.read_bytes(), str(file))
    lines = (Path(path) / REJECTS).read_bytes().decode().split("\n")
    rejects = {line.partition("\t")[0] for line in lines if line}
    return [
        (number, sample)
        for number, sample in enumerate(listing.samples)
        if not rejects or tsv_line([sample.text]) not in rejects
    ]


class Originals:
    """The source of a finished dataset, by the numbers that its samples have in the dataset.

    Args:
        path: The dataset.
        card: Its card.
        column: One of its columns of latents, moments or tokens, by its name in the shards.
        source: What it was made from.
        network: The autoencoder that made it.
        device: Where that computes.

    Raises:
        OSError: A list or the source cannot be read.
        LatentqError: The source is of no known kind.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        card: Card,
        column: str,
        source: str | os.PathLike[str],
        network: Autoencoder,
        *,
        device: str = "cpu",
    ) -> None:
        self.network = network
        self._stored = stored_samples(path)
        self._source = open_source(source)
        self._card, self._column = card, column
        self._encoder = LatentEncoder(network, card.recipe.autoencoder, device)

    def sample(self, index: int) -> Sample:
        """What the list says of a stored sample."""
        return self._stored[index][1]

    def encode(self, indices: Sequence[int]) -> tuple[NDArray[np.uint8], NDArray[Any]]:
        """Stored samples as they were before quantising.

        Args:
            indices: Their numbers in the dataset.

        Returns:
            The pixels that were encoded, (n, 3, S, S), mirrored if the column is; and the unscaled latents, (n, C, h,
            w), of moments their means; or the tokens, (n, h, w).

        Raises:
            LatentqError: An original is not there any more, or cannot be decoded.
        """
        column = self._card.recipe.columns[self._column]
        chosen = [self._stored[index] for index in indices]
        data = [self._source.data(sample) for _, sample in chosen]
        pixels, errors = image.load_batch(data, column.size, **self._card.recipe.image.options())
        for error, (_, sample) in zip(errors, chosen, strict=True):
            if error is not None:
                raise LatentqError(f"the original {sample.text} cannot be read: {error}")
        stream = list(self._card.recipe.encoded()).index(self._column)
        on_device = torch.from_numpy(pixels).to(self._encoder.device)
        made = self._encoder.encode(on_device, replace(column, scaled=False), [n for n, _ in chosen], stream)
        if column.content == "moments":
            made = made.chunk(2, 1)[0]
        latents = made.cpu().numpy()
        return (np.ascontiguousarray(pixels[..., ::-1]) if column.flip else pixels), latents
