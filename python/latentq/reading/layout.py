"""What a dataset's columns mean: names, shapes, quantisers and scales, resolved once from its card or recipe."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import torch

from latentq._core import FormatError, MismatchError, RecipeError
from latentq.format.card import CARD, Card
from latentq.format.facts import TOKEN_DTYPES, UNKNOWN, EmbeddingFacts, LatentFacts, TokenFacts
from latentq.format.options import FLOATS, TEXT, Column
from latentq.format.recipe import Recipe
from latentq.quantizer import Quantizer
from latentq.reading.buffers import Empty
from latentq.reading.columns import EmbeddingColumn, EncodedColumn, LatentColumn, MaskColumn, Scale, TokenColumn

_DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.uint8)


@dataclass(frozen=True)
class Layout:
    """What the samples of a dataset are made of.

    Attributes:
        path: The dataset, for messages.
        card: Its card; None where there is none.
        recipe: What made it.
        stored: The names of the columns in the shards, by their names in samples, in the order of a sample.
        encoded: Those of them that hold latents, moments, tokens, embeddings or masks, by their names in samples.
        dtype: In which latents are given.
        scale: In which latents are given.
    """

    path: Path
    card: Card | None
    recipe: Recipe
    stored: Mapping[str, str]
    encoded: Mapping[str, EncodedColumn]
    dtype: torch.dtype
    scale: Scale

    @property
    def latents(self) -> dict[str, LatentColumn]:
        """The columns that give latents, by their names in samples."""
        return {name: column for name, column in self.encoded.items() if isinstance(column, LatentColumn)}

    @property
    def is_plain(self) -> bool:
        """Whether latents, if there are any, are made of codes, and nothing but dequantised."""
        return all(column.is_plain for column in self.encoded.values())

    @property
    def pictures(self) -> dict[str, LatentColumn | TokenColumn]:
        """The columns that an autoencoder decodes, by their names in samples."""
        return {name: column for name, column in self.encoded.items() if isinstance(column, LatentColumn | TokenColumn)}

    @property
    def texts(self) -> dict[str, EmbeddingColumn | MaskColumn]:
        """The columns that a text encoder made, by their names in samples."""
        return {
            name: column for name, column in self.encoded.items() if isinstance(column, EmbeddingColumn | MaskColumn)
        }

    @property
    def labels(self) -> tuple[str, ...]:
        """The columns that hold labels, by their names in samples."""
        return tuple(name for name, stored in self.stored.items() if self.recipe.columns[stored].content == "label")

    def decode_batch(self, batch: dict[str, Any], *, empty: Empty) -> dict[str, Any]:
        """A batch whose latents, where they are as stored, uint8 (N, bytes), are decoded on the device where they are.

        Where moments are stored and the batch has `noise_key(name)`, latents are drawn with that noise.

        Args:
            batch: As `LatentDataset.read` gives it.
            empty: Makes the tensors, on the CPU.
        """
        keys = {noise_key(name) for name in batch}
        return {
            name: self._decoded(name, value, batch.get(noise_key(name)), empty)
            if name in self.encoded and value.ndim == 2  # else they are decoded already
            else value
            for name, value in batch.items()
            if name not in keys
        }

    def _decoded(self, name: str, raw: torch.Tensor, noise: torch.Tensor | None, empty: Empty) -> torch.Tensor:
        column = self.encoded[name]
        dtype = column.decoded_type(self.dtype)
        out = empty((len(raw), *column.shape), dtype) if raw.device.type == "cpu" else None
        if isinstance(column, LatentColumn):
            return column.decode(raw, dtype, out=out, noise=noise)
        return column.decode(raw, dtype, out=out)

    @classmethod
    def resolve(
        cls,
        path: Path,
        there: Mapping[str, str],
        *,
        card: Card | None,
        columns: Sequence[str] | None,
        dtype: torch.dtype,
        scale: Scale,
        recipe: str | os.PathLike[str] | Recipe | None,
        quantizer: Quantizer | None,
    ) -> Layout:
        """The layout of a dataset whose shards have the columns `there`; the rest as of `LatentDataset`."""
        if scale not in get_args(Scale):
            raise ValueError(f"scale must be one of {', '.join(get_args(Scale))}, not {scale!r}")
        if dtype not in _DTYPES:
            raise ValueError(f"dtype must be one of {', '.join(map(str, _DTYPES))}, not {dtype!r}")
        known = _recipe_of(path, card, recipe, quantizer)
        names = _sample_names(known, there)
        selected = _selected(names, columns)
        encoded: dict[str, EncodedColumn] = {}
        for name, stored in selected.items():
            column = known.columns[stored]
            if column.content == "tokens":
                encoded[name] = TokenColumn(stored, card.tokens[stored] if card else _tokens_of(path, stored, column))
            if column.content in TEXT:
                encoded[name] = _text_column(path, card, known, stored)
                held = encoded[name]
                if dtype == torch.uint8 and isinstance(held, EmbeddingColumn) and held.facts.quantizer.kind in FLOATS:
                    kind = held.facts.quantizer.kind
                    raise ValueError(f"{path}: column {stored!r} is stored as {kind} and has no codes")
            if not column.is_latent:
                continue
            if card is not None and stored not in card.latents:
                raise FormatError(f"{path}: the card says nothing of the latents in column {stored!r}")
            facts = card.latents[stored] if card is not None else _facts_of(path, stored, column, quantizer)
            if facts.quantizer.channels != facts.shape[0]:
                of = f"{facts.shape[0]} channels, and its quantiser {facts.quantizer.channels}"
                raise MismatchError(f"{path}: column {stored!r} has {of}")
            moments = column.content == "moments"
            latent = LatentColumn(stored, facts, moments, column.scaled, facts.quantizer).in_scale(path, card, scale)
            if dtype == torch.uint8 and (latent.is_float or moments):
                encoding = "moments" if moments else facts.quantizer.kind
                raise ValueError(f"{path}: column {stored!r} is stored as {encoding} and its latents have no codes")
            encoded[name] = latent
        return cls(path, card, known, selected, encoded, dtype, scale)

    def check_agreement(self, other: Layout) -> None:
        """Refuses a dataset whose samples are made of something else than this one's.

        Raises:
            MismatchError: They differ; the message names both sides.
        """
        for (what, mine, text), (_, others, other_text) in zip(self._traits(), other._traits(), strict=False):
            if mine != others:
                raise MismatchError(f"{other.path} has {what} {other_text}, and {self.path} has {text}")

    def _traits(self) -> list[tuple[str, Any, str]]:
        """What must be equal in a mixture: its name, its value, and how to tell it. Columns come first."""
        traits: list[tuple[str, Any, str]] = [("columns", sorted(self.stored), ", ".join(sorted(self.stored)))]
        if self.card is None:
            traits.append(("autoencoder", self.recipe.autoencoder.model, self.recipe.autoencoder.model))
        else:
            network = self.card.autoencoder
            known = network.weights not in ("", UNKNOWN)
            made_by = (network.weights if known else network.name, network.scaling_factor, network.shift_factor)
            text = f"{network.name} (weights {network.weights or 'none'}, scaling factor {network.scaling_factor:g})"
            traits.append(("autoencoder", made_by, text))
        if self.texts:
            made_with = None if self.card is None else self.card.text
            model = self.recipe.text.model if made_with is None else made_with.name
            weights = "" if made_with is None else made_with.weights
            told = f"{model} (weights {weights or 'unknown'})"
            traits.append(("text encoder", weights or model, told))
        for name, text_column in sorted(self.texts.items()):
            traits.append((f"shape of {name!r}", text_column.shape, str(text_column.shape)))
            if isinstance(text_column, EmbeddingColumn):
                quantizer = text_column.facts.quantizer
                traits.append((f"quantiser of {name!r}", quantizer, _told(quantizer)))
        for name, column in sorted(self.latents.items()):
            quantizer = column.facts.quantizer
            traits += [
                (f"shape of {name!r}", column.shape, str(column.shape)),
                (f"quantiser of {name!r}", quantizer, _told(quantizer)),
                (f"stored scale of {name!r}", column.scaled, "scaled" if column.scaled else "raw"),
                (f"moments in {name!r}", column.moments, str(column.moments).lower()),
            ]
        for name, tokens in sorted(self.encoded.items()):
            if isinstance(tokens, TokenColumn):
                traits.append((f"tokens of {name!r}", tokens.facts, f"{tokens.facts.codebook_size}, {tokens.shape}"))
        return [*traits, ("scale", self.scale, self.scale), ("dtype", self.dtype, str(self.dtype))]


def noise_key(name: str) -> str:
    """Under which the noise for a column of moments lies in a batch that is not decoded yet."""
    return f"noise of {name}"


_SHOWN = 32  # channels whose ranges a message tells


def _told(quantizer: Quantizer) -> str:
    sides = list(zip(quantizer.low, quantizer.high, strict=True))
    ranges = ", ".join(f"{low:g} to {high:g}" for low, high in sides[:_SHOWN])
    return f"{quantizer.bits}-bit {quantizer.kind} ({ranges}{', ...' if len(sides) > _SHOWN else ''})"


def _recipe_of(
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


def _sample_names(recipe: Recipe, there: Mapping[str, str]) -> dict[str, str]:
    """The names of the columns in samples, by those in the shards: what a column holds, if it alone holds that."""
    present = {name: column for name, column in recipe.columns.items() if name in there}
    for name, column in recipe.columns.items():
        if name not in there and not column.optional:
            raise MismatchError(
                f"recipe {recipe.name} has a column {name!r}, and the shards have {', '.join(there) or 'none'}"
            )
    # What a sample has of moments is a latent.
    holds = {name: "latent" if column.content == "moments" else column.content for name, column in present.items()}
    count = Counter(holds.values())
    return {name: content if count[content] == 1 else name for name, content in holds.items()}


def _selected(names: Mapping[str, str], wanted: Sequence[str] | None) -> dict[str, str]:
    """The columns that are wanted, those in the shards by those in samples; `names` is the other way round."""
    stored = {name: stored for stored, name in names.items()}
    if wanted is None:
        return stored
    if isinstance(wanted, str):
        raise TypeError(f"columns must be a list of names, not the string {wanted!r}")
    if not wanted:
        raise ValueError(f"columns must name at least one of {', '.join(stored)}")
    selected = {}
    for name in wanted:
        in_samples = name if name in stored else names.get(name)
        if in_samples is None:
            raise ValueError(f"there is no column {name!r}: there are {', '.join(stored)}")
        selected[in_samples] = stored[in_samples]
    return selected


def _facts_of(path: Path, name: str, column: Column, quantizer: Quantizer | None) -> LatentFacts:
    """The shape and quantiser of a latent column without a card: what the recipe and the caller say."""
    shape = column.shape
    if not shape and column.encoding.count(":") == 2:
        shape = tuple(int(side) for side in column.encoding.split(":")[2].split(","))
    if not shape:
        raise RecipeError(f"{path}: there is no card, and the recipe does not say the shape of column {name!r}")
    return LatentFacts(shape=shape, quantizer=quantizer or _said_quantizer(path, name, column, shape[0]))


def _said_quantizer(path: Path, name: str, column: Column, channels: int) -> Quantizer:
    """The quantiser of a column without a card, where the recipe says enough."""
    kind = column.quantizer["kind"]
    if kind in FLOATS:
        return Quantizer.floating(kind, channels=channels)
    if kind == "uniform":
        options = {key: value for key, value in column.quantizer.items() if key != "kind"}
        return Quantizer.uniform(channels=channels, **options)
    raise RecipeError(f"{path}: there is no card with the range of column {name!r}: give a quantizer")


def _text_column(path: Path, card: Card | None, recipe: Recipe, name: str) -> EmbeddingColumn | MaskColumn:
    """A column of embeddings or masks; without a card what the recipe says of it."""
    column = recipe.columns[name]
    if card is not None and card.text is not None:
        if column.content == "attention_mask":
            return MaskColumn(name, (recipe.text.captions, card.text.length))
        return EmbeddingColumn(name, card.embeddings[name])
    shape = column.shape or tuple(map(int, column.encoding.split(":")[2].split(",") if ":" in column.encoding else ()))
    if not shape:
        raise RecipeError(f"{path}: there is no card, and the recipe does not say the shape of column {name!r}")
    if column.content == "attention_mask":
        return MaskColumn(name, shape)
    return EmbeddingColumn(name, EmbeddingFacts(shape, _said_quantizer(path, name, column, shape[-1])))


def _tokens_of(path: Path, name: str, column: Column) -> TokenFacts:
    """The shape and type of a column of tokens without a card, as the recipe's encoding or shape says them."""
    parts = column.encoding.split(":")
    dtype = parts[1] if parts[0] == "ndarray" and len(parts) > 1 else "uint16"
    shape = column.shape or tuple(int(side) for side in parts[2].split(",")) if len(parts) == 3 else column.shape
    if dtype not in TOKEN_DTYPES or len(shape) != 2:
        raise RecipeError(f"{path}: there is no card, and the recipe does not say shape and type of column {name!r}")
    return TokenFacts(shape, dtype, TOKEN_DTYPES[dtype])
