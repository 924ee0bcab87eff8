"""LatentLoader: batches prepared ahead by threads, in an order that resumes anywhere and on any number of ranks."""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from operator import index
from typing import Any, NamedTuple, TypedDict, Unpack

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import default_collate

from latentq._core import Threads
from latentq.reading.buffers import Allocate, RecycledMemory, pinned_for, private
from latentq.reading.order import bernoulli, rank_slice
from latentq.reading.protocol import BatchSource
from latentq.reading.samples import Batch, samples_of
from latentq.system.processors import processors
from latentq.system.ranks import distributed_ranks
from latentq.system.text import counted

_STRETCH = 1 << 14  # samples whose order is computed at a time


class LoaderOptions(TypedDict, total=False):
    """The options of `LatentLoader` and of the `loader` methods.

    Attributes:
        shuffle: True permutes the whole epoch; False by default.
        seed: Selects the permutation, the dropouts and the noise that draws latents from moments; at least 0, and 0 by
            default.
        drop_last: True skips a last batch that is not full on every rank; False by default.
        device: Batches are sent to it with latents as stored, and decoded there. None, the default, leaves batches on
            the CPU.
        threads: The number of threads that prepare batches; None, the default, for one on each CPU of this process's
            share, at most 4.
        prefetch: The number of batches prepared ahead; 2 by default.
        pin_memory: True puts batches that stay on the CPU in page-locked memory, if there is a GPU; False by default.
        rank: This process's rank; None, the default, for that of torch.distributed if it is initialized, else 0.
        world_size: The number of processes; None, the default, as with `rank`.
        label_dropout: For classifier-free guidance: the probability that `drop_label`, (B,) bool, is True for a sample,
            a function of (seed, epoch, sample). There is no such key if it is 0, the default.
        caption_dropout: The same for `drop_caption`; with it comes `drop_caption_mask`, (B,) float32, to multiply
            embeddings by: 0 where `drop_caption` is True and 1 elsewhere.
    """

    shuffle: bool
    seed: int
    drop_last: bool
    device: str | torch.device | None
    threads: int | None
    prefetch: int
    pin_memory: bool
    rank: int | None
    world_size: int | None
    label_dropout: float
    caption_dropout: float


_DEFAULTS = LoaderOptions(
    shuffle=False,
    seed=0,
    drop_last=False,
    device=None,
    threads=None,
    prefetch=2,
    pin_memory=False,
    rank=None,
    world_size=None,
    label_dropout=0.0,
    caption_dropout=0.0,
)


class _Step(NamedTuple):
    """One step of an epoch, on one rank.

    Attributes:
        stop: The end of the step's global batch, in the global order.
        indices: The indices of this rank's samples.
        masks: The batch's masks: `valid` and the dropouts.
    """

    stop: int
    indices: NDArray[np.int64]
    masks: dict[str, NDArray[Any]]


