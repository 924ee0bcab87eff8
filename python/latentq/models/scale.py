"""Changes latents between the raw scale, that of the autoencoder, and the scale that models are trained on."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray

from latentq.format.normalization import Normalization

FloatArray = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class ScaleChange:
    """A change of scale: (z - shift) * factor. It is equal only to itself.

    Attributes:
        shift: (C, 1, 1), (1, 1, 1) or (C, h, w).
        factor: The same.
        unshuffle: The side of the blocks of positions that become channels, before the formula; 1 for none.
        shuffle: The side of the blocks of positions that are made of channels, after the formula; 1 for none.
    """

    shift: FloatArray
    factor: FloatArray
    unshuffle: int = 1
    shuffle: int = 1

    @classmethod
    def to_scaled(cls, normalization: Normalization, positions: NDArray[np.float32] | None) -> ScaleChange:
        """Returns the change from raw to scaled latents.

        Args:
            normalization: The normalization.
            positions: float32 (2, C, h, w), the mean and std of each position, if it has `positions`.

        Raises:
            ValueError: The positions are missing, or the normalization has none.
        """
        if bool(normalization.positions) != (positions is not None):
            raise ValueError(f"a normalization with positions {normalization.positions!r} must come with just these")
        if positions is None:
            mean, std = (np.array(values).reshape(-1, 1, 1) for values in (normalization.mean, normalization.std))
        else:
            mean, std = positions.astype(np.float64)
        mean, factor = np.broadcast_arrays(mean, normalization.factor / std)
        return cls(mean, factor, unshuffle=normalization.patchify)

    def inverse(self) -> ScaleChange:
        """Returns the change that undoes this one."""
        return ScaleChange(-self.shift * self.factor, 1 / self.factor, self.shuffle, self.unshuffle)

    @property
    def is_per_channel(self) -> bool:
        """True if it is one shift and factor of each channel, which a quantizer's range can include."""
        return self.unshuffle == self.shuffle == 1 and self.shift.shape[1:] == (1, 1)

    def shape(self, shape: tuple[int, int, int]) -> tuple[int, int, int]:
        """Returns the shape of changed latents for latents of the shape (C, h, w).

        Raises:
            ValueError: Latents of this shape cannot be changed.
        """
        channels, height, width = Normalization(patchify=self.unshuffle).shape(shape)
        expected = self.shift.shape
        if expected[0] not in (1, channels) or expected[1:] not in ((1, 1), (height, width)):
            raise ValueError(f"the normalization has shape {expected}, and latents {(channels, height, width)}")
        return channels // self.shuffle**2, height * self.shuffle, width * self.shuffle

    def __call__(self, latents: torch.Tensor) -> torch.Tensor:
        """Changes (N, C, h, w) float32 latents, on their own device."""
        shift, factor = _on_device(self, latents.device)
        if self.unshuffle > 1:
            latents = torch.nn.functional.pixel_unshuffle(latents, self.unshuffle)
        changed = (latents - shift).mul_(factor)
        return torch.nn.functional.pixel_shuffle(changed, self.shuffle) if self.shuffle > 1 else changed


@lru_cache(maxsize=64)
def _on_device(change: ScaleChange, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns shift and factor in float32 on a device, copied once: each copy would wait for a GPU."""
    shift, factor = (
        torch.tensor(values, dtype=torch.float32, device=device) for values in (change.shift, change.factor)
    )
    return shift, factor
