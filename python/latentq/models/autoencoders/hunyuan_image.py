"""The VAEs of HunyuanImage in diffusers, `AutoencoderKLHunyuanImage` and that of its refiner."""

from __future__ import annotations

from latentq.models.autoencoders.base import PosteriorNetwork


class HunyuanImageAutoencoder(PosteriorNetwork):
    """An `AutoencoderKLHunyuanImage`."""

    family = "AutoencoderKLHunyuanImage"


class HunyuanImageRefinerAutoencoder(PosteriorNetwork):
    """An `AutoencoderKLHunyuanImageRefiner`; an image is a video of one frame.

    The refiner's transformer takes the latents of that frame twice, one after the other along the channels.
    """

    family = "AutoencoderKLHunyuanImageRefiner"
    _has_frames = True
