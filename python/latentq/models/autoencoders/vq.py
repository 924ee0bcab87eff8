"""`VQModel` of diffusers, and the base class of all autoencoders with a codebook."""

from __future__ import annotations

import torch

from latentq.models.autoencoders.base import DiffusersNetwork, Network


class VQNetwork(Network):
    """An autoencoder with a codebook.

    Its module has `encoder`, `quant_conv`, `quantize.embedding`, `post_quant_conv` and `decoder`: the names of
    taming-transformers, which diffusers kept.
    """

    @property
    def codebook_size(self) -> int:
        """The number of codes."""
        return len(self._codebook)

    @property
    def _codebook(self) -> torch.Tensor:
        weight: torch.Tensor = self.module.get_parameter("quantize.embedding.weight")
        return weight

    @torch.no_grad()
    def encode(self, pixels: torch.Tensor) -> torch.Tensor:
        """Encodes (B, 3, S, S) float pixels in `pixel_range` to (B, C, h, w) float32 latents, not yet quantized."""
        latents: torch.Tensor = self.module.quant_conv(self.module.encoder(pixels.float()))
        return latents.float()

    @torch.no_grad()
    def tokens(self, pixels: torch.Tensor) -> torch.Tensor:
        """Encodes (B, 3, S, S) float pixels in `pixel_range` to (B, h, w) int64 tokens, -1 if not finite."""
        return self._nearest(self.encode(pixels))

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """Quantizes (B, C, h, w) latents to their nearest codes and decodes these to (B, 3, S, S) float32 pixels."""
        return self.decode_tokens(self._nearest(latents.float()))

    @torch.no_grad()
    def decode_tokens(self, tokens: torch.Tensor) -> torch.Tensor:
        """Decodes (B, h, w) integer tokens to (B, 3, S, S) float32 pixels.

        Raises:
            ValueError: A token is not in the codebook.
        """
        if tokens.numel() and not 0 <= int(tokens.min()) <= int(tokens.max()) < self.codebook_size:
            raise ValueError(
                f"tokens must be from 0 to {self.codebook_size - 1}, not {int(tokens.min())} to {int(tokens.max())}"
            )
        quantized = torch.nn.functional.embedding(tokens.long(), self._codebook).permute(0, 3, 1, 2).contiguous()
        return self._decode_quantized(quantized).float()

    def _decode_quantized(self, quantized: torch.Tensor) -> torch.Tensor:
        pixels: torch.Tensor = self.module.decoder(self.module.post_quant_conv(quantized))
        return pixels

    def _nearest(self, latents: torch.Tensor) -> torch.Tensor:
        """Finds the nearest codes of (B, C, h, w) float32 latents: (B, h, w) int64, -1 if a latent is not finite.

        Uses `cdist`, as diffusers does, which computes in float32 even under autocast. Works image by image, since the
        distances of 256 positions to 16,384 codes already take 16 MiB.
        """
        positions = latents.flatten(2).transpose(1, 2)
        tokens = torch.stack([torch.cdist(vectors, self._codebook).argmin(1) for vectors in positions])
        return tokens.masked_fill(~positions.isfinite().all(2), -1).view(-1, *latents.shape[2:])


class VQAutoencoder(VQNetwork, DiffusersNetwork):
    """A `VQModel`: the VQGANs of diffusers, including Kandinsky's MOVQ."""

    family = "VQModel"

    def _decode_quantized(self, quantized: torch.Tensor) -> torch.Tensor:
        condition = quantized if self.module.config.norm_type == "spatial" else None
        pixels: torch.Tensor = self.module.decoder(self.module.post_quant_conv(quantized), condition)
        return pixels
