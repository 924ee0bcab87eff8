"""LatentDataset: a latent dataset's folder as a torch map-style dataset."""

from __future__ import annotations

import errno
import operator
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset, default_collate, get_worker_info

from latentq import mds
from latentq._core import FormatError, LatentqError, RecipeError
from latentq.card import CARD, Card
from latentq.column import LatentColumn, Scale, latent_column, latent_facts, sample_names
from latentq.quantizer import Quantizer
from latentq.recipe import Recipe

if TYPE_CHECKING:
    from latentq.loader import LatentLoader

Batch = dict[str, Any]

_DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.uint8)


class Samples(list[dict[str, Any]]):
    """The samples of one batch, as views of it; `batch` is the batch itself."""

    batch: Batch


class LatentDataset(Dataset[dict[str, Any]]):
    """A latent dataset's folder as a torch map-style dataset.

    A sample is a dict. A single latent column is called `latent` and is a (C, h, w) tensor; `label` is an int;
    `label_text`, `caption` and `key` are strings. Where several columns hold the same kind of thing, each keeps the
    name it has in the shards.

    It may be used in DataLoader workers under fork, spawn and forkserver; files are opened where they are read.

    Args:
        path: The folder.
        columns: Which of the columns a sample has, by their names in samples or in the shards; None for all.
        dtype: Of latents: float32, float16 or bfloat16; or uint8, for the codes as they are stored.
        scale: `raw`, as the autoencoder gave them; `scaled`, times its scaling factor; `normalized`, to mean 0 and
            standard deviation 1 in each channel by the card's statistics.
        recipe: For a folder without a card: the recipe it was made with, or its name or file.
        quantizer: For a folder without a card: what the codes mean, where the recipe does not say or says otherwise.
        transform: Called with each sample; what it returns takes the sample's place.

    Raises:
        LatentqError: The dataset is not finished, or the scale needs a card that is not there.
        FormatError: The card or the index cannot be understood.
        RecipeError: There is neither a card nor a recipe that says enough.
        MismatchError: Recipe and shards do not go together; both are named.
        OSError: There is no such folder, or it cannot be read.
        ValueError: An argument is out of range.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        columns: Sequence[str] | None = None,
        dtype: torch.dtype = torch.float32,
        scale: Scale = "raw",
        recipe: str | os.PathLike[str] | Recipe | None = None,
        quantizer: Quantizer | None = None,
        transform: Callable[[dict[str, Any]], Any] | None = None,
    ) -> None:
        self.path = Path(path)
        self.card = open_card(self.path)
        self.recipe = recipe_of(self.path, self.card, recipe, quantizer)
        self.dtype = dtype
        self.scale = scale
        self.transform = transform
        self._reader = mds.Reader(self.path)
        if self.card is not None and self.card.counts is not None and self.card.counts.samples != len(self):
            raise FormatError(f"{path}: the card counts {self.card.counts.samples} samples, the index {len(self)}")
        names = sample_names(self.recipe, self._reader.columns)
        facts = latent_facts(self.path, self.card, self.recipe, quantizer)
        self.columns = _selected(names, columns)
        self.latents = {
            names[name]: latent_column(self.path, name, facts[name], self.recipe.columns[name].scaled, self.card, scale)
            for name in names
            if self.recipe.columns[name].is_latent and names[name] in self.columns
        }
        check_dtype(self.path, dtype, self.latents)
        stored = {name: stored for stored, name in names.items()}
        self._stored = {name: stored[name] for name in self.columns}

    def __len__(self) -> int:
        return len(self._reader)

    def __repr__(self) -> str:
        latents = ", ".join(f"{name}: {tuple(column.shape)}" for name, column in self.latents.items())
        return (
            f"LatentDataset({str(self.path)!r}, {len(self):,} samples, {latents or 'no latents'}, "
            f"dtype={self.dtype}, scale={self.scale!r}, columns={list(self.columns)})"
        )

    def __getitem__(self, index: int) -> Any:
        """One sample.

        Raises:
            IndexError: There is no such sample.
        """
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[Any]:
        """Samples, read and dequantised together. torch's DataLoader calls this with the indices of a batch.

        Returns:
            A list, for torch's `default_collate` or, without a copy, for `collate`.
        """
        batch = self.batch(indices)
        views = [value.unbind() if name in self.latents else _items(value) for name, value in batch.items()]
        samples = Samples(dict(zip(batch, values, strict=True)) for values in zip(*views, strict=True))
        if self.transform is not None:
            return [self.transform(sample) for sample in samples]
        samples.batch = batch
        return samples

    @staticmethod
    def collate(samples: list[Any]) -> Any:
        """For a DataLoader's `collate_fn`: the batch whose samples `__getitems__` has given, without copying it."""
        return samples.batch if isinstance(samples, Samples) else default_collate(samples)

    def batch(self, indices: Sequence[int] | NDArray[np.int64]) -> Batch:
        """A batch: latents (N, C, h, w), labels (N,) int64, strings as lists. The transform is not applied.

        Args:
            indices: Of its samples, in any order, each from -len(self) to len(self) - 1.

        Raises:
            IndexError: An index is out of range.
        """
        return self.decode_batch(self.read(indices))

    def read(self, indices: Sequence[int] | NDArray[np.int64], *, pin_memory: bool = False) -> Batch:
        """A batch whose latents are still as stored, uint8 (N, bytes): what `decode_batch` takes."""
        indices = _checked(indices, len(self))
        batch: Batch = {}
        for name, stored in self._stored.items():
            if name in self.latents:
                raw = torch.empty((len(indices), self.latents[name].nbytes), dtype=torch.uint8, pin_memory=pin_memory)
                self._reader.gather(indices, stored, out=raw.numpy())
                batch[name] = raw
            else:
                batch[name] = self._values(stored, indices)
        return batch

    def decode_batch(self, batch: Batch, *, pin_memory: bool = False) -> Batch:
        """The batch that `read` has begun, its latents decoded on the device where they are."""
        return {
            name: self._decoded(self.latents[name], value, pin_memory) if name in self.latents else value
            for name, value in batch.items()
        }

    def loader(self, batch_size: int, **options: Any) -> LatentLoader:
        """A loader of this dataset's batches: see `LatentLoader` for the options.

        Args:
            batch_size: Samples in a batch, on each rank.
            options: `shuffle`, `seed`, `drop_last`, `device`, `threads`, `prefetch`, `pin_memory`, `rank`,
                `world_size`, `label_dropout`, `caption_dropout`.
        """
        from latentq.loader import LatentLoader

        return LatentLoader(self, batch_size, **options)

    def _decoded(self, column: LatentColumn, raw: torch.Tensor, pin_memory: bool) -> torch.Tensor:
        out = None
        if raw.device.type == "cpu":
            out = empty((len(raw), *column.shape), self.dtype, pin_memory)
        return column.decode(raw, self.dtype, out=out)

    def _values(self, stored: str, indices: NDArray[np.int64]) -> Any:
        values = self._reader.gather(indices, stored)
        if self.recipe.columns[stored].content != "label":
            return values if isinstance(values, list) else torch.from_numpy(values)
        try:
            return torch.from_numpy(np.array(values, dtype=np.int64))
        except (ValueError, OverflowError):
            wrong = next((value for value in values if not str(value).lstrip("-").isdecimal()), "a number too large")
            raise FormatError(f"{self.path}: column {stored!r} holds {wrong!r}, which is no label's number") from None


