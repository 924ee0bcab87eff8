"""Match networks with recipes and cards: shapes, code books, weights."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from latentq._core import LatentqError, MismatchError
from latentq.format.card import UNKNOWN, Card
from latentq.models.autoencoders import Autoencoder, load_autoencoder, subfolder_in
from latentq.models.weights import weight_hash

if TYPE_CHECKING:
    import torch

from latentq._core import RecipeError
from latentq.format.recipe import Column, Recipe
from latentq.models.text import TextEncoder


def autoencoder_for(
    card: Card, name: str | os.PathLike[str] | None = None, *, device: str | torch.device = "cpu"
) -> Autoencoder:
    """The autoencoder that made a dataset.

    Args:
        card: The dataset's card.
        name: Where the autoencoder is, if its name in the card is not enough (a folder's path is not kept there).
        device: Where it computes.

    Raises:
        MismatchError: Its weights are not those of the card, or where these are unknown, its latents' shape is not.
        LatentqError: It cannot be loaded.
    """
    options = card.recipe.autoencoder
    try:
        network = load_autoencoder(
            name or options.model,
            device=device,
            revision=options.revision,
            subfolder=subfolder_in(name or options.model, options.subfolder),
            pixel_range=options.pixel_range,
        )
    except LatentqError as error:
        hint = "" if name else " (the dataset was made with it: say where it is with --autoencoder)"
        raise LatentqError(f"{error}{hint}") from None
    weights = weight_hash(network)
    if card.autoencoder.weights not in (weights, UNKNOWN):
        raise MismatchError(
            f"the dataset was made by {card.autoencoder.name} with weights {card.autoencoder.weights or 'unknown'}; "
            f"those of {name or network.name} are {weights or 'unknown'}"
        )
    if card.autoencoder.weights == UNKNOWN:  # then the shape is all there is to tell another network by
        for column in card.recipe.latents().values():
            shape_of(card.recipe, column, network)
    return network


def shape_of(recipe: Recipe, column: Column, network: Autoencoder) -> tuple[int, ...]:
    """The shape of what a column stores of a sample.

    Raises:
        MismatchError: The recipe says another.
        RecipeError: The network does not make what the column stores.
    """
    try:
        channels, height, width = network.latent_shape(column.size)
    except ValueError as error:
        raise RecipeError(f"size {column.size}: {error}") from None
    if column.content == "moments" and not hasattr(network, "posterior"):
        raise RecipeError(f"{network.name} draws from no distribution: it has no moments to store")
    if column.content == "tokens" and not codebook_size(network):
        raise RecipeError(f"{network.name} has no code book: it has no tokens to store")
    shape: tuple[int, ...] = (channels, height, width)
    if column.content == "moments":
        shape = (2 * channels, height, width)
    elif column.content == "tokens":
        shape = (height, width)
    if column.shape and column.shape != shape:
        raise MismatchError(
            f"recipe {recipe.name} stores {column.content} of shape {column.shape}, {network.name} makes {shape}"
        )
    return shape


def text_shape(recipe: Recipe, column: Column, network: TextEncoder) -> tuple[int, ...]:
    """The shape of what a column of the text encoder's stores of a sample: first of all the captions.

    Raises:
        MismatchError: The recipe says another.
    """
    shape: tuple[int, ...] = {
        "caption_embedding": (recipe.text.captions, network.length, network.width),
        "attention_mask": (recipe.text.captions, network.length),
        "pooled_embedding": (recipe.text.captions, network.pooled_width),
    }[column.content]
    if column.shape and column.shape != shape:
        raise MismatchError(
            f"recipe {recipe.name} stores {column.content} of shape {column.shape}, {network.name} makes {shape}"
        )
    return shape


def codebook_size(network: Autoencoder) -> int:
    """How many tokens a network has; 0 where it gives none."""
    return int(getattr(network, "codebook_size", 0))
