"""The protocol that a loader reads batches from."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from latentq._core import Threads
from latentq.reading.ahead import Files
from latentq.reading.buffers import Allocate
from latentq.reading.gather import Gatherer
from latentq.reading.order import EpochOrder
from latentq.reading.samples import Batch
from latentq.reading.windows import Window

Transform = Callable[[dict[str, Any]], Any]


class BatchSource(Protocol):
    """Samples that are read in batches: `LatentDataset`, `LatentMixture` or `ResidentDataset`."""

    @property
    def transform(self) -> Transform | None:
        """A function called with each sample; its result replaces the sample."""

    def __len__(self) -> int: ...

    def order(self, *, shuffle: bool | Window, seed: int) -> EpochOrder:
        """Returns the order of an epoch's samples."""

    def files(self, shuffle: bool | Window = False, /) -> Files | None:
        """Returns what keeps the files of samples read in an order; None if they need not be kept."""

    def read_ahead(self, *, begin: bool, parts: int = 1) -> None:
        """Announces that all samples will be read in any order, or that they no longer will."""

    @property
    def samples_ahead(self) -> int:
        """How many samples to ask for before they are read; 0 if samples are not waited for."""

    def ask(self, indices: NDArray[np.int64], threads: Threads) -> None:
        """Asks the system on a thread for samples that will be read soon, without waiting for them."""

    def read(self, indices: NDArray[np.int64], *, allocate: Allocate) -> Batch:
        """Reads a batch with its latents as stored, uint8 (N, bytes), for `decode_batch`."""

    def noise_of(self, indices: NDArray[np.int64], seed: int, epoch: int, *, allocate: Allocate) -> Batch:
        """Returns the noise that draws latents from moments, (N, C, h, w) float32, to be added to such a batch.

        Args:
            indices: Indices of the samples, (N,), from 0 to len(self) - 1.
            seed: The seed of the loader.
            epoch: The number of the epoch.
            allocate: Allocates the tensors.
        """

    def decode_batch(self, batch: Batch, *, bucket: int, allocate: Allocate) -> Batch:
        """Decodes the latents of a batch from `read`, on their own device.

        Args:
            batch: A batch from `read`.
            bucket: The bucket of its samples; 0 without buckets.
            allocate: Allocates the decoded tensors on the CPU.
        """

    def batch(self, indices: NDArray[np.int64], *, noise: Batch, allocate: Allocate) -> Batch:
        """Reads a batch and decodes its latents to (N, C, h, w).

        Args:
            indices: Indices of the samples, (N,), from 0 to len(self) - 1.
            noise: As `noise_of` returns it; if it is empty, moments are drawn by torch's own generator.
            allocate: Allocates the batch's tensors.
        """

    def native_gatherer(self, *, decoded: bool, bucket: int) -> Gatherer | None:
        """Returns the native gatherer of a bucket's `batch` (or `read`), or None if building a batch needs Python."""
