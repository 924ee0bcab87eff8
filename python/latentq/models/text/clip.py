"""CLIP text models of transformers: those of Stable Diffusion 1 to 3, SDXL and Flux, and of OpenAI's CLIP."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from latentq.models.device import send
from latentq.models.text.base import TextNetwork
from latentq.models.text.interface import Embeddings


class ClipText(TextNetwork):
    """A `CLIPTextModel`, or a `CLIPTextModelWithProjection`, whose pooled embedding is the projected one.

    The attention mask says which tokens are padding. The model does not use it, as in diffusers' pipelines: its
    attention is causal, and no token sees those after it.
    """

    family = "CLIPTextModel"
    masked = True

    def __init__(self, module: Any, tokenizer: Any, name: str, *, length: int) -> None:
        config = module.config
        self._projected = hasattr(module, "text_projection")
        super().__init__(
            module,
            name,
            length=length,
            longest=config.max_position_embeddings,
            width=config.hidden_size,
            pooled_width=config.projection_dim if self._projected else config.hidden_size,
        )
        self._tokenizer = tokenizer

    @torch.no_grad()
    def encode(self, captions: Sequence[str]) -> Embeddings:
        """Embeds B captions: (B, L, D), mask (B, L) and pooled (B, P)."""
        tokens = self._tokenizer(
            list(captions), padding="max_length", max_length=self.length, truncation=True, return_tensors="pt"
        )
        output = self.module(send(tokens.input_ids, self.device))
        pooled = output.text_embeds if self._projected else output.pooler_output
        mask = send(tokens.attention_mask.to(torch.uint8), self.device)
        return Embeddings(output.last_hidden_state.float(), mask, pooled.float())
