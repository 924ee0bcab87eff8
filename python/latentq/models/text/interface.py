"""What encoding needs of a text encoder."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple, Protocol, runtime_checkable

if TYPE_CHECKING:
    import torch

OPEN_CLIP = "openclip:"
"""The prefix of open_clip's model names."""


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
