"""How much a decoded image depends on each channel of a latent: the metric by which a transform is calibrated."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from latentq._core import LatentqError
from latentq.models.scale import ScaleChange

_DIRECTIONS = 2  # random directions of each decoded image


def decoder_metric(
    autoencoder: Any, latents: Sequence[NDArray[np.float32]], to_raw: ScaleChange | None, device: torch.device
) -> NDArray[np.float64]:
    """Returns the mean of g g^T over positions, where g is the gradient of a decoded image along a random direction.

    That is an estimate of J^T J of the decoder, by channel (Hutchinson's), with a fixed seed. Gradients are needed only
    here, and only for the latents.

    Args:
        autoencoder: An autoencoder with `decode`, on `device`.
        latents: Latents (C, h, w), as they are stored.
        to_raw: The change from the stored scale to the autoencoder's own; None if it is the same.
        device: The autoencoder's device.

    Returns:
        (C, C) float64.

    Raises:
        LatentqError: The autoencoder gives no gradients.
    """
    # Networks decode without gradients; `no_grad` keeps the function that it wraps.
    decode = partial(inspect.unwrap(type(autoencoder).decode), autoencoder)
    generator = torch.Generator("cpu").manual_seed(0)
    channels = len(latents[0])
    total, positions = np.zeros((channels, channels)), 0
    for latent in latents:
        with torch.enable_grad():
            z = torch.from_numpy(latent).to(device).unsqueeze(0).requires_grad_()
            image = decode(z if to_raw is None else to_raw(z))
            if not image.requires_grad:
                name = getattr(autoencoder, "name", type(autoencoder).__name__)
                raise LatentqError(f"autoencoder {name} gives no gradients: metric = 'decoder' needs them")
            for _ in range(_DIRECTIONS):
                direction = torch.randn(image.shape, generator=generator, device="cpu").to(device)
                (gradient,) = torch.autograd.grad((image * direction).sum(), z, retain_graph=True)
                g = gradient[0].reshape(channels, -1).double().cpu().numpy()
                total += g @ g.T
                positions += g.shape[1]
    return total / positions
