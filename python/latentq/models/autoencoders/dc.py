"""diffusers' `AutoencoderDC`: the deep compression autoencoders, SANA's among them."""

from __future__ import annotations

from typing import Any

import torch

from latentq.models.autoencoders.base import Network


class DCAutoencoder(Network):
    """An `AutoencoderDC`: many channels, few pixels, no posterior."""

    family = "AutoencoderDC"

    def __init__(self, module: Any, name: str) -> None:
        config = module.config
        super().__init__(
            module,
            name,
            channels=config.latent_channels,
            reduction=2 ** (len(config.encoder_block_out_channels) - 1),
            scaling_factor=config.scaling_factor,
        )

    @torch.no_grad()
    def encode(self, pixels: torch.Tensor) -> torch.Tensor:
        """(B, 3, S, S) floats in [-1, 1] to (B, C, h, w) float32 latents."""
        latents: torch.Tensor = self.module.encode(pixels.float()).latent
        return latents.float()
