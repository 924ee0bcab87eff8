"""diffusers' `AutoencoderTiny`: TAESD and its kin, distilled from the large autoencoders."""

from __future__ import annotations

from typing import Any

import torch

from latentq.models.autoencoders.base import Network


class TinyAutoencoder(Network):
    """An `AutoencoderTiny`, without a posterior.

    Its latents approximate the *scaled* latents of the model that it was distilled from, which is why its own scaling
    factor is 1. Its configuration's `latent_magnitude` and `latent_shift` squeeze latents into pictures of 8 bits; they
    play no part here.
    """

    family = "AutoencoderTiny"

    def __init__(self, module: Any, name: str) -> None:
        config = module.config
        super().__init__(
            module,
            name,
            channels=config.latent_channels,
            reduction=2 ** (len(config.encoder_block_out_channels) - 1),
            scaling_factor=config.scaling_factor,
            shift_factor=config.get("shift_factor"),
        )

    @torch.no_grad()
    def encode(self, pixels: torch.Tensor) -> torch.Tensor:
        """(B, 3, S, S) floats in [-1, 1] to (B, C, h, w) float32 latents."""
        latents: torch.Tensor = self.module.encode(pixels.float()).latents
        return latents.float()
