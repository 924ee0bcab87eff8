"""Autoencoders: pixels to latents and back. One file for each family; torch is imported only when one is loaded."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from latentq._core import LatentqError

if TYPE_CHECKING:
    import torch

DEFAULT = "dct-f8c16"


@runtime_checkable
class Autoencoder(Protocol):
    """What `latentq.encode` needs of a network; any object with these will do.

    Ours also have `family`, `module`, `to`, and `shift_factor`, which is subtracted from latents before they are
    scaled. Where latents are drawn from a distribution, there is `posterior(pixels) -> (mean, logvar)`; where they are
    the indices of a code book, `codebook_size`, `tokens(pixels) -> (B, h, w) int64` and `decode_tokens(tokens)`.

    Attributes:
        name: What the card calls it.
        scaling_factor: What its latents are multiplied by for training, so that they have about unit variance.
        pixel_range: The pixel values that stand for black and white, e.g. (-1.0, 1.0).
    """

    name: str
    scaling_factor: float
    pixel_range: tuple[float, float]

    def encode(self, pixels: torch.Tensor) -> torch.Tensor:
        """(B, 3, S, S) floats in `pixel_range` to (B, C, h, w) latents, unscaled; a posterior's mean."""
        ...

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """(B, C, h, w) latents, unscaled, to (B, 3, S, S) floats, in `pixel_range` but for what overshoots it."""
        ...

    def latent_shape(self, size: int) -> tuple[int, int, int]:
        """(C, h, w) for pictures of size x size pixels. Raises ValueError for a size that it cannot encode."""
        ...


def load_autoencoder(
    name: str | os.PathLike[str],
    *,
    device: str | torch.device = "cpu",
    revision: str = "",
    subfolder: str = "",
) -> Autoencoder:
    """An autoencoder by name: the built-in `dct-f8c16`, a folder of diffusers' `save_pretrained`, or a hub name.

    Args:
        name: `dct-f8c16`, a folder, or `owner/name` on the hub.
        device: Where it computes.
        revision: The hub's branch, tag or commit.
        subfolder: Where the model lies inside the folder or repository (`vae` in a whole pipeline).

    Raises:
        LatentqError: It does not exist, is of a kind that is not known, or needs a package that is not installed; the
            message is one line and says what to do.
    """
    if str(name) != DEFAULT and not Path(name).is_dir() and not re.fullmatch(r"[\w.-]+/[\w.-]+", str(name)):
        raise LatentqError(f"no autoencoder {str(name)!r}: it is no folder, no hub name (owner/name) and not {DEFAULT}")
    if str(name) == DEFAULT:
        try:
            from latentq.autoencoders.dct import DctAutoencoder
        except ModuleNotFoundError:
            raise LatentqError("autoencoders need torch: pip install 'latentq[encode]'") from None
        return DctAutoencoder()
    try:
        from latentq.autoencoders.kl import KLAutoencoder
    except ModuleNotFoundError as error:
        raise LatentqError(f"{name} needs {error.name}: pip install 'latentq[encode]'") from None
    return KLAutoencoder.load(name, revision=revision or None, subfolder=subfolder or None).to(device)


def weight_hash(network: Any) -> str:
    """`sha256:...` over the names, types, shapes and values of a network's tensors, however they were stored.

    Empty for an object without a `state_dict`.
    """
    import hashlib

    module = getattr(network, "module", network)
    if not hasattr(module, "state_dict"):
        return ""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        values = tensor.detach().cpu().contiguous()
        digest.update(f"{name} {values.dtype} {tuple(values.shape)}\n".encode())
        digest.update(values.reshape(-1).view(dtype=_uint8()).numpy())
    return f"sha256:{digest.hexdigest()}"


def _uint8() -> torch.dtype:
    import torch

    return torch.uint8
