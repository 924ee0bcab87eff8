"""Autoencoders: pixels to latents and back. One file for each family; torch is imported only when one is loaded."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from latentq._core import LatentqError
from latentq.models.autoencoders.interface import Autoencoder, Posterior, Tokenizer

if TYPE_CHECKING:
    import torch

__all__ = ["DEFAULT", "Autoencoder", "Posterior", "Tokenizer", "load_autoencoder", "subfolder_in"]

DEFAULT = "dct-f8c16"


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
            from latentq.models.autoencoders.dct import DctAutoencoder

            return DctAutoencoder()
        from latentq.models.autoencoders.loading import load

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
