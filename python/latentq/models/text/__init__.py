"""Text encoders: captions to embeddings. One file for each family; torch is imported only when one is loaded."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

from latentq._core import LatentqError
from latentq.models.text.interface import OPEN_CLIP, Embeddings, TextEncoder

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
    """A text encoder by name; its files tell of which family it is.

    Known are transformers' CLIP text models and T5 encoders, alone in a folder or repository with their tokenizer or
    in a diffusers pipeline (`text_encoder` beside `tokenizer`), and the text towers of open_clip's models. Weights are
    float32 whatever they are stored as; to compute in another type is the caller's to ask for, by `torch.autocast`.

    Args:
        name: A folder, or `owner/name` on the hub; for open_clip `openclip:FOLDER` or `openclip:hf-hub:owner/name`.
        device: Where it computes.
        revision: The hub's branch, tag or commit.
        subfolder: Of a pipeline's several encoders, another than `text_encoder`: `text_encoder_2`, say.
        length: How many tokens a caption is padded or cut to; 0 for as many as the model takes.

    Raises:
        LatentqError: It does not exist, is of a kind that is not known, or needs a package that is not installed; the
            message is one line and says what to do.
        ValueError: It takes fewer tokens.
    """
    text = os.fspath(name)
    bare = text.removeprefix(OPEN_CLIP).removeprefix("hf-hub:").removeprefix("local-dir:")
    if not Path(bare).is_dir() and not re.fullmatch(_HUB_NAME, bare):
        raise LatentqError(
            f"no text encoder {text!r}: it is no folder and no hub name (owner/name, of open_clip {OPEN_CLIP}...)"
        )
    try:
        if text.startswith(OPEN_CLIP):
            from latentq.models.text.open_clip import OpenClipText

            return OpenClipText.load(bare, revision=revision, length=length).to(device)
        from latentq.models.text.loading import load

        return load(bare, revision=revision, subfolder=subfolder, length=length).to(device)
    except ModuleNotFoundError as error:
        raise LatentqError(f"text encoder {text} needs {error.name}: pip install 'latentq[text]'") from None
