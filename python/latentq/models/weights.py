"""Weights of networks: hashing and checking them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from latentq._core import LatentqError

if TYPE_CHECKING:
    import torch
from collections.abc import Collection

import torch


def weight_hash(network: Any) -> str:
    """`sha256:...` over the names, types, shapes and values of a network's tensors, however they were stored.

    Empty for an object without a `state_dict`.
    """
    import hashlib

    module = getattr(network, "module", network)
    if not hasattr(module, "state_dict"):
        return ""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        values = tensor.detach().cpu().contiguous()
        digest.update(f"{name} {values.dtype} {tuple(values.shape)}\n".encode())
        digest.update(values.reshape(-1).view(dtype=_uint8()).numpy())
    return f"sha256:{digest.hexdigest()}"


def _uint8() -> torch.dtype:
    import torch

    return torch.uint8


def check_weights(
    name: str, *, missing: Collection[str], of_other_shape: Collection[str], left_over: Collection[str]
) -> None:
    """Refuses weights that are not just those of the network: LatentqError with their number and the first of them."""
    for keys, what in (
        (missing, "are missing"),
        (of_other_shape, "have another shape"),
        (left_over, "are left over"),
    ):
        if keys:
            raise LatentqError(f"the weights of {name} do not fit: {len(keys)} {what}, {min(keys)} first")
