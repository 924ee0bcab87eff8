"""`AutoencoderKL` of diffusers: the VAEs of Stable Diffusion 1 to 3, SDXL, Flux and many others."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from latentq.format.normalization import Normalization
from latentq.models.autoencoders.base import PosteriorNetwork

_DEFAULT_SCALING = 0.18215  # of the class in diffusers


class KLAutoencoder(PosteriorNetwork):
    """An `AutoencoderKL`."""

    family = "AutoencoderKL"

    def _normalization(self, module: Any) -> Normalization:
        """Returns the normalization that the pipeline of the model computes.

        SDXL's, which Playground 2.5 uses, takes `scaling_factor` next to mean and std. GLM-Image's does not: its
        configuration has the default of the class there.
        """
        normalization = super()._normalization(module)
        is_default = normalization.factor == _DEFAULT_SCALING and module.config.latent_channels != 4
        return replace(normalization, factor=1.0) if len(normalization.std) > 1 and is_default else normalization
