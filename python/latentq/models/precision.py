"""Fixed arithmetic for networks: float32 as IEEE or as TF32, and deterministic convolutions."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Iterator
from typing import Any, Literal

import torch

from latentq.format.options import Dtype

Precision = Literal["ieee", "tf32"]


@contextlib.contextmanager
def fixed_arithmetic(precision: Precision = "ieee") -> Iterator[None]:
    """Computes float32 convolutions and matrix products on CUDA in one precision, by deterministic algorithms.

    torch keeps these settings for the whole process, so threads that ask for the same precision share one setting, and
    a thread that asks for another waits until they have left. What torch had before is restored when the last leaves.
    Works with torch >= 2.6: TF32 has two interfaces there, of which torch >= 2.9 refuses to mix both.

    Args:
        precision: `ieee` for IEEE float32; `tf32` for 10 bits of mantissa in products, as fast as tensor cores are.
    """
    _SHARED.enter(precision)
    try:
        yield
    finally:
        _SHARED.leave()


@contextlib.contextmanager
def computing_in(dtype: Dtype, device: torch.device) -> Iterator[None]:
    """Computes in a recipe's dtype on a device.

    Args:
        dtype: `float32` for IEEE float32; `tf32` for float32 whose products are in TF32 on CUDA, elsewhere the same as
            `float32`; `float16` or `bfloat16` for torch's autocast, in which what stays float32 is IEEE.
        device: The device whose autocast is set.
    """
    autocast: Any = contextlib.nullcontext()
    if dtype in ("float16", "bfloat16"):
        autocast = torch.autocast(device.type, getattr(torch, dtype))
    with fixed_arithmetic("tf32" if dtype == "tf32" else "ieee"), autocast:
        yield


class _Shared:
    """The one setting of this process: who uses it, and how to undo it."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._users = 0
        self._precision: Precision = "ieee"
        self._restore: Callable[[], None] = lambda: None

    def enter(self, precision: Precision) -> None:
        with self._changed:
            self._changed.wait_for(lambda: not self._users or self._precision == precision)
            if not self._users:
                self._precision, self._restore = precision, _set(precision)
            self._users += 1

    def leave(self) -> None:
        with self._changed:
            self._users -= 1
            if not self._users:
                self._restore()
                self._changed.notify_all()


def _set(precision: Precision) -> Callable[[], None]:
    """Sets torch's flags, and returns what sets them back."""
    undo = contextlib.ExitStack()
    try:
        _change(undo, torch.backends.cudnn, "benchmark", False)
        _change(undo, torch.backends.cudnn, "deterministic", True)
        convolutions: Any = getattr(torch.backends.cudnn, "conv", None)  # torch >= 2.9
        if convolutions is None:
            _change(undo, torch.backends.cudnn, "allow_tf32", precision == "tf32")
        else:
            _change_inherited(undo, convolutions, torch.backends.cudnn, precision)
        products: Any = torch.backends.cuda.matmul
        old: str | None = None
        with contextlib.suppress(RuntimeError):  # set through the newer interface, which the older one refuses to read
            old = torch.get_float32_matmul_precision()
        cpu: Any = torch.backends.mkldnn
        if convolutions is not None:  # the CPU has a lower precision too, which the older interface sets for products
            for operations in (cpu.conv, cpu.matmul):
                _change_inherited(undo, operations, cpu, "ieee")
        if old is None:
            _change_inherited(undo, products, torch.backends, precision)
        else:
            if convolutions is not None:  # the older interface writes `ieee` for the newer one's `none`
                undo.callback(setattr, products, "fp32_precision", products.fp32_precision)
            undo.callback(torch.set_float32_matmul_precision, old)
            torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
            if convolutions is not None:
                cpu.matmul.fp32_precision = "ieee"
    except BaseException:
        undo.close()
        raise
    return undo.close


def _change(undo: contextlib.ExitStack, settings: Any, name: str, value: Any) -> None:
    undo.callback(setattr, settings, name, getattr(settings, name))
    setattr(settings, name, value)


def _change_inherited(undo: contextlib.ExitStack, settings: Any, parent: Any, precision: Precision) -> None:
    """Sets `fp32_precision`; a setting that repeats its parent's goes back to inheriting it.

    Args:
        undo: Restores the setting when it is closed.
        settings: The settings of one backend or operation.
        parent: The settings that they inherit from.
        precision: The value to set.
    """
    old = settings.fp32_precision
    undo.callback(setattr, settings, "fp32_precision", "none" if old == parent.fp32_precision else old)
    settings.fp32_precision = precision


_SHARED = _Shared()


def _forget() -> None:
    """Resets the guard in a forked child, which has none of the threads that would leave it."""
    global _SHARED
    _SHARED = _Shared()


os.register_at_fork(after_in_child=_forget)
