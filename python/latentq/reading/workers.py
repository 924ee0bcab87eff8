"""Batches sent by DataLoader workers: latents as stored, in shared memory that is mapped once and reused.

torch shares new memory for each batch, and filling new pages takes longer than all other work together. Here a worker
gathers the stored bytes into a block that the training process has mapped before, and sends the block's number. The
training process dequantizes the latents as it receives the batch, and so returns the block to the worker.
"""

from __future__ import annotations

import functools
import itertools
import multiprocessing
import os
import threading
from collections.abc import Callable, Iterator, MutableMapping
from math import prod
from multiprocessing.reduction import ForkingPickler
from typing import Any, ParamSpec, TypeVar

import numpy as np
import torch
from torch._utils import ExceptionWrapper

from latentq.reading.buffers import CACHE_LINE, Allocate, RecycledMemory, private, shared_storage, whole_lines
from latentq.reading.layout import Layout
from latentq.reading.samples import Batch

_P = ParamSpec("_P")
_T = TypeVar("_T")


class _SharedBlock:
    """Memory shared by a worker and the training process. Its first byte is 1 while a batch is in it.

    The tensors of the batch begin after the first cache line, each on a cache line of its own.
    """

    _numbers = itertools.count()

    def __init__(self, nbytes: int) -> None:
        self.memory = torch.empty(0, dtype=torch.uint8, device="cpu").set_(shared_storage(nbytes))
        self.number = next(self._numbers)
        self.is_known = False  # True once the training process has mapped it
        self.in_use = self.memory.numpy()[:1]

    def tensor(self, start: int, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        """Views bytes of the block as a tensor.

        Args:
            start: Offset of the first byte.
            shape: Shape of the tensor, which is C-contiguous.
            dtype: Its dtype.
        """
        nbytes = prod(shape) * dtype.itemsize
        return self.memory[start : start + nbytes].view(dtype).view(shape)


_worker_blocks: list[_SharedBlock] = []  # in a worker: its own blocks
_sent_layouts: dict[int, tuple[int, Layout]] = {}  # in a worker: the layouts it has sent, numbered, by their id


class WorkerBatch(MutableMapping[str, Any]):
    """A worker's batch. It is decoded on first access, or else when it is received.

    Args:
        layout: The meaning of its columns.
        nbytes: The bytes of its tensors, each rounded up to whole cache lines.
        read: Reads the batch with its latents as stored, into tensors of the allocator it is given.
    """

    def __init__(self, layout: Layout, nbytes: int, read: Callable[..., Batch]) -> None:
        self._layout = layout
        self._batch: Batch | None = None
        nbytes += CACHE_LINE
        free = (block for block in _worker_blocks if not block.in_use[0] and len(block.memory) >= nbytes)
        block = next(free, None)
        if block is None:
            block = _SharedBlock(nbytes)
            _worker_blocks.append(block)
        block.in_use[0] = 1
        self._block: _SharedBlock | None = block
        views: list[tuple[torch.Tensor, tuple[int, tuple[int, ...], torch.dtype]]] = []
        end = CACHE_LINE

        def allocate(shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
            nonlocal end
            tensor = block.tensor(end, shape, dtype)
            views.append((tensor, (end, shape, dtype)))
            end += whole_lines(tensor.nbytes)
            return tensor

        self._stored = read(allocate=allocate)
        self._views = views

    def __del__(self) -> None:
        block: _SharedBlock | None = getattr(self, "_block", None)
        if block is not None:
            block.in_use[0] = 0

    @property
    def _values(self) -> Batch:
        """The decoded batch; decoding frees the block."""
        if self._batch is None:
            if self._block is None:
                raise RuntimeError("this batch was sent to the training process and its memory was returned")
            self._batch = _decoded(self._layout, self._stored, private)
            self._block.in_use[0] = 0
            self._block = None
        return self._batch

    def __getitem__(self, name: str) -> Any:
        return self._values[name]

    def __setitem__(self, name: str, value: Any) -> None:
        self._values[name] = value

    def __delitem__(self, name: str) -> None:
        del self._values[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __or__(self, other: dict[str, Any]) -> dict[str, Any]:
        return self._values | other

    def __reduce__(self) -> tuple[Any, ...]:
        return dict, (dict(self._values),)

    def _send(self) -> tuple[Any, ...]:
        """Pickles the batch for the queue to the training process. Works only once."""
        block = self._block
        if block is None:
            return self.__reduce__() if self._batch is not None else (_sent_before, ())
        self._block = None
        known, block.is_known = block.is_known, True
        memory = None if known else block.memory
        layout = None if id(self._layout) in _sent_layouts else self._layout
        number, _ = _sent_layouts.setdefault(id(self._layout), (len(_sent_layouts), self._layout))
        sent: list[Any] = []
        for name, value in self._stored.items():
            view = next((view for tensor, view in self._views if tensor is value), None)
            if view is None and isinstance(value, torch.Tensor):
                sent.append((name, None, value.numpy()))  # a tensor would be sent in shared memory of its own
            else:
                sent.append((name, view, value if view is None else None))
        return _receive, (os.getpid(), (block.number, memory), (number, layout), sent)


ForkingPickler.register(WorkerBatch, WorkerBatch._send)


class _FailedBatch(ExceptionWrapper):
    """The error of a batch that was received in the pinning thread of a DataLoader.

    Raised there, it would end the thread, and the training process would learn only that. A wrapped error is passed on
    and raised in the training process.
    """

    def pin_memory(self) -> None:
        """Raises the error where torch catches it: in the thread's copy of an object that holds the batch."""
        self.reraise()  # type: ignore[no-untyped-call]


def _keeps_errors(receive: Callable[_P, _T]) -> Callable[_P, _T | _FailedBatch]:
    """Makes a function that unpickles batches return its error instead of raising it in a pinning thread."""

    @functools.wraps(receive)
    def kept(*arguments: _P.args, **options: _P.kwargs) -> _T | _FailedBatch:
        try:
            return receive(*arguments, **options)
        except Exception:
            if "_pin_memory_loop" not in threading.current_thread().name:  # the name that Python makes of its target
                raise
            where = "while the pinning thread of a DataLoader received a batch"
            return _FailedBatch(where=where)  # type: ignore[no-untyped-call]

    return kept


@_keeps_errors
def _sent_before() -> None:
    """Raises in the receiver: an error in the sender would leave the receiver waiting."""
    raise RuntimeError("a worker has sent the same batch of latents twice: keep a copy, dict(batch), instead")


class _Sender:
    """The training process's record of a worker: its layouts, the blocks mapped, and memory for decoded batches."""

    def __init__(self) -> None:
        self.blocks: dict[int, _SharedBlock] = {}
        self.layouts: dict[int, Layout] = {}
        self.allocate = RecycledMemory()


_senders: dict[int, _Sender] = {}  # by process ID


@_keeps_errors
def _receive(
    pid: int, in_block: tuple[int, torch.Tensor | None], in_layout: tuple[int, Layout | None], sent: list[Any]
) -> Batch:
    """Unpickles a batch that a worker has sent, and decodes it.

    Args:
        pid: The worker's process ID.
        in_block: The number of the worker's block of shared memory, and its memory with the first batch in it.
        in_layout: The number of the batch's layout, and the layout with its first batch.
        sent: For each column its name, and either its place in the block (start, shape, dtype) or None and its values.
    """
    (number, memory), (layout_number, new_layout) = in_block, in_layout
    if memory is not None:
        if pid not in _senders or number in _senders[pid].blocks:  # a new worker, perhaps with a former worker's PID
            alive = {process.pid for process in multiprocessing.active_children()}
            for ended in [known for known in _senders if known not in alive]:
                del _senders[ended]
            _senders[pid] = _Sender()
        block = _SharedBlock.__new__(_SharedBlock)
        block.memory, block.in_use = memory, memory.numpy()[:1]
        _senders[pid].blocks[number] = block
    sender = _senders[pid]
    if new_layout is not None:
        sender.layouts[layout_number] = new_layout
    block, layout = sender.blocks[number], sender.layouts[layout_number]
    stored = {name: value if view is None else block.tensor(*view) for name, view, value in sent}
    try:
        return _decoded(layout, stored, sender.allocate)
    finally:
        block.in_use[0] = 0


def _decoded(layout: Layout, stored: Batch, allocate: Allocate) -> Batch:
    """Decodes a batch into memory of its own, apart from the block."""
    batch = layout.decode_batch(stored, allocate=allocate)
    for name, value in batch.items():
        if value is not stored[name]:
            continue
        if isinstance(value, torch.Tensor):
            batch[name] = value.clone()
        elif isinstance(value, np.ndarray):
            batch[name] = torch.from_numpy(value)
    return batch
