"""A finished dataset, opened to be written in another tool's layout."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from latentq._core import LatentqError, MismatchError
from latentq.format.card import Card, open_card
from latentq.format.facts import LatentFacts
from latentq.format.options import Column
from latentq.quantizer import Quantizer
from latentq.sources.kinds import without_image_suffix

if TYPE_CHECKING:
    from latentq.reading.dataset import LatentDataset

_BATCH_BYTES = 1 << 24
_MAX_BATCH = 1024


@dataclass(frozen=True)
class OutgoingBatch:
    """Consecutive samples of one bucket.

    Attributes:
        first: The index of the first sample.
        size: (height, width) of the images in pixels.
        values: For each requested column an array (n, *shape), or a list of n values.
    """

    first: int
    size: tuple[int, int]
    values: dict[str, Any]

    def __len__(self) -> int:
        return len(next(iter(self.values.values())))


class Outgoing:
    """A finished dataset, opened to be written in another tool's layout.

    Args:
        path: The dataset.
        layout: The layout's name, for messages.
        variant: The kind of files to write, as in `--to kohya:sdxl`; None for what follows from the card.

    Raises:
        LatentqError: The dataset is not finished.
        FormatError: Its card cannot be understood.
        OSError: It cannot be read.
    """

    def __init__(self, path: Path, layout: str, variant: str | None = None) -> None:
        card = open_card(path)
        if card is None or card.counts is None:
            raise LatentqError(f"{path} has no card")
        self.path = path
        self.card: Card = card
        self.layout = layout
        self.variant = variant
        self.count = card.counts.samples
        self._written: set[str] = set()

    def find(self, content: str, *, flip: bool = False) -> str | None:
        """Returns the first column of a content, or None.

        Args:
            content: The content.
            flip: For what the autoencoder computes: True for the mirrored image.
        """
        for name in self.card.columns:
            column = self.card.recipe.columns[name]
            if column.content == content and (not column.is_encoded or column.flip == flip):
                return name
        return None

    def need(self, content: str, *, flip: bool = False) -> str:
        """Returns the first column of a content.

        Raises:
            MismatchError: There is none.
        """
        name = self.find(content, flip=flip)
        if name is None:
            held = ", ".join(
                f"{'mirrored ' if column.flip else ''}{column.content}"
                for column in map(self.column, self.card.columns)
                if column.is_encoded
            )
            wanted = f"{'mirrored ' if flip else ''}{_NOUNS.get(content, content)}"
            option = "--flip" if flip else _STORED_BY.get(content)
            advice = "" if option is None else f" (latentq encode {option} stores {wanted})"
            raise MismatchError(
                f"{self.path} has no {wanted}, which the layout of {self.layout} needs; it holds {held}{advice}"
            )
        return name

    def column(self, name: str) -> Column:
        """Returns a column of the recipe."""
        return self.card.recipe.columns[name]

    def facts(self, name: str) -> LatentFacts:
        """Returns the card's facts of a column of latents or moments."""
        return self.card.latents[name]

    @property
    def sizes(self) -> tuple[tuple[int, int], ...]:
        """(height, width) of the images of each bucket in pixels; of all images without buckets."""
        recipe = self.card.recipe
        return recipe.bucket_sizes() or tuple(column.pixels for column in list(recipe.encoded().values())[:1])

    def embedding_dtype(self, content: str) -> str:
        """Returns the dtype that holds the stored embeddings exactly: float16, bfloat16 or float32."""
        kind = self.card.embeddings[self.need(content)].quantizer.kind
        return kind if kind in ("float16", "bfloat16") else "float32"

    def one_shape(self) -> None:
        """Raises MismatchError if the dataset has buckets, because the layout has one shape."""
        if self.card.buckets:
            raise MismatchError(
                f"{self.path} has {self.card.buckets} buckets, and the layout of {self.layout} has one shape"
            )

    def size_text(self, name: str) -> str:
        """Returns the side of the images of a column, or HEIGHTxWIDTH if they are no squares, for a file's name."""
        height, width = self.column(name).pixels
        return str(height) if height == width else f"{height}x{width}"

    def open(
        self,
        columns: Sequence[str],
        scale: Literal["raw", "scaled"] = "raw",
        spread: Literal["logvar", "std"] = "std",
        *,
        codes: bool = False,
    ) -> OpenColumns:
        """Opens columns for reading.

        Args:
            columns: Their names.
            scale: The scale of latents.
            spread: What is wanted after the means of moments: log-variances or standard deviations.
            codes: True for the codes of latents, uint8, instead of their values.

        Raises:
            MismatchError: Latents cannot be brought to the scale.
        """
        self._written.update(columns)
        return OpenColumns(self, columns, scale, spread, codes)

    def notes(self) -> list[str]:
        """Returns lines for the user about the columns that were not written; keys, which name files, are none."""
        left = [name for name in self.card.columns if name not in self._written and self.column(name).content != "key"]
        return [f"not converted, as the layout of {self.layout} has no place for it: {', '.join(left)}"] if left else []


