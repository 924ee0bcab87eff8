"""A dataset that lies in memory as a whole, on the CPU or a GPU: batches are an index and a dequantise away."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from latentq.buffers import Empty, private, shareable
from latentq.dataset import Batch, Indices, LatentDataset, checked_indices, samples_of
from latentq.loader import LatentLoader
from latentq.memory import available_bytes

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
            part = dataset.read(np.arange(start, min(start + _CHUNK, len(dataset))))
            for name in names:
                if not start:
                    shape = (len(dataset), *part[name].shape[1:])
                    self.columns[name] = torch.empty(shape, dtype=part[name].dtype, device=self.device)
                self.columns[name][start : start + _CHUNK] = part[name]

    def __len__(self) -> int:
        return len(self._dataset)

    def __repr__(self) -> str:
        return f"ResidentDataset({self._dataset!r}, device={str(self.device)!r})"

    def __getitem__(self, index: int) -> Any:
        """One sample. Raises IndexError where there is none of that number."""
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Indices) -> Sequence[Any]:
        """Samples, decoded together, as of `LatentDataset`."""
        return samples_of(self.batch(indices), None)

    collate = staticmethod(LatentDataset.collate)

    def batch(self, indices: Indices | torch.Tensor) -> Batch:
        """A batch on the device: latents (N, C, h, w), labels (N,).

        Args:
            indices: Of its samples. A tensor on a GPU is taken as it is, without a check that would wait for it.

        Raises:
            IndexError: An index is out of range.
        """
        if isinstance(indices, torch.Tensor) and indices.device.type == "cpu":
            indices = indices.numpy()
        if not isinstance(indices, torch.Tensor):
            indices = torch.from_numpy(checked_indices(indices, len(self)))
        return self.decode_batch(dict.fromkeys(self.columns, indices.to(self.device)))

    def read(self, indices: Indices, *, empty: Empty = private) -> Batch:
        """The numbers of a batch's samples: what `decode_batch` takes, once they are on the device."""
        numbers = torch.from_numpy(checked_indices(indices, len(self)))
        return dict.fromkeys(self.columns, empty(tuple(numbers.shape), numbers.dtype).copy_(numbers))

    def decode_batch(self, batch: Batch, *, empty: Empty = shareable) -> Batch:
        """The batch whose numbers `read` gave."""
        picked = {
            name: _picked(self.columns[name], value, empty) if name in self.columns else value
            for name, value in batch.items()
        }
        return self._dataset.decode_batch(picked, empty=empty)

    def noise_of(self, indices: NDArray[np.int64], seed: int, epoch: int, *, empty: Empty = private) -> Batch:
        """As of `LatentDataset`."""
        return self._dataset.noise_of(indices, seed, epoch, empty=empty)

    def loader(self, batch_size: int, **options: Any) -> LatentLoader:
        """A loader of batches on this device, in the order of the dataset's own: see `LatentLoader` for the options."""
        return LatentLoader(self, batch_size, device=self.device, **options)


def _picked(column: torch.Tensor, numbers: torch.Tensor, empty: Empty) -> torch.Tensor:
    if column.device.type != "cpu":
        return column.index_select(0, numbers)
    # NumPy's own, since torch's would start threads of OpenMP in each of a loader's threads. With `clip`, which nothing
    # needs, it writes to `out` itself.
    out = empty((len(numbers), *column.shape[1:]), column.dtype)
    np.take(column.numpy(), numbers.numpy(), axis=0, out=out.numpy(), mode="clip")
    return out


def _free_bytes(device: torch.device) -> int | None:
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return available_bytes() if device.type == "cpu" else None
