"""The text towers of open_clip's models, including DFN5B-CLIP-ViT-H-14."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from latentq._core import LatentqError
from latentq.models.device import send
from latentq.models.hub import download, matching
from latentq.models.text.base import UNLOADABLE, TextNetwork
from latentq.models.text.interface import OPEN_CLIP, Embeddings
from latentq.models.weights import load_failure
from latentq.store.local import read_regular

_CONFIG = "open_clip_config.json"
# The weights that open_clip looks for, in its order.
_WEIGHTS = (
    "open_clip_model.safetensors", "open_clip_pytorch_model.safetensors", "open_clip_pytorch_model.bin",
    "model.safetensors", "pytorch_model.bin",
)  # fmt: skip
_TOKENIZER = ("tokenizer*", "vocab*", "merges.txt", "special_tokens_map.json", "added_tokens.json")


class _Tower(torch.nn.Module):
    """A CLIP text tower; `forward` returns all hidden states and the pooled embedding."""

    def __init__(self, tower: Any) -> None:
        super().__init__()
        self.token_embedding = tower.token_embedding
        self.positional_embedding = tower.positional_embedding
        self.transformer = tower.transformer
        self.ln_final = tower.ln_final
        self.text_projection = tower.text_projection
        self.register_buffer("attn_mask", tower.attn_mask, persistent=False)

    def forward(self, tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Maps (B, L) tokens to (B, L, D) and (B, P), pooled at the end token, which has the highest number."""
        length = tokens.shape[1]
        mask: Any = self.attn_mask
        states = self.token_embedding(tokens) + self.positional_embedding[:length]
        states = self.transformer(states, attn_mask=None if mask is None else mask[:length, :length])
        states = self.ln_final(states)
        pooled = states[torch.arange(len(tokens), device=tokens.device), tokens.argmax(-1)]
        projection = self.text_projection
        if projection is not None:
            pooled = projection(pooled) if isinstance(projection, torch.nn.Module) else pooled @ projection
        return states, pooled


class OpenClipText(TextNetwork):
    """The text tower of an open_clip model: token and positional embedding, transformer, final layer norm.

    The embedding is the output of the layer norm at all positions, neither pooled nor projected; the pooled embedding
    is the model's own text feature before it is normalized to unit length. The tokenizer pads with zeros and returns
    no mask.
    """

    family = "open_clip"
    masked = False

    def __init__(self, tower: Any, tokenizer: Any, name: str, *, length: int, longest: int, pooled: bool) -> None:
        module = _Tower(tower)
        projection = module.text_projection
        width = module.ln_final.normalized_shape[0]
        pooled_width = width
        if isinstance(projection, torch.nn.Linear):
            pooled_width = projection.out_features
        elif projection is not None:
            pooled_width = projection.shape[1]
        super().__init__(
            module, name, length=length, longest=longest, width=width, pooled_width=pooled_width if pooled else 0
        )
        self._tokenizer = tokenizer

    @classmethod
    def load(cls, name: str, *, revision: str, length: int) -> OpenClipText:
        """Loads the text tower of a model in a folder or on the Hub, onto the CPU.

        Args:
            name: A folder, or the name of a repository on the Hub.
            revision: The Hub's branch, tag or commit; empty for the default branch.
            length: The number of tokens of a caption; 0 for as many as the model takes.

        Raises:
            LatentqError: There is none, or its text model is not CLIP's; the message is one line.
            ModuleNotFoundError: A package is missing.
            ValueError: The model takes fewer tokens than `length`.
        """
        import open_clip

        path = Path(name)
        title = OPEN_CLIP + (path.resolve().name if path.is_dir() else f"hf-hub:{name}")
        folder = path if path.is_dir() else download("text encoder", name, revision, _needed_files)
        try:
            config = json.loads(read_regular(folder / _CONFIG))["model_cfg"]["text_cfg"]
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise LatentqError(f"cannot load the text encoder {title!r}: {folder / _CONFIG}: {error!r}") from None
        if "hf_model_name" in config or config.get("embed_cls") or config.get("use_pad_mask"):
            raise LatentqError(f"text encoder {title} is not a CLIP text tower, and no other is supported")
        location = f"local-dir:{folder}"
        previous, logging.root.manager.disable = logging.root.manager.disable, logging.WARNING
        try:
            model = open_clip.create_model(location, require_pretrained=True)
            tokenizer = open_clip.get_tokenizer(location)
        except ModuleNotFoundError:
            raise
        except UNLOADABLE as error:
            reason = load_failure(error)
            raise LatentqError(f"cannot load the text encoder {title!r}: {reason}") from None
        finally:
            logging.root.manager.disable = previous
        tower = getattr(model, "text", model)
        return cls(
            tower,
            tokenizer,
            title,
            length=length,
            longest=tower.context_length,
            pooled=config.get("pool_type", "argmax") == "argmax",
        )

    @torch.no_grad()
    def encode(self, captions: Sequence[str]) -> Embeddings:
        """Embeds B captions: (B, L, D) and pooled (B, P)."""
        tokens = self._tokenizer(list(captions), context_length=self.length)
        states, pooled = self.module(send(tokens, self.device))
        return Embeddings(states.float(), None, pooled.float() if self.pooled_width else None)


def _needed_files(names: list[str]) -> list[str]:
    """Selects the files of a repository that make the model and its tokenizer."""
    weights = next((name for name in _WEIGHTS if name in names), None)
    if _CONFIG not in names or weights is None:
        raise LatentqError(f"it has no {_CONFIG if _CONFIG not in names else 'weights'} of open_clip")
    return [_CONFIG, weights, *matching(names, "", *_TOKENIZER)]
