"""T5 encoders of transformers: those of DeepFloyd IF, PixArt, SD 3 and Flux."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from latentq._core import LatentqError
from latentq.models.device import send
from latentq.models.text.base import TextNetwork
from latentq.models.text.interface import Embeddings

_UNLIMITED = 1 << 20  # tokens; tokenizers set an even larger number if they do not know their maximum


class T5Text(TextNetwork):
    """A `T5EncoderModel`. It has no pooled embedding, and its attention skips padding.

    T5 itself has no maximal length: the default is the tokenizer's `model_max_length`, and a longer one is allowed.
    """

    family = "T5EncoderModel"
    masked = True

    def __init__(self, module: Any, tokenizer: Any, name: str, *, length: int) -> None:
        longest = int(min(tokenizer.model_max_length, _UNLIMITED))
        if not length and longest == _UNLIMITED:
            raise LatentqError(f"text encoder {name} does not say how many tokens a caption has: give a length")
        super().__init__(module, name, length=length, longest=max(length, longest), width=module.config.d_model)
        self._tokenizer = tokenizer

    @torch.no_grad()
    def encode(self, captions: Sequence[str]) -> Embeddings:
        """Embeds B captions: (B, L, D) and mask (B, L)."""
        tokens = self._tokenizer(
            list(captions), padding="max_length", max_length=self.length, truncation=True, return_tensors="pt"
        )
        mask = send(tokens.attention_mask, self.device)
        output = self.module(input_ids=send(tokens.input_ids, self.device), attention_mask=mask)
        return Embeddings(output.last_hidden_state.float(), mask.to(torch.uint8))
