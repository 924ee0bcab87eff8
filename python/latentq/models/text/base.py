"""What the families of text encoders share."""

from __future__ import annotations

import pickle
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, Self

import torch
from safetensors import SafetensorError

from latentq.models.text.interface import Embeddings

UNLOADABLE = (
    OSError, ValueError, RuntimeError, TypeError, KeyError, AssertionError, EOFError, ImportError,
    pickle.UnpicklingError, SafetensorError,
)  # fmt: skip


"""What the libraries raise where a model's files are broken, or not what they say."""


class TextNetwork(ABC):
    """A torch module that makes embeddings of captions; its weights are float32, and it learns nothing.

    Attributes:
        family: The class that implements it, for the card.
        name: The hub name, or the last part of the path.
        module: The torch module.
        length: L, the tokens of every caption, padding included.
        width: D, the numbers of a token's embedding.
        pooled_width: P, the numbers of the pooled embedding; 0 where there is none.
        masked: Whether it gives an attention mask.
    """

    family: ClassVar[str]
    masked: bool

    def __init__(
        self, module: torch.nn.Module, name: str, *, length: int, longest: int, width: int, pooled_width: int = 0
    ) -> None:
        self.module: Any = module.eval().requires_grad_(False)
        self.name = name
        self.length = length or longest
        self.width = width
        self.pooled_width = pooled_width
        if not 0 < self.length <= longest:
            raise ValueError(f"text encoder {name} takes captions of 1 to {longest} tokens, not {self.length}")

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        place: torch.device = next(self.module.parameters()).device
        return place

    def to(self, device: str | torch.device) -> Self:
        """This encoder, its weights moved to a device."""
        self.module.to(device)
        return self

    @abstractmethod
    def encode(self, captions: Sequence[str]) -> Embeddings:
        """B captions to their embeddings."""
