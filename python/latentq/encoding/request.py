"""A request to `latentq.encode`, and the steps before anything is written, which a dry run shares."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path

from latentq._core import LatentqError, RecipeError
from latentq.collect import Collection
from latentq.converting.tokens_tsv import check_table, dataset_of
from latentq.encoding.models import Models, load_models
from latentq.encoding.options import EncodeSettings
from latentq.encoding.run import EncodingRun
from latentq.encoding.stages import LIST
from latentq.format.card import CARD, Card
from latentq.format.overrides import RecipeOverrides
from latentq.format.recipe import Recipe
from latentq.models.autoencoders import Autoencoder
from latentq.models.text import TextEncoder
from latentq.run.archives import archives_of
from latentq.run.check import check_output_folder, check_same_recipe
from latentq.run.listing import RunList, collection_of, list_source, open_run_source, source_facts, with_limits
from latentq.run.plan import plan_card, resolve_recipe
from latentq.sources import Captions, Source

_ADVICE = "restore the source, take its changes in with --update, or name another output folder"


@dataclass(frozen=True)
class EncodeRequest:
    """The arguments of `latentq.encode`, which describes them.

    Attributes:
        settings: How the run is done.
        overrides: Fields of the recipe to change.
    """

    source: str | os.PathLike[str] | Source
    named: Path
    settings: EncodeSettings
    overrides: RecipeOverrides
    recipe: str | os.PathLike[str] | Recipe | None = None
    autoencoder: str | os.PathLike[str] | Autoencoder | None = None
    text_encoder: str | os.PathLike[str] | TextEncoder | None = None
    like: str | os.PathLike[str] | None = None
    class_names: str | os.PathLike[str] | None = None
    captions: str | Captions | None = None
    image_column: str | None = None
    label_column: str | None = None
    collection: str | Collection | None = None

    @property
    def out(self) -> Path:
        """The dataset's folder."""
        return dataset_of(self.named)


@dataclass(frozen=True)
class ResolvedRequest:
    """A request together with what other datasets decide of it.

    Attributes:
        request: The request.
        recipe: The recipe of the run.
        published: The card in the dataset's folder; None if no run has begun the dataset.
        updated: The same card, if the dataset is to be updated, else None.
        parent: The card of the dataset that decides recipe and quantizers: the one named by `like`, or the updated
            one; None if there is none.
    """

    request: EncodeRequest
    recipe: Recipe
    published: Card | None
    updated: Card | None
    parent: Card | None

    @property
    def revision(self) -> int:
        """How often the dataset was updated before this run."""
        return self.published.source.revision if self.published is not None else 0


def resolve(request: EncodeRequest) -> ResolvedRequest:
    """Reads the recipe and the cards that a request refers to, and checks the dataset's folder.

    Raises:
        LatentqError: The dataset to update is not finished; or its subclasses `RecipeError`, `MismatchError`,
            `FormatError`.
        OSError: A card cannot be read, or the folder cannot be written.
    """
    out = request.out
    published = Card.load(out) if (out / CARD).exists() else None
    updated = published if request.settings.update else None
    if updated is not None and not updated.complete:
        raise LatentqError(f"{out} is not finished: run the same command without --update first")
    if updated is not None and request.like is not None:
        raise RecipeError("the dataset that is updated decides the recipe: like cannot be given as well")
    parent = Card.load(request.like) if request.like is not None else updated
    check_output_folder(out)
    return ResolvedRequest(request, _recipe(request, parent, updated), published, updated, parent)


def _recipe(request: EncodeRequest, parent: Card | None, updated: Card | None) -> Recipe:
    """Returns the recipe of a run. With an update it is the dataset's, with which a recipe that is given must agree."""
    autoencoder, text_encoder = request.autoencoder, request.text_encoder
    model = autoencoder if isinstance(autoencoder, str | os.PathLike) else None
    text_model = (
        text_encoder if text_encoder is None or isinstance(text_encoder, str | os.PathLike) else text_encoder.name
    )
    if updated is None:
        return resolve_recipe(request.recipe, model, text_model, parent, request.overrides)
    given = updated.recipe if request.recipe is None else request.recipe
    check_same_recipe(request.out, updated.recipe, resolve_recipe(given, model, text_model, None, request.overrides))
    return updated.recipe


def open_requested(resolved: ResolvedRequest) -> Source:
    """Opens the source of a request.

    Raises:
        LatentqError: It cannot be understood.
        OSError: It cannot be read.
        ValueError: An argument does not fit the source.
    """
    request, updated = resolved.request, resolved.updated
    has_own_classes = updated is not None or resolved.revision > 0
    stored_column = updated.source.image_column if updated is not None else None
    source = open_run_source(
        request.source,
        request.out,
        request.class_names,
        request.out if has_own_classes else request.like,
        with_limits(request.captions, collection_of(request.collection)),
        request.image_column or stored_column,
        request.label_column,
        request.settings.progress,
        grow=has_own_classes,
    )
    if request.settings.delete_archives:
        archives_of(source)  # fails now, and not once the list is published
    return source


def list_requested(resolved: ResolvedRequest, source: Source, folder: Path) -> RunList:
    """Lists the source of a request, or compares it with the list in a folder.

    Args:
        resolved: The request; not an update.
        source: The source, opened.
        folder: The dataset's folder, or another one that a new list goes to.

    Raises:
        MismatchError: The source differs from the published list.
        LatentqError: It cannot be listed.
    """
    settings = resolved.request.settings
    unit_size = (resolved.published or resolved).recipe.unit_size
    with settings.profile.timing(LIST, "worked"):
        return list_source(
            source, folder, unit_size, compare=settings.rank == 0, revision=resolved.revision, advice=_ADVICE
        )


def plan_requested(resolved: ResolvedRequest, source: Source, run_list: RunList) -> tuple[EncodingRun, Models]:
    """Loads the models of a request, and plans its run.

    Args:
        resolved: The request; not an update.
        source: The source, opened.
        run_list: Its list.

    Raises:
        LatentqError: A model cannot be loaded, or does not fit; or its subclasses `RecipeError`, `MismatchError`.
        ValueError: The device cannot be used.
    """
    request, recipe, settings = resolved.request, resolved.recipe, resolved.request.settings
    keep_subfolder = request.overrides.get("subfolder") is not None
    models = load_models(
        recipe, request.autoencoder, request.text_encoder, device=settings.device, keep_subfolder=keep_subfolder
    )
    facts = source_facts(source.kind, run_list.samples, recipe.unit_size, resolved.revision)
    next_label = resolved.published.source.next_label if resolved.published is not None else 0
    facts = replace(facts, image_column=request.image_column, next_label=next_label)
    totals = run_list.samples.totals
    card, uncalibrated = plan_card(recipe, facts, totals, models.autoencoder, resolved.parent, models.text_encoder)
    check_table(request.named, card)
    return EncodingRun.planned(source, run_list.samples, card, uncalibrated, models, settings), models
