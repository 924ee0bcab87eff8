"""Embeddings of captions in other tools' data: the columns that hold them, if all have one shape."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import prod
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from latentq.converting.incoming import FloatKind, ForeignTextEncoder
from latentq.format.options import Column

EMBEDDING: Final = "caption_embedding"
POOLED: Final = "pooled_embedding"
MASK: Final = "attention_mask"
_MOST = 1 << 28  # numbers in an embedding


@dataclass
class Embeddings:
    """The embeddings of a folder's captions, whose shapes are known once the samples are listed.

    Attributes:
        encoder: The text encoder's name, for the card.
        embedding: (tokens, width) and dtype of the first caption's embedding.
        pooled: The size and dtype of the first caption's pooled embedding; None if there is none.
        masked: True if there are attention masks.
        kept: False if a caption's embeddings have another shape or are missing; then none are converted.
    """

    encoder: str
    embedding: tuple[tuple[int, int], FloatKind]
    pooled: tuple[int, FloatKind] | None = None
    masked: bool = False
    kept: bool = field(default=True)

    def columns(self) -> dict[str, Column]:
        """Returns the columns."""
        columns = {EMBEDDING: Column(EMBEDDING, quantizer={"kind": self.embedding[1]})}
        if self.masked:
            columns[MASK] = Column(MASK)
        if self.pooled:
            columns[POOLED] = Column(POOLED, quantizer={"kind": self.pooled[1]})
        return columns

    def text_encoder(self) -> ForeignTextEncoder:
        """Returns the text encoder."""
        (length, width), _ = self.embedding
        return ForeignTextEncoder(self.encoder, length, width, self.pooled[0] if self.pooled else 0, self.masked)

    def check(self, embedding: tuple[Any, ...] | None, pooled: tuple[Any, ...] | None) -> None:
        """Compares a sample's embeddings with the first ones.

        Args:
            embedding: (tokens, width) and dtype, or None.
            pooled: Size and dtype, or None.
        """
        if embedding != self.embedding or pooled != self.pooled:
            self.kept = False

    def drop(self, columns: dict[str, Column], notes: list[str]) -> None:
        """Removes the columns again if the embeddings have several shapes, and notes it."""
        if not self.kept:
            for name in (EMBEDDING, MASK, POOLED):
                columns.pop(name, None)
            notes.append("embeddings of captions have several shapes or are missing, and are not converted")


def fits(shape: tuple[int, int]) -> bool:
    """True if an embedding is small enough to be one."""
    return 0 < prod(shape) <= _MOST


def one_caption(arrays: NDArray[Any]) -> NDArray[Any]:
    """Returns embeddings (n, ...) of one caption per sample, (n, 1, ...)."""
    return np.expand_dims(arrays, 1)
