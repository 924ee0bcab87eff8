"""How a DataLoader's worker sends a batch: latents as they are stored, in memory that is shared once and used again.

Shared memory that is fresh for each batch, as torch has it, takes longer to fill than all else together. Here a worker
gathers the stored bytes into a block that the process that trains has mapped already, sends the block's number, and has
the block again when the batch has been received, which is when its latents are dequantised.
"""

from __future__ import annotations

import itertools
import multiprocessing
import os
from collections.abc import Callable, Iterator, MutableMapping
from math import prod
from multiprocessing.reduction import ForkingPickler
from typing import Any

import numpy as np
import torch

from latentq.reading.buffers import Empty, Recycled, private
from latentq.reading.layout import Layout

_LINE = 64  # bytes: what lies in a block begins on a cache line, after one for the mark


class _Block:
    """Memory shared with the process that trains. Its first byte says whether a batch is in it."""

    _numbers = itertools.count()

    def __init__(self, nbytes: int) -> None:
        untyped: Any = torch.UntypedStorage  # its _new_shared, by which torch's own default_collate shares memory
        storage: torch.UntypedStorage = untyped._new_shared(nbytes, device="cpu")
        self.memory = torch.empty(0, dtype=torch.uint8).set_(storage)
        self.number = next(self._numbers)
        self.is_known = False  # whether it was sent
        self.mark = self.memory.numpy()[:1]

    def tensor(self, at: int, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        nbytes = prod(shape) * dtype.itemsize
        return self.memory[at : at + nbytes].view(dtype).view(shape)


_own: list[_Block] = []  # a worker's


class Stored(MutableMapping[str, Any]):
    """A worker's batch: an ordinary one as soon as it is looked into, and where it is received.

    Args:
        layout: What its columns mean.
        nbytes: The bytes of its tensors, each rounded up to whole cache lines.
        read: Makes the batch, its latents as they are stored, in tensors that the function it is given makes.
    """

    def __init__(self, layout: Layout, nbytes: int, read: Callable[..., dict[str, Any]]) -> None:
        self._layout = layout
        self._batch: dict[str, Any] | None = None
        nbytes += _LINE
        fitting = (block for block in _own if not block.mark[0] and len(block.memory) >= nbytes)
        block = next(fitting, None)
        if block is None:
            block = _Block(nbytes)
            _own.append(block)
        block.mark[0] = 1
        self._block: _Block | None = block
        places: list[tuple[torch.Tensor, tuple[int, tuple[int, ...], torch.dtype]]] = []
        end = _LINE

        def empty(shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
            nonlocal end
            tensor = block.tensor(end, shape, dtype)
            places.append((tensor, (end, shape, dtype)))
            end += -(-tensor.nbytes // _LINE) * _LINE
            return tensor

        self._stored = read(empty=empty)
        self._places = places

    def __del__(self) -> None:
        block: _Block | None = getattr(self, "_block", None)
        if block is not None:
            block.mark[0] = 0

    @property
    def _values(self) -> dict[str, Any]:
        """The batch, decoded; the block is then free."""
        if self._batch is None:
            if self._block is None:
                raise RuntimeError("the batch is sent and no longer here")
            self._batch = _decoded(self._layout, self._stored, private)
            self._block.mark[0] = 0
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
        return dict, (self._values,)

    def _send(self) -> tuple[Any, ...]:
        """As the queue between a worker and the process that trains pickles it, once."""
        block = self._block
        if block is None:
            return self.__reduce__() if self._batch is not None else (_sent_before, ())
        self._block = None
        known, block.is_known = block.is_known, True
        new = None if known else (block.memory, self._layout)
        sent: list[Any] = []
        for name, value in self._stored.items():
            place = next((place for tensor, place in self._places if tensor is value), None)
            if place is None and isinstance(value, torch.Tensor):
                sent.append((name, None, value.numpy()))  # a tensor would be sent by memory of its own
            else:
                sent.append((name, place, value if place is None else None))
        return _receive, (os.getpid(), block.number, new, sent)


ForkingPickler.register(Stored, Stored._send)


def _sent_before() -> None:
    """Raises where the batch is received: an error where it is sent would leave the receiver waiting."""
    raise RuntimeError("a worker has sent the same batch of latents twice: let it keep a copy, dict(batch), instead")


class _Worker:
    """What a receiving process knows of a worker."""

    def __init__(self) -> None:
        self.blocks: dict[int, tuple[_Block, Layout]] = {}
        self.empty = Recycled()


_workers: dict[int, _Worker] = {}


def _receive(pid: int, number: int, new: tuple[torch.Tensor, Layout] | None, sent: list[Any]) -> dict[str, Any]:
    """The batch that a worker has sent."""
    if new is not None:
        if pid not in _workers or number in _workers[pid].blocks:  # another worker, maybe of an old one's number
            alive = {process.pid for process in multiprocessing.active_children()}
            for old in [old for old in _workers if old not in alive]:
                del _workers[old]
            _workers[pid] = _Worker()
        block = _Block.__new__(_Block)
        block.memory, block.mark = new[0], new[0].numpy()[:1]
        _workers[pid].blocks[number] = block, new[1]
    worker = _workers[pid]
    block, layout = worker.blocks[number]
    stored = {name: value if place is None else block.tensor(*place) for name, place, value in sent}
    try:
        return _decoded(layout, stored, worker.empty)
    finally:
        block.mark[0] = 0


def _decoded(layout: Layout, stored: dict[str, Any], empty: Empty) -> dict[str, Any]:
    """A batch that shares no memory with what was stored."""
    batch = layout.decode_batch(stored, empty=empty)
    for name, value in batch.items():
        if value is not stored[name]:
            continue
        if isinstance(value, torch.Tensor):
            batch[name] = value.clone()
        elif isinstance(value, np.ndarray):
            batch[name] = torch.from_numpy(value) if name in layout.labels else value.copy()
    return batch
