"""Public alias: text encoders, implemented in `latentq.models.text`."""

from latentq.models.text import Embeddings, TextEncoder, load_text_encoder

__all__ = ["Embeddings", "TextEncoder", "load_text_encoder"]
