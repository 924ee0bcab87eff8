"""The inverse of the transform codec in torch operations, for tensors on any device.

Each operation is one float32 operation, rounded on its own, in the order of the compiled kernels, so every device gives
the results of the CPU. Do not compile these functions: a compiler may fuse a multiplication and an addition.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

_DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}
_SIDE = 8


@dataclass(frozen=True)
class Tables:
    """A codec's tables on one device: the mean (C,), the basis (C, C) and the DCT of each side, float32."""

    mean: torch.Tensor
    basis: torch.Tensor
    dct: list[torch.Tensor]

    @classmethod
    def of(cls, mean: bytes, basis: bytes, device: str | torch.device) -> Tables:
        """Copies tables of little-endian float32 to a device; each copy may wait for it."""
        arrays = [np.frombuffer(table, "<f4").astype(np.float32) for table in (mean, basis)]
        on_device = [torch.from_numpy(array).to(device) for array in (*arrays, *map(_dct, range(_SIDE + 1)))]
        return cls(on_device[0], on_device[1].reshape(len(arrays[0]), -1), on_device[2:])


def sent(values: npt.NDArray[Any], device: str | torch.device) -> torch.Tensor:
    """Returns an array as a tensor on a device, without waiting for a GPU to finish its earlier work."""
    device, tensor = torch.device(device), torch.from_numpy(values)
    if device.type != "cuda":
        return tensor.to(device)
    with torch.cuda.device(device):
        return tensor.pin_memory().to(device, non_blocking=True)


def inverse(
    tables: Tables,
    numbers: torch.Tensor,
    steps: torch.Tensor,
    name: str,
) -> torch.Tensor:
    """Returns the values of samples, on the device of the tables.

    Args:
        tables: The codec's tables.
        numbers: (N, C, h, w) integers in steps, on the same device.
        steps: (N,) float32, likewise.
        name: The float type of the values.
    """
    y = numbers.float()
    step = steps.reshape(-1, 1, 1, 1)
    z = torch.empty_like(y)
    for rows, height in _pieces(y.shape[2]):
        for columns, width in _pieces(y.shape[3]):
            z[:, :, rows, columns] = _inverse_dct(y[:, :, rows, columns], tables.dct, height, width)
    basis = tables.basis.unsqueeze(-1).unsqueeze(-1)
    values = basis[:, 0] * z[:, :1]
    for k in range(1, len(basis)):
        values = values + basis[:, k] * z[:, k : k + 1]
    zero = tables.mean.reshape(1, -1, 1, 1) / step
    result: torch.Tensor = ((values + zero) * step).to(_DTYPES[name])
    return result


def _pieces(side: int) -> Iterator[tuple[slice, int]]:
    """Yields the part of an axis that has whole tiles, and the rest, each with the side of its tiles."""
    whole = side // _SIDE * _SIDE
    if whole:
        yield slice(0, whole), _SIDE
    if whole < side:
        yield slice(whole, side), side - whole


def _inverse_dct(y: torch.Tensor, dct: list[torch.Tensor], height: int, width: int) -> torch.Tensor:
    """Returns the values of tiles of that height and width, which fill a tensor (N, C, h, w)."""
    n, c, h, w = y.shape
    tiles = y.reshape(n, c, h // height, height, w // width, width)
    across, down = dct[width], dct[height]
    t = across[0] * tiles[..., :1]
    for v in range(1, width):
        t = t + across[v] * tiles[..., v : v + 1]
    z = down[0].reshape(-1, 1, 1) * t[:, :, :, :1]
    for u in range(1, height):
        z = z + down[u].reshape(-1, 1, 1) * t[:, :, :, u : u + 1]
    return z.reshape(y.shape)


def _dct(n: int) -> npt.NDArray[np.float32]:
    """Returns the orthonormal DCT-II of n points, the nearest float32 of each number."""
    u, i = np.arange(n)[:, None], np.arange(n)[None]
    matrix = np.sqrt(np.where(u, 2, 1) / max(n, 1)) * np.cos(np.pi * ((2 * i + 1) * u % (4 * n or 1)) / (2 * n or 1))
    return np.where(np.abs(matrix) < 1e-9, 0, matrix).astype(np.float32)
