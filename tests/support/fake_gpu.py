"""A GPU that is not there: what on the hot paths would wait for it, found without one.

Under FakeTensorMode tensors claim to be on `cuda`. A dispatch mode reports every copy between host and device that
torch would wait for, and every operation whose result depends on values on the device. A copy is waited for if it is
not `non_blocking`, or if its memory on the host is not pinned: then the driver may wait.
"""

import contextlib
import traceback
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.utils._device
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensorMode,
    unset_fake_temporarily,
)
from torch.utils._python_dispatch import TorchDispatchMode

import latentq
from latentq.reading import loader, resident
from latentq.reading.gather import Gatherer

PACKAGE = Path(latentq.__file__).parent  # by its path: the checkout may be called latentq too
PINNED = {}  # storages of tensors that were asked for or made pinned, by address; kept, so that none is used again


class Synchronizations(TorchDispatchMode):
    """Collects what would wait for the device, each with the line of latentq that asked for it."""

    READS = ("aten::_local_scalar_dense", "aten::nonzero", "aten::equal", "aten::is_nonzero")

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = func.name()
        if name in self.READS and args[0].device.type == "cuda":
            self.found.append(f"{name} at {line()}")
        result = func(*args, **kwargs)
        if name == "aten::_to_copy":
            self._copy(name, args[0], result, kwargs.get("non_blocking"))
        elif name == "aten::copy_":
            self._copy(name, args[1], args[0], args[2] if len(args) > 2 else kwargs.get("non_blocking"))
        return result

    def _copy(self, name, source, target, non_blocking):
        if source.device.type == target.device.type:
            return
        if not non_blocking:
            self.found.append(f"{name} at {line()}")
            return
        host = source if source.device.type == "cpu" else target
        if host.untyped_storage()._cdata not in PINNED:
            self.found.append(f"{name} of pageable memory at {line()}")


def line():
    frames = [f for f in traceback.extract_stack() if Path(f.filename).is_relative_to(PACKAGE)]
    return f"{Path(frames[-1].filename).relative_to(PACKAGE)}:{frames[-1].lineno}" if frames else "elsewhere"


def pinned(tensor, *_):
    """Marks a tensor's memory as pinned."""
    storage = tensor.untyped_storage()
    PINNED[storage._cdata] = storage
    return tensor


def is_pinned(tensor, *_):
    return tensor.untyped_storage()._cdata in PINNED


def marking(make):
    def made(*args, pin_memory=False, **options):
        tensor = make(*args, **options)
        return pinned(tensor) if pin_memory else tensor

    return made


def real(function):
    """Lets what gathers bytes of files on the host work with real tensors."""

    def called(*args, **options):
        with unset_fake_temporarily():
            result = function(*args, **options)
        return real(result) if callable(result) else result

    return called


@pytest.fixture
def fake_gpu(monkeypatch):
    """Streams, events, pinned and free memory as far as the code under test asks for them."""
    stream = SimpleNamespace(
        device=torch.device("cuda", 0), wait_stream=lambda _: None, synchronize=lambda: pytest.fail("synchronize")
    )
    event = SimpleNamespace(record=lambda *_: None, synchronize=lambda: None, elapsed_time=lambda _: 0.0)
    monkeypatch.setattr(torch.cuda, "Stream", lambda *_, **__: stream)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda *_, **__: stream)
    monkeypatch.setattr(torch.cuda, "stream", lambda _: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "device", lambda _: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "Event", lambda *, blocking=False, **_: event if blocking else pytest.fail("spins"))
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda *_: None)
    monkeypatch.setattr(torch.Tensor, "pin_memory", pinned)
    monkeypatch.setattr(torch.Tensor, "is_pinned", is_pinned)
    monkeypatch.setattr(Gatherer, "begin", real(Gatherer.begin))
    monkeypatch.setattr(loader, "_pin", real(loader._pin))
    monkeypatch.setattr(resident, "_free_bytes", lambda _: None)
    torch.utils._device._device_constructors()  # cached: it must hold the functions that are replaced below
    for name in ("empty", "zeros"):
        monkeypatch.setattr(torch, name, marking(getattr(torch, name)))
    move = torch.nn.Module.to
    monkeypatch.setattr(
        torch.nn.Module, "to", lambda module, *a, **k: module if "memory_format" in k else move(module, *a, **k)
    )
    yield
    PINNED.clear()


def synchronizations(prepare):
    """Lists what waits for the device in the second run of the work that `prepare` returns.

    A constant may be copied once: only the second run counts.
    """
    recorder = Synchronizations()
    with FakeTensorMode(allow_non_fake_inputs=True):
        work = prepare()
        work()
        with recorder:
            try:
                work()
            except (DataDependentOutputException, DynamicOutputShapeException) as error:
                recorder.found.append(f"{error} at {line()}")
    return recorder.found
