"""The pipeline: a source becomes a latent dataset, unit by unit."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from latentq._core import LatentqError
from latentq.collect import Collection
from latentq.converting.tokens_tsv import check_table, dataset_of, write_table
from latentq.encoding.stages import LIST, Profile
from latentq.format.card import CARD, Card
from latentq.format.files import REJECTS
from latentq.format.recipe import Recipe
from latentq.models.autoencoders import Autoencoder, load_autoencoder, subfolder_in
from latentq.models.text import TextEncoder, load_text_encoder
from latentq.run.archives import SpentArchives, all_spent
from latentq.run.listing import collection_of, limited, open_for, settle_listing
from latentq.run.plan import check_folder, plan_card, settle
from latentq.run.share import ranks, share_of
from latentq.run.units import finish, unit_names, units_done
from latentq.sources import Captions, Source
from latentq.store.local import remove_dead
from latentq.system.processors import processors
from latentq.system.progress import Progress

if TYPE_CHECKING:
    pass
from latentq.encoding.calibrate import publish_empty_caption, published_card
from latentq.encoding.job import Job, check_device, default_device, device_of
from latentq.encoding.write import encode_units


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
    collection: str | Collection | None = None,
    device: str | None = None,
    batch_size: int = 64,
    threads: int | None = None,
    rank: int | None = None,
    world_size: int | None = None,
    strict: bool = False,
    compiled: bool = False,
    delete_archives: bool = False,
    profile: Profile | None = None,
    progress: TextIO | None = None,
    **overrides: Any,
) -> Card:
    """Encodes a source into a latent dataset, or goes on where an earlier run stopped.

    Args:
        source: A folder of images (class sub-folders become labels), a table of image paths, archives or whatever else
            `latentq.sources.open_source` takes, or any `Source`.
        out: The dataset's folder: absent, empty, or begun by a run of the same recipe, weights and source. A name that
            ends with `.tsv` gets tokens as VQGAN-f16-16384's page writes them, and the dataset is in `NAME.latentq`.
        recipe: A recipe, its name, or the path of its TOML file; `default` where there is none.
        autoencoder: Instead of the recipe's: a name, a folder, or any object that is an `Autoencoder`.
        text_encoder: Instead of the recipe's: a name, a folder, or any object that is a `latentq.text.TextEncoder`.
            To a recipe without columns of embeddings they are added.
        like: A dataset whose recipe, quantisers and classes are taken: for a validation split, say.
        class_names: A file of two columns, class folder and readable name.
        captions: Where captions are, as of `open_source`.
        collection: One of `latentq.collect.COLLECTIONS` or its name, whose limits then hold: with its archives as the
            source. They need `captions`.
        device: Where the autoencoder computes; `cuda:LOCAL_RANK` where there is one, else `cpu`; an object's own place.
        batch_size: How many images the autoencoder is given at once; half of it, again and again, where the device's
            memory is not enough.
        threads: How many threads decode images; one for each processor where None.
        rank: Which of `world_size` processes this is; from the environment (RANK) where None.
        world_size: How many processes share the work; from the environment (WORLD_SIZE) where None.
        strict: Whether the first sample that is rejected for another reason than its size ends the run.
        compiled: Whether torch compiles the autoencoder; latents may then differ in the last bit.
        delete_archives: Whether each archive of the source is deleted as soon as all of its units are published.
        profile: Is told how long each stage works and waits.
        progress: Where progress is told; None tells nothing.
        overrides: Fields of the recipe to change, as `Recipe.override` names them.

    Returns:
        The card; `complete` is False while other processes' units are missing.

    Raises:
        LatentqError: Nothing can be encoded; `RecipeError`, `MismatchError`, `FormatError` and `ImageError` say more.
        OSError: A folder cannot be read or written.
        ValueError: An argument is out of range.
    """
    named = Path(out)
    out = dataset_of(named)
    rank, world_size = ranks(rank, world_size)
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, not {batch_size}")
    if threads is not None and threads < 1:
        raise ValueError(f"threads must be at least 1, not {threads}")
    threads = threads or processors()
    collection = collection_of(collection)
    model = autoencoder if autoencoder is None or isinstance(autoencoder, str | os.PathLike) else None
    text_model = text_encoder if isinstance(text_encoder, str | os.PathLike) else getattr(text_encoder, "name", None)
    parent = Card.load(like) if like is not None else None
    recipe = settle(recipe, model, text_model, parent, overrides)
    check_folder(out)
    if delete_archives and (out / CARD).exists() and all_spent(source, out, begun := Card.load(out)):
        return finish(out, begun)

    opened = open_for(source, out, class_names, like, limited(captions, collection), progress)
    profile = profile or Profile()
    with profile.timing(LIST, "worked"):
        listing = settle_listing(opened, out, first=rank == 0)
    network: Any = autoencoder
    if network is None or isinstance(network, str | os.PathLike):
        device = device or default_device()
        check_device(device)
        options = recipe.autoencoder
        network = network or options.model
        given = overrides.get("subfolder") is not None
        network = load_autoencoder(
            network,
            device=device,
            revision=options.revision,
            subfolder=options.subfolder if given else subfolder_in(network, options.subfolder),
            pixel_range=options.pixel_range,
        )
    text_network: Any = None
    if recipe.texts():
        text_network = text_encoder
        if text_encoder is None or isinstance(text_encoder, str | os.PathLike):
            text_network = load_text_encoder(
                text_encoder or recipe.text.model,
                device=device or device_of(network),
                revision=recipe.text.revision,
                subfolder=recipe.text.subfolder,
                length=recipe.text.length,
            )
    plan, uncalibrated = plan_card(recipe, opened.kind, listing, network, parent, text_network)
    check_table(named, plan)
    device = device or device_of(network)
    check_device(device)
    from latentq.encoding.latents import Encoder

    encoder = Encoder(network, plan.recipe.autoencoder, device, compiled=compiled)
    batch_size = min(batch_size, recipe.unit_size, max(1, len(listing.samples)))
    caption_encoder = None
    if plan.recipe.texts():
        from latentq.encoding.captions import CaptionEncoder

        place = str(getattr(text_network, "device", None) or device_of(text_network))
        caption_encoder = CaptionEncoder(text_network, plan.recipe.text, place, plan.recipe.texts())
    job = Job(opened, listing, encoder, caption_encoder, plan, uncalibrated, batch_size, threads, strict, profile)

    units = listing.units(recipe.unit_size)
    spent = SpentArchives(opened, listing, units, out, unit_names(plan)) if delete_archives else None
    share = share_of(units, rank, world_size)
    with Progress(sum(map(len, share.values())), "encode", progress) as bar:
        for note in listing.notes:
            bar.note(note)
        card = published_card(out, job, bar, frozen=parent is not None)
        job = replace(job, card=card)
        publish_empty_caption(out, job)
        encode_units(out, job, share, bar, spent)
    if spent is not None:
        spent.delete()
    if units_done(out, card) < card.units:
        remove_dead(out)
        return replace(card, counts=None)
    card = finish(out, card)
    if card.counts is not None and not card.counts.samples:
        raise LatentqError(f"none of the {card.source.samples} samples could be encoded: see {out / REJECTS}")
    write_table(named)
    return card
