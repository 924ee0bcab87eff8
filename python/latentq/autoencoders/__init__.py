"""Autoencoders: pixels to latents and back. One file for each family; torch is imported only when one is loaded."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from latentq._core import LatentqError

if TYPE_CHECKING:
    import torch

DEFAULT = "dct-f8c16"


@runtime_checkable
class Autoencoder(Protocol):
    """What `latentq.encode` needs of a network; any object with these will do.

    Some have more: a `Posterior` or a `Tokenizer` is one of these too; `shift_factor` (0.0 where it is absent) is taken
    from latents before they are scaled: (z - shift_factor) * scaling_factor. Ours also have `family`, the class for the
    card, `module`, the torch module, and `to(device)`.

    Attributes:
        name: What the card calls it.
        scaling_factor: What its latents are multiplied by for training, so that they have about unit variance.
        pixel_range: The pixel values that stand for black and white, e.g. (-1.0, 1.0).
    """

    name: str
    scaling_factor: float
    pixel_range: tuple[float, float]

    def encode(self, pixels: torch.Tensor) -> torch.Tensor:
        """(B, 3, S, S) floats in `pixel_range` to (B, C, h, w) float32 latents, unscaled.

        Of a `Posterior` they are the mean, of a `Tokenizer` what is then quantised to the nearest codes.
        """
        ...

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """(B, C, h, w) latents, unscaled, to (B, 3, S, S) floats, in `pixel_range` but for what overshoots it."""
        ...

    def latent_shape(self, size: int) -> tuple[int, int, int]:
        """(C, h, w) for pictures of size x size pixels. Raises ValueError for a size that it cannot encode."""
        ...


@runtime_checkable
class Posterior(Protocol):
    """An autoencoder whose latents are drawn from a normal distribution."""

    def posterior(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(B, 3, S, S) floats in `pixel_range` to mean and logarithm of the variance, each (B, C, h, w) float32."""
        ...


@runtime_checkable
class Tokenizer(Protocol):
    """An autoencoder with a code book: each place of the latents can be stored as one number.

    Attributes:
        codebook_size: How many codes there are.
    """

    codebook_size: int

    def tokens(self, pixels: torch.Tensor) -> torch.Tensor:
        """(B, 3, S, S) floats in `pixel_range` to (B, h, w) int64; -1 where the latent is NaN or infinite."""
        ...

    def decode_tokens(self, tokens: torch.Tensor) -> torch.Tensor:
        """(B, h, w) whole numbers to (B, 3, S, S) float32 pixels. Raises ValueError for a token that is not a code."""
        ...


def load_autoencoder(
    name: str | os.PathLike[str],
    *,
    device: str | torch.device = "cpu",
    revision: str = "",
    subfolder: str = "",
    pixel_range: Sequence[float] = (),
) -> Autoencoder:
    """An autoencoder by name; its files tell of which family it is.

    Known are diffusers' `AutoencoderKL`, `AutoencoderDC`, `AutoencoderTiny` and `VQModel`, as `save_pretrained` writes
    them, and VQGAN checkpoints of taming-transformers: a `.ckpt` with its `.yaml` beside it. Weights are float32
    whatever they are stored as; to compute in another type is the caller's to ask for, by `torch.autocast`.

    Args:
        name: `dct-f8c16`, a folder, the path of a `.ckpt`, or `owner/name` on the hub.
        device: Where it computes.
        revision: The hub's branch, tag or commit.
        subfolder: Where the model lies inside the folder or repository (`vae` in a whole pipeline).
        pixel_range: Instead of the family's own, for a checkpoint that was trained on another; empty for its own.

    Raises:
        LatentqError: It does not exist, is of a kind that is not known, or needs a package that is not installed; the
            message is one line and says what to do.
    """
    path = Path(name)
    known = path.is_dir() or path.suffix == ".ckpt" or re.fullmatch(r"[\w.-]+/[\w.-]+", str(name))
    if str(name) != DEFAULT and not known:
        raise LatentqError(
            f"no autoencoder {str(name)!r}: it is no folder, no .ckpt, no hub name (owner/name) and not {DEFAULT}"
        )
    try:
        if str(name) == DEFAULT:
            from latentq.autoencoders.dct import DctAutoencoder

            return DctAutoencoder()
        from latentq.autoencoders.loading import load

        network = load(name, revision=revision, subfolder=subfolder)
    except ModuleNotFoundError as error:
        raise LatentqError(f"autoencoder {name} needs {error.name}: pip install 'latentq[encode]'") from None
    if pixel_range:
        network.pixel_range = (pixel_range[0], pixel_range[1])
    return network.to(device)


def subfolder_in(name: str | os.PathLike[str], subfolder: str) -> str:
    """A recipe's sub-folder, where its model lies elsewhere: none in a folder that has none of that name."""
    path = Path(name)
    return "" if path.is_dir() and not (path / subfolder).is_dir() else subfolder


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
