"""The networks that stages encode with, and the quantizers of every kind."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from gpu.harness import Run
from latentq import Quantizer
from latentq.autoencoders import Normalization
from latentq.models.autoencoders.base import Network
from latentq.models.autoencoders.taming import VQGAN, TamingAutoencoder
from latentq.models.group_norm import GroupNormSiLU

GFLOP = 272.7  # of SDXL's encoder, for one image of 256 pixels
SDXL = (128, 256, 512, 512)


class ChunkedPosterior(Network):
    """The encoder of a `VQGAN` that gives mean and log-variance, as SDXL's does: the same layers, without diffusers."""

    family = "VQGAN with a posterior"

    def posterior(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Encodes (B, 3, S, S) pixels to mean and log-variance, each (B, C, h, w) float32."""
        mean, logvar = bare(self)(pixels.float()).float().chunk(2, 1)
        return mean, logvar.clamp(-30.0, 20.0)

    def encode(self, pixels: torch.Tensor) -> torch.Tensor:
        """Encodes (B, 3, S, S) pixels to the posterior's mean."""
        return self.posterior(pixels)[0]


def bare(network: Any) -> Callable[[torch.Tensor], torch.Tensor]:
    """Returns the network's forward pass without casts: (B, 3, S, S) pixels to (B, 2C, h, w) moments."""
    module = getattr(network, "module", network)
    return lambda pixels: module.quant_conv(module.encoder(pixels))


def kl(widths: tuple[int, ...], layers: int, device: str) -> Any:
    """Returns an `AutoencoderKL` with random weights, or where diffusers is missing an encoder of the same layers."""
    torch.manual_seed(0)
    try:
        from diffusers import AutoencoderKL
    except ImportError:
        module: Any = VQGAN(
            8, 64, ch=widths[0], out_ch=3, ch_mult=[width // widths[0] for width in widths], num_res_blocks=layers,
            attn_resolutions=[], in_channels=3, resolution=256, z_channels=8,
        )  # fmt: skip
        return ChunkedPosterior(
            module, "random", channels=4, reduction=2 ** (len(widths) - 1), normalization=Normalization(0.13025)
        ).to(device)
    from latentq.models.autoencoders.kl import KLAutoencoder

    count = len(widths)
    module = AutoencoderKL(
        down_block_types=["DownEncoderBlock2D"] * count, up_block_types=["UpDecoderBlock2D"] * count,
        block_out_channels=widths, layers_per_block=layers, latent_channels=4, norm_num_groups=32,
        scaling_factor=0.13025,
    )  # fmt: skip
    return KLAutoencoder(module, "random").to(device)


def sdxl_sized(run: Run) -> Any:
    """Returns a network of the size of SDXL's encoder; in a rehearsal a small one. The report says which it is."""
    network = kl((32, 32) if run.dry else SDXL, 1 if run.dry else 2, run.device)
    source = "AutoencoderKL of diffusers"
    if isinstance(network, ChunkedPosterior):
        source = "latentq's VQGAN encoder with the same layers (diffusers is missing)"
    size = "in miniature" if run.dry else "SDXL-sized"
    run.results.set_env(network=f"{source}, {size}, random weights")
    return network


def tiny(run: Run) -> Any:
    """Returns a network of two levels, for checks of bytes."""
    return kl((32, 64), 1, run.device)


def tokenizer(run: Run) -> Any:
    """Returns a VQGAN of two levels with a codebook of 64 entries."""
    torch.manual_seed(0)
    module = VQGAN(
        4, 64, ch=32, out_ch=3, ch_mult=[1, 1], num_res_blocks=1, attn_resolutions=[], in_channels=3, resolution=64,
        z_channels=4,
    )  # fmt: skip
    torch.nn.init.normal_(module.get_parameter("quantize.embedding.weight"))
    return TamingAutoencoder(module, "random", channels=4, reduction=2).to(run.device)


def quantizers() -> dict[str, Quantizer]:
    """Returns quantizers of every kind for four channels, with ranges of one value, of nearly one, and of 1e30."""
    special = {"low": [0.7, 0.0, -5e-4, -1e30], "high": [0.7, 0.0, 5e-4, 3e30]}
    random = np.random.default_rng(0)
    quantizers = {f"uniform{bits}": Quantizer.uniform(-5, 6, channels=4, bits=bits) for bits in (8, 6, 4, 2)}
    for bits in (8, 5):
        quantizers[f"truncate{bits}"] = Quantizer.uniform(-14, 14, channels=4, bits=bits, rounding="truncate")
    quantizers |= {f"affine{bits}": Quantizer.affine(**special, bits=bits) for bits in (8, 6, 3)}
    for bits in (8, 5, 2):
        quantizers[f"codebook{bits}"] = Quantizer.codebook(np.sort(random.normal(0, 2, (4, 2**bits)), axis=1))
    return quantizers | {kind: Quantizer.floating(kind, channels=4) for kind in ("float16", "bfloat16", "float32")}


def fused_group_norm_silu(x: torch.Tensor, norm: torch.nn.GroupNorm) -> torch.Tensor:
    """Computes SiLU of a group norm by the fused kernel; by torch if there is no card or no Triton."""
    fused = GroupNormSiLU(norm.num_groups, norm.num_channels, norm.eps, device="meta")
    fused.weight, fused.bias = norm.weight, norm.bias
    fused.fused = True
    result: torch.Tensor = fused(x)
    return result
