"""What a run is asked to do, and whether it fits what is in the folder already: recipe, list of samples, card."""

from __future__ import annotations

import errno
import importlib.metadata
import os
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from latentq._core import MismatchError, RecipeError
from latentq.format.card import (
    CARD,
    TOKEN_DTYPES,
    AutoencoderFacts,
    Card,
    EmbeddingFacts,
    LatentFacts,
    TextFacts,
    TokenFacts,
)
from latentq.format.files import SAMPLES
from latentq.format.recipe import ENCODED, FLOATS, TEXT, Column, Recipe
from latentq.models.autoencoders import Autoencoder
from latentq.models.match import codebook_size, shape_of, text_shape
from latentq.models.text import TextEncoder
from latentq.models.weights import weight_hash
from latentq.quantizer import Quantizer
from latentq.run.listing import source_facts
from latentq.sources import Listing
from latentq.store.local import is_temporary

_CALIBRATED = ("affine", "codebook")


def settle(
    recipe: str | os.PathLike[str] | Recipe | None,
    model: str | os.PathLike[str] | None,
    text_model: str | os.PathLike[str] | None,
    parent: Card | None,
    overrides: Mapping[str, Any],
) -> Recipe:
    """The recipe that decides the numbers."""
    given = {key: value for key, value in overrides.items() if value is not None}
    if parent is not None:
        if recipe is not None or given:
            named = "a recipe" if recipe is not None else ", ".join(given)
            raise RecipeError(f"the dataset named by --like decides the recipe: {named} cannot be given as well")
        return parent.recipe
    if not isinstance(recipe, Recipe):
        recipe = Recipe.load("default" if recipe is None else recipe)
    models = {"autoencoder": model, "text_encoder": text_model}
    return recipe.override(**{key: os.fspath(name) for key, name in models.items() if name is not None}, **given)


def check_folder(out: Path, card: str = CARD) -> None:
    """Refuses an output folder that cannot be written, or holds something else than what this card belongs to."""
    if (out / card).exists():
        return
    place = next(path for path in (out, *out.absolute().parents) if path.exists())
    if not place.is_dir():
        raise MismatchError(f"{place} is a file; a dataset is a folder")
    if not os.access(place, os.W_OK | os.X_OK):  # told now, not after calibrating
        raise PermissionError(errno.EACCES, "cannot be written", str(place))
    if place != out:
        return
    for entry in sorted(out.iterdir()):
        if entry.name != SAMPLES and not is_temporary(entry.name):
            raise MismatchError(f"{out} holds something else ({entry.name}): name a folder that is absent or empty")


def plan_card(
    recipe: Recipe,
    kind: str,
    listing: Listing,
    network: Autoencoder,
    parent: Card | None,
    text_network: TextEncoder | None = None,
) -> tuple[Card, tuple[str, ...]]:
    """The card as far as it is known before calibration, and the columns whose quantisers must be calibrated."""
    made_by = AutoencoderFacts(
        name=network.name,
        family=getattr(network, "family", type(network).__name__),
        weights=weight_hash(network),
        scaling_factor=float(network.scaling_factor),
        shift_factor=float(getattr(network, "shift_factor", 0.0)),
        pixel_range=(float(network.pixel_range[0]), float(network.pixel_range[1])),
    )
    if parent is not None and not made_by.same_as(parent.autoencoder):
        raise MismatchError(f"the dataset named by --like was made by {parent.autoencoder}; here is {made_by}")
    text_by = None
    if text_network is not None:
        text_by = TextFacts(
            name=text_network.name,
            family=getattr(text_network, "family", type(text_network).__name__),
            weights=weight_hash(text_network),
            length=text_network.length,
        )
    if parent is not None and parent.text is not None and (text_by is None or not text_by.same_as(parent.text)):
        raise MismatchError(f"the dataset named by --like was made by {parent.text}; here is {text_by}")
    have = {"key", "image", *ENCODED, *listing.fields}
    if "caption" in have:
        have |= {"captions"} | (_made_by(text_network) if text_network is not None else set())
    for name, column in recipe.columns.items():
        if column.content not in have and not column.optional:
            lacking = "the source does not have"
            if column.content in TEXT and "caption" in have and text_network is not None:
                lacking = f"{text_network.name} does not give"
            elif column.content in TEXT:
                lacking = "needs captions: the source has none"
            raise RecipeError(f"recipe {recipe.name} stores {column.content} as {name}, which {lacking}")
    recipe = replace(
        recipe, columns={name: column for name, column in recipe.columns.items() if column.content in have}
    )
    shapes = {name: shape_of(recipe, column, network) for name, column in recipe.encoded().items()}
    latents = {name: shapes[name] for name in recipe.latents()}
    texts = {name: text_shape(recipe, column, text_network) for name, column in recipe.texts().items() if text_network}
    embeddings = {name: texts[name] for name in recipe.embeddings()}
    if parent is not None:
        quantizers = parent.quantizers
        uncalibrated: tuple[str, ...] = ()
    else:
        quantizers = {name: _given(recipe.columns[name], shape[0]) for name, shape in latents.items()}
        quantizers |= {name: _given(recipe.columns[name], shape[-1]) for name, shape in embeddings.items()}
        uncalibrated = tuple(name for name in quantizers if recipe.columns[name].quantizer["kind"] in _CALIBRATED)
    tokens = {
        name: TokenFacts(shapes[name], _token_dtype(name, column, network), codebook_size(network))
        for name, column in recipe.tokens().items()
    }
    encodings = {name: column.encoding for name, column in recipe.columns.items()}
    for name, shape in latents.items():
        encodings[name] = encodings[name] or _latent_encoding(recipe.columns[name], shape)
    for name, facts in tokens.items():
        encodings[name] = encodings[name] or f"ndarray:{facts.dtype}:{','.join(map(str, facts.shape))}"
    for name, shape in texts.items():
        encodings[name] = encodings[name] or _text_encoding(recipe.columns[name], shape)
    text_options = replace(recipe.text, model=text_by.name) if text_by is not None else recipe.text
    card = Card(
        source=source_facts(kind, listing, recipe.unit_size),
        recipe=replace(recipe, autoencoder=replace(recipe.autoencoder, model=network.name), text=text_options),
        autoencoder=made_by,
        columns=encodings,
        latents={name: LatentFacts(shape, quantizers[name]) for name, shape in latents.items()},
        tokens=tokens,
        text=text_by if texts else None,
        embeddings={name: EmbeddingFacts(shape, quantizers[name]) for name, shape in embeddings.items()},
        versions=_versions(text_network is not None),
    )
    return card, uncalibrated


