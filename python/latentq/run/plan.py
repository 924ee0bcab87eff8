"""Plans a run: the recipe that decides its numbers, and the card that follows from recipe, source and models."""

from __future__ import annotations

import importlib.metadata
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import prod

import numpy as np

from latentq._core import MismatchError, RecipeError
from latentq.format.card import Card
from latentq.format.encodings import array_encoding, latent_encoding, transform_bytes
from latentq.format.facts import (
    TOKEN_DTYPES,
    AutoencoderFacts,
    EmbeddingFacts,
    LatentFacts,
    SourceFacts,
    TextFacts,
    TokenFacts,
)
from latentq.format.options import CALIBRATED, CONDITIONING, ENCODED, FLOATS, TEXT, Column
from latentq.format.overrides import RecipeOverrides
from latentq.format.recipe import Recipe
from latentq.models.autoencoders.interface import DescribedAutoencoder
from latentq.models.match import codebook_size, normalization_of, shape_of, text_shape
from latentq.models.text import TextEncoder
from latentq.models.weights import weight_hash
from latentq.quantizer import AnyQuantizer, Quantizer, check_transform_shape, least_transform_bytes
from latentq.run.sample_list import Totals
from latentq.system.text import counted


def resolve_recipe(
    recipe: str | os.PathLike[str] | Recipe | None,
    model: str | os.PathLike[str] | None,
    text_model: str | os.PathLike[str] | None,
    parent: Card | None,
    overrides: RecipeOverrides,
) -> Recipe:
    """Returns the recipe of a run.

    Args:
        recipe: A recipe, its name or the path of its TOML file; None for `default`.
        model: Name of an autoencoder that replaces the recipe's, if any.
        text_model: Name of a text encoder that replaces the recipe's, if any.
        parent: Card of the dataset named by `like`, whose recipe is used as it is.
        overrides: Fields to change, for `Recipe.override`. A value of None changes nothing.

    Raises:
        RecipeError: The recipe is not valid, or a field is given that `parent` decides.
    """
    given = [name for name, value in overrides.items() if value is not None]
    if parent is not None:
        if recipe is not None or given:
            named = "a recipe" if recipe is not None else ", ".join(given)
            raise RecipeError(f"the dataset named by --like decides the recipe: {named} cannot be given as well")
        return parent.recipe
    if not isinstance(recipe, Recipe):
        recipe = Recipe.load("default" if recipe is None else recipe)
    return recipe.override(autoencoder=model, text_encoder=text_model, **overrides)


def plan_card(
    recipe: Recipe,
    source: SourceFacts,
    totals: Totals,
    autoencoder: DescribedAutoencoder,
    parent: Card | None,
    text_encoder: TextEncoder | None = None,
    *,
    needs_captions: bool = True,
) -> tuple[Card, tuple[str, ...]]:
    """Returns the card of a run before calibration, and the columns whose quantizers must be calibrated.

    Until then those columns have float32 quantizers, so that their codes are the values themselves.

    Args:
        recipe: The recipe.
        source: Facts of the source.
        totals: Counts over its list, which say what the source has.
        autoencoder: Makes latents, moments and tokens.
        parent: Card of the dataset named by `like`, whose quantizers are used.
        text_encoder: Makes embeddings, if the recipe stores any.
        needs_captions: False if there may be embeddings of captions that the list does not have.

    Raises:
        MismatchError: The models are not those of `parent`, or a shape is not the recipe's.
        RecipeError: The recipe stores what the source or a model does not have.
    """
    autoencoder_facts = _autoencoder_facts(autoencoder, parent)
    text_facts = _text_facts(text_encoder, parent)
    recipe = replace(recipe, columns=_stored_columns(recipe, totals, text_encoder, needs_captions))
    encoded_shapes = _encoded_shapes(recipe, autoencoder)
    text_shapes = {
        name: text_shape(recipe, column, text_encoder) for name, column in recipe.texts().items() if text_encoder
    }
    has_buckets = recipe.buckets is not None
    latents = {name: encoded_shapes[name][0] for name in recipe.latents()}
    embeddings = {name: text_shapes[name] for name in recipe.embeddings()}
    tokens = {
        name: TokenFacts(
            encoded_shapes[name][0],
            _token_dtype(name, column, autoencoder),
            codebook_size(autoencoder),
            encoded_shapes[name] if has_buckets else (),
        )
        for name, column in recipe.tokens().items()
    }
    for name in latents:
        if recipe.columns[name].quantizer["kind"] == "transform":
            _check_transform(name, recipe.columns[name], encoded_shapes[name])
    quantizers, uncalibrated = _quantizers(recipe, latents, embeddings, parent)
    text_options = replace(recipe.text, model=text_facts.name) if text_facts is not None else recipe.text
    card = Card(
        source=source,
        recipe=replace(recipe, autoencoder=replace(recipe.autoencoder, model=autoencoder.name), text=text_options),
        autoencoder=autoencoder_facts,
        columns=_encodings(recipe, latents, tokens, text_shapes),
        latents={
            name: LatentFacts(shape, quantizers[name], shapes=encoded_shapes[name] if has_buckets else ())
            for name, shape in latents.items()
        },
        tokens=tokens,
        text=text_facts if text_shapes else None,
        embeddings={
            name: EmbeddingFacts(shape, _without_transform(quantizers[name])) for name, shape in embeddings.items()
        },
        versions=_versions(with_text=text_encoder is not None),
    )
    return card, uncalibrated


