"""VQGAN checkpoints of taming-transformers (Esser, Rombach and Ommer 2021): a `.ckpt` of Lightning and a `.yaml`.

The network is reimplemented from the architecture that the configuration's `ddconfig` describes; its modules are named
as the checkpoint's tensors are.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from latentq._core import LatentqError
from latentq.models.autoencoders.checkpoint import Checkpoint, count
from latentq.models.autoencoders.vq import VQNetwork
from latentq.models.group_norm import GroupNormSiLU
from latentq.store.local import check_regular
from latentq.system.text import one_line

# Limits of a plausible configuration, so that a hostile one is refused before its network is built.
LARGEST_CONFIG = 1 << 20  # bytes
_MOST_LEVELS = 16
_MOST_BLOCKS = 64  # per level
_LARGEST_SIZE = 1 << 24  # of channels, codes and pixels


class TamingAutoencoder(VQNetwork):
    """A `taming.models.vqgan.VQModel`.

    The paper's checkpoints take pixels in [-1, 1]; some that were trained further, such as `boris/vqgan_f16_16384`,
    take [0, 1], which their files do not say.
    """

    family = "taming.VQModel"

    @staticmethod
    def recognizes(shapes: Mapping[str, object]) -> bool:
        """True if tensors of these names are of this family, or of another with the layers of taming-transformers."""
        return "encoder.mid.block_1.conv1.weight" in shapes

    @classmethod
    def load(cls, checkpoint: Checkpoint, config: Path, name: str) -> TamingAutoencoder:
        """Loads a checkpoint onto the CPU, in float32.

        Args:
            checkpoint: The tensors of the `.ckpt`.
            config: Its `.yaml`.
            name: The autoencoder's name for the card.

        Raises:
            LatentqError: A file is broken or of another kind, or the weights do not fit the network exactly.
        """
        module = build(_params(config), config)
        checkpoint.fill(module)
        return cls.of(module, name)

    @classmethod
    def of(cls, module: VQGAN, name: str) -> TamingAutoencoder:
        """Returns the autoencoder of a network that has its weights."""
        levels = len(module.encoder.down)
        return cls(module, name, channels=module.quant_conv.out_channels, reduction=2 ** (levels - 1))


def build(params: Mapping[str, Any], path: Path) -> VQGAN:
    """Builds the network that a configuration describes on the meta device, without weights.

    Args:
        params: `model.params` of the configuration: `ddconfig`, `embed_dim` and `n_embed`.
        path: The configuration's file, for messages.

    Raises:
        LatentqError: The configuration is not that of a VQGAN, or is implausible.
    """
    try:
        with torch.device("meta"):
            return VQGAN(**_architecture(params))
    except (KeyError, TypeError, AttributeError, ValueError, RuntimeError, OverflowError) as error:
        raise LatentqError(f"{path}: not the configuration of a VQGAN: {one_line(repr(error))}") from None


def _params(path: Path) -> Mapping[str, Any]:
    """Reads `model.params` of a configuration."""
    import yaml

    class Loader(yaml.SafeLoader):  # type: ignore[misc]
        """Refuses aliases: a few hundred bytes of them can stand for gigabytes, and configurations have none."""

        def compose_node(self, parent: Any, index: Any) -> Any:
            if self.check_event(yaml.AliasEvent):
                raise yaml.YAMLError("aliases are not supported")
            return super().compose_node(parent, index)

    check_regular(path)
    try:
        with path.open("rb") as file:
            text = file.read(LARGEST_CONFIG + 1)
        if len(text) > LARGEST_CONFIG:
            raise ValueError(f"it has more than {LARGEST_CONFIG} bytes")
        model = yaml.load(text, Loader)["model"]
        target, params = model["target"], dict(model["params"])
        if not isinstance(target, str):
            raise TypeError("its model.target is not text")
    except RecursionError:
        raise LatentqError(f"{path}: not the configuration of a VQGAN: it is nested too deeply") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, yaml.YAMLError) as error:
        raise LatentqError(f"{path}: not the configuration of a VQGAN: {one_line(repr(error))}") from None
    name = target.rpartition(".")[2]
    if name != "VQModel":
        raise LatentqError(f"{path}: the model is a {name}; of taming-transformers only VQModel is supported")
    return params


def _architecture(params: Mapping[str, Any]) -> dict[str, Any]:
    """Selects the parameters that define the network, and checks that they are plausible before it is built.

    Raises:
        KeyError: A parameter is missing.
        TypeError: A parameter is of another type.
        ValueError: A parameter is out of range.
    """
    config = params["ddconfig"]
    for name, default, needed in (
        ("double_z", True, False),
        ("resamp_with_conv", True, True),
        ("give_pre_end", False, False),
    ):
        if config.get(name, default) is not needed:
            raise ValueError(f"{name} must be {str(needed).lower()} for a VQModel")
    integers = {name: params[name] for name in ("embed_dim", "n_embed")}
    names = ("ch", "out_ch", "num_res_blocks", "in_channels", "resolution", "z_channels")
    integers |= {name: config[name] for name in names}
    lists = {name: config[name] for name in ("ch_mult", "attn_resolutions")}
    for name, values in lists.items():
        if not isinstance(values, list) or len(values) > _MOST_LEVELS:
            raise ValueError(f"{name} must be a list of at most {_MOST_LEVELS} integers")
    checked = [*integers.items(), *((name, value) for name, values in lists.items() for value in values)]
    for name, value in checked:
        largest = _MOST_BLOCKS if name == "num_res_blocks" else _LARGEST_SIZE
        if type(value) is not int or not 0 < value <= largest:
            raise ValueError(f"{name} must be an integer from 1 to {largest}")
    return {**integers, **lists}


# The network. Shapes are (B, C, h, w) throughout.


class VQGAN(nn.Module):
    """The encoder, the codebook and the decoder of a VQGAN; the keyword arguments are those of `ddconfig`."""

    def __init__(
        self,
        embed_dim: int,
        n_embed: int,
        *,
        ch: int,
        out_ch: int,
        ch_mult: list[int],
        num_res_blocks: int,
        attn_resolutions: list[int],
        in_channels: int,
        resolution: int,
        z_channels: int,
    ) -> None:
        super().__init__()
        widths = [ch * factor for factor in ch_mult]
        attends = [resolution // 2**level in attn_resolutions for level in range(len(widths))]
        self.encoder = Encoder(in_channels, ch, widths, attends, num_res_blocks, z_channels)
        self.decoder = Decoder(z_channels, widths, attends, num_res_blocks, out_ch)
        self.quantize = nn.ModuleDict({"embedding": nn.Embedding(n_embed, embed_dim)})
        self.quant_conv = nn.Conv2d(z_channels, embed_dim, 1)
        self.post_quant_conv = nn.Conv2d(embed_dim, z_channels, 1)


def encoder_and_decoder(shapes: Mapping[str, tuple[int, ...]]) -> tuple[Encoder, Decoder]:
    """Builds the encoder and decoder that tensors of these names and shapes belong to.

    Args:
        shapes: The shape of each tensor, by name.

    Raises:
        KeyError: A tensor is missing.
        ValueError: The shapes are not those of such networks.
    """
    levels = count(shapes, "encoder.down.{}.block.0.conv1.weight")
    blocks = count(shapes, "encoder.down.0.block.{}.conv1.weight")
    widths = [shapes[f"encoder.down.{level}.block.0.conv1.weight"][0] for level in range(levels)]
    first, colors = shapes["encoder.conv_in.weight"][:2]
    down, up = (
        [f"{part}.{level}.attn.0.q.weight" in shapes for level in range(levels)]
        for part in ("encoder.down", "decoder.up")
    )
    encoder = Encoder(colors, first, widths, down, blocks, shapes["encoder.conv_out.weight"][0])
    decoder = Decoder(shapes["decoder.conv_in.weight"][1], widths, up, blocks, shapes["decoder.conv_out.weight"][0])
    return encoder, decoder


class Encoder(nn.Module):
    """Downsamples to half the size after each level but the last; levels in `attends` have attention."""

    def __init__(
        self, in_channels: int, ch: int, widths: list[int], attends: list[bool], blocks: int, z_channels: int
    ) -> None:
        super().__init__()
        self.conv_in = nn.Conv2d(in_channels, ch, 3, padding=1)
        self.down = nn.ModuleList(map(_Level, [ch, *widths[:-1]], widths, [blocks] * len(widths), attends))
        for level, width in zip(self.down, widths[:-1], strict=False):
            level.downsample = _Downsample(width)
        self.mid = _middle(widths[-1])
        self.norm_out = norm_silu(widths[-1])
        self.conv_out = nn.Conv2d(widths[-1], z_channels, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Encodes (B, 3, S, S) pixels to (B, C, h, w)."""
        x = self.conv_in(x)
        for block in (*self.down, *self.mid.values()):
            x = block(x)
        result: torch.Tensor = self.conv_out(self.norm_out(x))
        return result


