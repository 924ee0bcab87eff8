"""diffusers' `VQModel`, and what all autoencoders with a code book share."""

from __future__ import annotations

from typing import Any

import torch

from latentq.models.autoencoders.base import Network


class VQNetwork(Network):
    """An autoencoder with a code book, in taming-transformers' names, which diffusers took over.

    Its module has `encoder`, `quant_conv`, `quantize.embedding`, `post_quant_conv` and `decoder`.
    """

    @property
    def codebook_size(self) -> int:
        """How many codes there are."""
        return len(self._codebook)

    @property
    def _codebook(self) -> torch.Tensor:
        weight: torch.Tensor = self.module.get_parameter("quantize.embedding.weight")
        return weight

    @torch.no_grad()
    def encode(self, pixels: torch.Tensor) -> torch.Tensor:
        """(B, 3, S, S) floats in `pixel_range` to (B, C, h, w) float32 latents, not yet quantised."""
        latents: torch.Tensor = self.module.quant_conv(self.module.encoder(pixels.float()))
        return latents.float()

    @torch.no_grad()
    def tokens(self, pixels: torch.Tensor) -> torch.Tensor:
        """(B, 3, S, S) floats in `pixel_range` to (B, h, w) int64; -1 where the latent is NaN or infinite."""
        return self._nearest(self.encode(pixels))

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """(B, C, h, w) latents, which are quantised first, to (B, 3, S, S) float32 pixels."""
        return self.decode_tokens(self._nearest(latents.float()))

    @torch.no_grad()
    def decode_tokens(self, tokens: torch.Tensor) -> torch.Tensor:
        """(B, h, w) whole numbers to (B, 3, S, S) float32 pixels. Raises ValueError for a token that is not a code."""
        if tokens.numel() and not 0 <= int(tokens.min()) <= int(tokens.max()) < self.codebook_size:
            raise ValueError(
                f"tokens must be from 0 to {self.codebook_size - 1}, not {int(tokens.min())} to {int(tokens.max())}"
            )
        quantised = torch.nn.functional.embedding(tokens.long(), self._codebook).permute(0, 3, 1, 2).contiguous()
        return self._decode_quantised(quantised).float()

    def _decode_quantised(self, quantised: torch.Tensor) -> torch.Tensor:
        pixels: torch.Tensor = self.module.decoder(self.module.post_quant_conv(quantised))
        return pixels

    def _nearest(self, latents: torch.Tensor) -> torch.Tensor:
        """(B, C, h, w) float32 to the nearest codes, (B, h, w), by diffusers' `cdist`, float32 even under autocast.

        Picture by picture, since the distances of 256 places to 16,384 codes already take 16 MiB.
        """
        places = latents.flatten(2).transpose(1, 2)
        tokens = torch.stack([torch.cdist(place, self._codebook).argmin(1) for place in places])
        return tokens.masked_fill(~places.isfinite().all(2), -1).view(-1, *latents.shape[2:])


class VQAutoencoder(VQNetwork):
    """A `VQModel`: the VQGANs of diffusers, Kandinsky's MOVQ among them."""

    family = "VQModel"

    def __init__(self, module: Any, name: str) -> None:
        config = module.config
        super().__init__(
            module,
            name,
            channels=config.vq_embed_dim or config.latent_channels,
            reduction=2 ** (len(config.block_out_channels) - 1),
            scaling_factor=config.scaling_factor,
        )

    def _decode_quantised(self, quantised: torch.Tensor) -> torch.Tensor:
        condition = quantised if self.module.config.norm_type == "spatial" else None
        pixels: torch.Tensor = self.module.decoder(self.module.post_quant_conv(quantised), condition)
        return pixels
