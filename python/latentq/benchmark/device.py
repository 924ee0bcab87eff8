"""Dequantizing on a torch device, and latents that arrive there: latentq, torch, and plain memory traffic."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from latentq.benchmark import loading, quantizing
from latentq.benchmark.quantizing import COPY, FILL
from latentq.benchmark.quantizing_torch import dequantize
from latentq.benchmark.turns import Contenders
from latentq.quantizer import Quantizer


@dataclass(frozen=True, eq=False)
class OnDevice:
    """Codes (4096, 4, 32, 32) uint8 on a device, and a buffer of their values."""

    device: torch.device
    quantizer: Quantizer
    codes: torch.Tensor
    out: torch.Tensor


def best_device() -> torch.device | None:
    """Returns the first accelerator that torch has; None if there is none."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps") if torch.backends.mps.is_available() else None


def on_device(device: torch.device) -> OnDevice:
    """Returns codes on a device."""
    arrays = quantizing.arrays(1)
    codes = torch.from_numpy(arrays.codes).to(device)
    return OnDevice(device, arrays.quantizer, codes, torch.zeros(codes.shape, device=device))


def wait(device: torch.device) -> None:
    """Waits until a device has done all that it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def _waiting(work: Callable[[OnDevice], object]) -> Callable[[OnDevice], object]:
    def run(data: OnDevice) -> None:
        work(data)
        wait(data.device)

    return run


DEQUANTIZE: Contenders = {
    "latentq": _waiting(lambda d: d.quantizer.dequantize(d.codes)),
    FILL: _waiting(lambda d: d.out.fill_(1)),
    COPY: _waiting(lambda d: d.out.clone()),
    "torch eager": _waiting(lambda d: dequantize(d.codes)),
}


def epochs(folder: Path, device: torch.device) -> Contenders:
    """Returns shuffled epochs that end on the device.

    Args:
        folder: A folder of `loading.write_numpy`.
        device: The device.
    """
    dataset = loading.latent_dataset(folder)
    memmap = loading.numpy_memmap(folder, 0)
    works: dict[str, loading.Epoch] = {
        "latentq, resident": loading.pairs(dataset.to_device(device).loader(loading.BATCH, shuffle=True)),
        "latentq": loading.pairs(dataset.loader(loading.BATCH, shuffle=True, device=device)),
        "NumPy memmap, DataLoader": lambda: ((x.to(device), y.to(device)) for x, y in memmap()),
    }

    def one(epoch: loading.Epoch) -> Callable[[Any], None]:
        def run(_data: object) -> None:
            loading.run(epoch)
            wait(device)

        return run

    return {name: one(epoch) for name, epoch in works.items()}
