"""The settings of one encoding run, and its device."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from latentq._core import LatentqError
from latentq.encoding.stages import Profile
from latentq.format.card import Card
from latentq.quantizer import Quantizer
from latentq.sources import Listing, Sample, Source
from latentq.sources.listing import reason_of

if TYPE_CHECKING:
    from latentq.encoding.captions import CaptionEncoder
    from latentq.encoding.latents import Encoder


@dataclass(frozen=True)
class Job:
    """What every step needs to know; `uncalibrated` are the columns whose quantisers in the card are not yet right."""

    source: Source
    listing: Listing
    encoder: Encoder
    captions: CaptionEncoder | None
    card: Card
    uncalibrated: tuple[str, ...]
    batch_size: int
    threads: int
    strict: bool
    profile: Profile

    @property
    def quantizers(self) -> dict[str, Quantizer]:
        """Of the columns of latents and moments."""
        return {name: facts.quantizer for name, facts in self.card.latents.items()}

    @property
    def text_quantizers(self) -> dict[str, Quantizer]:
        """Of the columns of embeddings."""
        return {name: facts.quantizer for name, facts in self.card.embeddings.items()}


def default_device() -> str:
    import torch

    return f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if torch.cuda.is_available() else "cpu"


def check_device(device: str) -> None:
    """Refuses a device that is not there, before anything is published."""
    import torch

    try:
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise ValueError(f"device {device!r} cannot be used: {reason}") from None


def device_of(network: Any) -> str:
    """Where someone's own network is: its pixels must go there."""
    parameters = getattr(network, "parameters", None)
    first = next(iter(parameters()), None) if callable(parameters) else None
    return str(first.device) if first is not None else "cpu"


def strictly(job: Job, sample: Sample, stage: str, error: Exception) -> None:
    if job.strict and stage != "size":
        file = own_file(job, sample)
        raise LatentqError(f"{file or sample.text}: {stage}: {reason_of(error, file)}")


def own_file(job: Job, sample: Sample) -> Path | None:
    """The file that is a sample's own."""
    if sample.archive is not None or sample.fault:
        return None
    data = job.source.data(sample)
    return data if isinstance(data, Path) else None
