"""Group norm followed by SiLU as one module, and networks whose pairs of the two are computed in one step on CUDA."""

from __future__ import annotations

import copy
import functools
import os
from collections.abc import Iterator
from typing import Any, TypeVar

import torch
from torch import nn
from torch.nn import functional

_T = TypeVar("_T")

# By class, the names of the group norms in a block of diffusers, and of the activation that follows each of them.
_PAIRS = {
    ("diffusers.models.resnet", "ResnetBlock2D"): (("norm1", "norm2"), "nonlinearity"),
    ("diffusers.models.autoencoders.vae", "Encoder"): (("conv_norm_out",), "conv_act"),
    ("diffusers.models.autoencoders.vae", "Decoder"): (("conv_norm_out",), "conv_act"),
}


class GroupNormSiLU(nn.GroupNorm):
    """A group norm followed by SiLU.

    Attributes:
        fused: True to compute both in one step, by kernels of our own, for dense float32, float16 or bfloat16 on CUDA
            if Triton is installed. The result has the dtype of the input under autocast too, where torch's has
            float32; a convolution that takes it rounds torch's the same way.
    """

    fused: bool = False

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Maps (B, C, h, w) to the same shape."""
        kernels = _kernels() if self.fused and _is_supported(x) else None
        if kernels is None:
            return functional.silu(super().forward(x))
        result: torch.Tensor = kernels.group_norm_silu(
            x, self.weight, self.bias, self.num_groups, self.eps, channels_last=not x.is_contiguous()
        )
        return result


def with_fused_norms(autoencoder: _T) -> _T:
    """Returns a copy of an autoencoder that shares its weights and fuses the group norms that SiLU is known to follow.

    Known are the blocks of diffusers' `AutoencoderKL` and `VQModel`, and the networks that latentq implements itself.

    Args:
        autoencoder: An autoencoder whose `module` is a torch module.

    Raises:
        ValueError: The autoencoder has no such group norm.
    """
    module: Any = getattr(autoencoder, "module", None)
    fused = 0
    if isinstance(module, nn.Module):
        shared: dict[int, Any] = {id(tensor): tensor for tensor in (*module.parameters(), *module.buffers())}
        module = copy.deepcopy(module, shared)
        fused = _fuse(module)
    if not fused:
        name = getattr(autoencoder, "name", type(autoencoder).__name__)
        raise ValueError(f"fused_norm: no group norm followed by SiLU is known in the autoencoder {name}")
    result = copy.copy(autoencoder)
    vars(result)["module"] = module
    return result


def _fuse(module: nn.Module) -> int:
    """Fuses the group norms inside a module in-place, and returns their number."""
    for block, names, activation in list(_known_pairs(module)):
        for name in names:
            setattr(block, name, _with_silu(getattr(block, name)))
        setattr(block, activation, nn.Identity())
    norms = [part for part in module.modules() if isinstance(part, GroupNormSiLU)]
    for norm in norms:
        norm.fused = True
    return len(norms)


def _known_pairs(module: nn.Module) -> Iterator[tuple[nn.Module, tuple[str, ...], str]]:
    """Yields the blocks in which only SiLU takes the results of the group norms, and SiLU takes nothing else."""
    for block in module.modules():
        names, activation = _PAIRS.get((type(block).__module__, type(block).__name__), ((), ""))
        norms = [getattr(block, name) for name in names]
        if not norms or not all(type(norm) is nn.GroupNorm and norm.affine for norm in norms):
            continue
        # A block with a time embedding activates that too, or scales between the norm and its activation.
        if getattr(block, "time_emb_proj", None) is None and type(getattr(block, activation)) is nn.SiLU:
            yield block, names, activation


def _with_silu(norm: nn.GroupNorm) -> GroupNormSiLU:
    result = GroupNormSiLU(norm.num_groups, norm.num_channels, norm.eps, device="meta")
    result.weight, result.bias = norm.weight, norm.bias
    return result.train(norm.training)


def _is_supported(x: torch.Tensor) -> bool:
    is_dense = x.ndim == 4 and (x.is_contiguous() or x.is_contiguous(memory_format=torch.channels_last))
    is_float = x.dtype in (torch.float32, torch.float16, torch.bfloat16)
    return is_dense and is_float and x.numel() > 0 and (x.is_cuda or os.environ.get("TRITON_INTERPRET") == "1")


@functools.cache
def _kernels() -> Any:
    """Returns the module of kernels; None if Triton is missing."""
    try:
        import triton  # noqa: F401
    except ImportError:
        return None
    from latentq.models import group_norm_kernels

    return group_norm_kernels
