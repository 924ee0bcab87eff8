"""Decodes a few samples of a dataset and compares them with their originals."""

from __future__ import annotations

import os
from dataclasses import dataclass
from math import prod
from typing import TextIO

import numpy as np

from latentq._core import LatentqError
from latentq.format.card import Card
from latentq.inspect.originals import Originals
from latentq.inspect.pictures import latent_name
from latentq.inspect.psnr import psnr
from latentq.models.decode import decode_latents
from latentq.models.match import autoencoder_for
from latentq.reading.dataset import LatentDataset
from latentq.sources import Source
from latentq.system.progress import BriefProgress

_BATCH = 16


@dataclass(frozen=True)
class Quality:
    """The quality of a dataset's stored latents.

    Attributes:
        decoded: The number of samples that were decoded.
        bad: The indices of samples whose latents are not finite.
        psnr: The mean PSNR of decoded samples against their originals in dB; None without a source.
        lowest_psnr: The lowest PSNR; None without a source.
        lowest: The index of the sample with the lowest PSNR; None without a source.
        clip_rate: The share of values outside the quantizer's range, over the whole dataset; None for tokens.
    """

    decoded: int
    bad: tuple[int, ...]
    psnr: float | None
    lowest_psnr: float | None
    lowest: int | None
    clip_rate: float | None


def sample_quality(
    path: str | os.PathLike[str],
    count: int,
    *,
    source: str | os.PathLike[str] | Source | None = None,
    autoencoder: str | os.PathLike[str] | None = None,
    device: str = "cpu",
    progress: TextIO | None = None,
) -> Quality:
    """Decodes samples that are evenly spread over a dataset.

    Args:
        path: The dataset.
        count: The number of samples to decode, at least 1.
        source: The dataset's source; without it there is no PSNR.
        autoencoder: The autoencoder's name or folder, if its name in the card is not enough.
        device: The device to compute on.
        progress: The stream for progress, or None.

    Raises:
        LatentqError: The dataset, the autoencoder or an original cannot be read.
        ValueError: The count is less than 1.
    """
    if count < 1:
        raise ValueError(f"at least one sample must be decoded, not {count}")
    card = Card.load(path)
    column = latent_name(path, card, None)
    dataset = LatentDataset(path, columns=[column])
    if not len(dataset):
        raise LatentqError(f"{path} holds no samples to decode")
    network = autoencoder_for(card, autoencoder, device=device)
    originals = None if source is None else Originals(path, card, column, source, network, device=device)
    count = min(count, len(dataset))
    indices = [position * len(dataset) // count for position in range(count)]
    bad: list[int] = []
    scores: list[float] = []
    with BriefProgress(count, "decode", progress) as bar:
        for start in range(0, count, _BATCH):
            batch = indices[start : start + _BATCH]
            latents = dataset.decodable(batch)
            if latents.is_floating_point():
                finite = latents.flatten(1).isfinite().all(1).tolist()
                bad += [index for index, good in zip(batch, finite, strict=True) if not good]
            decoded = decode_latents(network, latents)
            if originals is not None:
                pixels = originals.pixels(batch).transpose(0, 2, 3, 1)
                scores += [psnr(ours, original) for ours, original in zip(decoded, pixels, strict=True)]
            bar.update(len(batch))
    lowest = int(np.argmin(scores)) if scores else None
    return Quality(
        count,
        tuple(bad),
        float(np.mean(scores)) if scores else None,
        None if lowest is None else scores[lowest],
        None if lowest is None else indices[lowest],
        _clip_rate(card, column),
    )


def _clip_rate(card: Card, column: str) -> float | None:
    latent = card.latents.get(column)
    if latent is None or latent.clipped is None or card.counts is None:
        return None
    values = card.counts.samples * prod(latent.shape)
    return sum(latent.clipped) / values if values else None
