"""`AutoencoderKLHunyuanVideo` and `AutoencoderKLHunyuanVideo15` of diffusers."""

from __future__ import annotations

from typing import Any

from latentq.models.autoencoders.base import PosteriorNetwork


class HunyuanVideoAutoencoder(PosteriorNetwork):
    """An `AutoencoderKLHunyuanVideo`, also used by Kandinsky 5; an image is a video of one frame."""

    family = "AutoencoderKLHunyuanVideo"
    _has_frames = True


class HunyuanVideo15Autoencoder(PosteriorNetwork):
    """An `AutoencoderKLHunyuanVideo15`; an image is a video of one frame."""

    family = "AutoencoderKLHunyuanVideo15"
    _has_frames = True

    def __init__(self, module: Any, name: str) -> None:
        super().__init__(module, name)
        module.enable_slicing()  # images one by one: diffusers 0.39 fails on a batch
