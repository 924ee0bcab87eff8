"""Base classes shared by the families of autoencoders."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar, Self

import torch


class Network(ABC):
    """A torch module that encodes and decodes, in evaluation mode, without gradients and with float32 weights.

    Attributes:
        family: The name of the class that implements it, for the card.
        name: The name on the Hub, or the last part of the path.
        module: The torch module.
        channels: C of the latents.
        reduction: The number of pixels per latent pixel, along each side.
        scaling_factor: The factor that latents are multiplied by for training.
        shift_factor: The value that is subtracted from latents before they are multiplied.
        pixel_range: The pixel values of black and white.
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
        """Moves the weights to a device, in-place."""
        self.module.to(device)
        return self

    def latent_shape(self, size: int) -> tuple[int, int, int]:
        """Returns (C, size / reduction, size / reduction).

        Raises:
            ValueError: The size is not a multiple of the reduction.
        """
        if size < self.reduction or size % self.reduction:
            raise ValueError(f"{self.name} encodes images whose side is a multiple of {self.reduction}, not {size}")
        return self.channels, size // self.reduction, size // self.reduction

    @abstractmethod
    def encode(self, pixels: torch.Tensor) -> torch.Tensor:
        """Encodes (B, 3, S, S) float pixels in `pixel_range` to (B, C, h, w) float32 raw latents."""

    @torch.no_grad()
    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """Decodes (B, C, h, w) raw latents to (B, 3, S, S) float32 pixels."""
        pixels: torch.Tensor = self.module.decode(latents.float()).sample
        return pixels.float()


class DiffusersNetwork(Network):
    """An autoencoder of diffusers; its module's `config` says everything that a family needs."""

    _widths: ClassVar[str] = "block_out_channels"  # the config's list of one width per resolution

    def __init__(self, module: Any, name: str) -> None:
        config = module.config
        super().__init__(
            module,
            name,
            channels=config.get("vq_embed_dim") or config.latent_channels,
            reduction=2 ** (len(config[self._widths]) - 1),
            scaling_factor=config.scaling_factor,
            shift_factor=config.get("shift_factor"),
        )
