"""Base classes shared by the families of autoencoders."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, ClassVar, Self

import numpy as np
import torch
from numpy.typing import NDArray

from latentq.format.normalization import Normalization


class Network(ABC):
    """A torch module that encodes and decodes, in evaluation mode, without gradients and with float32 weights.

    Attributes:
        family: The name of the class that implements it, for the card.
        name: The name on the Hub, or the last part of the path.
        module: The torch module.
        channels: C of the latents.
        reduction: The number of pixels per latent pixel, along each side.
        normalization: The formula from raw latents to those that models are trained on.
        positions: float32 (2, C, h, w), the mean and std of each position, if the normalization has them; else None.
        pixel_range: The pixel values of black and white.
        note: A line that says what was assumed about a checkpoint; empty if nothing was.
    """

    family: str

    def __init__(
        self,
        module: torch.nn.Module,
        name: str,
        *,
        channels: int,
        reduction: int,
        normalization: Normalization | None = None,
    ) -> None:
        self.module: Any = module.eval().requires_grad_(False)
        self.name = name
        self.channels = channels
        self.reduction = reduction
        self.normalization = normalization or Normalization()
        self.positions: NDArray[np.float32] | None = None
        self.pixel_range: tuple[float, float] = (-1.0, 1.0)
        self.note = ""

    def to(self, device: str | torch.device) -> Self:
        """Moves the weights to a device, in-place."""
        self.module.to(device)
        return self

    def latent_shape(self, size: int) -> tuple[int, int, int]:
        """Returns (C, size / reduction, size / reduction).

        Raises:
            ValueError: The size is not a multiple of the reduction.
        """
        if size < self.reduction or size % self.reduction:
            raise ValueError(f"{self.name} encodes images whose side is a multiple of {self.reduction}, not {size}")
        return self.channels, size // self.reduction, size // self.reduction

    @abstractmethod
    def encode(self, pixels: torch.Tensor) -> torch.Tensor:
        """Encodes (B, 3, S, S) float pixels in `pixel_range` to (B, C, h, w) float32 raw latents."""

    @torch.no_grad()
    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """Decodes (B, C, h, w) raw latents to (B, 3, S, S) float32 pixels."""
        pixels: torch.Tensor = self.module.decode(latents.float()).sample
        return pixels.float()


class DiffusersNetwork(Network):
    """An autoencoder of diffusers; its module's `config` says everything that a family needs."""

    _widths: ClassVar[str] = "block_out_channels"  # the config's list of one width per resolution
    _has_frames: bool = False  # True for a video autoencoder: an image is a video of one frame

    @staticmethod
    def loading() -> AbstractContextManager[None]:
        """Returns the context that diffusers must load the module in."""
        return nullcontext()

    def __init__(self, module: Any, name: str) -> None:
        channels, reduction = self._geometry(module.config)
        super().__init__(
            module, name, channels=channels, reduction=reduction, normalization=self._normalization(module)
        )

    def _geometry(self, config: Any) -> tuple[int, int]:
        """Returns the channels of latents, and the number of pixels per latent pixel along each side."""
        reduction = config.get("spatial_compression_ratio") or 2 ** (len(config[self._widths]) - 1)
        return config.get("vq_embed_dim") or config.latent_channels, reduction

    def _normalization(self, module: Any) -> Normalization:
        """Returns the normalization that the module's configuration gives, or its buffers of the same names."""
        buffers = dict(module.named_buffers())
        found = {key: buffers[key].tolist() for key in ("latents_mean", "latents_std") if key in buffers}
        return normalization_from({**module.config, **found})

    def _encode(self, pixels: torch.Tensor) -> Any:
        """Calls the module's `encode` on (B, 3, S, S) pixels."""
        return self.module.encode(pixels.float().unsqueeze(2) if self._has_frames else pixels.float())

    def _image(self, tensor: torch.Tensor) -> torch.Tensor:
        """Returns latents or pixels of the module as (B, C, h, w) float32, without the axis of frames."""
        return (tensor.squeeze(2) if self._has_frames else tensor).float()

    @torch.no_grad()
    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """Decodes (B, C, h, w) raw latents to (B, 3, S, S) float32 pixels."""
        latents = latents.float()
        return self._image(self._decode(latents.unsqueeze(2) if self._has_frames else latents))

    def _decode(self, latents: torch.Tensor) -> torch.Tensor:
        """Calls the module's `decode`."""
        pixels: torch.Tensor = self.module.decode(latents).sample
        return pixels


class PosteriorNetwork(DiffusersNetwork):
    """An autoencoder of diffusers with a normal posterior."""

    @torch.no_grad()
    def posterior(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Encodes (B, 3, S, S) float pixels in [-1, 1] to mean and log-variance, each (B, C, h, w) float32."""
        distribution = self._encode(pixels).latent_dist
        return self._image(distribution.mean), self._image(distribution.logvar)

    def encode(self, pixels: torch.Tensor) -> torch.Tensor:
        """Encodes (B, 3, S, S) float pixels in [-1, 1] to the posterior's mean, (B, C, h, w) float32."""
        return self.posterior(pixels)[0]


def normalization_from(config: Mapping[str, Any]) -> Normalization:
    """Returns the normalization of a configuration, as the pipelines of diffusers compute it.

    With `latents_mean` and `latents_std` it is (z - mean) * scaling_factor / std, and `shift_factor` is unused; without
    them (z - shift_factor) * scaling_factor. What is missing changes nothing.

    Args:
        config: The configuration.
    """
    factor = float(config.get("scaling_factor") or 1.0)
    mean, std = config.get("latents_mean"), config.get("latents_std")
    if mean is None or std is None:
        return Normalization(factor, (float(config.get("shift_factor") or 0.0),))
    return Normalization(factor, tuple(map(float, mean)), tuple(map(float, std)))
