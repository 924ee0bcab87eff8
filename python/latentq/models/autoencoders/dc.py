"""`AutoencoderDC` of diffusers: the deep compression autoencoders (DC-AE), including SANA's."""

from __future__ import annotations

import torch

from latentq.models.autoencoders.base import DiffusersNetwork


class DCAutoencoder(DiffusersNetwork):
    """An `AutoencoderDC`: many channels, few pixels, no posterior."""

    family = "AutoencoderDC"
    _widths = "encoder_block_out_channels"

    @torch.no_grad()
    def encode(self, pixels: torch.Tensor) -> torch.Tensor:
        """Encodes (B, 3, S, S) float pixels in [-1, 1] to (B, C, h, w) float32 latents."""
        latents: torch.Tensor = self.module.encode(pixels.float()).latent
        return latents.float()
