"""`AutoencoderKL` of diffusers: the VAEs of Stable Diffusion 1 to 3, SDXL and Flux."""

from __future__ import annotations

import torch

from latentq.models.autoencoders.base import DiffusersNetwork


class KLAutoencoder(DiffusersNetwork):
    """An `AutoencoderKL` with its normal posterior. Those of SD 3 and Flux have a shift factor."""

    family = "AutoencoderKL"

    @torch.no_grad()
    def posterior(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Encodes (B, 3, S, S) float pixels in [-1, 1] to mean and log-variance, each (B, C, h, w) float32."""
        distribution = self.module.encode(pixels.float()).latent_dist
        return distribution.mean.float(), distribution.logvar.float()

    def encode(self, pixels: torch.Tensor) -> torch.Tensor:
        """Encodes (B, 3, S, S) float pixels in [-1, 1] to the posterior's mean, (B, C, h, w) float32."""
        return self.posterior(pixels)[0]
