"""A request to `latentq.encode`, and the steps before anything is written, which a dry run shares."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from latentq._core import LatentqError, MismatchError
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
from latentq.run.classes import classes_of, classes_to_grow
from latentq.run.listing import RunList, collection_of, list_source, open_run_source, source_facts, with_limits
from latentq.run.mirror import Mirror
from latentq.run.plan import plan_card, resolve_recipe
from latentq.sources import Captions, Source

_ADVICE = "restore the source, take its changes in with --update, or name another output folder"


@dataclass(frozen=True)
class EncodeRequest:
    """The arguments of `latentq.encode`, which describes them.

    Attributes:
        named: The dataset's folder, or the table of tokens next to it; of a dataset on a store its local folder.
        settings: How the run is done.
        overrides: Fields of the recipe to change.
        mirror: The object store, if the dataset is on one.
    """

    source: str | os.PathLike[str] | Source
    named: Path
    settings: EncodeSettings
    overrides: RecipeOverrides
    mirror: Mirror | None = None
    recipe: str | os.PathLike[str] | Recipe | None = None
    autoencoder: str | os.PathLike[str] | Autoencoder | None = None
    text_encoder: str | os.PathLike[str] | TextEncoder | None = None
    like: str | os.PathLike[str] | None = None
    class_names: str | os.PathLike[str] | None = None
    captions: str | Captions | None = None
    image_column: str | None = None
    label_column: str | None = None
    collection: str | Collection | None = None
    storage_options: Mapping[str, str] | None = None

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
        parent: The card of the dataset named by `like`; None if there is none.
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
    parent = Card.load(request.like) if request.like is not None else None
    if updated is not None:
        _check_update(request, updated, parent)
    check_output_folder(out)
    return ResolvedRequest(request, _recipe(request, parent, updated), published, updated, parent)


def _check_update(request: EncodeRequest, updated: Card, parent: Card | None) -> None:
    """Refuses options that an update cannot follow.

    Raises:
        MismatchError: `like` has another recipe or other quantizers, or the images are in another column.
    """
    column, stored = request.image_column, updated.source.image_column
    if column is not None and column != stored:
        raise MismatchError(f"{request.out} was made with image_column = {stored!r}; this run has {column!r}")
    if parent is not None and (parent.recipe != updated.recipe or parent.quantizers != updated.quantizers):
        raise MismatchError(f"{request.out} was not made with --like {request.like}: recipe or quantizers differ")


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
    stored_column = updated.source.image_column if updated is not None else None
    source = open_run_source(
        request.source,
        request.out if request.mirror is None else request.mirror.store.url,
        request.class_names,
        _classes(resolved),
        with_limits(request.captions, collection_of(request.collection)),
        request.image_column or stored_column,
        request.label_column,
        request.settings.progress,
        request.storage_options,
    )
    if request.settings.delete_archives:
        archives_of(source)  # fails now, and not once the list is published
    return source


def _classes(resolved: ResolvedRequest) -> dict[str, tuple[int, str]] | None:
    """Returns the classes that the source's are numbered by; None if there are none, or the source is not listed."""
    request, published = resolved.request, resolved.published
    if resolved.updated is None and published is not None and request.settings.rank:
        return None
    like = classes_of(Path(request.like), Card.load(request.like)) if request.like is not None else None
    if published is not None and (resolved.updated is not None or resolved.revision):
        return classes_to_grow(request.out, published, like)
    return like or None


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
    advice = _ADVICE if resolved.published is not None else f"delete {folder}, which a killed run left with a list only"
    with settings.profile.timing(LIST, "worked"):
        return list_source(
            source, folder, unit_size, compare=settings.rank == 0, revision=resolved.revision, advice=advice
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
    facts = replace(facts, image_column=request.image_column)
    if resolved.published is not None:
        facts = replace(facts, next_label=resolved.published.source.next_label)
    totals = run_list.samples.totals
    card, uncalibrated = plan_card(recipe, facts, totals, models.autoencoder, resolved.parent, models.text_encoder)
    check_table(request.named, card)
    return EncodingRun.planned(source, run_list.samples, card, uncalibrated, models, settings, request.out), models
