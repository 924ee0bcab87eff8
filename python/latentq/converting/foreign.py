"""Shared by the layouts: the result of reading one, and checks of a dataset before it is written as one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from latentq._core import LatentqError, MismatchError
from latentq.converting.names import NAMES
from latentq.format.card import Card
from latentq.format.facts import UNKNOWN, SourceFacts
from latentq.format.normalization import Normalization
from latentq.format.options import FLOATS, Column
from latentq.format.recipe import Recipe
from latentq.quantizer import Quantizer, Transform
from latentq.run.plan import plan_card
from latentq.run.sample_list import Totals
from latentq.sources import Sample
from latentq.system.text import counted

if TYPE_CHECKING:
    import torch

    from latentq.reading.dataset import LatentDataset

KNOWN_LAYOUTS = (
    "Known layouts: imagenet_3gb's torch file (.pt: a list of id, latent and label), VQGAN-f16-16384's TSV (columns "
    "image_file and encoding), imagenet.int8's MDS folder (columns vae_output, label and label_as_text), latentq's own "
    f"datasets, and the layouts that --from names: {', '.join(NAMES)}"
)
_BATCH = 1024


@dataclass(frozen=True)
class ForeignAutoencoder:
    """The autoencoder that made another tool's latents, described without loading it.

    Attributes:
        name: The name on the Hub.
        family: The name of its class in diffusers.
        normalization: The formula from raw latents to those that models are trained on.
        pixel_range: The pixel values of black and white.
        shape: (C, h, w) of a latent; where images have several sizes, of any of them.
        codebook_size: The number of tokens; 0 for an autoencoder without a codebook.
        reduction: Pixels per position of a latent, along each side; 0 if every latent has `shape`.
    """

    name: str
    family: str
    normalization: Normalization
    pixel_range: tuple[float, float]
    shape: tuple[int, int, int]
    codebook_size: int = 0
    reduction: int = 0

    @property
    def posterior(self) -> None:
        """Present, because a layout may hold moments; the autoencoder is not loaded, so there is nothing to call."""

    def latent_shape(self, size: int) -> tuple[int, int, int]:
        """Returns (C, h, w) of the stored latents of squares.

        Args:
            size: The side of the squares in pixels; unused if every latent has `shape`.
        """
        if not self.reduction:
            return self.shape
        return self.shape[0], size // self.reduction, size // self.reduction


@dataclass(frozen=True)
class ForeignDataset:
    """Another tool's file or folder, opened.

    Attributes:
        kind: The layout, for the card's `source.kind`.
        recipe: The recipe that it was made by.
        autoencoder: The autoencoder that made it.
        samples: Its samples, in order.
        read_stored: Reads the stored values of samples by index: (n, *shape), of the recipe's only encoded column.
    """

    kind: str
    recipe: Recipe
    autoencoder: ForeignAutoencoder
    samples: Sequence[Sample]
    read_stored: Callable[[Sequence[int]], NDArray[Any]]

    def __len__(self) -> int:
        return len(self.samples)

    @cached_property
    def card(self) -> Card:
        """The card, still without counts, statistics and the hash of the list."""
        return self.planned_card(SourceFacts(self.kind, len(self), ""))

    def planned_card(self, source: SourceFacts) -> Card:
        """Returns the card, still without counts and statistics.

        Args:
            source: Facts of the list.
        """
        totals = Totals()
        totals.add(self.samples, Sample._fields)
        card, _ = plan_card(self.recipe, source, totals, self.autoencoder, None)
        return replace(card, autoencoder=replace(card.autoencoder, weights=UNKNOWN))

    def decodable(self, indices: Sequence[int]) -> torch.Tensor:
        """Returns what an autoencoder decodes: raw latents (N, C, h, w) float32, or tokens (N, h, w) int64."""
        import torch

        stored = self.read_stored(indices)
        for facts in self.card.latents.values():
            assert isinstance(facts.quantizer, Quantizer)  # a layout's quantizer is uniform
            return torch.from_numpy(facts.quantizer.dequantize(stored))
        return torch.from_numpy(stored.astype(np.int64))


def batches(indices: range) -> Iterator[range]:
    """Splits indices into batches of at most 1,024."""
    for start in range(0, len(indices), _BATCH):
        yield indices[start : start + _BATCH]


def open_columns(path: Path, column: str, layout: str, contents: Sequence[str]) -> LatentDataset:
    """Opens the columns of a dataset that a layout needs.

    Args:
        path: The dataset.
        column: Its column of latents or tokens.
        layout: The layout's name, for messages.
        contents: The other contents that the layout needs: `key`, `label` and so on.

    Returns:
        The dataset; a batch of it holds the stored values of `column`, then `contents`, in this order.

    Raises:
        LatentqError: The dataset lacks one of the contents, or is not finished.
        MismatchError: The dataset has buckets.
    """
    import torch

    from latentq.reading.dataset import LatentDataset

    card = Card.load(path)
    if card.buckets:
        raise MismatchError(f"{path} has {counted(card.buckets, 'bucket')}, and the layout of {layout} has one shape")
    columns = [column]
    for content in contents:
        found = column_of(card, content)
        if found is None:
            raise LatentqError(f"{path} has no {content}, which the layout of {layout} needs")
        columns.append(found)
    return LatentDataset(path, columns=columns, dtype=torch.uint8)


def column_of(card: Card, content: str) -> str | None:
    """Returns the name of the first column with a content (`key`, `label`, ...), or None."""
    return next((name for name in card.columns if card.recipe.columns[name].content == content), None)


def matching_column(path: Path, recipe: Recipe) -> str:
    """Finds the latent column of a dataset whose codes mean the same as those of a layout's recipe.

    Raises:
        MismatchError: There is none. Codes are copied unchanged, so nothing can be adapted; both sides are named.
    """
    card = Card.load(path)
    ((_, column),) = recipe.latents().items()
    expected = column.quantizer
    for name, facts in card.latents.items():
        quantizer = facts.quantizer
        if isinstance(quantizer, Transform):
            continue
        same_range = set(quantizer.low) == {expected["low"]} and set(quantizer.high) == {expected["high"]}
        same_scheme = quantizer.kind in ("uniform", "affine") and quantizer.bits == expected["bits"]
        stored = _content(card.recipe.columns[name])
        if same_range and same_scheme and (facts.shape, stored) == (column.shape, _content(column)):
            return name
    if not card.latents:
        raise MismatchError(f"{path} holds no latents, and the layout of {recipe.name} does")
    name, facts = next(iter(card.latents.items()))
    quantizer = facts.quantizer
    if isinstance(quantizer, Transform):
        raise MismatchError(
            f"{path} cannot be converted to the layout of {recipe.name}, because codes are copied unchanged: its "
            "latents are encoded by a transform"
        )
    have = _described(
        _content(card.recipe.columns[name]), facts.shape, quantizer.bits, quantizer.kind, quantizer.low, quantizer.high
    )
    low, high = [expected["low"]], [expected["high"]]
    needed = _described(_content(column), column.shape, expected["bits"], "uniform", low, high)
    raise MismatchError(
        f"{path} cannot be converted to the layout of {recipe.name}, because codes are copied unchanged: "
        f"it holds {have}, and the layout has {needed}"
    )


def _content(column: Column) -> str:
    if column.content != "latent":
        return column.content
    return "scaled latents" if column.scaled else "latents"


def _described(
    content: str, shape: Sequence[int], bits: int, kind: str, low: Sequence[float], high: Sequence[float]
) -> str:
    if kind in FLOATS:
        return f"{content} {tuple(shape)} in {kind}"
    return f"{content} {tuple(shape)} in {bits} bits, {kind} from {min(low):g} to {max(high):g}"
