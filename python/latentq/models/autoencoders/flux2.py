"""`AutoencoderKLFlux2` of diffusers: the VAE of FLUX.2, also used by ERNIE-Image, Ideogram 4 and FIBO 2."""

from __future__ import annotations

from typing import Any

import torch

from latentq.format.normalization import Normalization
from latentq.models.autoencoders.base import PosteriorNetwork


class Flux2Autoencoder(PosteriorNetwork):
    """An `AutoencoderKLFlux2`: latents are scaled in 2 x 2 patches, by the statistics of its batch norm."""

    family = "AutoencoderKLFlux2"

    def _normalization(self, module: Any) -> Normalization:
        """Returns the normalization by the running statistics of `bn`."""
        std = torch.sqrt(module.bn.running_var.float() + module.config.batch_norm_eps)
        mean = module.bn.running_mean.float()
        return Normalization(
            mean=tuple(mean.tolist()), std=tuple(std.tolist()), patchify=int(module.config.patch_size[0])
        )
