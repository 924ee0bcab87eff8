"""ResidentDataset: a whole dataset in the memory of a CPU or GPU, so that a batch is an index and a dequantize away."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol, Unpack

import numpy as np
import torch
from numpy.typing import NDArray

from latentq._core import MemoryTables
from latentq.models.device import send
from latentq.reading.batched import BatchedDataset
from latentq.reading.buffers import Allocate, private, shareable
from latentq.reading.gather import GatheredColumn, Gatherer, rows
from latentq.reading.layout import Layout
from latentq.reading.loader import LatentLoader, LoaderOptions
from latentq.reading.protocol import BatchSource
from latentq.reading.samples import Batch, Indices, checked_indices
from latentq.system.memory import available_bytes

_CHUNK = 4096  # samples read at a time


class StoredDataset(BatchSource, Protocol):
    """A dataset that can be copied into memory: `LatentDataset`."""

    path: Path
    layout: Layout

    @property
    def is_plain(self) -> bool:
        """True if building a batch needs no Python."""

    @property
    def resident_bytes(self) -> int:
        """The memory that the copy takes."""

    def read(
        self, indices: NDArray[np.int64], *, names: Sequence[str] | None = None, allocate: Allocate = private
    ) -> Batch:
        """Reads some columns of a batch, with its latents as stored."""


class ResidentDataset(BatchedDataset):
    """The latents and labels of a dataset in memory, latents as stored. Made by `LatentDataset.to_device`.

    Columns of strings are skipped.

    Args:
        dataset: The dataset to copy.
        device: The device to copy it to.

    Attributes:
        device: The device.
        columns: The copied columns: uint8 (N, bytes) for encoded columns, int64 (N,) for labels.

    Raises:
        MemoryError: The device has less than `dataset.resident_bytes` free.
        ValueError: The dataset has a transform, or columns of strings only.
    """

    def __init__(self, dataset: StoredDataset, device: str | torch.device = "cuda") -> None:
        self.device = torch.device(device)
        if dataset.transform is not None:
            raise ValueError("a dataset with a transform cannot be resident: it makes samples one by one")
        self._dataset = dataset
        names = (*dataset.layout.encoded, *dataset.layout.labels)
        if not names:
            raise ValueError(
                f"{dataset.path}: no latents or labels are among the columns {', '.join(dataset.layout.shard_names)}"
            )
        needed, free = dataset.resident_bytes, _free_bytes(self.device)
        if free is not None and needed > free:
            raise MemoryError(
                f"{dataset.path} needs {needed / 1e9:.2f} GB on {self.device}, where {free / 1e9:.2f} GB are free"
            )
        self.columns: dict[str, torch.Tensor] = {}
        for start in range(0, len(dataset), _CHUNK):
            part = dataset.read(np.arange(start, min(start + _CHUNK, len(dataset))), names=names)
            for name, values in part.items():
                if not start:
                    self.columns[name] = _table((len(dataset), *values.shape[1:]), values.dtype, self.device)
                self.columns[name][start : start + _CHUNK] = values

    def __len__(self) -> int:
        return len(self._dataset)

    def __repr__(self) -> str:
        return f"ResidentDataset({self._dataset!r}, device={str(self.device)!r})"

    def batch(
        self, indices: Indices | torch.Tensor, *, noise: Batch | None = None, allocate: Allocate = shareable
    ) -> Batch:
        """Builds a batch on the device: latents (N, C, h, w), labels (N,).

        Args:
            indices: The indices of its samples. A tensor on a GPU is not checked, since a check would wait for it.
            noise: See `LatentDataset.batch`.
            allocate: Allocates the batch's tensors on the CPU.

        Raises:
            IndexError: An index is out of range.
        """
        if isinstance(indices, torch.Tensor) and indices.device.type == "cpu":
            indices = indices.numpy()
        if not isinstance(indices, torch.Tensor):
            indices = checked_indices(indices, len(self))
            if self.device.type == "cpu":
                batch = self._gatherer().begin(indices, allocate)() | (noise or {})
                return self._dataset.decode_batch(batch, allocate=allocate)
            indices = send(torch.from_numpy(indices), self.device)
        return self.decode_batch(
            dict.fromkeys(self.columns, indices.to(self.device)) | (noise or {}), allocate=allocate
        )

    def native_gatherer(self, *, decoded: bool = True) -> Gatherer | None:  # noqa: ARG002  (on the CPU all is decoded)
        """Returns the native gatherer, or None if building a batch needs Python or runs on another device.

        Args:
            decoded: Ignored: on the CPU latents are always dequantized while gathering where that is one pass.
        """
        return self._gatherer() if self.device.type == "cpu" and self._dataset.is_plain else None

    def _gatherer(self) -> Gatherer:
        """Returns a gatherer of batches on the CPU, which dequantizes latents where that is one pass over them."""
        layout, columns = self._dataset.layout, []
        for position, (name, table) in enumerate(self.columns.items()):
            encoded = layout.encoded.get(name)
            quantizer = None if encoded is None else encoded.direct_quantizer(layout.dtype)
            if encoded is None or quantizer is None:
                shape = tuple(table.shape[1:])
                columns.append(GatheredColumn(name, position, shape, table.dtype, needs_decoding=encoded is not None))
            else:
                columns.append(GatheredColumn(name, position, encoded.shape, layout.dtype, quantizer))
        return Gatherer(MemoryTables([rows(table.numpy()) for table in self.columns.values()]), columns)

    def read(self, indices: Indices, *, allocate: Allocate = private) -> Batch:
        """Returns the indices of a batch under each column's name: `decode_batch` replaces them on the device.

        Args:
            indices: Indices of the samples, in any order, each from -len(self) to len(self) - 1.
            allocate: Allocates the batch's tensors on the CPU.
        """
        checked = torch.from_numpy(checked_indices(indices, len(self)))
        return dict.fromkeys(self.columns, allocate(tuple(checked.shape), checked.dtype).copy_(checked))

    def decode_batch(self, batch: Batch, *, allocate: Allocate = shareable) -> Batch:
        """Builds the batch of the indices that `read` returned; on the CPU, decodes gathered columns.

        Args:
            batch: A batch from `read`.
            allocate: Allocates the decoded tensors on the CPU.
        """
        if self.device.type != "cpu":
            batch = batch | {name: table.index_select(0, batch[name]) for name, table in self.columns.items()}
        return self._dataset.decode_batch(batch, allocate=allocate)

    def noise_of(self, indices: NDArray[np.int64], seed: int, epoch: int, *, allocate: Allocate = private) -> Batch:
        """Returns the noise of samples for `decode_batch`: see `LatentDataset.noise_of`.

        Args:
            indices: Indices of the samples, each in [0, len(self)).
            seed: The loader's seed.
            epoch: The epoch, from 0.
            allocate: Allocates the batch's tensors on the CPU.
        """
        return self._dataset.noise_of(indices, seed, epoch, allocate=allocate)

    def loader(self, batch_size: int, **options: Unpack[LoaderOptions]) -> LatentLoader:
        """Returns a loader of batches on this device, in the order of the dataset's own loader.

        Args:
            batch_size: Samples in a batch, on each rank.
            **options: See `LoaderOptions`; all but `device`, which is this dataset's. `prefetch` is 1 by default:
                memory is never late, and with fewer batches more of each is still in the processor's cache.

        Raises:
            ValueError: An argument is out of range.
            TypeError: There is no such option, or a device is given.
        """
        if "device" in options:
            raise TypeError(f"device is no option of a resident dataset's loader: its batches are on {self.device}")
        chosen: LoaderOptions = {"prefetch": 1, **options, "device": self.device}
        return LatentLoader(self, batch_size, **chosen)


def _table(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    if device.type != "cpu":
        return torch.empty(shape, dtype=dtype, device=device)
    # NumPy asks the system for huge pages, which make reading random samples faster.
    return torch.from_numpy(np.empty(shape, torch.empty(0, dtype=dtype, device="cpu").numpy().dtype))


def _free_bytes(device: torch.device) -> int | None:
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return available_bytes() if device.type == "cpu" else None
