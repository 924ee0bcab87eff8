"""Text encoders: captions to embeddings. One file per family; torch is imported only when one is loaded."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

from latentq._core import LatentqError
from latentq.models.text.interface import OPEN_CLIP, Embeddings, TextEncoder
from latentq.system.extras import missing_package

if TYPE_CHECKING:
    import torch

__all__ = ["OPEN_CLIP", "Embeddings", "TextEncoder", "load_text_encoder"]

_HUB_NAME = r"[\w.-]+/[\w.-]+"


def load_text_encoder(
    name: str | os.PathLike[str],
    *,
    device: str | torch.device = "cpu",
    revision: str = "",
    subfolder: str = "",
    length: int = 0,
) -> TextEncoder:
    """Loads a text encoder; its family follows from its files.

    Supported are CLIP text models and T5 encoders of transformers, alone in a folder or repository with their tokenizer
    or in a diffusers pipeline (`text_encoder` next to `tokenizer`), and the text towers of open_clip's models. Weights
    are cast to float32; to compute in another dtype, the caller uses `torch.autocast`.

    Args:
        name: A folder, or `owner/name` on the Hub; for open_clip `openclip:FOLDER` or `openclip:hf-hub:owner/name`.
        device: The device to compute on.
        revision: The Hub's branch, tag or commit.
        subfolder: The encoder's folder in a pipeline, if it is not `text_encoder`: for example `text_encoder_2`.
        length: The number of tokens that a caption is padded or truncated to; 0 for the model's maximum.

    Raises:
        LatentqError: The text encoder does not exist, is of an unknown family, or needs a package that is not
            installed; the message is one line and says what to do.
        ValueError: The model takes fewer tokens than `length`.
    """
    text = os.fspath(name)
    bare = text.removeprefix(OPEN_CLIP).removeprefix("hf-hub:").removeprefix("local-dir:")
    if not Path(bare).is_dir() and not re.fullmatch(_HUB_NAME, bare):
        raise LatentqError(
            f"no text encoder {text!r}: it is no folder and no Hub name (owner/name; for open_clip {OPEN_CLIP}...)"
        )
    try:
        if text.startswith(OPEN_CLIP):
            from latentq.models.text.open_clip import OpenClipText

            return OpenClipText.load(bare, revision=revision, length=length).to(device)
        from latentq.models.text.loading import load

        return load(bare, revision=revision, subfolder=subfolder, length=length).to(device)
    except ModuleNotFoundError as error:
        raise missing_package(error, f"text encoder {text}") from None
