"""LlamaGen's tokenizers, VQ-16 and VQ-8: VQGANs whose codes are compared by direction alone.

The network is that of taming-transformers under other names.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import nn
from torch.nn import functional

from latentq.models.autoencoders.checkpoint import Checkpoint
from latentq.models.autoencoders.taming import encoder_and_decoder
from latentq.models.autoencoders.vq import VQNetwork

_MARK = "encoder.conv_blocks.0.res.0.conv1.weight"  # a tensor that no other network has
_MIDDLE = ("block_1", "attn_1", "block_2")


class LlamaGenAutoencoder(VQNetwork):
    """A `VQModel` of LlamaGen: latents and codes are normalized to length 1 before they are compared."""

    family = "llamagen.VQModel"

    @staticmethod
    def recognizes(shapes: Mapping[str, object]) -> bool:
        """True if tensors of these names are of this family."""
        return _MARK in shapes

    @classmethod
    def load(cls, checkpoint: Checkpoint, name: str) -> LlamaGenAutoencoder:
        """Loads a checkpoint onto the CPU, in float32.

        Args:
            checkpoint: The tensors.
            name: The autoencoder's name for the card.

        Raises:
            LatentqError: The tensors are not those of such a network.
        """
        levels = len({key.split(".")[2] for key in checkpoint.shapes if key.startswith("decoder.conv_blocks.")})
        checkpoint.rename(lambda key: _taming_name(key, levels))
        with checkpoint.building():
            module = _Module(checkpoint.shapes)
        checkpoint.fill(module)
        return cls(module, name, channels=module.quant_conv.out_channels, reduction=2 ** (levels - 1))

    @property
    def _codebook(self) -> torch.Tensor:
        return functional.normalize(super()._codebook, dim=1)

    def _nearest(self, latents: torch.Tensor) -> torch.Tensor:
        return super()._nearest(functional.normalize(latents, dim=1))


class _Module(nn.Module):
    """The layers that tensors of these names and shapes belong to, named as those of taming-transformers."""

    def __init__(self, shapes: dict[str, tuple[int, ...]]) -> None:
        super().__init__()
        self.encoder, self.decoder = encoder_and_decoder(shapes)
        codes, channels = shapes["quantize.embedding.weight"]
        self.quantize = nn.ModuleDict({"embedding": nn.Embedding(codes, channels)})
        self.quant_conv = nn.Conv2d(shapes["encoder.conv_out.weight"][0], channels, 1)
        self.post_quant_conv = nn.Conv2d(channels, shapes["decoder.conv_in.weight"][1], 1)


def _taming_name(key: str, levels: int) -> str:
    """Returns the name in taming-transformers, whose decoder counts its levels from the highest resolution."""
    key = re.sub(r"^encoder\.conv_blocks\.", "encoder.down.", key)
    key = re.sub(r"^decoder\.conv_blocks\.(\d{1,3})\.", lambda match: f"decoder.up.{levels - 1 - int(match[1])}.", key)
    key = re.sub(r"^((?:encoder\.down|decoder\.up)\.-?\d+)\.res\.", r"\1.block.", key)
    return re.sub(r"\.mid\.([012])\.", lambda match: f".mid.{_MIDDLE[int(match[1])]}.", key)
