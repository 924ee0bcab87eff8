"""diffusers' `AutoencoderKL`: the VAEs of Stable Diffusion 1 to 3, SDXL and Flux."""

from __future__ import annotations

from typing import Any

import torch

from latentq.models.autoencoders.base import Network


class KLAutoencoder(Network):
    """An `AutoencoderKL`, whose latents are drawn from a normal posterior. SD 3's and Flux's have a shift factor."""

    family = "AutoencoderKL"

    def __init__(self, module: Any, name: str) -> None:
        config = module.config
        super().__init__(
            module,
            name,
            channels=config.latent_channels,
            reduction=2 ** (len(config.block_out_channels) - 1),
            scaling_factor=config.scaling_factor,
            shift_factor=config.get("shift_factor"),
        )

    @torch.no_grad()
    def posterior(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(B, 3, S, S) floats in [-1, 1] to mean and log-variance, each (B, C, h, w) float32."""
        distribution = self.module.encode(pixels.float()).latent_dist
        return distribution.mean.float(), distribution.logvar.float()

    def encode(self, pixels: torch.Tensor) -> torch.Tensor:
        """(B, 3, S, S) floats in [-1, 1] to the posterior's mean, (B, C, h, w) float32."""
        return self.posterior(pixels)[0]
