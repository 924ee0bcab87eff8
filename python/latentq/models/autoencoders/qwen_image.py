"""`AutoencoderKLQwenImage` and `AutoencoderKLQwenImage21` of diffusers: the VAEs of Qwen-Image."""

from __future__ import annotations

from typing import Any

import torch

from latentq.models.autoencoders.base import PosteriorNetwork


class QwenImageAutoencoder(PosteriorNetwork):
    """An `AutoencoderKLQwenImage`. With four input channels (Qwen-Image-Layered), images are encoded as opaque RGBA."""

    family = "AutoencoderKLQwenImage"
    _has_frames = True

    def _geometry(self, config: Any) -> tuple[int, int]:
        return config.z_dim, 2 ** len(config.temperal_downsample)

    def _encode(self, pixels: torch.Tensor) -> Any:
        if self._has_alpha:
            pixels = torch.cat([pixels, torch.ones_like(pixels[:, :1])], 1)
        return super()._encode(pixels)

    def _decode(self, latents: torch.Tensor) -> torch.Tensor:
        return super()._decode(latents)[:, :3]

    @property
    def _has_alpha(self) -> bool:
        return bool(self.module.config.input_channels == 4)


class QwenImage21Autoencoder(QwenImageAutoencoder):
    """An `AutoencoderKLQwenImage21`, which later versions of diffusers than 0.39 have: images are opaque RGBA."""

    family = "AutoencoderKLQwenImage21"

    def _geometry(self, config: Any) -> tuple[int, int]:
        return config.z_dim, 2 ** (len(config.dim_mult) - 1) * (config.patch_size or 1)

    @property
    def _has_alpha(self) -> bool:
        return bool(self.module.config.in_channels == 4 * (self.module.config.patch_size or 1) ** 2)
