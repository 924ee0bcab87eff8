"""Words for what a card says, shared by commands and reports."""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING

from latentq.system.text import counted

if TYPE_CHECKING:
    from latentq.format.card import Card
    from latentq.format.facts import EmbeddingFacts, LatentFacts, TokenFacts
    from latentq.format.options import Spread
    from latentq.format.recipe import Recipe

LEVELED = ("uniform", "affine", "codebook", "trellis")
"""The kinds of quantizer that have bits and a range."""


def model_rows(card: Card) -> list[tuple[str, str]]:
    """Returns names and values that describe the models of a card."""
    rows = [
        ("autoencoder", f"{card.autoencoder.name} ({card.autoencoder.family}, {card.recipe.autoencoder.dtype})"),
        ("weights", card.autoencoder.weights or "none"),
    ]
    if card.text is not None:
        captions = f", {card.recipe.text.captions} captions an image" if card.recipe.text.captions > 1 else ""
        details = f"{card.text.family}, {card.recipe.text.dtype}, {counted(card.text.length, 'token')}{captions}"
        rows += [("text encoder", f"{card.text.name} ({details})"), ("text weights", card.text.weights or "none")]
    return rows


def image_text(recipe: Recipe, card: Card | None) -> str:
    """Returns how images were loaded; unknown if the card is of latents that another tool made."""
    if card is not None and is_converted(card):
        return "unknown: the latents are converted from another tool's"
    image = recipe.image
    orient = ", EXIF orientation applied" if image.orient else ""
    return f"crop {image.crop}, filter {image.filter}, alpha {image.alpha}, icc {image.icc}{orient}"


def is_converted(card: Card) -> bool:
    """True if the latents were made by another tool, of which only the values are known."""
    from latentq.format.facts import UNKNOWN  # imports NumPy, which the help of commands does without

    return card.autoencoder.weights == UNKNOWN


def spread_text(spread: Spread) -> str:
    """Returns what follows the mean in a column of moments."""
    return "standard deviation" if spread == "std" else "log-variance"


def channel_names(content: str, spread: Spread, count: int) -> list[str]:
    """Returns the names of a column's channels: numbers, and of moments what they are of.

    Args:
        content: The column's content.
        spread: What follows the means of moments.
        count: The number of channels.
    """
    if content != "moments":
        return [f"{number}" for number in range(count)]
    return [f"{what} {number}" for what in ("mean", spread_text(spread)) for number in range(count // 2)]


def shape_text(facts: LatentFacts | TokenFacts) -> str:
    """Returns the shape of a column, with buckets that of the first and of the last."""
    shapes = dict.fromkeys(facts.shapes or (facts.shape,))
    first, *_, last = [" x ".join(map(str, shape)) for shape in (*shapes, *shapes)]
    return first if len(shapes) == 1 else f"{first} to {last}, by bucket"


def buckets_text(recipe: Recipe, card: Card | None = None) -> str:
    """Returns where the buckets of a recipe come from, and what happens to small images if the card tells."""
    buckets = recipe.buckets
    if buckets is None:
        return "none"
    tiers = ", ".join(map(str, buckets.area))
    origin = "a list" if buckets.sizes else f"the set {buckets.set}" if buckets.set else f"area {tiers}"
    if buckets.set and tiers:
        origin += f" of area {tiers}"
    if card is not None and is_converted(card):
        return f"{len(buckets.all)} by {origin}"
    small = {"enlarge": "enlarged", "reject": "rejected", "smaller": "put into one that they cover"}[buckets.small]
    return f"{len(buckets.all)} by {origin}; images smaller than their bucket are {small}"


def quantizer_text(facts: LatentFacts | EmbeddingFacts) -> str:
    """Returns the kind of a column's quantizer, and its bits or bytes."""
    from latentq.format.facts import LatentFacts
    from latentq.quantizer import Transform

    quantizer = facts.quantizer
    if isinstance(quantizer, Transform):
        assert isinstance(facts, LatentFacts)  # embeddings have none
        size = quantizer.sample_bytes
        if size is None:
            return f"{quantizer.kind}, bytes vary"
        rates = sorted({f"{8 * size / prod(shape):.2f}" for shape in facts.shapes or [facts.shape]}, key=float)
        rate = " to ".join(dict.fromkeys((rates[0], rates[-1])))
        return f"{quantizer.kind}, {counted(size, 'byte')} ({rate} bits an element)"
    return f"{quantizer.kind}, {quantizer.bits} bits" if quantizer.kind in LEVELED else quantizer.kind