class Decoder(nn.Module):
    """Upsamples to twice the size after each level but the first."""

    def __init__(self, z_channels: int, widths: list[int], attends: list[bool], blocks: int, out_channels: int) -> None:
        super().__init__()
        self.conv_in = nn.Conv2d(z_channels, widths[-1], 3, padding=1)
        self.mid = _middle(widths[-1])
        self.up = nn.ModuleList(map(_Level, [*widths[1:], widths[-1]], widths, [blocks + 1] * len(widths), attends))
        for level, width in zip(list(self.up)[1:], widths[1:], strict=True):
            level.upsample = _Upsample(width)
        self.norm_out = norm_silu(widths[0])
        self.conv_out = nn.Conv2d(widths[0], out_channels, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Decodes (B, C, h, w) to (B, 3, S, S) pixels."""
        x = self.conv_in(x)
        for block in (
            *self.mid.values(),
            *reversed(self.up),
        ):  # `up` begins at the highest resolution
            x = block(x)
        result: torch.Tensor = self.conv_out(self.norm_out(x))
        return result


class _Level(nn.Module):
    """The blocks of one resolution, each followed by attention if `attends`, and the step to the next resolution."""

    def __init__(self, in_channels: int, out_channels: int, blocks: int, attends: bool) -> None:
        super().__init__()
        widths = [in_channels] + [out_channels] * blocks
        self.block = nn.ModuleList(map(_ResnetBlock, widths[:-1], widths[1:]))
        self.attn = nn.ModuleList(map(_AttnBlock, widths[1:] if attends else []))
        self.downsample: nn.Module = nn.Identity()
        self.upsample: nn.Module = nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for number, block in enumerate(self.block):
            x = block(x)
            if self.attn:
                x = self.attn[number](x)
        result: torch.Tensor = self.upsample(self.downsample(x))
        return result


class _ResnetBlock(nn.Module):
    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.norm1 = norm_silu(in_channels)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.norm2 = norm_silu(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        same = in_channels == out_channels
        self.nin_shortcut = nn.Identity() if same else nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.conv1(self.norm1(x))
        h = self.conv2(self.norm2(h))
        result: torch.Tensor = self.nin_shortcut(x) + h
        return result


class _AttnBlock(nn.Module):
    """Single-head attention over all positions."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = _norm(channels)
        self.q, self.k, self.v, self.proj_out = (nn.Conv2d(channels, channels, 1) for _ in range(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.norm(x)
        q, k, v = (conv(h).flatten(2).transpose(1, 2) for conv in (self.q, self.k, self.v))
        attended = functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(x.shape)
        result: torch.Tensor = x + self.proj_out(attended)
        return result


class _Downsample(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.conv(functional.pad(x, (0, 1, 0, 1)))
        return result


class _Upsample(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.conv(functional.interpolate(x, scale_factor=2.0))
        return result


def _middle(channels: int) -> nn.ModuleDict:
    blocks = {"block_1": _ResnetBlock(channels, channels), "attn_1": _AttnBlock(channels)}
    return nn.ModuleDict({**blocks, "block_2": _ResnetBlock(channels, channels)})


def _norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(32, channels, eps=1e-6)


def norm_silu(channels: int) -> GroupNormSiLU:
    """Returns a group norm of 32 groups, followed by SiLU."""
    return GroupNormSiLU(32, channels, eps=1e-6)
