"""ResidentDataset: a whole dataset in the memory of a CPU or GPU, so that a batch is an index and a dequantize away."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Protocol, Unpack

import numpy as np
import torch
from numpy.typing import NDArray

from latentq._core import MemoryTables
from latentq.models.device import send
from latentq.reading.batched import BatchedDataset
from latentq.reading.buckets import BucketTable
from latentq.reading.buffers import Allocate, private, shareable, whole_lines
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

    @property
    def layouts(self) -> Sequence[Layout]:
        """The columns of a sample and their meaning, for each bucket."""

    @property
    def table(self) -> BucketTable:
        """The bucket of each sample, and where the samples of a bucket are."""

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
        bucket_columns: The copied columns of each bucket, by its number; of one bucket without buckets. A column is
            uint8 (N, bytes) if it is encoded, int64 (N,) if it holds labels. Columns of a transform stay on the CPU,
            which decodes them to 16-bit integers for the device; if their bytes vary, they are padded.

    Raises:
        MemoryError: The device has less than `dataset.resident_bytes` free.
        ValueError: The dataset has a transform, or columns of strings only.
    """

    def __init__(self, dataset: StoredDataset, device: str | torch.device = "cuda") -> None:
        self.device = torch.device(device)
        if dataset.transform is not None:
            raise ValueError("a dataset with a transform cannot be resident: it makes samples one by one")
        self._dataset = dataset
        layout = dataset.layouts[0]
        names = (*layout.encoded, *layout.labels, *layout.conditioning)
        if not names:
            raise ValueError(
                f"{dataset.path}: no latents or labels are among the columns {', '.join(layout.shard_names)}"
            )
        needed, free = dataset.resident_bytes, _free_bytes(self.device)
        if free is not None and needed > free:
            raise MemoryError(
                f"{dataset.path} needs {needed / 1e9:.2f} GB on {self.device}, where {free / 1e9:.2f} GB are free"
            )
        # The columns that are not in the device's memory with the others: decoding begins on the CPU, or bytes vary.
        self._apart = {
            name
            for name, column in layout.encoded.items()
            if not column.nbytes or (self.device.type != "cpu" and name in layout.on_host)
        }
        # Looked up for each batch, which the runs of the table would take longer for.
        self._rows = dataset.table.ordinals(np.arange(len(dataset))) if dataset.table.count > 1 else None
        room = sum(
            whole_lines(nbytes) for bucket in range(dataset.table.count) for nbytes in self._sizes(bucket, names)
        )
        self._memory = _empty(room, self.device)
        self._taken = 0
        self.bucket_columns = tuple(self._copied(bucket, names) for bucket in range(dataset.table.count))

    def _sizes(self, bucket: int, names: tuple[str, ...]) -> list[int]:
        """Returns the bytes of a bucket's columns."""
        encoded, count = self.layouts[bucket].encoded, int(self.table.counts[bucket])
        return [
            0 if name in self._apart else count * (encoded[name].nbytes if name in encoded else 8) for name in names
        ]

    def _copied(self, bucket: int, names: tuple[str, ...]) -> dict[str, torch.Tensor]:
        """Copies some columns of a bucket to the device."""
        table, encoded, columns = self.table, self.layouts[bucket].encoded, dict[str, torch.Tensor]()
        count = int(table.counts[bucket])
        for name, nbytes in zip(names, self._sizes(bucket, names), strict=True):
            if name in self._apart:
                room = _empty(count * encoded[name].nbytes, torch.device("cpu"))
                columns[name] = room.view(count, encoded[name].nbytes)
                continue
            part = self._memory[self._taken : self._taken + nbytes]
            columns[name] = part.view(count, encoded[name].nbytes) if name in encoded else part.view(torch.int64)
            if name in self.layouts[bucket].conditioning:
                columns[name] = part.view(torch.int32).view(count, 2)
            self._taken += whole_lines(nbytes)
        for start in range(0, count, _CHUNK):
            indices = table.indices(bucket, np.arange(start, min(start + _CHUNK, count)))
            for name, values in self._dataset.read(indices, names=names).items():
                if values.ndim == 2 and values.shape[1] > columns[name].shape[1]:  # longer ones than so far
                    columns[name] = _widened(columns[name], values.shape[1])
                part = columns[name][start : start + _CHUNK]
                if values.ndim == 2:
                    part[:, values.shape[1] :] = 0
                    part = part[:, : values.shape[1]]
                part.copy_(values)
        return columns

    @property
    def columns(self) -> dict[str, torch.Tensor]:
        """The copied columns; with buckets, those of the first bucket."""
        return self.bucket_columns[0]

    @property
    def layouts(self) -> Sequence[Layout]:
        """The columns of a sample and their meaning, for each bucket; one without buckets."""
        return self._dataset.layouts

    @property
    def table(self) -> BucketTable:
        """The bucket of each sample, and where the samples of a bucket are."""
        return self._dataset.table

    def __len__(self) -> int:
        return len(self._dataset)

    def __repr__(self) -> str:
        return f"ResidentDataset({self._dataset!r}, device={str(self.device)!r})"

    def batch(
        self, indices: Indices | torch.Tensor, *, noise: Batch | None = None, allocate: Allocate = shareable
    ) -> Batch:
        """Builds a batch on the device: latents (N, C, h, w), labels (N,).

        Args:
            indices: The indices of its samples. A tensor on a GPU is not checked, since a check would wait for it; of
                a dataset with buckets it is, and with a transform it is waited for.
            noise: See `LatentDataset.batch`.
            allocate: Allocates the batch's tensors on the CPU.

        Raises:
            IndexError: An index is out of range.
            ValueError: The samples are of several buckets.
        """
        if isinstance(indices, torch.Tensor) and (indices.device.type == "cpu" or self.table.count > 1):
            indices = indices.numpy(force=True)
        bucket, on_host, checked = 0, None, None
        if not isinstance(indices, torch.Tensor):
            checked = checked_indices(indices, len(self))
            bucket = self.table.common(checked)
            if self.device.type == "cpu":
                batch = self._gatherer(bucket).begin(checked, allocate)() | (noise or {})
                return self._dataset.decode_batch(batch, bucket=bucket, allocate=allocate)
            on_host = torch.from_numpy(self._rows_of(checked))
            indices = send(on_host, self.device)
        rows = dict.fromkeys(self.bucket_columns[bucket], indices.to(self.device))
        if self.layouts[bucket].on_host:
            on_host = indices.cpu() if on_host is None else on_host
            parts = self._numbers(bucket, on_host, on_host.numpy() if checked is None else checked)
            rows |= {name: send(part, self.device) for name, part in parts.items()}
        return self.decode_batch(rows | (noise or {}), bucket=bucket, allocate=allocate)

    def native_gatherer(self, *, decoded: bool = True, bucket: int = 0) -> Gatherer | None:  # noqa: ARG002  (CPU: all decoded)
        """Returns the native gatherer of a bucket, or None if building a batch needs Python or another device.

        Args:
            decoded: Ignored: on the CPU latents are always dequantized while gathering where that is one pass.
            bucket: The bucket of the samples.
        """
        return self._gatherer(bucket) if self.device.type == "cpu" and self._dataset.is_plain else None

    def _gatherer(self, bucket: int) -> Gatherer:
        """Returns a gatherer of batches on the CPU, which dequantizes latents where that is one pass over them."""
        layout, columns = self.layouts[bucket], []
        for position, (name, table) in enumerate(self.bucket_columns[bucket].items()):
            encoded = layout.encoded.get(name)
            quantizer = None if encoded is None else encoded.direct_quantizer(layout.dtype)
            if encoded is None or quantizer is None:
                shape = tuple(table.shape[1:])
                columns.append(GatheredColumn(name, position, shape, table.dtype, needs_decoding=encoded is not None))
            else:
                columns.append(GatheredColumn(name, position, encoded.shape, layout.dtype, quantizer))
        tables = MemoryTables([rows(table.numpy()) for table in self.bucket_columns[bucket].values()])
        rows_of = None if self._rows is None else self._rows_of
        return Gatherer(tables, columns, rows_of, name_damage=partial(self._name_damage, bucket))

    def _name_damage(self, bucket: int, indices: NDArray[np.int64]) -> None:
        """Raises FormatError for the first sample that cannot be decoded: rows in memory have no names."""
        layout, numbers = self.layouts[bucket], torch.from_numpy(self._rows_of(indices))
        for name, encoded in layout.on_host.items():
            if name in self.bucket_columns[bucket]:
                with layout.naming(name, indices):
                    encoded.decode(self.bucket_columns[bucket][name].index_select(0, numbers), layout.dtype)

    def _rows_of(self, indices: NDArray[np.int64]) -> NDArray[np.int64]:
        """Returns the rows of samples in the columns of their bucket, (N,)."""
        return indices if self._rows is None else self._rows.take(indices)

    def read(self, indices: Indices, *, allocate: Allocate = private) -> Batch:
        """Returns the rows of a batch in the bucket's columns, by name: `decode_batch` replaces them on the device.

        Columns of a transform come as integers, with their steps, if the device is another than the CPU.

        Args:
            indices: Indices of the samples, in any order, each from -len(self) to len(self) - 1.
            allocate: Allocates the batch's tensors on the CPU.
        """
        checked = checked_indices(indices, len(self))
        mine = torch.from_numpy(self._rows_of(checked))
        bucket = self.table.common(checked)
        batch = dict.fromkeys(self.bucket_columns[bucket], allocate(tuple(mine.shape), mine.dtype).copy_(mine))
        parts = self._numbers(bucket, mine, checked)
        return batch | {name: allocate(tuple(part.shape), part.dtype).copy_(part) for name, part in parts.items()}

    def _numbers(self, bucket: int, rows: torch.Tensor, indices: NDArray[np.int64]) -> dict[str, torch.Tensor]:
        """Decodes columns of a transform as far as the CPU does for another device.

        Args:
            bucket: The bucket.
            rows: The rows of samples in its columns, (N,), on the CPU.
            indices: The indices of these samples, for errors.

        Returns:
            The integers and steps of each such column.
        """
        layout, parts = self.layouts[bucket], dict[str, torch.Tensor]()
        for name, encoded in layout.on_host.items() if self.device.type != "cpu" else ():
            if name in self.bucket_columns[bucket]:
                with layout.naming(name, indices):
                    stored = self.bucket_columns[bucket][name].index_select(0, rows)
                    parts[name], parts[_steps_key(name)] = encoded.numbers(stored)
        return parts

    def decode_batch(self, batch: Batch, *, bucket: int = 0, allocate: Allocate = shareable) -> Batch:
        """Builds the batch of the rows that `read` returned; on the CPU, decodes gathered columns.

        Args:
            batch: A batch from `read`.
            bucket: The bucket of its samples.
            allocate: Allocates the decoded tensors on the CPU.
        """
        if self.device.type != "cpu":
            columns = self.bucket_columns[bucket]
            batch = batch | {
                name: column.index_select(0, batch[name]) for name, column in columns.items() if name not in self._apart
            }
            layout = self.layouts[bucket]
            for name, encoded in layout.on_host.items():
                if name in columns:
                    batch[name] = encoded.from_numbers(batch[name], batch.pop(_steps_key(name)), layout.dtype)
        return self._dataset.decode_batch(batch, bucket=bucket, allocate=allocate)

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


def _steps_key(name: str) -> str:
    """Returns the key of a transform's steps in a batch from `read`."""
    return f"{name} steps"


def _widened(table: torch.Tensor, width: int) -> torch.Tensor:
    """Returns a table (N, bytes) of longer rows, padded with zeros."""
    return torch.nn.functional.pad(table, (0, width - table.shape[1]))


def _empty(nbytes: int, device: torch.device) -> torch.Tensor:
    if device.type != "cpu":
        return torch.empty(nbytes, dtype=torch.uint8, device=device)
    # NumPy asks the system for huge pages, which make reading random samples faster.
    return torch.from_numpy(np.empty(nbytes, np.uint8))


def _free_bytes(device: torch.device) -> int | None:
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return available_bytes() if device.type == "cpu" else None
