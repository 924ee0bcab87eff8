"""`AutoencoderKLCosmos` of diffusers: the continuous tokenizer of Cosmos 1."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from latentq.format.normalization import Normalization
from latentq.models.autoencoders.base import DiffusersNetwork, normalization_from


class CosmosAutoencoder(DiffusersNetwork):
    """An `AutoencoderKLCosmos`, without a posterior; an image is a video of one frame.

    The pipeline also multiplies by the `sigma_data` of its scheduler, which does not belong to the autoencoder.
    """

    family = "AutoencoderKLCosmos"
    _has_frames = True

    def _normalization(self, module: Any) -> Normalization:
        """Returns the normalization of the first frame: mean and std have a number for each channel and frame."""
        config = dict(module.config)
        for key in ("latents_mean", "latents_std"):
            if config[key] is not None:
                config[key] = np.reshape(config[key], (config["latent_channels"], -1))[:, 0].tolist()
        return normalization_from({**config, "scaling_factor": 1.0})  # the pipeline does not use that factor

    @torch.no_grad()
    def encode(self, pixels: torch.Tensor) -> torch.Tensor:
        """Encodes (B, 3, S, S) float pixels in [-1, 1] to (B, C, h, w) float32 latents."""
        return self._image(self._encode(pixels).latent_dist.mode())
