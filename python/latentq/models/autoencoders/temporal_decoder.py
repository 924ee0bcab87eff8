"""`AutoencoderKLTemporalDecoder` of diffusers: the VAE of Stable Video Diffusion."""

from __future__ import annotations

import torch

from latentq.models.autoencoders.base import PosteriorNetwork


class TemporalDecoderAutoencoder(PosteriorNetwork):
    """An `AutoencoderKLTemporalDecoder`; each image is decoded as a video of one frame."""

    family = "AutoencoderKLTemporalDecoder"

    def _decode(self, latents: torch.Tensor) -> torch.Tensor:
        pixels: torch.Tensor = self.module.decode(latents, num_frames=1).sample
        return pixels
