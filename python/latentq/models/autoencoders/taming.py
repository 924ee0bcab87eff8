"""VQGAN checkpoints of taming-transformers (Esser, Rombach and Ommer 2021): a `.ckpt` of Lightning and a `.yaml`.

The network is reimplemented from the architecture that the configuration's `ddconfig` describes; its modules are named
as the checkpoint's tensors are.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from latentq._core import LatentqError
from latentq.format.safe_torch_file import TensorRecord, TorchFile
from latentq.models.autoencoders.vq import VQNetwork
from latentq.models.group_norm import GroupNormSiLU
from latentq.models.weights import check_weights
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

    @classmethod
    def load(cls, checkpoint: Path, config: Path, name: str) -> TamingAutoencoder:
        """Loads a checkpoint onto the CPU, in float32.

        Args:
            checkpoint: The `.ckpt`.
            config: Its `.yaml`.
            name: The autoencoder's name for the card.

        Raises:
            LatentqError: A file is broken or of another kind, or the weights do not fit the network exactly.
        """
        module = build(_params(config), config)
        weights = _weights(checkpoint)
        expected = module.state_dict()
        both = expected.keys() & weights.keys()
        check_weights(
            str(checkpoint),
            missing=expected.keys() - both,
            mismatched=[key for key in both if weights[key].shape != expected[key].shape],
            unexpected=weights.keys() - both,
        )
        return cls.of(module, weights, name)

    @classmethod
    def of(cls, module: VQGAN, weights: Mapping[str, torch.Tensor], name: str) -> TamingAutoencoder:
        """Puts weights that fit, by their names in taming-transformers, into a network on the meta device."""
        module.load_state_dict(weights, assign=True)
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


def _weights(path: Path) -> dict[str, torch.Tensor]:
    """Reads the tensors of a checkpoint, except those of the loss, as float32.

    Nothing that the pickle names is imported or called: objects that are not tensors (Lightning's callbacks,
    OmegaConf's options) are dropped.
    """
    try:
        file = TorchFile(path)
        data = file.load(ignore_others=True)
        state = data.get("state_dict", data) if isinstance(data, dict) else None
        if not isinstance(state, dict) or not all(isinstance(key, str) for key in state):
            raise LatentqError(f"{path}: it holds no state_dict of tensors")
        tensors = {key: value for key, value in state.items() if not key.startswith("loss.")}
        if not all(isinstance(value, TensorRecord) for value in tensors.values()):
            raise LatentqError(f"{path}: its state_dict holds something else than tensors")
        return {key: _tensor(file, record) for key, record in tensors.items()}
    except (OSError, LatentqError) as error:
        reason = str(error).removeprefix(f"{path}: ")
        raise LatentqError(f"{path}: not a checkpoint that can be read: {one_line(reason)}") from None


def _tensor(file: TorchFile, record: TensorRecord) -> torch.Tensor:
    values = file.read(record)
    if record.dtype == "bfloat16":
        return torch.from_numpy(values.copy()).view(torch.bfloat16).float()
    return torch.from_numpy(values.astype(np.float32))


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
        self.norm_out = _norm_silu(widths[-1])
        self.conv_out = nn.Conv2d(widths[-1], z_channels, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.conv_in(x)
        for block in (*self.down, *self.mid.values()):
            x = block(x)
        result: torch.Tensor = self.conv_out(self.norm_out(x))
        return result


class _Decoder(nn.Module):
    def __init__(self, z_channels: int, widths: list[int], attends: list[bool], blocks: int, out_channels: int) -> None:
        super().__init__()
        self.conv_in = nn.Conv2d(z_channels, widths[-1], 3, padding=1)
        self.mid = _middle(widths[-1])
        self.up = nn.ModuleList(map(_Level, [*widths[1:], widths[-1]], widths, [blocks + 1] * len(widths), attends))
        for level, width in zip(list(self.up)[1:], widths[1:], strict=True):
            level.upsample = _Upsample(width)
        self.norm_out = _norm_silu(widths[0])
        self.conv_out = nn.Conv2d(widths[0], out_channels, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
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
        self.norm1 = _norm_silu(in_channels)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.norm2 = _norm_silu(out_channels)
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


def _norm_silu(channels: int) -> GroupNormSiLU:
    return GroupNormSiLU(32, channels, eps=1e-6)
