"""The base class shared by the families of text encoders."""

from __future__ import annotations

import pickle
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, Self

import torch
from safetensors import SafetensorError

from latentq.models.text.interface import Embeddings

# The exceptions that the libraries raise for model files that are broken or inconsistent.
UNLOADABLE = (
    OSError, ValueError, RuntimeError, TypeError, KeyError, AssertionError, EOFError, ImportError,
    pickle.UnpicklingError, SafetensorError,
)  # fmt: skip


class TextNetwork(ABC):
    """A torch module that embeds captions, in evaluation mode, without gradients and with float32 weights.

    Attributes:
        family: The name of the class that implements it, for the card.
        name: The name on the Hub, or the last part of the path.
        module: The torch module.
        length: L, the number of tokens of every caption, padding included.
        width: D, the size of a token's embedding.
        pooled_width: P, the size of the pooled embedding; 0 if there is none.
        masked: True if it returns an attention mask.
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
        """The device of the weights."""
        device: torch.device = next(self.module.parameters()).device
        return device

    def to(self, device: str | torch.device) -> Self:
        """Moves the weights to a device, in-place."""
        self.module.to(device)
        return self

    @abstractmethod
    def encode(self, captions: Sequence[str]) -> Embeddings:
        """Embeds B captions."""