def _encoded_shapes(recipe: Recipe, autoencoder: DescribedAutoencoder) -> dict[str, tuple[tuple[int, ...], ...]]:
    """Returns the shapes that each column of latents, moments or tokens stores, one for each bucket if there are any.

    Raises:
        MismatchError, RecipeError: As `shape_of`; or the recipe scales latents of several shapes by position.
    """
    buckets = range(len(recipe.bucket_sizes()))
    shapes: dict[str, tuple[tuple[int, ...], ...]] = {}
    for name, column in recipe.encoded().items():
        if column.scaled and len(buckets) > 1 and normalization_of(autoencoder).positions:
            raise RecipeError(
                f"{autoencoder.name} scales latents by the mean and std of each position of one size: "
                f"columns.{name}.scaled and buckets exclude each other"
            )
        sized = [recipe.sized(bucket)[name] for bucket in buckets] or [column]
        shapes[name] = tuple(shape_of(recipe, column, autoencoder) for column in sized)
    return shapes


def _autoencoder_facts(autoencoder: DescribedAutoencoder, parent: Card | None) -> AutoencoderFacts:
    facts = AutoencoderFacts(
        name=autoencoder.name,
        family=getattr(autoencoder, "family", type(autoencoder).__name__),
        weights=weight_hash(autoencoder),
        pixel_range=(float(autoencoder.pixel_range[0]), float(autoencoder.pixel_range[1])),
        normalization=normalization_of(autoencoder),
    )
    if parent is not None and not facts.same_as(parent.autoencoder):
        raise MismatchError(_like_message("autoencoder", parent.autoencoder, facts))
    return facts


def _text_facts(text_encoder: TextEncoder | None, parent: Card | None) -> TextFacts | None:
    facts = None
    if text_encoder is not None:
        facts = TextFacts(
            name=text_encoder.name,
            family=getattr(text_encoder, "family", type(text_encoder).__name__),
            weights=weight_hash(text_encoder),
            length=text_encoder.length,
        )
    if parent is not None and parent.text is not None and (facts is None or not facts.same_as(parent.text)):
        raise MismatchError(_like_message("text encoder", parent.text, facts))
    return facts


def _like_message(
    model: str, expected: AutoencoderFacts | TextFacts, actual: AutoencoderFacts | TextFacts | None
) -> str:
    """Returns the message for a model that is not that of the dataset named by --like, or of the updated one.

    Args:
        model: The kind of model, `autoencoder` or `text encoder`.
        expected: The model in the card of that dataset.
        actual: The model of this run.
    """
    made_by = f"the dataset was made by {model} {expected.name}"
    if actual is None:
        return f"{made_by}; this run has none"
    names = sorted(vars(expected), key=lambda name: (name == "name", name not in ("family", "weights")))
    first = next(name for name in names if getattr(expected, name) != getattr(actual, name))
    return (
        f"{made_by} with {first} = {getattr(expected, first)!r}; "
        f"this run's {actual.name} has {first} = {getattr(actual, first)!r}"
    )


def _stored_columns(
    recipe: Recipe, totals: Totals, text_encoder: TextEncoder | None, needs_captions: bool
) -> dict[str, Column]:
    """Returns the recipe's columns without the optional ones that the source does not have for every sample."""
    available = {"key", "image", *ENCODED, *CONDITIONING, *totals.known}
    incomplete = {field for field in ("label", "label_text") if not totals.is_complete(field)}
    if text_encoder is not None and ("caption" in available or not needs_captions):
        available |= _text_contents(text_encoder)
    if "caption" in available:
        available.add("captions")
    columns = {}
    for name, column in recipe.columns.items():
        if column.content in available and not (column.optional and column.content in incomplete):
            columns[name] = column
        elif not column.optional:
            lacking = "the source does not have"
            if column.content in TEXT and "caption" in available and text_encoder is not None:
                lacking = f"{text_encoder.name} does not give"
            elif column.content in TEXT:
                lacking = "needs captions: the source has none"
            raise RecipeError(f"recipe {recipe.name} stores {column.content} as {name}, which {lacking}")
    return columns


def _text_contents(text_encoder: TextEncoder) -> set[str]:
    """Returns the contents of columns that a text encoder makes."""
    contents = {"caption_embedding"}
    if text_encoder.masked:
        contents.add("attention_mask")
    if text_encoder.pooled_width:
        contents.add("pooled_embedding")
    return contents