class LatentLoader:
    """Batches of a dataset, prepared ahead by threads. Made by `LatentDataset.loader`.

    A batch is a dict: latents (B, C, h, w), `label` (B,) int64, strings as lists, and `valid`, (B,) bool. Every sample
    comes exactly once in an epoch, and all ranks take the same number of steps. The last batch of an epoch is divided
    evenly over the ranks; only if it has fewer samples than ranks are some repeated, with `valid` False.

    An iteration goes through one epoch; the next iteration goes through the next epoch. The order is a function of
    (seed, epoch, position) alone, so that any step can be resumed, with any batch size and number of ranks.

    Args:
        source: The dataset to read from.
        batch_size: Samples in a batch, on each rank.
        **options: See `LoaderOptions`.

    Attributes:
        source: The dataset.
        batch_size: Samples in a batch, on each rank.
        order: The order of samples.
        rank: This process's rank.
        world_size: The number of processes.

    Raises:
        ValueError: An argument is out of range.
        TypeError: There is no such option.
    """

    def __init__(self, source: BatchSource, batch_size: int, **options: Unpack[LoaderOptions]) -> None:
        unknown = options.keys() - _DEFAULTS.keys()
        if unknown:
            raise TypeError(f"a loader has no option {min(unknown)!r}: there are {', '.join(_DEFAULTS)}")
        chosen = _DEFAULTS | options
        device = torch.device("cpu" if chosen["device"] is None else chosen["device"])
        threads = chosen["threads"]
        self.source = source
        self.batch_size = index(batch_size)  # a plain int even if given NumPy's, so that a state can be saved as JSON
        self.drop_last = chosen["drop_last"]
        self.device = None if device.type == "cpu" else device
        self.threads = min(4, processors()) if threads is None else index(threads)
        self.prefetch = index(chosen["prefetch"])
        self.rank, self.world_size = distributed_ranks(chosen["rank"], chosen["world_size"])
        self.order = source.order(shuffle=chosen["shuffle"], seed=chosen["seed"])
        self.dropouts = {"drop_label": chosen["label_dropout"], "drop_caption": chosen["caption_dropout"]}
        for name, value in (
            ("batch_size", self.batch_size),
            ("threads", self.threads),
            ("prefetch", self.prefetch),
        ):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, not {value}")
        for name, probability in self.dropouts.items():
            if not 0 <= probability <= 1:
                raise ValueError(f"{name.removeprefix('drop_')}_dropout must be from 0 to 1, not {probability}")
        self._pin = torch.cuda.is_available() and (chosen["pin_memory"] or self.device is not None)
        self._epoch = 0
        self._position = 0  # in the global order: the number of samples that all ranks together have been given
        self._start = 0  # the position at which the next iteration begins

    @property
    def epoch(self) -> int:
        """The epoch of the next batch, from 0."""
        return self._epoch

    def __len__(self) -> int:
        """Returns the number of batches in a whole epoch."""
        step = self.batch_size * self.world_size
        return len(self.order) // step if self.drop_last else -(-len(self.order) // step)

    def set_epoch(self, epoch: int) -> None:
        """Goes to the start of an epoch; in the middle of that same epoch, as after `load_state_dict`, it does nothing.

        Args:
            epoch: The epoch, from 0.

        Raises:
            ValueError: The epoch is below 0.
        """
        if epoch < 0:
            raise ValueError(f"an epoch is at least 0, not {epoch}")
        if epoch != self._epoch or self._is_given:
            self._epoch, self._position, self._start = index(epoch), 0, 0

    @property
    def _is_given(self) -> bool:
        """True if an iteration has given its whole epoch, but was not asked for more, as `zip` does not."""
        return not self._start and 0 < self._position == len(self.order)

    def state_dict(self) -> dict[str, Any]:
        """Returns the loader's position: the batches handed out so far, without those prepared ahead.

        It is the same on all ranks, and JSON can hold it.
        """
        return {
            "epoch": self._epoch,
            "position": self._position,
            "sizes": list(self.order.sizes),
            "shares": list(self.order.shares),
            "shuffle": self.order.shuffle,
            "seed": self.order.seed,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Makes the next iteration resume at another loader's position, whatever its batch size and number of ranks.

        Args:
            state: A result of `state_dict`.

        Raises:
            ValueError: The state's sizes, shares, shuffle or seed differ from this loader's, or it is no valid state.
            TypeError: The state is no mapping.
        """
        if not isinstance(state, Mapping):
            raise TypeError(f"the state of a loader is a dict from state_dict(), not {type(state).__name__}")
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
                raise ValueError(f"the state is of a loader with {key} {state[key]}, and this loader has {mine[key]}")
        if state["position"] > len(self.order):
            samples = counted(len(self.order), "sample")
            raise ValueError(f"the state's position is {state['position']}, of {samples} in an epoch")
        self._epoch, self._position = state["epoch"], state["position"]
        self._start = self._position

    def __iter__(self) -> Iterator[Batch]:
        """Iterates over one epoch, from its start or from the position that `load_state_dict` has set."""
        if self._is_given:
            self._epoch += 1
        self._position, self._start = self._start, 0
        epoch = self._epoch
        allocate = pinned_for(self.device) if self._pin else RecycledMemory()
        pool = ThreadPoolExecutor(self.threads, thread_name_prefix="latentq")
        threads = Threads(self.threads)  # the core's; each kind of threads starts with its first task
        gatherer = self.source.native_gatherer(decoded=self.device is None)
        decoded = gatherer is None or gatherer.gives_decoded
        prepared: deque[tuple[_Step, Callable[[], Batch]]] = deque()
        is_finalizing = sys.is_finalizing  # kept, since at the interpreter's end modules lose their imports
        try:
            for step in self._steps(epoch, self._position):
                if gatherer is not None:
                    prepared.append((step, gatherer.begin(step.indices, allocate, threads)))
                else:
                    prepared.append((step, pool.submit(self._prepare, epoch, step.indices, allocate).result))
                if len(prepared) > self.prefetch:
                    yield self._next(prepared, decoded)
            while prepared:
                yield self._next(prepared, decoded)
        finally:
            threads.shutdown()
            prepared.clear()
            if not is_finalizing():  # the interpreter has then waited for the pool's threads already
                try:
                    pool.shutdown(cancel_futures=True)
                except KeyboardInterrupt:  # while waiting for the threads, which still end
                    pool.shutdown(cancel_futures=True)
                    raise
        self._epoch, self._position = epoch + 1, 0

    def _steps(self, epoch: int, position: int) -> Iterator[_Step]:
        """Yields the steps of an epoch from a position on. The order of many steps is computed at once."""
        step, end = self.batch_size * self.world_size, len(self.order)
        if self.drop_last:
            end -= (end - position) % step
        while position < end:
            count = min((end - position) // step, -(-_STRETCH // self.batch_size))
            if count:
                own = np.arange(step * self.rank // self.world_size, step * (self.rank + 1) // self.world_size)
                stops = range(position + step, position + step * count + 1, step)
                positions = np.arange(position, stops[-1], step)[:, None] + own
                valid = np.ones(positions.shape, bool)
            else:  # the last batch, which is not full
                stops = range(end, end + 1)
                positions, valid = (part[None] for part in rank_slice(position, end, self.rank, self.world_size))
            indices = self.order.indices(epoch, positions.ravel())
            masks = {"valid": valid} | self._dropout_masks(epoch, indices, valid.shape)
            for stop, mine, *rows in zip(stops, indices.reshape(valid.shape), *masks.values(), strict=True):
                yield _Step(stop, mine, dict(zip(masks, rows, strict=True)))
            position = stops[-1]

    def _dropout_masks(self, epoch: int, indices: NDArray[np.int64], shape: tuple[int, ...]) -> dict[str, NDArray[Any]]:
        """Draws the dropout masks of some samples.

        Args:
            epoch: The number of the epoch.
            indices: Indices of the samples, (N,).
            shape: Shape of each mask, of N values.
        """
        masks: dict[str, NDArray[Any]] = {}
        for salt, (name, probability) in enumerate(self.dropouts.items()):
            if probability:
                masks[name] = bernoulli(indices, probability, (self.order.seed, epoch, salt)).reshape(shape)
                if name == "drop_caption":  # the mask that micro_diffusion's loader gives
                    masks["drop_caption_mask"] = (~masks[name]).astype(np.float32)
        return masks

    def _next(self, prepared: deque[tuple[_Step, Callable[[], Batch]]], decoded: bool) -> Batch:
        """Waits for the first of the prepared batches, and finishes it on the caller's thread."""
        step, result = prepared.popleft()
        batch = result()
        for name, mask in step.masks.items():
            batch[name] = torch.from_numpy(mask)
        if self._pin:
            _pin(batch, pinned_for(self.device))
        if self.device is not None or not decoded:
            batch = self._finish(batch)
        # A last batch that is dropped counts as done, so that another number of ranks does not resume with it.
        self._position = step.stop if prepared or not self.drop_last else len(self.order)
        return batch

    def _prepare(self, epoch: int, indices: NDArray[np.int64], allocate: Allocate) -> Batch:
        """Builds a batch on a Python thread.

        Args:
            epoch: The number of the epoch, which seeds the noise.
            indices: Indices of the samples, (N,).
            allocate: Allocates the batch's tensors.
        """
        source = self.source
        noise = source.noise_of(indices, self.order.seed, epoch, allocate=allocate)
        if source.transform is not None:
            batch = source.batch(indices, noise=noise, allocate=private)
            batch = default_collate(list(samples_of(batch, len(indices), source.transform)))
            if not isinstance(batch, dict):
                raise TypeError(f"a transform must return a dict for a loader to batch, not {type(batch).__name__}")
            if self._pin:
                _pin(batch, allocate)
            return batch
        if self.device is None:
            return source.batch(indices, noise=noise, allocate=allocate)
        return source.read(indices, allocate=allocate) | noise

    def _finish(self, batch: Batch) -> Batch:
        """Sends a batch to the device and decodes it there: on the caller's thread, and so on its CUDA stream."""
        if self.device is not None:
            for name, value in batch.items():
                if isinstance(value, torch.Tensor):
                    batch[name] = value.to(self.device, non_blocking=self._pin)  # only pinned memory is kept until then
        return batch if self.source.transform is not None else self.source.decode_batch(batch, allocate=private)


def _pin(batch: Batch, allocate: Allocate) -> None:
    """Copies the tensors of a batch that are not page-locked yet: copies to a GPU from other memory may wait for it."""
    for name, value in batch.items():
        if isinstance(value, torch.Tensor) and value.device.type == "cpu" and not value.is_pinned():
            batch[name] = allocate(tuple(value.shape), value.dtype).copy_(value)