def open_card(path: Path) -> Card | None:
    """The card of a dataset that is finished, or None where a folder of shards has none.

    Raises:
        FileNotFoundError, NotADirectoryError: There is no such folder.
        LatentqError: The dataset is not finished, or the folder holds none.
        FormatError: The card cannot be understood.
    """
    if not path.is_dir():
        code = errno.ENOTDIR if path.exists() else errno.ENOENT
        raise OSError(code, os.strerror(code), str(path))
    card = Card.load(path) if (path / CARD).exists() else None
    indexed = (path / "index.json").exists()
    if card is not None and not (card.complete and indexed):
        raise LatentqError(f"{path} is not finished: {_units_done(path)} of {card.units} units")
    if not indexed:
        raise LatentqError(f"{path} holds no dataset: it has neither {CARD} nor index.json")
    return card


def recipe_of(
    path: Path, card: Card | None, recipe: str | os.PathLike[str] | Recipe | None, quantizer: Quantizer | None
) -> Recipe:
    """The card's recipe, or the given one where there is no card."""
    if card is not None:
        if recipe is not None or quantizer is not None:
            raise ValueError(f"{path} has a card: recipe and quantizer are for a folder without one")
        return card.recipe
    if recipe is None:
        known = ", ".join(Recipe.names())
        raise RecipeError(f"{path} has no {CARD}: say what made it, recipe=NAME or a file (known: {known})")
    return recipe if isinstance(recipe, Recipe) else Recipe.load(recipe)


def check_dtype(path: Path, dtype: torch.dtype, latents: Mapping[str, LatentColumn]) -> None:
    """Refuses a dtype in which the latents cannot be given."""
    if dtype not in _DTYPES:
        raise ValueError(f"dtype must be one of {', '.join(map(str, _DTYPES))}, not {dtype!r}")
    for name, column in latents.items():
        if dtype == torch.uint8 and column.is_float:
            raise ValueError(f"{path}: column {name!r} is stored as {column.quantizer.kind} and has no codes")


def empty(shape: tuple[int, ...], dtype: torch.dtype, pin_memory: bool = False) -> torch.Tensor:
    """A tensor for a batch. In a DataLoader's worker it lies in shared memory, so that sending it copies nothing."""
    if get_worker_info() is None:
        return torch.empty(shape, dtype=dtype, pin_memory=pin_memory)
    storage = torch.UntypedStorage._new_shared(int(np.prod(shape)) * dtype.itemsize, device="cpu")
    return torch.empty(0, dtype=dtype).set_(storage, 0, shape)


def _units_done(path: Path) -> int:
    return sum(1 for entry in path.iterdir() if entry.name.isdigit() and (entry / "index.json").is_file())


def _selected(names: Mapping[str, str], wanted: Sequence[str] | None) -> tuple[str, ...]:
    """The columns that are wanted, in the order wanted; `names` are those in samples, by those in the shards."""
    if wanted is None:
        return tuple(names.values())
    if isinstance(wanted, str):
        raise TypeError(f"columns must be a list of names, not the string {wanted!r}")
    selected = [name if name in names.values() else names.get(name) for name in wanted]
    if None in selected:
        there = ", ".join(names.values())
        raise ValueError(f"there is no column {wanted[selected.index(None)]!r}: there are {there}")
    return tuple(dict.fromkeys(name for name in selected if name is not None))


def _checked(indices: Sequence[int] | NDArray[np.int64], size: int) -> NDArray[np.int64]:
    """Indices as int64 in [0, size)."""
    if not isinstance(indices, np.ndarray):
        indices = np.fromiter(map(operator.index, indices), np.int64)
    outside = (indices < -size) | (indices >= size)
    if outside.any():
        raise IndexError(f"index {indices[outside][0]} is out of range for {size} samples")
    return np.where(indices < 0, indices + size, indices)


def _items(values: Any) -> list[Any]:
    return values if isinstance(values, list) else values.tolist()