def _quantizers(
    recipe: Recipe,
    latents: Mapping[str, tuple[int, ...]],
    embeddings: Mapping[str, tuple[int, ...]],
    parent: Card | None,
) -> tuple[Mapping[str, AnyQuantizer], tuple[str, ...]]:
    """Returns the quantizer of each column, given the columns' shapes, and the columns to be calibrated.

    Args:
        recipe: The recipe.
        latents: Shapes (C, h, w) of columns of latents and moments, by name.
        embeddings: Shapes of columns of embeddings, by name; the last axis is the channels.
        parent: The card of the dataset named by --like, whose quantizers are taken; nothing is calibrated then.
    """
    if parent is not None:
        return parent.quantizers, ()
    quantizers = {name: _given_quantizer(recipe.columns[name], shape[0]) for name, shape in latents.items()}
    quantizers |= {name: _given_quantizer(recipe.columns[name], shape[-1]) for name, shape in embeddings.items()}
    return quantizers, tuple(name for name in quantizers if recipe.columns[name].quantizer["kind"] in CALIBRATED)


def _without_transform(quantizer: AnyQuantizer) -> Quantizer:
    assert isinstance(quantizer, Quantizer)  # a recipe has no transform for embeddings
    return quantizer


def _check_transform(name: str, column: Column, shapes: Sequence[tuple[int, ...]]) -> None:
    """Raises RecipeError if samples of a shape are too small for a transform, or its bytes too few or too many."""
    sample_bytes, floats = transform_bytes(column.quantizer, shapes[0]), 4 * max(map(prod, shapes))
    if sample_bytes is None:
        sample_bytes = floats
    if sample_bytes > floats:
        raise RecipeError(f"columns.{name}: {sample_bytes} bytes are more than a latent takes in float32, {floats}")
    try:
        for shape in shapes:
            check_transform_shape(shape)
    except ValueError as error:
        raise RecipeError(f"columns.{name}: {error}") from None
    least, largest = max((least_transform_bytes(shape), shape) for shape in shapes)
    if sample_bytes < least:
        raise RecipeError(
            f"columns.{name}: {counted(sample_bytes, 'byte')} cannot hold a latent of shape {largest}: without any "
            f"value it takes {least}"
        )


def _given_quantizer(column: Column, channels: int) -> Quantizer:
    """Returns the quantizer that a recipe gives, or one that stores float32 if it is to be calibrated."""
    data = dict(column.quantizer)
    kind = data.pop("kind")
    if kind == "uniform":
        return Quantizer.uniform(data.pop("low"), data.pop("high"), channels=channels, **data)
    return Quantizer.floating(kind if kind in FLOATS else "float32", channels=channels)


def _encodings(
    recipe: Recipe,
    latents: Mapping[str, tuple[int, ...]],
    tokens: Mapping[str, TokenFacts],
    texts: Mapping[str, tuple[int, ...]],
) -> dict[str, str]:
    """Returns the MDS encoding of each column: the recipe's, or the one that follows from shape and quantizer.

    Args:
        recipe: The recipe.
        latents: Shapes (C, h, w) of columns of latents and moments, by name.
        tokens: Shape and dtype of columns of tokens, by name.
        texts: Shapes of columns of embeddings and attention masks, by name.
    """
    encodings = {name: column.encoding for name, column in recipe.columns.items()}
    for name, shape in latents.items():
        encodings[name] = encodings[name] or latent_encoding(recipe.columns[name], shape)
    for name, facts in tokens.items():
        encodings[name] = encodings[name] or array_encoding(facts.dtype, facts.shape)
    for name, shape in texts.items():
        encodings[name] = encodings[name] or _text_encoding(recipe.columns[name], shape)
    return encodings


def _token_dtype(name: str, column: Column, autoencoder: DescribedAutoencoder) -> str:
    """Returns the dtype in the column's encoding, or else the smallest that holds every token."""
    size = codebook_size(autoencoder)
    fits = [dtype for dtype, largest in TOKEN_DTYPES.items() if size <= largest]
    dtype = column.encoding.split(":")[1] if column.encoding.startswith("ndarray:") else next(iter(fits), "")
    if dtype not in fits:
        raise RecipeError(f"columns.{name}: {column.encoding or 'int32'} does not hold a codebook of {size} tokens")
    return dtype


def _text_encoding(column: Column, shape: tuple[int, ...]) -> str:
    if column.content == "attention_mask":
        return array_encoding("uint8", shape)
    kind, bits = column.quantizer["kind"], column.quantizer.get("bits", 8)
    if kind in FLOATS or bits == 8:
        return latent_encoding(column, shape)
    return f"ndarray:uint8:{int(np.prod(shape[:-1])) * -(-shape[-1] * bits // 8)}"  # each vector is packed by itself


def _versions(*, with_text: bool) -> dict[str, str]:
    """Returns the versions of the packages that compute the numbers."""
    versions = {}
    for package in ("latentq", "numpy", "torch", "diffusers", *(("transformers", "open_clip_torch") * with_text)):
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions
