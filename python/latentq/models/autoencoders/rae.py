"""`AutoencoderRAE` of diffusers: representation autoencoders, a frozen DINOv2, SigLIP 2 or MAE with a ViT decoder."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray

from latentq._core import LatentqError
from latentq.format.normalization import Normalization, positions_bytes, positions_hash
from latentq.models.autoencoders.base import DiffusersNetwork
from latentq.models.scale import ScaleChange

_EPSILON = 1e-5  # that the module adds to std


class RaeAutoencoder(DiffusersNetwork):
    """An `AutoencoderRAE`: it takes pixels in [0, 1], and encodes images of one size alone.

    The module scales latents itself, mostly by a mean and std of each position. Here `encode` returns the features of
    the frozen encoder, and `normalization` is how the module scales them.
    """

    family = "AutoencoderRAE"

    @staticmethod
    def loading() -> AbstractContextManager[None]:
        """Skips the initializers of transformers 4: they fail, because diffusers has replaced those of torch."""
        import transformers.modeling_utils

        skipped: Any = getattr(transformers.modeling_utils, "no_init_weights", nullcontext)
        return cast("AbstractContextManager[None]", skipped())

    def __init__(self, module: Any, name: str) -> None:
        if not module.config.reshape_to_2d:
            raise LatentqError(f"{name}: reshape_to_2d is false, and its latents are no (C, h, w)")
        self._size = int(module.decoder_image_size)
        super().__init__(module, name)
        self.positions = _positions(module) if self.normalization.positions else None
        self.pixel_range = (0.0, 1.0)
        self._to_scaled = ScaleChange.to_scaled(self.normalization, self.positions)
        self._to_raw = self._to_scaled.inverse()

    def _geometry(self, config: Any) -> tuple[int, int]:
        return config.encoder_hidden_size, config.patch_size

    def _normalization(self, module: Any) -> Normalization:
        positions = _positions(module)
        factor = float(module.config.scaling_factor)
        if (positions == positions[..., :1, :1]).all():
            mean, std = positions[..., 0, 0].tolist()
            return Normalization(factor, tuple(mean), tuple(std))
        return Normalization(factor, positions=positions_hash(positions_bytes(positions)))

    def latent_shape(self, size: int) -> tuple[int, int, int]:
        """Returns (C, h, w).

        Raises:
            ValueError: The size is not that of the decoder's images.
        """
        if size != self._size:
            raise ValueError(f"{self.name} encodes images of {self._size} x {self._size} pixels, not {size}")
        return super().latent_shape(size)

    @torch.no_grad()
    def encode(self, pixels: torch.Tensor) -> torch.Tensor:
        """Encodes (B, 3, S, S) float pixels in [0, 1] to (B, C, h, w) float32 features, not scaled."""
        return self._to_raw(self._encode(pixels).latent.float())

    def _decode(self, latents: torch.Tensor) -> torch.Tensor:
        return super()._decode(self._to_scaled(latents))


def _positions(module: Any) -> NDArray[np.float32]:
    """Returns float32 (2, C, h, w): the mean and std of each position."""
    side = module.config.encoder_input_size // module.config.encoder_patch_size
    shape = (module.config.encoder_hidden_size, side, side)
    mean, std = (values.float().expand(shape) for values in (module._latents_mean, module._latents_std + _EPSILON))
    positions: NDArray[np.float32] = torch.stack([mean, std]).numpy()
    return positions
