"""Decodes latents to pixels."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from latentq._core import LatentqError
from latentq.models.autoencoders import Autoencoder

if TYPE_CHECKING:
    import torch


def decode_latents(network: Autoencoder, latents: NDArray[np.float32] | torch.Tensor) -> NDArray[np.uint8]:
    """Decodes latents or tokens to 8-bit pixels.

    Args:
        network: The autoencoder.
        latents: (n, C, h, w) raw latents, or (n, h, w) integer tokens, on any device.

    Returns:
        (n, S, S, 3) uint8 pixels, rounded to nearest.

    Raises:
        LatentqError: Tokens are given to an autoencoder without a codebook.
    """
    import torch

    from latentq.models.device import device_of
    from latentq.models.precision import fixed_arithmetic

    low, high = network.pixel_range
    stored = torch.as_tensor(latents, device=device_of(network))
    decode: Any = network.decode if stored.is_floating_point() else getattr(network, "decode_tokens", None)
    if decode is None:
        raise LatentqError(f"{network.name} has no codebook, so it cannot decode tokens")
    with torch.no_grad(), fixed_arithmetic():
        pixels = decode(stored)
    levels = ((pixels.float() - low) * (255 / (high - low))).round().clamp(0, 255)
    array: NDArray[np.uint8] = levels.to(torch.uint8).permute(0, 2, 3, 1).contiguous().cpu().numpy()
    return array
