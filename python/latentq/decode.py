"""Public alias: decoding latents to pixels, implemented in `latentq.models.decode` and `latentq.models.match`."""

from latentq.models.decode import decode_latents
from latentq.models.match import autoencoder_for

__all__ = ["autoencoder_for", "decode_latents"]
