"""VQGAN checkpoints of taming-transformers (Esser, Rombach and Ommer 2021): a `.ckpt` of Lightning and a `.yaml`.

The network is reimplemented from the architecture that the configuration's `ddconfig` describes; its modules are named
as the checkpoint's tensors are.
"""

from __future__ import annotations

import pickle
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from latentq._core import LatentqError
from latentq.models.autoencoders.vq import VQNetwork
from latentq.models.weights import check_weights


class TamingAutoencoder(VQNetwork):
    """A `taming.models.vqgan.VQModel`.

    The paper's checkpoints take pixels in [-1, 1]; some that were trained further, such as `boris/vqgan_f16_16384`,
    take [0, 1], which their files do not say.
    """

    family = "taming.VQModel"

    @classmethod
    def load(cls, checkpoint: Path, config: Path, name: str) -> TamingAutoencoder:
        """Load a checkpoint onto the CPU, in float32.

        Args:
            checkpoint: The `.ckpt`.
            config: Its `.yaml`.
            name: The autoencoder's name for the card.

        Raises:
            LatentqError: A file is broken or of another kind, or the weights do not fit the network exactly.
        """
        params = _params(config)
        try:
            with torch.device("meta"):
                module = VQGAN(params["embed_dim"], params["n_embed"], **_ddconfig(params["ddconfig"]))
        except (KeyError, TypeError, ValueError, RuntimeError, ZeroDivisionError) as error:
            raise LatentqError(f"{config}: not the configuration of a VQGAN: {error!r}") from None
        weights = _weights(checkpoint)
        expected = module.state_dict()
        both = expected.keys() & weights.keys()
        check_weights(
            str(checkpoint),
            missing=expected.keys() - both,
            mismatched=[key for key in both if weights[key].shape != expected[key].shape],
            unexpected=weights.keys() - both,
        )
        # Copied, so that the memory-mapped file can be closed.
        copied = {key: value.to(torch.float32, copy=True) for key, value in weights.items()}
        module.load_state_dict(copied, assign=True)
        levels = len(params["ddconfig"]["ch_mult"])
        return cls(module, name, channels=params["embed_dim"], reduction=2 ** (levels - 1))


def _params(path: Path) -> Mapping[str, Any]:
    """Read `model.params` of a configuration."""
    import yaml

    try:
        model = yaml.safe_load(path.read_bytes())["model"]
        target, params = str(model["target"]).rpartition(".")[2], dict(model["params"])
    except (OSError, ValueError, KeyError, TypeError, yaml.YAMLError) as error:
        raise LatentqError(f"{path}: not the configuration of a VQGAN: {' '.join(repr(error).split())}") from None
    if target != "VQModel":
        raise LatentqError(f"{path}: the model is a {target}; of taming-transformers only VQModel is supported")
    return params


def _ddconfig(config: Mapping[str, Any]) -> dict[str, Any]:
    """Select the entries of `ddconfig` that define the network; `dropout` is for training only."""
    if config.get("double_z", True):
        raise ValueError("double_z must be false for a VQModel")
    names = ("ch", "out_ch", "ch_mult", "num_res_blocks", "attn_resolutions", "in_channels", "resolution", "z_channels")
    return {name: config[name] for name in names}


def _weights(path: Path) -> dict[str, torch.Tensor]:
    """Read the tensors of a checkpoint, except those of the loss.

    Nothing that the pickle names is imported or called: objects that are not tensors (Lightning's callbacks,
    OmegaConf's options) become dictionaries that are dropped.
    """
    try:
        names = torch.serialization.get_unsafe_globals_in_checkpoint(path)
        foreign: list[Any] = [(_Opaque if name.startswith("numpy.") else _Foreign, name) for name in names]
        with torch.serialization.safe_globals(foreign):
            data = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        state = data.get("state_dict", data)
        tensors = {key: value for key, value in state.items() if not key.startswith("loss.")}
        if not all(isinstance(value, torch.Tensor) for value in tensors.values()):
            raise TypeError("it holds no state_dict of tensors")
    except (OSError, ValueError, RuntimeError, EOFError, AttributeError, TypeError, pickle.UnpicklingError) as error:
        reason = str(error).rpartition("WeightsUnpickler error: ")[2].strip().partition("\n")[0]
        raise LatentqError(f"{path}: not a checkpoint that can be read, or cut short: {reason}") from None
    return tensors


class _Foreign:
    """A stand-in for a class that is not torch's: any use of it makes a dictionary, which unpickling fills."""

    # torch's unpickler fills dictionaries, but refuses instances of unknown classes.
    def __new__(cls, *_: object) -> OrderedDict[Any, Any]:  # type: ignore[misc]
        return OrderedDict()


class _Opaque:
    """A stand-in for NumPy's types, whose state is not a dictionary."""

    def __init__(self, *_: object) -> None:
        pass

    def __setstate__(self, _: object) -> None:
        pass


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
        self.encoder = _Encoder(in_channels, ch, widths, attends, num_res_blocks, z_channels)
        self.decoder = _Decoder(z_channels, widths, attends, num_res_blocks, out_ch)
        self.quantize = nn.ModuleDict({"embedding": nn.Embedding(n_embed, embed_dim)})
        self.quant_conv = nn.Conv2d(z_channels, embed_dim, 1)
        self.post_quant_conv = nn.Conv2d(embed_dim, z_channels, 1)


class _Encoder(nn.Module):
    def __init__(
        self, in_channels: int, ch: int, widths: list[int], attends: list[bool], blocks: int, z_channels: int
    ) -> None:
        super().__init__()
        self.conv_in = nn.Conv2d(in_channels, ch, 3, padding=1)
        self.down = nn.ModuleList(map(_Level, [ch, *widths[:-1]], widths, [blocks] * len(widths), attends))
        for level, width in zip(self.down, widths[:-1], strict=False):
            level.downsample = _Downsample(width)
        self.mid = _middle(widths[-1])
        self.norm_out = _norm(widths[-1])
        self.conv_out = nn.Conv2d(widths[-1], z_channels, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.conv_in(x)
        for block in (*self.down, *self.mid.values()):
            x = block(x)
        result: torch.Tensor = self.conv_out(functional.silu(self.norm_out(x)))
        return result


class _Decoder(nn.Module):
    def __init__(self, z_channels: int, widths: list[int], attends: list[bool], blocks: int, out_channels: int) -> None:
        super().__init__()
        self.conv_in = nn.Conv2d(z_channels, widths[-1], 3, padding=1)
        self.mid = _middle(widths[-1])
        self.up = nn.ModuleList(map(_Level, [*widths[1:], widths[-1]], widths, [blocks + 1] * len(widths), attends))
        for level, width in zip(list(self.up)[1:], widths[1:], strict=True):
            level.upsample = _Upsample(width)
        self.norm_out = _norm(widths[0])
        self.conv_out = nn.Conv2d(widths[0], out_channels, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.conv_in(x)
        for block in (
            *self.mid.values(),
            *reversed(self.up),
        ):  # `up` begins at the highest resolution
            x = block(x)
        result: torch.Tensor = self.conv_out(functional.silu(self.norm_out(x)))
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
        self.norm1 = _norm(in_channels)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.norm2 = _norm(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        same = in_channels == out_channels
        self.nin_shortcut = nn.Identity() if same else nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.conv1(functional.silu(self.norm1(x)))
        h = self.conv2(functional.silu(self.norm2(h)))
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
