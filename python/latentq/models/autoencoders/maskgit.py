"""MaskGIT's VQGAN in PyTorch, as TiTok and RAR use it (`maskgit-vqgan-imagenet-f16-256.bin` of 1d-tokenizer)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn
from torch.nn import functional

from latentq.models.autoencoders.checkpoint import Checkpoint, count
from latentq.models.autoencoders.taming import norm_silu
from latentq.models.autoencoders.vq import VQNetwork

_MARK = "decoder.up.1.upsample_conv.weight"  # a tensor that no other network has


class MaskGitAutoencoder(VQNetwork):
    """A VQGAN without attention, whose pixels are from 0 to 1."""

    family = "maskgit.VQGAN"

    @staticmethod
    def recognizes(shapes: Mapping[str, object]) -> bool:
        """True if tensors of these names are of this family."""
        return _MARK in shapes

    @classmethod
    def load(cls, checkpoint: Checkpoint, name: str) -> MaskGitAutoencoder:
        """Loads a checkpoint onto the CPU, in float32.

        Args:
            checkpoint: The tensors.
            name: The autoencoder's name for the card.

        Raises:
            LatentqError: The tensors are not those of such a network.
        """
        with checkpoint.building():
            module = _VQGAN(checkpoint.shapes)
        checkpoint.fill(module)
        channels = checkpoint.shapes["quantize.embedding.weight"][1]
        network = cls(module, name, channels=channels, reduction=2 ** (len(module.encoder.down) - 1))
        network.pixel_range = (0.0, 1.0)
        return network


class _VQGAN(nn.Module):
    """The layers that tensors of these names and shapes belong to. Shapes of activations are (B, C, h, w)."""

    def __init__(self, shapes: dict[str, tuple[int, ...]]) -> None:
        super().__init__()
        levels = count(shapes, "encoder.down.{}.block.0.conv1.weight")
        blocks = count(shapes, "encoder.down.0.block.{}.conv1.weight")
        widths = [shapes[f"encoder.down.{level}.block.0.conv1.weight"][0] for level in range(levels)]
        first, colors = shapes["encoder.conv_in.weight"][:2]
        codes, channels = shapes["quantize.embedding.weight"]
        self.encoder = _Encoder(colors, first, widths, blocks, channels)
        self.decoder = _Decoder(channels, widths, blocks, colors)
        self.quantize = nn.ModuleDict({"embedding": nn.Embedding(codes, channels)})
        self.quant_conv = nn.Identity()
        self.post_quant_conv = nn.Identity()


class _Encoder(nn.Module):
    def __init__(self, colors: int, first: int, widths: list[int], blocks: int, channels: int) -> None:
        super().__init__()
        self.conv_in = nn.Conv2d(colors, first, 3, padding=1, bias=False)
        self.down = nn.ModuleList(map(_Level, [first, *widths[:-1]], widths, [blocks] * len(widths)))
        self.mid = _blocks(widths[-1], widths[-1], blocks)
        self.norm_out = norm_silu(widths[-1])
        self.conv_out = nn.Conv2d(widths[-1], channels, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.conv_in(x)
        for number, level in enumerate(self.down):
            x = level(functional.avg_pool2d(x, 2) if number else x)
        result: torch.Tensor = self.conv_out(self.norm_out(self.mid(x)))
        return result


class _Decoder(nn.Module):
    def __init__(self, channels: int, widths: list[int], blocks: int, colors: int) -> None:
        super().__init__()
        self.conv_in = nn.Conv2d(channels, widths[-1], 3, padding=1)
        self.mid = _blocks(widths[-1], widths[-1], blocks)
        self.up = nn.ModuleList(map(_Level, [*widths[1:], widths[-1]], widths, [blocks] * len(widths)))
        for level, width in zip(list(self.up)[1:], widths[1:], strict=True):
            level.upsample_conv = nn.Conv2d(width, width, 3, padding=1)
        self.norm_out = norm_silu(widths[0])
        self.conv_out = nn.Conv2d(widths[0], colors, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.mid(self.conv_in(x))
        for number in reversed(range(len(self.up))):  # `up` begins at the highest resolution
            x = self.up[number](x)
            if number:
                x = self.up[number].get_submodule("upsample_conv")(functional.interpolate(x, scale_factor=2.0))
        result: torch.Tensor = self.conv_out(self.norm_out(x))
        return result


class _Level(nn.Module):
    """The blocks of one resolution."""

    def __init__(self, in_channels: int, out_channels: int, blocks: int) -> None:
        super().__init__()
        self.block = _blocks(in_channels, out_channels, blocks)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.block(x)
        return result


class _ResnetBlock(nn.Module):
    """Unlike in taming-transformers, the shortcut of a block that changes the width takes the block's own result."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.norm1 = norm_silu(in_channels)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False)
        self.norm2 = norm_silu(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.nin_shortcut = (
            None if in_channels == out_channels else nn.Conv2d(out_channels, out_channels, 1, bias=False)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.conv2(self.norm2(self.conv1(self.norm1(x))))
        result: torch.Tensor = h + (x if self.nin_shortcut is None else self.nin_shortcut(h))
        return result


def _blocks(in_channels: int, out_channels: int, blocks: int) -> nn.Sequential:
    return nn.Sequential(*map(_ResnetBlock, [in_channels] + [out_channels] * (blocks - 1), [out_channels] * blocks))
