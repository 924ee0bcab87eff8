"""What the layouts share: what reading one gives, and what writing one asks of a dataset."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from latentq._core import LatentqError, MismatchError
from latentq.format.card import Card
from latentq.format.facts import UNKNOWN
from latentq.format.options import Column
from latentq.format.recipe import Recipe
from latentq.run.plan import plan_card
from latentq.sources import Listing

if TYPE_CHECKING:
    import torch

    from latentq.reading.dataset import LatentDataset

_BATCH = 1024


@dataclass(frozen=True)
class Maker:
    """The autoencoder that made someone else's latents, as far as it is known without loading it.

    Attributes:
        name: On the hub.
        family: The class that diffusers has for it.
        scaling_factor: As of `Autoencoder`; so is `pixel_range`.
        pixel_range: The pixel values that stand for black and white.
        shape: (C, h, w) of a latent.
        codebook_size: How many tokens there are; 0 where it makes none.
    """

    name: str
    family: str
    scaling_factor: float
    pixel_range: tuple[float, float]
    shape: tuple[int, int, int]
    codebook_size: int = 0

    def latent_shape(self, size: int) -> tuple[int, int, int]:  # noqa: ARG002  (the protocol's name)
        """(C, h, w) of the latents that are there, whatever the size."""
        return self.shape


@dataclass(frozen=True)
class Foreign:
    """Someone else's file or folder, opened.

    Attributes:
        kind: What it is, for the card's `source.kind`.
        recipe: What made it.
        maker: The autoencoder that made it.
        listing: Its samples, in their order.
        stored: The stored values of samples by number, (n, *shape), of the recipe's only latent column.
    """

    kind: str
    recipe: Recipe
    maker: Maker
    listing: Listing
    stored: Callable[[Sequence[int]], NDArray[Any]]

    def __len__(self) -> int:
        return len(self.listing.samples)

    @cached_property
    def card(self) -> Card:
        """Its card, but for counts and statistics."""
        # Planning asks a network for its name and shapes only, and that is all that is known of this one.
        card, _ = plan_card(self.recipe, self.kind, self.listing, self.maker, None)  # type: ignore[arg-type]
        return replace(card, autoencoder=replace(card.autoencoder, weights=UNKNOWN))

    def decodable(self, indices: Sequence[int]) -> torch.Tensor:
        """What an autoencoder decodes of some samples, as of `LatentDataset.decodable`."""
        import torch

        stored = self.stored(indices)
        for facts in self.card.latents.values():
            return torch.from_numpy(facts.quantizer.dequantize(stored))
        return torch.from_numpy(stored.astype(np.int64))


def batches(numbers: range) -> Iterator[range]:
    """The numbers, some at a time."""
    for start in range(0, len(numbers), _BATCH):
        yield numbers[start : start + _BATCH]


def open_columns(path: Path, column: str, layout: str, contents: Sequence[str]) -> LatentDataset:
    """A dataset for writing it in a layout.

    Args:
        path: The dataset.
        column: Its column of latents or tokens.
        layout: The layout's name, for messages.
        contents: What else is needed: `key`, `label` and so on.

    Returns:
        The dataset, opened so that a batch holds the column as it is stored, and the contents, in this order.

    Raises:
        LatentqError: It has no column of what is needed, or is not finished.
    """
    import torch

    from latentq.reading.dataset import LatentDataset

    card = Card.load(path)
    columns = [column]
    for content in contents:
        found = column_of(card, content)
        if found is None:
            raise LatentqError(f"{path} has no {content}, which the layout of {layout} needs")
        columns.append(found)
    return LatentDataset(path, columns=columns, dtype=torch.uint8)


def column_of(card: Card, content: str) -> str | None:
    """The first column that holds `key`, `label` or the like, if any does."""
    return next((name for name in card.columns if card.recipe.columns[name].content == content), None)


def same_codes(path: Path, recipe: Recipe) -> str:
    """The latent column of a dataset whose codes mean what a recipe's do.

    Raises:
        MismatchError: None is; both sides are named. Codes are copied, and nothing is quantised again.
    """
    card = Card.load(path)
    ((_, wanted),) = recipe.latents().items()
    given = wanted.quantizer
    for name, facts in card.latents.items():
        ours = facts.quantizer
        same_range = set(ours.low) == {given["low"]} and set(ours.high) == {given["high"]}
        same_scheme = ours.kind in ("uniform", "affine") and ours.bits == given["bits"]
        column = card.recipe.columns[name]
        if same_range and same_scheme and (facts.shape, _what(column)) == (wanted.shape, _what(wanted)):
            return name
    if not card.latents:
        raise MismatchError(f"{path} holds no latents, and the layout of {recipe.name} does")
    name, facts = next(iter(card.latents.items()))
    ours = facts.quantizer
    have = _told(_what(card.recipe.columns[name]), facts.shape, ours.bits, ours.kind, ours.low, ours.high)
    needed = _told(_what(wanted), wanted.shape, given["bits"], "uniform", [given["low"]], [given["high"]])
    raise MismatchError(f"{path} holds {have}, the layout of {recipe.name} {needed}: codes are copied as they are")


def _what(column: Column) -> str:
    """What a column's codes are of."""
    if column.content != "latent":
        return column.content
    return "scaled latents" if column.scaled else "latents"


def _told(what: str, shape: Sequence[int], bits: int, kind: str, low: Sequence[float], high: Sequence[float]) -> str:
    return f"{what} {tuple(shape)} in {bits} bits, {kind} from {min(low):g} to {max(high):g}"