class FileNames:
    """Names of files by the keys of samples, for tools that look for `a_0512x0768_sdxl.npz` next to `a.png`.

    Args:
        outgoing: The dataset.
        flat: True for a tool that looks in one folder, by the names of images without their folders.
    """

    def __init__(self, outgoing: Outgoing, *, flat: bool = False) -> None:
        self._path, self._flat = outgoing.path, flat
        self._shortened: set[str] = set()

    def of(self, key: str, end: str) -> str:
        """Returns a key without the suffix of an image file, and an end.

        Args:
            key: The key of a sample.
            end: What follows.

        Raises:
            MismatchError: Another key had the same name: `a.png` and `a.jpg`.
        """
        stem = without_image_suffix(key)
        if self._flat:
            stem = stem.rpartition("/")[2]
        name = f"{stem}{end}"
        if stem != key or self._flat:
            if name in self._shortened:
                parts = "folders and suffixes" if self._flat else "suffixes"
                raise MismatchError(f"{self._path}: two samples would be {name}: {parts} of keys are left out")
            self._shortened.add(name)
        return name


_NOUNS = {"latent": "latents", "key": "keys", "label": "labels", "label_text": "names of classes"}
_STORED_BY = {
    "moments": "--store moments", "original_size": "--conditioning", "crop_top_left": "--conditioning",
    "caption_embedding": "--text-encoder NAME",
}  # fmt: skip
"""The options of encode that store a content."""


class OpenColumns:
    """Columns of a dataset, read in order: see `Outgoing.open`."""

    def __init__(
        self,
        outgoing: Outgoing,
        columns: Sequence[str],
        scale: Literal["raw", "scaled"],
        spread: Literal["logvar", "std"],
        codes: bool,
    ) -> None:
        import torch

        from latentq.reading.dataset import LatentDataset

        self._outgoing = outgoing
        self._spread = spread
        self._dtype = torch.uint8 if codes else torch.float32
        self._dataset: LatentDataset = LatentDataset(
            outgoing.path, columns=list(dict.fromkeys(columns)), dtype=self._dtype, scale=scale
        )
        self._names = {shard_name: name for name, shard_name in self._dataset.layout.shard_names.items()}

    def batches(self, start: int = 0, stop: int | None = None) -> Iterator[OutgoingBatch]:
        """Yields the samples in order, in batches of one bucket.

        Args:
            start: The index of the first sample.
            stop: The index after the last sample; None for all.
        """
        sizes = self._dataset.image_sizes
        stop = len(self._dataset) if stop is None else stop
        position = start
        while position < stop:
            bucket, end = self._run_at(position)
            end = min(end, stop, position + self._batch_size(bucket))
            indices = np.arange(position, end)
            yield OutgoingBatch(position, sizes[bucket], self._read(indices, bucket))
            position = end

    def _run_at(self, position: int) -> tuple[int, int]:
        """Returns the bucket of a sample, and the index after its run of samples of that bucket."""
        table = self._dataset.table
        run = int(np.searchsorted(table.starts, position, "right")) - 1
        end = int(table.starts[run + 1]) if run + 1 < len(table.starts) else table.size
        return int(table.which[run]), end

    def _batch_size(self, bucket: int) -> int:
        layout = self._dataset.layouts[bucket]
        nbytes = sum(4 * prod(column.shape) for column in layout.encoded.values())
        return max(1, min(_MAX_BATCH, _BATCH_BYTES // max(1, nbytes)))

    def _read(self, indices: NDArray[np.int64], bucket: int) -> dict[str, Any]:
        """Reads a batch, by the columns' names in the shards."""
        import torch

        layout = self._dataset.layouts[bucket]
        stored = self._dataset.read(indices)
        values: dict[str, Any] = {}
        for shard_name, name in self._names.items():
            value = stored[name]
            encoded = layout.encoded.get(name)
            if encoded is None:
                values[shard_name] = value.numpy() if isinstance(value, torch.Tensor) else value
            elif self._outgoing.column(shard_name).content == "moments":
                values[shard_name] = self._moments(shard_name, value, bucket)
            else:
                with layout.naming(name, indices):
                    values[shard_name] = encoded.decode(value, self._dtype).numpy()
        return values

    def _moments(self, name: str, stored: Any, bucket: int) -> NDArray[np.float32]:
        """Returns moments (n, 2C, h, w): means, then log-variances or standard deviations."""
        import torch

        facts = self._outgoing.facts(name).for_bucket(bucket)
        assert isinstance(facts.quantizer, Quantizer)  # a transform is for latents
        values = facts.quantizer.dequantize_packed(stored, (len(stored), *facts.shape), dtype=torch.float32)
        moments: NDArray[np.float32] = values.numpy()
        have = self._outgoing.column(name).spread
        if have != self._spread:
            moments = moments.copy()
            spread = moments[:, moments.shape[1] // 2 :]
            exact = spread.astype(np.float64)
            with np.errstate(divide="ignore"):
                spread[:] = np.exp(exact / 2) if have == "logvar" else np.maximum(2 * np.log(exact), _LEAST_LOGVAR)
        return moments


_LEAST_LOGVAR = -30.0  # as AutoencoderKL clamps it
