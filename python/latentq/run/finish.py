"""Finishes a dataset: publishes rejects, card and index, a pure function of the units."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from latentq import mds
from latentq.format.card import CARD, Card
from latentq.format.facts import LatentFacts, SampleCounts
from latentq.format.files import INDEX, REJECTS, UNIT
from latentq.format.tsv import tsv_line
from latentq.run.units import LatentSums, UnitCard, UnitFacts, unit_names
from latentq.store.local import remove_dead, replace_file, sync_published

_Card = TypeVar("_Card", bound=UnitCard)


def finish(out: Path, card: Card) -> Card:
    """Completes a latent dataset whose units are all published."""
    return finish_units(out, card, CARD, completed)


def finish_units(out: Path, card: _Card, file: str, complete: Callable[[_Card, list[UnitFacts]], _Card]) -> _Card:
    """Publishes rejects, card and index of a dataset whose units are all published.

    Every process that does it, however often, writes the same bytes. The index comes last, because a stock reader
    takes a folder with an index for a whole dataset.

    Args:
        out: The dataset's folder.
        card: The card as it was first published.
        file: The card's file name.
        complete: Returns the card with counts and statistics added.

    Returns:
        The completed card.
    """
    sync_published(out)  # other processes and earlier runs published some of the units
    names = unit_names(card)
    units = [UnitFacts.load(out / name / UNIT) for name in names]
    rejects = [reject for unit in units for reject in unit.rejects]
    completed_card = complete(card, units)
    files = {
        REJECTS: "".join(f"{tsv_line((reject.key, reject.stage, reject.error))}\n" for reject in rejects).encode(),
        file: completed_card.to_toml(),
        INDEX: mds.merged_index(out, names),
    }
    for name, data in files.items():
        path = out / name
        if not path.is_file() or path.read_bytes() != data:
            replace_file(path, data)
    remove_dead(out)
    return completed_card


def completed(card: Card, units: list[UnitFacts]) -> Card:
    """Returns the card with the counts and statistics of its units."""
    latents: dict[str, LatentFacts] = {}
    for name, facts in card.latents.items():
        total = LatentSums.empty(facts.quantizer)
        for unit in units:
            if name in unit.latents:
                total.add(unit.latents[name])
        has_values = total.histogram is not None or bool(total.moments)
        latents[name] = replace(
            facts,
            statistics=total.statistics(facts.quantizer) if has_values else None,
            clipped=tuple(total.clipped.tolist()),
        )
    embeddings = {
        name: replace(facts, clipped=sum(unit.clipped.get(name, 0) for unit in units))
        for name, facts in card.embeddings.items()
    }
    counts = SampleCounts(
        samples=sum(unit.samples for unit in units),
        rejects=sum(len(unit.rejects) for unit in units),
        redone=sum(unit.redone for unit in units),
    )
    return replace(card, latents=latents, embeddings=embeddings, counts=counts)
