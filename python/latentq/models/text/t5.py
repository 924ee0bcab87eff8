"""transformers' T5 encoders: those of DeepFloyd IF, PixArt, SD 3 and Flux."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from latentq._core import LatentqError
from latentq.models.text.base import TextNetwork
from latentq.models.text.interface import Embeddings

_UNLIMITED = 1 << 20  # of tokens: a tokenizer's own way to say that it does not know


class T5Text(TextNetwork):
    """A `T5EncoderModel`. It has no pooled embedding, and sees no padding.

    T5 itself has no longest caption: it is the tokenizer's `model_max_length`, and a longer one may be asked for.
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
        """B captions to (B, L, D) and (B, L)."""
        tokens = self._tokenizer(
            list(captions), padding="max_length", max_length=self.length, truncation=True, return_tensors="pt"
        ).to(self.device)
        output = self.module(input_ids=tokens.input_ids, attention_mask=tokens.attention_mask)
        return Embeddings(output.last_hidden_state.float(), tokens.attention_mask.to(torch.uint8))
