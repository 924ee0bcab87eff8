"""The protocol that encoding expects of a text encoder."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple, Protocol, runtime_checkable

if TYPE_CHECKING:
    import torch

OPEN_CLIP = "openclip:"  # the prefix of open_clip's model names


class Embeddings(NamedTuple):
    """The output of a text encoder for B captions, each padded or truncated to L tokens.

    Attributes:
        embedding: (B, L, D) float32: the last hidden state at every position.
        mask: (B, L) uint8: 1 for a token of the caption, 0 for padding; None if the encoder returns no mask.
        pooled: (B, P) float32: one vector per caption; None if the encoder has none.
    """

    embedding: torch.Tensor
    mask: torch.Tensor | None = None
    pooled: torch.Tensor | None = None


@runtime_checkable
class TextEncoder(Protocol):
    """The protocol that `latentq.encode` needs; any object that has these attributes and methods will do.

    Attributes:
        name: The name for the card.
        length: L, the number of tokens of every caption, padding included.
        width: D, the size of a token's embedding.
        pooled_width: P, the size of the pooled embedding; 0 if there is none.
        masked: True if it returns an attention mask.
    """

    name: str
    length: int
    width: int
    pooled_width: int
    masked: bool

    def encode(self, captions: Sequence[str]) -> Embeddings:
        """Embeds B captions; the result is on the encoder's own device.

        Args:
            captions: B captions.
        """
        ...
