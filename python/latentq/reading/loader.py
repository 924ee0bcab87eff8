"""LatentLoader: batches prepared ahead by threads, in an order that can be resumed anywhere, on any number of ranks."""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from operator import index
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import default_collate

from latentq._core import Threads
from latentq.reading.buffers import Empty, Recycled, pinned, private
from latentq.reading.gather import Gatherer
from latentq.reading.order import Order, bernoulli, slice_of
from latentq.reading.samples import Batch, samples_of
from latentq.system.processors import processors
from latentq.system.ranks import distributed_ranks

_STRETCH = 1 << 14  # samples whose order is computed at a time


class Source(Protocol):
    """What a loader reads from: `LatentDataset`, `LatentMixture` or `ResidentDataset`."""

    transform: Any

    def __len__(self) -> int: ...

    def read(self, indices: NDArray[np.int64], *, empty: Empty) -> Batch:
        """A batch whose latents are as stored, in tensors that `empty` makes."""

    def noise_of(self, indices: NDArray[np.int64], seed: int, epoch: int, *, empty: Empty) -> Batch:
        """What is to be added to such a batch where latents are drawn from moments."""

    def decode_batch(self, batch: Batch, *, empty: Empty) -> Batch:
        """The same with its latents decoded, on the device where they are."""

    def batch(self, indices: NDArray[np.int64], *, noise: Batch, empty: Empty) -> Batch:
        """All of that at once: a batch whose latents are decoded."""

    def ahead(self, *, decoded: bool) -> Gatherer | None:
        """What makes batches (or, not `decoded`, what `read` gives) without Python; None where it has a part in it."""


class _Step(NamedTuple):
    """One step of an epoch, on one rank.

    Attributes:
        stop: Where the global batch ends, in the global order.
        indices: This rank's samples.
        masks: What is known of them beforehand: `valid` and the dropouts.
    """

    stop: int
    indices: NDArray[np.int64]
    masks: dict[str, NDArray[Any]]


