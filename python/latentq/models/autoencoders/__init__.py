"""Autoencoders: pixels to latents and back. One file per family; torch is imported only when one is loaded."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from latentq._core import LatentqError
from latentq.format.normalization import Normalization
from latentq.models.autoencoders.interface import Autoencoder, Posterior, Tokenizer
from latentq.models.hub import CHECKPOINTS
from latentq.system.extras import missing_package

if TYPE_CHECKING:
    import torch

__all__ = ["DEFAULT", "Autoencoder", "Normalization", "Posterior", "Tokenizer", "load_autoencoder", "subfolder_in"]

DEFAULT = "dct-f8c16"


def load_autoencoder(
    name: str | os.PathLike[str],
    *,
    device: str | torch.device = "cpu",
    revision: str = "",
    subfolder: str = "",
    pixel_range: Sequence[float] = (),
) -> Autoencoder:
    """Loads an autoencoder; its family follows from its files.

    Supported are the autoencoders of diffusers, as `save_pretrained` writes them; VQGAN checkpoints of
    taming-transformers, a `.ckpt` with its `.yaml` next to it, or vqgan-jax's `flax_model.msgpack` with its
    `config.json`; and checkpoints of VA-VAE, MAR, LlamaGen and MaskGIT, which need no configuration. If something about
    an autoencoder had to be assumed, its `note` says so. Weights are cast to float32; to compute in another dtype, the
    caller uses `torch.autocast`.

    Args:
        name: `dct-f8c16`, a folder, the path of a checkpoint, `owner/name` on the Hub, or `owner/name/file` for one of
            several checkpoints there.
        device: The device to compute on.
        revision: The Hub's branch, tag or commit.
        subfolder: The model's folder inside the folder or repository (`vae` in a pipeline).
        pixel_range: The pixel values of black and white, for a checkpoint that was trained on another range than its
            family's; empty for the family's.

    Raises:
        LatentqError: The autoencoder does not exist, is of an unknown family, or needs a package that is not installed;
            the message is one line and says what to do.
    """
    path = Path(name)
    plausible = path.is_dir() or path.suffix in CHECKPOINTS or re.fullmatch(r"[\w.-]+/[\w.-]+", str(name))
    if str(name) != DEFAULT and not plausible:
        raise LatentqError(
            f"no autoencoder {str(name)!r}: it is no folder, no checkpoint ({', '.join(CHECKPOINTS)}), no Hub name "
            f"(owner/name) and not {DEFAULT}"
        )
    try:
        if str(name) == DEFAULT:
            from latentq.models.autoencoders.dct import DctAutoencoder

            return DctAutoencoder()
        from latentq.models.autoencoders.loading import load

        network = load(name, revision=revision, subfolder=subfolder)
    except ModuleNotFoundError as error:
        raise missing_package(error, f"autoencoder {name}") from None
    if pixel_range:
        network.pixel_range = (pixel_range[0], pixel_range[1])
    return network.to(device)


def subfolder_in(name: str | os.PathLike[str], subfolder: str) -> str:
    """Returns the subfolder of a recipe's model, or an empty string if `name` is a folder without that subfolder."""
    path = Path(name)
    return "" if path.is_dir() and not (path / subfolder).is_dir() else subfolder
