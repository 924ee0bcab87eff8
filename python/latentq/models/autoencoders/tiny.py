"""`AutoencoderTiny` of diffusers: TAESD and its variants, distilled from the large autoencoders."""

from __future__ import annotations

import torch

from latentq.models.autoencoders.base import DiffusersNetwork


class TinyAutoencoder(DiffusersNetwork):
    """An `AutoencoderTiny`, without a posterior.

    Its latents approximate the *scaled* latents of the model that it was distilled from, which is why its own scaling
    factor is 1. `latent_magnitude` and `latent_shift` in its configuration map latents to 8-bit images; they are not
    used here.
    """

    family = "AutoencoderTiny"
    _widths = "encoder_block_out_channels"

    @torch.no_grad()
    def encode(self, pixels: torch.Tensor) -> torch.Tensor:
        """Encodes (B, 3, S, S) float pixels in [-1, 1] to (B, C, h, w) float32 latents."""
        latents: torch.Tensor = self.module.encode(pixels.float()).latents
        return latents.float()
