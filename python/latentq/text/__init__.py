"""Text encoders: captions to embeddings. One file for each family; torch is imported only when one is loaded."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Protocol, runtime_checkable

from latentq._core import LatentqError

if TYPE_CHECKING:
    import torch

OPEN_CLIP = "openclip:"
"""What the names of open_clip's models begin with."""

_HUB_NAME = r"[\w.-]+/[\w.-]+"


class Embeddings(NamedTuple):
    """What a text encoder makes of B captions, each padded or cut to L tokens.

    Attributes:
        embedding: (B, L, D) float32: the last hidden state, at every position.
        mask: (B, L) uint8: 1 where a token is the caption's, 0 where it is padding; None where the encoder has none.
        pooled: (B, P) float32: one vector for a caption; None where the encoder has none.
    """

    embedding: torch.Tensor
    mask: torch.Tensor | None = None
    pooled: torch.Tensor | None = None


@runtime_checkable
class TextEncoder(Protocol):
    """What `latentq.encode` needs of a text encoder; any object with these will do.

    Attributes:
        name: What the card calls it.
        length: L, the tokens of every caption, padding included.
        width: D, the numbers of a token's embedding.
        pooled_width: P, the numbers of the pooled embedding; 0 where there is none.
        masked: Whether it gives an attention mask.
    """

    name: str
    length: int
    width: int
    pooled_width: int
    masked: bool

    def encode(self, captions: Sequence[str]) -> Embeddings:
        """B captions to their embeddings, on the encoder's own device."""
        ...


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
            from latentq.text.open_clip import OpenClipText

            return OpenClipText.load(bare, revision=revision, length=length).to(device)
        from latentq.text.loading import load

        return load(bare, revision=revision, subfolder=subfolder, length=length).to(device)
    except ModuleNotFoundError as error:
        raise LatentqError(f"text encoder {text} needs {error.name}: pip install 'latentq[text]'") from None