class LatentLoader:
    """Batches of a dataset, prepared ahead by threads. Made by `LatentDataset.loader`.

    A batch is a dict: latents (B, C, h, w), `label` (B,) int64, strings as lists, and `valid`, (B,) bool. Every sample
    comes exactly once in an epoch, and every rank takes equally many steps. The last batch of an epoch is divided
    evenly over the ranks; only where it has fewer samples than there are ranks are some repeated, with `valid` False.

    An iteration goes through one epoch; the next goes through the epoch after it. The order is a function of (seed,
    epoch, position) alone, so that it may be resumed at any step, also with another batch size or number of ranks.

    Args:
        source: What to read from.
        batch_size: Samples in a batch, on each rank.
        shuffle: Whether an epoch's samples are permuted, as a whole.
        seed: Of the permutation, the dropouts, and the noise by which latents are drawn from stored moments, a function
            of (seed, epoch, sample); at least 0.
        drop_last: Whether a last batch that is not full on every rank is left out.
        device: Where batches go, latents as they are stored, to be decoded there. None leaves them on the CPU.
        threads: How many prepare batches; None for one on each CPU, at most 4.
        prefetch: How many batches are prepared ahead.
        pin_memory: Whether batches that stay on the CPU lie in page-locked memory, where there is a GPU.
        rank: Of this process; None asks torch.distributed, where it is initialised.
        world_size: The number of processes; None as with rank.
        label_dropout: For classifier-free guidance: the probability with which `drop_label`, (B,) bool, is True. A
            function of (seed, epoch, sample); no such key where it is 0.
        caption_dropout: The same for `drop_caption`; beside it `drop_caption_mask`, (B,) float32, is 0 where it is True
            and 1 elsewhere, for embeddings to be multiplied by.
        order: Of the samples; None for every sample once.

    Raises:
        ValueError: An argument is out of range.
    """

    def __init__(
        self,
        source: Source,
        batch_size: int,
        *,
        shuffle: bool = False,
        seed: int = 0,
        drop_last: bool = False,
        device: str | torch.device | None = None,
        threads: int | None = None,
        prefetch: int = 2,
        pin_memory: bool = False,
        rank: int | None = None,
        world_size: int | None = None,
        label_dropout: float = 0.0,
        caption_dropout: float = 0.0,
        order: Order | None = None,
    ) -> None:
        self.source = source
        self.batch_size = index(batch_size)  # an int, and so a state has ints, of NumPy's numbers too
        self.drop_last = drop_last
        device = torch.device("cpu" if device is None else device)
        self.device = None if device.type == "cpu" else device
        self.threads = min(4, processors()) if threads is None else threads
        self.prefetch = prefetch
        self.rank, self.world_size = distributed_ranks(rank, world_size)
        self.order = Order((len(source),), (len(source),), shuffle, seed) if order is None else order
        self.dropouts = {"drop_label": label_dropout, "drop_caption": caption_dropout}
        for name, value in (("batch_size", batch_size), ("threads", self.threads), ("prefetch", self.prefetch)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, not {value}")
        for name, probability in self.dropouts.items():
            if not 0 <= probability <= 1:
                raise ValueError(f"{name.removeprefix('drop_')}_dropout must be from 0 to 1, not {probability}")
        self._pin = torch.cuda.is_available() and (pin_memory or self.device is not None)
        self._epoch = 0
        self._position = 0  # in the global order: samples that all ranks together have been given
        self._start = 0  # where the next iteration begins

    @property
    def epoch(self) -> int:
        """The epoch that the next batch is of, from 0."""
        return self._epoch

    def __len__(self) -> int:
        """How many batches a whole epoch has."""
        step = self.batch_size * self.world_size
        return len(self.order) // step if self.drop_last else -(-len(self.order) // step)

    def set_epoch(self, epoch: int) -> None:
        """Goes to the start of an epoch; nothing changes where it is already in it, as after `load_state_dict`.

        Raises:
            ValueError: The epoch is below 0.
        """
        if epoch < 0:
            raise ValueError(f"an epoch is at least 0, not {epoch}")
        if epoch != self._epoch or self._is_given:
            self._epoch, self._position, self._start = index(epoch), 0, 0

    @property
    def _is_given(self) -> bool:
        """Whether an iteration gave all of its epoch, but was not asked for more, as `zip` does not."""
        return not self._start and 0 < self._position == len(self.order)

    def state_dict(self) -> dict[str, Any]:
        """Where this loader stands: what came of the epoch in batches already handed out, not those prepared ahead.

        It is the same on all ranks.
        """
        return {
            "epoch": self._epoch,
            "position": self._position,
            "sizes": list(self.order.sizes),
            "shares": list(self.order.shares),
            "shuffle": self.order.shuffle,
            "seed": self.order.seed,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Makes the next iteration go on where another loader stood, whatever its batch size and number of ranks.

        Raises:
            ValueError: That loader's order was another: other sizes, shuffling or seed; or it is no such state.
        """
        mine = self.state_dict()
        if state.keys() != mine.keys():
            raise ValueError(
                f"the state of a loader has {', '.join(mine)}, not {', '.join(map(str, state)) or 'nothing'}"
            )
        for key in ("epoch", "position"):
            if type(state[key]) is not int or state[key] < 0:
                raise ValueError(f"the state's {key} must be a whole number of at least 0, not {state[key]!r}")
        for key in ("sizes", "shares", "shuffle", "seed"):
            if state[key] != mine[key]:
                raise ValueError(f"the state is of a loader with {key} {state[key]}, and this one has {mine[key]}")
        if state["position"] > len(self.order):
            raise ValueError(f"the state's position is {state['position']}, of {len(self.order)} samples in an epoch")
        self._epoch, self._position = state["epoch"], state["position"]
        self._start = self._position

    def __iter__(self) -> Iterator[Batch]:
        """One epoch, from its start, or from where `load_state_dict` has put it."""
        if self._is_given:
            self._epoch += 1
        self._position, self._start = self._start, 0
        epoch = self._epoch
        empty = pinned if self._pin else Recycled()
        pool = ThreadPoolExecutor(self.threads, thread_name_prefix="latentq")
        threads = Threads(self.threads)  # of the core; each kind is started when it has something to do
        gatherer = self.source.ahead(decoded=self.device is None)
        whole = gatherer is None or gatherer.is_whole
        ahead: deque[tuple[_Step, Callable[[], Batch]]] = deque()
        is_finalizing = sys.is_finalizing  # when it is, modules have lost what they imported
        try:
            for step in self._steps(epoch, self._position):
                if gatherer is not None:
                    ahead.append((step, gatherer.begin(step.indices, empty, threads)))
                else:
                    ahead.append((step, pool.submit(self._prepare, epoch, step.indices, empty).result))
                if len(ahead) > self.prefetch:
                    yield self._next(ahead, whole)
            while ahead:
                yield self._next(ahead, whole)
        finally:
            threads.shutdown()
            ahead.clear()
            if not is_finalizing():  # its threads were waited for before that
                try:
                    pool.shutdown(cancel_futures=True)
                except KeyboardInterrupt:  # in the midst of waiting for the threads, which end all the same
                    pool.shutdown(cancel_futures=True)
                    raise
        self._epoch, self._position = epoch + 1, 0

    def _steps(self, epoch: int, position: int) -> Iterator[_Step]:
        """The steps of an epoch from a position on. The order of many is computed at once."""
        step, end = self.batch_size * self.world_size, len(self.order)
        if self.drop_last:
            end -= (end - position) % step
        own = np.arange(step * self.rank // self.world_size, step * (self.rank + 1) // self.world_size)
        while position < end:
            count = min((end - position) // step, -(-_STRETCH // len(own)))
            if count:
                stops = range(position + step, position + step * count + 1, step)
                positions = np.arange(position, stops[-1], step)[:, None] + own
                valid = np.ones(positions.shape, bool)
            else:  # the last, which is not full
                stops = range(end, end + 1)
                positions, valid = (part[None] for part in slice_of(position, end, self.rank, self.world_size))
            indices = self.order.indices(epoch, positions.ravel())
            masks: dict[str, NDArray[Any]] = {"valid": valid}
            for salt, (name, probability) in enumerate(self.dropouts.items()):
                if probability:
                    masks[name] = bernoulli(indices, probability, (self.order.seed, epoch, salt)).reshape(valid.shape)
                    if name == "drop_caption":  # as micro_diffusion's loader has it
                        masks["drop_caption_mask"] = (~masks[name]).astype(np.float32)
            for stop, mine, *rows in zip(stops, indices.reshape(valid.shape), *masks.values(), strict=True):
                yield _Step(stop, mine, dict(zip(masks, rows, strict=True)))
            position = stops[-1]

    def _next(self, ahead: deque[tuple[_Step, Callable[[], Batch]]], whole: bool) -> Batch:
        step, begun = ahead.popleft()
        batch = begun()
        for name, mask in step.masks.items():
            batch[name] = torch.from_numpy(mask)
        if self.device is not None or not whole:
            batch = self._finish(batch)
        # What is dropped at the end counts as done, so that no other number of ranks takes it up.
        self._position = step.stop if ahead or not self.drop_last else len(self.order)
        return batch

    def _prepare(self, epoch: int, indices: NDArray[np.int64], empty: Empty) -> Batch:
        """A batch, on a thread of Python."""
        source = self.source
        noise = source.noise_of(indices, self.order.seed, epoch, empty=empty)
        if source.transform is not None:
            samples = samples_of(source.batch(indices, noise=noise, empty=private), source.transform)
            batch = default_collate(list(samples))
            if not isinstance(batch, dict):
                raise TypeError(f"a transform must return a dict for a loader to batch, not {type(batch).__name__}")
            return batch
        if self.device is None:
            return source.batch(indices, noise=noise, empty=empty)
        return source.read(indices, empty=empty) | noise

    def _finish(self, batch: Batch) -> Batch:
        """What must happen on the caller's thread, and so on its stream: the way to the device, and decoding there."""
        if self.device is not None:
            batch = {
                name: value.to(self.device, non_blocking=True) if isinstance(value, torch.Tensor) else value
                for name, value in batch.items()
            }
        return batch if self.source.transform is not None else self.source.decode_batch(batch, empty=private)
