"""`AutoencoderKLWan` of diffusers: the VAEs of Wan 2.1 and 2.2, also used by Cosmos 2, FIBO and JoyImage."""

from __future__ import annotations

from typing import Any

from latentq.models.autoencoders.base import PosteriorNetwork


class WanAutoencoder(PosteriorNetwork):
    """An `AutoencoderKLWan`; an image is a video of one frame."""

    family = "AutoencoderKLWan"
    _has_frames = True

    def _geometry(self, config: Any) -> tuple[int, int]:
        return config.z_dim, 2 ** (len(config.dim_mult) - 1) * (config.get("patch_size") or 1)
