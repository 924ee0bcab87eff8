"""`AsymmetricAutoencoderKL` of diffusers: the VAE of Stable Diffusion with a larger decoder, for inpainting."""

from __future__ import annotations

from latentq.models.autoencoders.base import PosteriorNetwork


class AsymmetricAutoencoder(PosteriorNetwork):
    """An `AsymmetricAutoencoderKL`; it decodes without a mask."""

    family = "AsymmetricAutoencoderKL"
    _widths = "down_block_out_channels"