def _made_by(network: TextEncoder) -> set[str]:
    """What a text encoder gives, as columns have it."""
    given = {"caption_embedding"}
    if network.masked:
        given.add("attention_mask")
    if network.pooled_width:
        given.add("pooled_embedding")
    return given


def _token_dtype(name: str, column: Column, network: Autoencoder) -> str:
    """The type that the column's encoding says, or else the smallest that holds the code book."""
    size = codebook_size(network)
    fits = [dtype for dtype, largest in TOKEN_DTYPES.items() if size <= largest]
    said = column.encoding.split(":")[1] if column.encoding.startswith("ndarray:") else next(iter(fits), "")
    if said not in fits:
        raise RecipeError(f"columns.{name}: {column.encoding or 'int32'} does not hold a code book of {size} tokens")
    return said


def _latent_encoding(column: Column, shape: tuple[int, ...]) -> str:
    kind, bits = column.quantizer["kind"], column.quantizer.get("bits", 8)
    if kind in FLOATS or bits == 8:
        stored = {"float32": "float32", "float16": "float16", "bfloat16": "uint16"}.get(kind, "uint8")
        return f"ndarray:{stored}:{','.join(map(str, shape))}"
    return f"ndarray:uint8:{-(-int(np.prod(shape)) * bits // 8)}"


def _text_encoding(column: Column, shape: tuple[int, ...]) -> str:
    if column.content == "attention_mask":
        return f"ndarray:uint8:{','.join(map(str, shape))}"
    kind, bits = column.quantizer["kind"], column.quantizer.get("bits", 8)
    if kind in FLOATS or bits == 8:
        return _latent_encoding(column, shape)
    return f"ndarray:uint8:{int(np.prod(shape[:-1])) * -(-shape[-1] * bits // 8)}"  # each vector is packed alone


def _given(column: Column, channels: int) -> Quantizer:
    """The quantiser that the recipe gives; where it is to be calibrated, floats as they are stand in for it."""
    data = dict(column.quantizer)
    kind = data.pop("kind")
    if kind == "uniform":
        return Quantizer.uniform(data.pop("low"), data.pop("high"), channels=channels, **data)
    return Quantizer.floating(kind if kind in FLOATS else "float32", channels=channels)


def _versions(with_text: bool) -> dict[str, str]:
    """Of what computes the numbers."""
    versions = {}
    for package in ("latentq", "numpy", "torch", "diffusers", *(("transformers", "open_clip_torch") * with_text)):
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def check_same(out: Path, old: Card, new: Card, *, frozen: bool) -> None:
    """Refuses to go on with what another recipe, other weights or another list began; both values are named.

    With `frozen`, the new card's quantisers come from another dataset and must be the same too.
    """
    ours, theirs = _identity(old), _identity(new)
    if old.autoencoder.same_as(new.autoencoder):
        # The same weights under another name, or in another place.
        for key in ("autoencoder.name", *(f"recipe.autoencoder.{key}" for key in ("model", "revision", "subfolder"))):
            del ours[key], theirs[key]
    if old.text is not None and new.text is not None and old.text.same_as(new.text):
        for key in ("text.name", *(f"recipe.text.{key}" for key in ("model", "revision", "subfolder"))):
            del ours[key], theirs[key]
    if frozen:
        for flat, card in ((ours, old), (theirs, new)):
            flat |= {f"latents.{name}.quantizer": facts.quantizer.to_dict() for name, facts in card.latents.items()}
            flat |= {f"embeddings.{name}.quantizer": e.quantizer.to_dict() for name, e in card.embeddings.items()}
    # The recipe first: what follows from it is named less clearly.
    for key in sorted(ours.keys() | theirs.keys(), key=lambda key: (not key.startswith("recipe"), key)):
        if ours.get(key) != theirs.get(key):
            raise MismatchError(f"{out} was made with {key} = {ours.get(key)!r}; this run has {theirs.get(key)!r}")
    for package in sorted(old.versions.keys() | new.versions.keys()):
        before, now = old.versions.get(package), new.versions.get(package)
        if before != now:
            warnings.warn(f"{out} was begun with {package} {before}; here is {now}", stacklevel=4)


def _identity(card: Card) -> dict[str, Any]:
    """What must be the same in every run on one folder, flat."""

    def flat(prefix: str, value: Any) -> Iterator[tuple[str, Any]]:
        if isinstance(value, dict):
            for key, inner in value.items():
                yield from flat(f"{prefix}.{key}" if prefix else key, inner)
        else:
            yield prefix, value

    data = card.to_dict()
    data["recipe"].pop("changed", None)
    data["latents"] = {name: facts.shape for name, facts in card.latents.items()}
    data["embeddings"] = {name: facts.shape for name, facts in card.embeddings.items()}
    kept = ("source", "recipe", "autoencoder", "columns", "latents", "tokens", "text", "embeddings")
    return dict(flat("", {key: data[key] for key in kept if key in data}))
