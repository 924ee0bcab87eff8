"""What the families of networks share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar, Self

import torch


class Network(ABC):
    """A torch module that encodes and decodes; its weights are float32, and it learns nothing.

    Attributes:
        family: The class that implements it, for the card.
        name: The hub name, or the last part of the path.
        module: The torch module.
        channels: C of the latents.
        reduction: How many pixels a latent pixel is wide.
        scaling_factor: What latents are multiplied by for training.
        shift_factor: What is taken from them before that.
        pixel_range: The pixel values that stand for black and white.
    """

    family: ClassVar[str]

    def __init__(
        self,
        module: torch.nn.Module,
        name: str,
        *,
        channels: int,
        reduction: int,
        scaling_factor: float = 1.0,
        shift_factor: float | None = None,
    ) -> None:
        self.module: Any = module.eval().requires_grad_(False)
        self.name = name
        self.channels = channels
        self.reduction = reduction
        self.scaling_factor = float(scaling_factor)
        self.shift_factor = float(shift_factor or 0.0)
        self.pixel_range: tuple[float, float] = (-1.0, 1.0)

    def to(self, device: str | torch.device) -> Self:
        """This autoencoder, its weights moved to a device."""
        self.module.to(device)
        return self

    def latent_shape(self, size: int) -> tuple[int, int, int]:
        """(C, size / reduction, size / reduction). Raises ValueError where size is not a multiple of the reduction."""
        if size < self.reduction or size % self.reduction:
            raise ValueError(f"{self.name} encodes pictures whose side is a multiple of {self.reduction}, not {size}")
        return self.channels, size // self.reduction, size // self.reduction

    @abstractmethod
    def encode(self, pixels: torch.Tensor) -> torch.Tensor:
        """(B, 3, S, S) floats in `pixel_range` to (B, C, h, w) float32 latents, unscaled."""

    @torch.no_grad()
    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """(B, C, h, w) unscaled latents to (B, 3, S, S) float32 pixels."""
        pixels: torch.Tensor = self.module.decode(latents.float()).sample
        return pixels.float()
