"""`latentq.encode`: a source becomes a latent dataset, unit by unit."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Unpack

from latentq._core import RecipeError
from latentq.collect import Collection
from latentq.converting.tokens_tsv import check_table, dataset_of, write_table
from latentq.encoding.calibrate import publish_card, publish_empty_caption
from latentq.encoding.models import load_models
from latentq.encoding.options import EncodeOptions, split_options
from latentq.encoding.run import EncodingRun
from latentq.encoding.stages import LIST
from latentq.encoding.update import finished_card, update_dataset
from latentq.encoding.write import encode_units
from latentq.format.card import CARD, Card
from latentq.format.recipe import Recipe
from latentq.models.autoencoders import Autoencoder
from latentq.models.device import current_device
from latentq.models.text import TextEncoder
from latentq.run.archives import source_is_deleted
from latentq.run.check import check_output_folder
from latentq.run.finish import CardCompletion, finish, resume_update
from latentq.run.listing import collection_of, list_source, open_run_source, print_notes, source_facts, with_limits
from latentq.run.plan import plan_card, resolve_recipe
from latentq.run.share import Share
from latentq.sources import Captions, Source
from latentq.system.progress import Progress

_ADVICE = "restore the source, take its changes in with --update, or name another output folder"


def encode(
    source: str | os.PathLike[str] | Source,
    out: str | os.PathLike[str],
    *,
    recipe: str | os.PathLike[str] | Recipe | None = None,
    autoencoder: str | os.PathLike[str] | Autoencoder | None = None,
    text_encoder: str | os.PathLike[str] | TextEncoder | None = None,
    like: str | os.PathLike[str] | None = None,
    class_names: str | os.PathLike[str] | None = None,
    captions: str | Captions | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
    collection: str | Collection | None = None,
    **options: Unpack[EncodeOptions],
) -> Card:
    """Encodes a source into a latent dataset, or continues where an earlier run stopped.

    Args:
        source: A folder of images (class subfolders become labels), a table of image paths, archives, anything else
            that `latentq.sources.open_source` takes, or a `Source`.
        out: The dataset's folder: absent, empty, or begun by a run of the same recipe, weights and source. A name that
            ends with `.tsv` gets a table of tokens in the layout of VQGAN-f16-16384's page, and the dataset is in
            `NAME.latentq`.
        recipe: A recipe, its name, or the path of its TOML file; by default `default`.
        autoencoder: Replaces the recipe's autoencoder: a name, a folder, or an object that is an `Autoencoder`.
        text_encoder: Replaces the recipe's text encoder: a name, a folder, or an object that is a
            `latentq.text.TextEncoder`. Columns of embeddings are added to a recipe that has none.
        like: A dataset whose recipe, quantizers and class numbers are used, e.g. for a validation split.
        class_names: A file of two columns: class folder and readable name.
        captions: Where captions are, for `open_source`.
        image_column: The column of images, for `open_source`. The card records it.
        label_column: The column of labels, for `open_source`.
        collection: A `latentq.collect.COLLECTIONS` entry or its name. Its limits apply to its archives, which must be
            the source; they need `captions`.
        options: How the run is done, and fields of the recipe to change: see `EncodeOptions`.

    Returns:
        The card. Its `complete` is False if units of other processes are missing.

    Raises:
        LatentqError: Nothing can be encoded; or its subclasses `RecipeError`, `MismatchError`, `FormatError`.
        OSError: A file or folder cannot be read or written.
        TypeError: An option is unknown.
        ValueError: An argument is out of range.
    """
    named, out = Path(out), dataset_of(Path(out))
    settings, overrides = split_options(options)
    collection = collection_of(collection)
    begun = finished_card(out) if settings.update and (out / CARD).exists() else None
    if begun is not None and like is not None:
        raise RecipeError("the dataset that is updated decides the recipe: like cannot be given as well")
    parent = Card.load(like) if like is not None else begun
    recipe = resolve_recipe(recipe, _model_name(autoencoder), _text_name(text_encoder), parent, overrides)
    check_output_folder(out)
    if begun is None and (out / CARD).exists():
        resume_update(out)
        published = Card.load(out)
        if settings.delete_archives and source_is_deleted(source, out, published):
            return finish(out, published, settings.progress)
        revision, unit_size = published.source.revision, published.recipe.unit_size
    else:
        revision, unit_size = 0, recipe.unit_size

    opened = open_run_source(
        source,
        out,
        class_names,
        like if begun is None else out,
        with_limits(captions, collection),
        image_column if begun is None else image_column or begun.source.image_column,
        label_column,
        settings.progress,
        grow=begun is not None,
    )
    if begun is not None:
        card = update_dataset(opened, out, begun, autoencoder, text_encoder, settings)
        if card.complete:
            write_table(named)
        return card
    with settings.profile.timing(LIST, "worked"):
        run_list = list_source(opened, out, unit_size, compare=settings.rank == 0, revision=revision, advice=_ADVICE)
    with run_list:
        keep_subfolder = overrides.get("subfolder") is not None
        models = load_models(recipe, autoencoder, text_encoder, device=settings.device, keep_subfolder=keep_subfolder)
        facts = source_facts(opened.kind, run_list.samples, recipe.unit_size, revision)
        facts = replace(facts, image_column=image_column)
        totals = run_list.samples.totals
        card, uncalibrated = plan_card(recipe, facts, totals, models.autoencoder, parent, models.text_encoder)
        check_table(named, card)
        run = EncodingRun.planned(opened, run_list.samples, card, uncalibrated, models, settings)

        is_new = not (out / CARD).exists()  # afterwards the dtype is given
        print_notes([*run_list.notes, *(models.dtype_notes(recipe) if is_new else ())], settings.progress)
        with current_device(run.encoder.device):
            run = publish_card(out, run, run_list, settings.progress, frozen=parent is not None)
            publish_empty_caption(out, run)
            share = Share.for_process(out, opened, run.samples, settings)
            with Progress(share.samples, "encode", settings.progress, totals=settings.totals) as bar:
                encode_units(run, share, bar)
    card = share.finish(run.card, CARD, CardCompletion, settings.progress)
    if card.complete:
        write_table(named)
    return card


def _model_name(autoencoder: str | os.PathLike[str] | Autoencoder | None) -> str | os.PathLike[str] | None:
    return autoencoder if isinstance(autoencoder, str | os.PathLike) else None


def _text_name(text_encoder: str | os.PathLike[str] | TextEncoder | None) -> str | os.PathLike[str] | None:
    if text_encoder is None or isinstance(text_encoder, str | os.PathLike):
        return text_encoder
    return text_encoder.name
