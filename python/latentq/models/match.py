"""Matches networks with recipes and cards: shapes, codebooks, weights."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from latentq._core import LatentqError, MismatchError, RecipeError
from latentq.format.card import Card
from latentq.format.facts import UNKNOWN
from latentq.format.normalization import Normalization
from latentq.format.options import Column
from latentq.format.recipe import Recipe
from latentq.models.autoencoders import Autoencoder, load_autoencoder, subfolder_in
from latentq.models.autoencoders.interface import DescribedAutoencoder
from latentq.models.text import TextEncoder
from latentq.models.weights import weight_hash

if TYPE_CHECKING:
    import torch


def autoencoder_for(
    card: Card, name: str | os.PathLike[str] | None = None, *, device: str | torch.device = "cpu"
) -> Autoencoder:
    """Loads the autoencoder that made a dataset.

    Args:
        card: The dataset's card.
        name: The autoencoder's name or folder, if the name in the card is not enough (a folder's path is not kept
            there).
        device: The device to compute on.

    Raises:
        MismatchError: Its weights are not those of the card; or those are unknown, and the shape of its latents is not
            that of the card.
        LatentqError: It cannot be loaded.
    """
    network = autoencoder_of(card.recipe, name, device=device)
    weights = weight_hash(network)
    if card.autoencoder.weights not in (weights, UNKNOWN):
        raise MismatchError(
            f"the dataset was made by {card.autoencoder.name} with weights {card.autoencoder.weights or 'unknown'}; "
            f"those of {name or network.name} are {weights or 'unknown'}"
        )
    if card.autoencoder.weights == UNKNOWN:  # then only the shape can reveal another network
        for column in card.recipe.latents().values():
            shape_of(card.recipe, column, network)
    return network


def autoencoder_of(
    recipe: Recipe, name: str | os.PathLike[str] | None = None, *, device: str | torch.device = "cpu"
) -> Autoencoder:
    """Loads the autoencoder that a recipe names, whatever its weights.

    Args:
        recipe: The recipe.
        name: The autoencoder's name or folder, if the recipe's is not enough.
        device: The device to compute on.

    Raises:
        LatentqError: It cannot be loaded, or neither the recipe nor `name` tells which it is.
    """
    options = recipe.autoencoder
    if not name and options.model == UNKNOWN:
        raise LatentqError("nothing tells the autoencoder of these latents: name it with --autoencoder")
    try:
        return load_autoencoder(
            name or options.model,
            device=device,
            revision=options.revision,
            subfolder=subfolder_in(name or options.model, options.subfolder),
            pixel_range=options.pixel_range,
        )
    except LatentqError as error:
        hint = "" if name else " (the dataset was made with it: say where it is with --autoencoder)"
        raise LatentqError(f"{error}{hint}") from None


def shape_of(recipe: Recipe, column: Column, network: DescribedAutoencoder) -> tuple[int, ...]:
    """Returns the shape that a column of latents, moments or tokens stores for one sample.

    Args:
        recipe: The recipe.
        column: The column, with its size, or with that of a bucket.
        network: The autoencoder.

    Raises:
        MismatchError: The recipe gives another shape.
        RecipeError: The network cannot make the column's content.
    """
    size = column.size if isinstance(column.size, int) else f"{column.size[0]} x {column.size[1]}"
    try:
        channels, height, width = latent_shape(network, column.pixels)
    except ValueError as error:
        raise RecipeError(f"size {size}: {error}") from None
    try:
        normalization_of(network).check_channels(channels)
    except ValueError as error:
        raise RecipeError(f"{network.name}: {error}") from None
    if column.content == "moments" and not hasattr(network, "posterior"):
        raise RecipeError(f"{network.name} has no posterior: it has no moments to store")
    if column.content == "tokens" and not codebook_size(network):
        raise RecipeError(f"{network.name} has no codebook: it has no tokens to store")
    shape: tuple[int, ...] = (channels, height, width)
    if column.content == "moments":
        shape = (2 * channels, height, width)
    elif column.content == "tokens":
        shape = (height, width)
    elif column.scaled:
        try:
            shape = normalization_of(network).shape((channels, height, width))
        except ValueError as error:
            raise RecipeError(f"size {size}: {error}") from None
    return _checked(recipe, column, shape, network.name)


def latent_shape(network: DescribedAutoencoder, pixels: tuple[int, int]) -> tuple[int, int, int]:
    """Returns (C, h, w) for images of a height and width: h is that of a square of the height, w of one of the width.

    Raises:
        ValueError: The network cannot encode squares of these sides.
    """
    height, width = pixels
    if height == width:
        return network.latent_shape(height)
    tall, wide = network.latent_shape(height), network.latent_shape(width)
    if tall[0] != wide[0]:
        raise ValueError(f"{network.name} has {tall[0]} channels for one side and {wide[0]} for the other")
    return tall[0], tall[1], wide[2]


def text_shape(recipe: Recipe, column: Column, network: TextEncoder) -> tuple[int, ...]:
    """Returns the shape that a text encoder's column stores for one sample; its first axis is that of the captions.

    Raises:
        MismatchError: The recipe gives another shape.
    """
    shape: tuple[int, ...] = {
        "caption_embedding": (recipe.text.captions, network.length, network.width),
        "attention_mask": (recipe.text.captions, network.length),
        "pooled_embedding": (recipe.text.captions, network.pooled_width),
    }[column.content]
    return _checked(recipe, column, shape, network.name)


def _checked(recipe: Recipe, column: Column, shape: tuple[int, ...], name: str) -> tuple[int, ...]:
    if column.shape and column.shape != shape:
        raise MismatchError(
            f"recipe {recipe.name} stores {column.content} of shape {column.shape}, {name} makes {shape}"
        )
    return shape


def codebook_size(network: DescribedAutoencoder) -> int:
    """Returns the number of codes in a network's codebook; 0 if it has none."""
    return int(getattr(network, "codebook_size", 0))


def normalization_of(network: object) -> Normalization:
    """Returns a network's normalization; one that changes nothing if it has none."""
    normalization: Normalization = getattr(network, "normalization", Normalization())
    return normalization
