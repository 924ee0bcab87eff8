"""`latentq.encode`: a source becomes a latent dataset, unit by unit."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Unpack

from latentq.collect import Collection
from latentq.converting.tokens_tsv import write_table
from latentq.encoding.calibrate import publish_card, publish_empty_caption, publish_positions
from latentq.encoding.on_ray import encode_on_ray
from latentq.encoding.options import EncodeOptions, split_options
from latentq.encoding.request import (
    EncodeRequest,
    ResolvedRequest,
    list_requested,
    open_requested,
    plan_requested,
    resolve,
)
from latentq.encoding.update import update_dataset
from latentq.encoding.write import encode_units
from latentq.format.card import CARD, Card
from latentq.format.files import LIST
from latentq.format.recipe import Recipe
from latentq.models.autoencoders import Autoencoder
from latentq.models.device import current_device
from latentq.models.text import TextEncoder
from latentq.run.archives import source_is_deleted
from latentq.run.finish import CardCompletion, finish, resume_update
from latentq.run.listing import print_notes
from latentq.run.mirror import finished_on_store, mirrored
from latentq.run.share import Share
from latentq.sources import Captions, Source
from latentq.system.progress import Progress


def encode(
    source: str | os.PathLike[str] | Source,
    out: str | os.PathLike[str],
    *,
    storage_options: Mapping[str, str] | None = None,
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
            `NAME.latentq`. A URL of an object store (`s3://`, `gs://`, `az://`) makes the dataset there.
        storage_options: For the URLs among `source`, `out`, `captions` and `class_names`: endpoint, credentials and the
            like: see `latentq.store.objects.ObjectStore`. A source with other options is opened by `open_source`.
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
    settings, overrides = split_options(options)
    with mirrored(out, storage_options, inputs=(source, captions, class_names)) as (folder, mirror):
        request = EncodeRequest(
            source, folder, settings, overrides, mirror, recipe=recipe, autoencoder=autoencoder,
            text_encoder=text_encoder, like=like, class_names=class_names, captions=captions, image_column=image_column,
            label_column=label_column, collection=collection, storage_options=storage_options,
        )  # fmt: skip
        return encode_request(request)


def encode_request(request: EncodeRequest) -> Card:
    """Does what a request asks for. Returns and raises as `encode`."""
    out, settings = request.out, request.settings
    if (out / CARD).exists():
        if request.mirror is not None:
            request.mirror.fetch_next_units()
        if resume_update(out) and request.mirror is not None:
            request.mirror.publish_update()
    resolved = resolve(request)
    if (
        settings.delete_archives
        and resolved.published is not None
        and source_is_deleted(request.source, out, resolved.published)
    ):
        with finished_on_store(request.mirror, resolved.published):
            return finish(out, resolved.published, settings.progress)
    if settings.ray is not None:
        card = encode_on_ray(resolved, encode_request)
    else:
        source = open_requested(resolved)
        updated = resolved.updated
        card = _encode(resolved, source) if updated is None else update_dataset(request, updated, source)
    if card.complete:
        if resolved.updated is not None and card != resolved.updated and request.named != out:
            request.named.unlink(missing_ok=True)  # the table of the dataset before the update
        write_table(request.named)
    return card


def _encode(resolved: ResolvedRequest, source: Source) -> Card:
    try:
        return _encode_listed(resolved, source)
    except FileNotFoundError as error:
        if f"/.{LIST}." not in str(error.filename):
            raise
        # Another process that does the same work finished it, and removed our temporary list.
        return _encode_listed(resolved, source)


def _encode_listed(resolved: ResolvedRequest, source: Source) -> Card:
    out, settings, mirror = resolved.request.out, resolved.request.settings, resolved.request.mirror
    with list_requested(resolved, source, out) as run_list:
        run, models = plan_requested(resolved, source, run_list)
        is_new = not (out / CARD).exists()  # afterwards all that the notes are about is decided
        notes = [*run_list.notes, *(models.notes(resolved.recipe) if is_new else ())]
        print_notes(notes, settings.progress)
        with current_device(run.encoder.device):
            frozen = resolved.parent is not None
            run = publish_card(out, run, run_list, settings.progress, frozen=frozen)
            if mirror is not None and not mirror.publish_plan():  # another process was first
                run = publish_card(out, run, run_list, settings.progress, frozen=frozen)
            publish_empty_caption(out, run)
            publish_positions(out, run)
            if mirror is not None:
                mirror.publish_decided()
            share = Share.for_process(out, source, run.samples, settings, mirror)
            with Progress(
                share.samples, "encode", settings.progress, totals=settings.totals, detail=run.busy_text()
            ) as bar:
                encode_units(run, share, bar)
    return share.finish(run.card, CARD, CardCompletion, settings.progress)
