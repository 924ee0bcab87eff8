"""An autoencoder of diffusers that is of none of the families: used by trying what its class can do."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from latentq._core import LatentqError
from latentq.models.autoencoders.base import DiffusersNetwork, PosteriorNetwork
from latentq.system.faults import is_machine_fault
from latentq.system.text import counted, one_line

_SIDE = 64  # pixels of the image that is tried
_NO_MEMORY = "can't allocate memory"  # in torch's error on the CPU


class _Trial(NamedTuple):
    """The result of trying a class on one image.

    Attributes:
        has_frames: True if the image must be a video of one frame.
        has_posterior: True if it gave a normal posterior.
        channels: C of its latents.
        reduction: The number of pixels per latent pixel, along each side.
    """

    has_frames: bool
    has_posterior: bool
    channels: int
    reduction: int


class GenericAutoencoder(DiffusersNetwork):
    """An autoencoder of an unknown class; `note` says what was assumed about it."""

    def __init__(self, module: Any, name: str, trial: _Trial) -> None:
        self.family = type(module).__name__
        self._has_frames = trial.has_frames
        self._trial = trial
        super().__init__(module, name)
        frames = "an image as a video of one frame, " if trial.has_frames else ""
        self.note = (
            f"{name} is of class {self.family}, which latentq does not know; assumed are pixels from -1 to 1, {frames}"
            f"latents of {counted(trial.channels, 'channel')} for {trial.reduction} x {trial.reduction} pixels each, "
            f"and for scaled latents {self.normalization.formula}"
        )

    def _geometry(self, config: Any) -> tuple[int, int]:  # noqa: ARG002  (every class has names of its own there)
        return self._trial.channels, self._trial.reduction

    @torch.no_grad()
    def encode(self, pixels: torch.Tensor) -> torch.Tensor:
        """Encodes (B, 3, S, S) float pixels in [-1, 1] to (B, C, h, w) float32 latents, the mode of a posterior."""
        return self._image(_latents(self._encode(pixels)))


class GenericPosterior(GenericAutoencoder, PosteriorNetwork):
    """An autoencoder of an unknown class with a normal posterior."""


def generic(module: Any, name: str) -> GenericAutoencoder:
    """Returns an autoencoder of an unknown class.

    Args:
        module: The module of diffusers.
        name: The autoencoder's name.

    Raises:
        LatentqError: It does not encode an image to one latent, or does not decode that to an image of the same size.
    """
    module.eval()
    reasons = []
    for has_frames in (False, True):
        try:
            trial = _try(module, has_frames=has_frames)
        except Exception as error:  # each class refuses in its own way
            if is_machine_fault(error) or _NO_MEMORY in str(error):
                raise
            reasons.append(one_line(error))
            continue
        return (GenericPosterior if trial.has_posterior else GenericAutoencoder)(module, name, trial)
    raise LatentqError(
        f"{name} is of class {type(module).__name__}, which latentq does not know, and which cannot be used as an "
        f"autoencoder of images: {reasons[0]}; nor with a video of one frame: {reasons[1]}"
    )


@torch.no_grad()
def _try(module: Any, *, has_frames: bool) -> _Trial:
    pixels = torch.zeros(1, 3, _SIDE, _SIDE)
    output = module.encode(pixels.unsqueeze(2) if has_frames else pixels)
    latents = _latents(output)
    decoded = module.decode(latents).sample
    shape, frames = tuple(latents.shape), (1,) * has_frames
    if len(shape) != 4 + has_frames or shape[2:-2] != frames or shape[-1] != shape[-2] or _SIDE % shape[-1]:
        raise ValueError(f"its latents have shape {shape}")
    if tuple(decoded.shape) != (1, 3, *frames, _SIDE, _SIDE):
        raise ValueError(f"decoded latents have shape {tuple(decoded.shape)}")
    has_posterior = hasattr(getattr(output, "latent_dist", None), "logvar")
    return _Trial(has_frames, has_posterior, shape[1], _SIDE // shape[-1])


def _latents(output: Any) -> torch.Tensor:
    """Returns the latents of diffusers' `encode`, which each class names differently."""
    if hasattr(output, "latent_dist"):
        latents: torch.Tensor = output.latent_dist.mode()
    else:
        latents = output.latent if hasattr(output, "latent") else output.latents
    return latents
