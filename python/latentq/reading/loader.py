"""LatentLoader: batches prepared ahead by threads, in an order that resumes anywhere and on any number of ranks."""

from __future__ import annotations

import os
import sys
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from operator import index
from typing import Any, Literal, NamedTuple, TypedDict, Unpack

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data._utils.collate import collate, collate_tensor_fn, default_collate_fn_map

from latentq._core import Threads
from latentq.reading.ahead import asked_for, with_files
from latentq.reading.buffers import RECYCLED, Allocate, RecycledMemory, pinned_for, private
from latentq.reading.gather import Gatherer, Pinned
from latentq.reading.order import bernoulli
from latentq.reading.protocol import BatchSource
from latentq.reading.samples import Batch, samples_of
from latentq.reading.steps import Step, Steps
from latentq.reading.windows import WINDOW, checked_shuffle
from latentq.system.processors import processors
from latentq.system.ranks import distributed_ranks


class LoaderOptions(TypedDict, total=False):
    """The options of `LatentLoader` and of the `loader` methods.

    Attributes:
        shuffle: True permutes the whole epoch; `window` permutes the shards, and the samples within windows of shards,
            for datasets larger than their cache; False by default.
        window: For `shuffle="window"`: the number of shards in a window; 64 by default.
        seed: Selects the permutation, the dropouts and the noise that draws latents from moments; at least 0, and 0 by
            default.
        drop_last: True skips a last batch (with buckets, of each bucket) that is not full on every rank; False by
            default.
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

    shuffle: bool | Literal["window"]
    window: int
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
    window=WINDOW,
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


class LatentLoader(Steps):
    """Batches of a dataset, prepared ahead by threads. Made by `LatentDataset.loader`.

    A batch is a dict: latents (B, C, h, w), `label` (B,) int64, strings as lists, and `valid`, (B,) bool. Every sample
    comes exactly once in an epoch, and all ranks take the same number of steps. The last batch of an epoch is divided
    evenly over the ranks; only if it has fewer samples than ranks are some repeated, with `valid` False.

    With buckets, a batch is of one bucket, the same one on all ranks, and each bucket has a last batch.

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
        rank, world_size = distributed_ranks(chosen["rank"], chosen["world_size"])
        super().__init__(
            source.order(shuffle=checked_shuffle(chosen["shuffle"], chosen["window"]), seed=chosen["seed"]),
            batch_size,
            drop_last=chosen["drop_last"],
            rank=rank,
            world_size=world_size,
        )
        self.source = source
        self.device = None if device.type == "cpu" else device
        self.threads = min(4, processors()) if threads is None else index(threads)
        self.prefetch = index(chosen["prefetch"])
        self.dropouts = {"drop_label": chosen["label_dropout"], "drop_caption": chosen["caption_dropout"]}
        for name, value in (("threads", self.threads), ("prefetch", self.prefetch)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, not {value}")
        for name, probability in self.dropouts.items():
            if not 0 <= probability <= 1:
                raise ValueError(f"{name.removeprefix('drop_')}_dropout must be from 0 to 1, not {probability}")
        self._memory = RecycledMemory()  # also for the next epoch
        self._pin = torch.cuda.is_available() and (chosen["pin_memory"] or self.device is not None)

    def __iter__(self) -> Iterator[Batch]:
        """Iterates over one epoch, from its start or from the position that `load_state_dict` has set."""
        steps = self._begin()
        epoch = self._epoch
        allocate = pinned_for(self.device) if self._pin else self._memory
        pool: ThreadPoolExecutor | None = None  # for batches that need Python
        threads = Threads(self.threads)  # the core's, which start with their first task
        gatherers: dict[int, Gatherer | None] = {}
        prepared: deque[_Prepared] = deque()
        files = self.source.files(self.order.shuffle)
        ahead: list[Pinned] = []
        if files is None:  # those that are kept are there as a whole before their samples are read
            steps = asked_for(steps, self.source, threads)
        kept = with_files(steps, files, self._steps(epoch + 1, self._first), ahead)
        is_random = bool(self.order.shuffle)  # in order, the system reads ahead on its own
        if is_random:
            self.source.read_ahead(begin=True)
        is_finalizing = sys.is_finalizing  # kept, since at the interpreter's end modules lose their imports
        try:
            for step, pinned in kept:
                if step.bucket not in gatherers:
                    native = self.source.native_gatherer(decoded=self.device is None, bucket=step.bucket)
                    gatherers[step.bucket] = native
                gatherer = gatherers[step.bucket]
                if gatherer is not None:
                    try:
                        begun = gatherer.begin(step.indices, allocate, threads, pinned)
                    except BaseException:
                        pinned.release()
                        raise
                    prepared.append(_Prepared(step, begun, gatherer.gives_decoded, pinned))
                else:
                    pool = pool or ThreadPoolExecutor(self.threads, thread_name_prefix="latentq")
                    begun = _result_of(pool.submit(self._prepare, epoch, step.indices, allocate, pinned))
                    prepared.append(_Prepared(step, begun, True, pinned))
                if len(prepared) > self.prefetch:
                    yield self._next(prepared)
            while prepared:
                yield self._next(prepared)
        finally:
            if is_random:
                self.source.read_ahead(begin=False)
            threads.shutdown()
            for waiting in prepared:
                waiting.pinned.release()
            prepared.clear()
            kept.close()
            for pinned in ahead:
                pinned.release()
            if not is_finalizing():  # the interpreter has then waited for the pool's threads already
                self._memory.trim()
                if pool is not None:
                    _end(pool)
        self._end(epoch)

    def _more_masks(self, epoch: int, indices: NDArray[np.int64]) -> dict[str, NDArray[Any]]:
        """Draws the dropout masks of some samples, (N,).

        Args:
            epoch: The number of the epoch.
            indices: Indices of the samples, (N,).
        """
        masks: dict[str, NDArray[Any]] = {}
        for salt, (name, probability) in enumerate(self.dropouts.items()):
            if probability:
                masks[name] = bernoulli(indices, probability, (self.order.seed, epoch, salt))
                if name == "drop_caption":  # the mask that micro_diffusion's loader gives
                    masks["drop_caption_mask"] = (~masks[name]).astype(np.float32)
        return masks

    def _next(self, prepared: deque[_Prepared]) -> Batch:
        """Waits for the first of the prepared batches, and finishes it on the caller's thread."""
        step, result, is_decoded, pinned = prepared.popleft()
        try:
            batch = result()
        finally:
            pinned.release()
        for name, mask in step.masks.items():
            batch[name] = torch.from_numpy(mask)
        if self._pin:
            _pin(batch, pinned_for(self.device))
        if self.device is not None or not is_decoded:
            batch = self._finish(batch, step.bucket)
        self._position = step.cursor
        return batch

    def _prepare(self, epoch: int, indices: NDArray[np.int64], allocate: Allocate, pinned: Pinned) -> Batch:
        """Builds a batch on a Python thread.

        Args:
            epoch: The number of the epoch, which seeds the noise.
            indices: Indices of the samples, (N,).
            allocate: Allocates the batch's tensors.
            pinned: The files that are kept for it.
        """
        pinned.wait()
        source = self.source
        noise = source.noise_of(indices, self.order.seed, epoch, allocate=allocate)
        if source.transform is not None:
            batch = source.batch(indices, noise=noise, allocate=private)
            batch = _collated(list(samples_of(batch, len(indices), source.transform)), allocate)
            if not isinstance(batch, dict):
                raise TypeError(f"a transform must return a dict for a loader to batch, not {type(batch).__name__}")
            if self._pin:
                _pin(batch, allocate)
            return batch
        if self.device is None:
            return source.batch(indices, noise=noise, allocate=allocate)
        return source.read(indices, allocate=allocate) | noise

    def _finish(self, batch: Batch, bucket: int) -> Batch:
        """Sends a batch to the device and decodes it there: on the caller's thread, and so on its CUDA stream."""
        if self.device is not None:
            for name, value in batch.items():
                if isinstance(value, torch.Tensor):
                    batch[name] = value.to(self.device, non_blocking=self._pin)  # only pinned memory is kept until then
        if self.source.transform is not None:
            return batch
        return self.source.decode_batch(batch, bucket=bucket, allocate=private)


class _Prepared(NamedTuple):
    """A batch that threads prepare.

    Attributes:
        step: Its step.
        result: Waits for it.
        is_decoded: True if it needs no further decoding.
        pinned: The files that are kept for it.
    """

    step: Step
    result: Callable[[], Batch]
    is_decoded: bool
    pinned: Pinned


def _collated(samples: list[Any], allocate: Allocate) -> Any:
    """Returns what torch's `default_collate` makes of samples, with its tensors in memory of `allocate`.

    Torch's own memory would be new in each step, or with glibc before 2.38 lost: see `private`.
    """

    def stacked(tensors: list[torch.Tensor], *, collate_fn_map: Any = None) -> torch.Tensor:
        first = tensors[0]
        alike = (
            type(tensor) is torch.Tensor
            and tensor.device.type == "cpu"
            and tensor.layout == torch.strided
            and tensor.dtype == first.dtype
            and tensor.shape == first.shape
            and not tensor.requires_grad
            for tensor in tensors
        )
        if first.dtype not in RECYCLED or not all(alike):
            stacked: torch.Tensor = collate_tensor_fn(tensors, collate_fn_map=collate_fn_map)
            return stacked
        return torch.stack(tensors, out=allocate((len(tensors), *first.shape), first.dtype))

    return collate(samples, collate_fn_map=default_collate_fn_map | {torch.Tensor: stacked})


def _result_of(future: Future[Batch]) -> Callable[[], Batch]:
    """Returns what waits for a batch of a pool: in this process, since a forked child has none of its threads."""
    process = os.getpid()

    def result() -> Batch:
        if os.getpid() != process:
            raise ValueError(
                "this iterator belongs to another process, whose threads do not exist after a fork: make a new "
                "iterator or loader in this process"
            )
        return future.result()

    return result


def _end(pool: ThreadPoolExecutor) -> None:
    """Ends a pool, without what it has not begun."""
    try:
        pool.shutdown(cancel_futures=True)
    except KeyboardInterrupt:  # while waiting for the threads, which still end
        pool.shutdown(cancel_futures=True)
        raise


def _pin(batch: Batch, allocate: Allocate) -> None:
    """Copies the tensors of a batch that are not page-locked yet: copies to a GPU from other memory may wait for it."""
    for name, value in batch.items():
        if isinstance(value, torch.Tensor) and value.device.type == "cpu" and not value.is_pinned():
            batch[name] = allocate(tuple(value.shape), value.dtype).copy_(value)
