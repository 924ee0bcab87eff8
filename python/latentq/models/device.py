"""Devices that models compute on."""

from __future__ import annotations

import contextlib

import torch

from latentq.system.ranks import local_rank

_OUT_OF_MEMORY = (
    "out of memory",  # CUDA's runtime and driver, Triton
    "unable to find an engine",  # cuDNN: no algorithm's workspace fits
    "CUDNN_STATUS_ALLOC_FAILED",
    "CUBLAS_STATUS_ALLOC_FAILED",
)


def default_device() -> str:
    """Returns `cuda:` and this process's rank on its machine if there is a GPU, else `cpu`.

    Ranks beyond the visible GPUs share them in turn.
    """
    return f"cuda:{local_rank() % torch.cuda.device_count()}" if torch.cuda.is_available() else "cpu"


def check_device(device: str) -> None:
    """Refuses a device that cannot be used, before anything is published.

    Raises:
        ValueError: The device cannot be used.
    """
    try:
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).strip().partition("\n")[0]
        if reason.startswith("Expected one of"):  # torch lists all that it was ever built for
            reason = "there is no such kind; name cpu, cuda or cuda:1"
        raise ValueError(f"device {device!r} cannot be used: {reason}") from None


def device_of(model: object) -> str:
    """Returns the device of the first parameter of a model, or of its `module`, else `cpu`: its input must go there."""
    parameters = getattr(getattr(model, "module", model), "parameters", None)
    first = next(iter(parameters()), None) if callable(parameters) else None
    return str(first.device) if first is not None else "cpu"


def is_out_of_memory(error: BaseException) -> bool:
    """Returns True if an error says that a device, or page-locked memory, is exhausted.

    torch's allocator raises `torch.OutOfMemoryError`. The libraries below it allocate memory of their own, and their
    failures are `RuntimeError`s, or `torch.AcceleratorError`s, that only their text tells apart.
    """
    if isinstance(error, torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error) for text in _OUT_OF_MEMORY)


def current_device(device: torch.device) -> contextlib.AbstractContextManager[object]:
    """Makes a GPU the current device of this thread, so that none of its calls opens a context on another GPU.

    Allocating pinned memory and leaving a stream's context use the current device, which in a new thread is GPU 0.
    """
    return torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()


def send(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Returns a copy of a CPU tensor on a device, without waiting for a GPU to finish its earlier work."""
    if device.type != "cuda":
        return tensor.to(device)
    with current_device(device):
        return tensor.pin_memory().to(device, non_blocking=True)


def start_copy_to_host(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Returns a CPU copy of a tensor; if it is on a GPU, the copy is valid once the current stream has reached it."""
    if device.type != "cuda":
        return tensor.cpu()
    pinned = torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu", pin_memory=True)
    return pinned.copy_(tensor, non_blocking=True)
