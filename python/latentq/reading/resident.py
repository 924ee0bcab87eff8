"""A dataset that lies in memory as a whole, on the CPU or a GPU: batches are an index and a dequantise away."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from latentq._core import MemoryTables
from latentq.reading.buffers import Empty, private, shareable
from latentq.reading.dataset import LatentDataset
from latentq.reading.gather import Column, Gatherer, rows
from latentq.reading.loader import LatentLoader
from latentq.reading.samples import Batch, Indices, checked_indices, collate, item_or_batch, samples_of
from latentq.system.memory import available_bytes

_CHUNK = 4096  # samples that are read at a time


class ResidentDataset(torch.utils.data.Dataset[dict[str, Any]]):
    """The latents and labels of a dataset in memory, latents as they are stored. Made by `LatentDataset.to_device`.

    Columns of strings are left out.

    Attributes:
        device: Where it lies.
        columns: What lies there: for each latent column uint8 (N, bytes), for labels int64 (N,).
    """

    transform = None

    def __init__(self, dataset: LatentDataset, device: str | torch.device = "cuda") -> None:
        self.device = torch.device(device)
        if dataset.transform is not None:
            raise ValueError("a dataset with a transform cannot be resident: its samples are made one by one")
        self._dataset = dataset
        names = (*dataset.layout.encoded, *dataset.layout.labels)
        if not names:
            raise ValueError(
                f"{dataset.path}: no latents or labels are among the columns {', '.join(dataset.layout.stored)}"
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

    def __getitem__(self, index: int | Indices) -> Any:
        """One sample, or the batch of several. Raises IndexError where there is none of that number."""
        return item_or_batch(self, index)

    def __getitems__(self, indices: Indices) -> Sequence[Any]:
        """Samples, decoded together, as of `LatentDataset`."""
        return samples_of(self.batch(indices), None)

    collate = staticmethod(collate)

    def batch(self, indices: Indices | torch.Tensor, *, noise: Batch | None = None, empty: Empty = shareable) -> Batch:
        """A batch on the device: latents (N, C, h, w), labels (N,).

        Args:
            indices: Of its samples. A tensor on a GPU is taken as it is, without a check that would wait for it.
            noise: As of `LatentDataset.batch`.
            empty: Makes the tensors of a batch on the CPU.

        Raises:
            IndexError: An index is out of range.
        """
        if isinstance(indices, torch.Tensor) and indices.device.type == "cpu":
            indices = indices.numpy()
        if not isinstance(indices, torch.Tensor):
            indices = checked_indices(indices, len(self))
            if self.device.type == "cpu":
                return self._dataset.decode_batch(self.gatherer().begin(indices, empty)() | (noise or {}), empty=empty)
            indices = torch.from_numpy(indices)
        return self.decode_batch(dict.fromkeys(self.columns, indices.to(self.device)) | (noise or {}), empty=empty)

    def ahead(self, *, decoded: bool) -> Gatherer | None:  # noqa: ARG002  (on the CPU all are)
        """As of `LatentDataset`. None also where it lies on another device, which does all the work itself."""
        return self.gatherer() if self.device.type == "cpu" and self._dataset.is_plain else None

    def gatherer(self) -> Gatherer:
        """What gathers batches on the CPU, their latents dequantised where that is one pass over them."""
        layout, columns = self._dataset.layout, []
        for place, (name, table) in enumerate(self.columns.items()):
            encoded = layout.encoded.get(name)
            quantizer = None if encoded is None else encoded.direct(layout.dtype)
            if encoded is None or quantizer is None:
                columns.append(Column(name, place, tuple(table.shape[1:]), table.dtype, is_code=encoded is not None))
            else:
                columns.append(Column(name, place, encoded.shape, layout.dtype, quantizer))
        return Gatherer(MemoryTables([rows(table.numpy()) for table in self.columns.values()]), columns)

    def read(self, indices: Indices, *, empty: Empty = private) -> Batch:
        """The numbers of a batch's samples: what `decode_batch` takes, once they are on another device than the CPU."""
        numbers = torch.from_numpy(checked_indices(indices, len(self)))
        return dict.fromkeys(self.columns, empty(tuple(numbers.shape), numbers.dtype).copy_(numbers))

    def decode_batch(self, batch: Batch, *, empty: Empty = shareable) -> Batch:
        """The batch whose numbers `read` gave; or, on the CPU, whose columns were gathered."""
        if self.device.type != "cpu":
            numbers = {name: batch[name] for name in self.columns}
            batch = batch | {name: self.columns[name].index_select(0, value) for name, value in numbers.items()}
        return self._dataset.decode_batch(batch, empty=empty)

    def noise_of(self, indices: NDArray[np.int64], seed: int, epoch: int, *, empty: Empty = private) -> Batch:
        """As of `LatentDataset`."""
        return self._dataset.noise_of(indices, seed, epoch, empty=empty)

    def loader(self, batch_size: int, *, prefetch: int = 1, **options: Any) -> LatentLoader:
        """A loader of batches on this device, in the order of the dataset's own: see `LatentLoader` for the options.

        Memory is never late, and the more batches there are at a time, the fewer are still in the processor's cache.
        """
        return LatentLoader(self, batch_size, device=self.device, prefetch=prefetch, **options)


def _table(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    if device.type != "cpu":
        return torch.empty(shape, dtype=dtype, device=device)
    # NumPy asks the system for huge pages, with which samples picked at random are read faster.
    return torch.from_numpy(np.empty(shape, torch.empty(0, dtype=dtype).numpy().dtype))


def _free_bytes(device: torch.device) -> int | None:
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return available_bytes() if device.type == "cpu" else None
