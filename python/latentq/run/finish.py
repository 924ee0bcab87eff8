"""Finishes a dataset: publishes rejects, card and index, a pure function of the units."""

from __future__ import annotations

import contextlib
import functools
import hashlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO, Generic, TextIO, TypeVar

from latentq import mds
from latentq._core import FormatError, MismatchError
from latentq.format.card import CARD, NEXT_CARD, Card, next_card_bytes
from latentq.format.facts import LatentFacts, SampleCounts
from latentq.format.files import INDEX, REJECTS, UNIT
from latentq.format.tsv import tsv_line, tsv_values
from latentq.quantizer import Moments
from latentq.run.units import LatentSums, UnitCard, UnitFacts, unit_names
from latentq.store.local import publish_once, read_regular, remove_dead, replacement, sync_published
from latentq.system.progress import BriefProgress, Progress

_Card = TypeVar("_Card", bound=UnitCard)


class Completion(Generic[_Card]):
    """Adds up the facts of units, in order, for the card of the whole dataset: the numbers of samples and rejects.

    Its memory does not depend on the number of units.

    Args:
        card: The card as it was first published.
    """

    def __init__(self, card: _Card) -> None:
        self._card = card
        self._counts = SampleCounts(0, 0, 0)

    def add(self, unit: UnitFacts) -> None:
        """Adds the unit that follows.

        Raises:
            FormatError: It has another number of buckets than those before it.
        """
        counts = self._counts
        before = counts.buckets or (0,) * len(unit.buckets)
        if len(before) != len(unit.buckets):
            raise FormatError(f"a unit counts {len(unit.buckets)} buckets, those before it {len(before)}")
        self._counts = SampleCounts(
            counts.samples + unit.samples,
            counts.rejects + len(unit.rejects),
            counts.redone + unit.redone,
            tuple(total + count for total, count in zip(before, unit.buckets, strict=True)),
        )

    def card(self) -> _Card:
        """Returns the completed card."""
        return replace(self._card, counts=self._counts)


class CardCompletion(Completion[Card]):
    """Adds up the facts of units for the card of a latent dataset: counts, and statistics of the columns."""

    def __init__(self, card: Card) -> None:
        super().__init__(card)
        self._latents = {name: LatentSums.empty(facts.quantizer) for name, facts in card.latents.items()}
        self._clipped = dict.fromkeys(card.embeddings, 0)

    def add(self, unit: UnitFacts) -> None:
        """Adds the unit that follows."""
        super().add(unit)
        for name, total in self._latents.items():
            if name in unit.latents:
                total.add(unit.latents[name])
                if len(total.moments) > 1:
                    total.moments = [functools.reduce(Moments.merge, total.moments)]
        for name in self._clipped:
            self._clipped[name] += unit.clipped.get(name, 0)

    def card(self) -> Card:
        """Returns the completed card."""
        latents = {name: _completed(facts, self._latents[name]) for name, facts in self._card.latents.items()}
        embeddings = {
            name: replace(facts, clipped=self._clipped[name]) for name, facts in self._card.embeddings.items()
        }
        return replace(super().card(), latents=latents, embeddings=embeddings)


def _completed(facts: LatentFacts, total: LatentSums) -> LatentFacts:
    has_values = total.histogram is not None or bool(total.moments)
    return replace(
        facts,
        statistics=total.statistics(facts.quantizer) if has_values else None,
        clipped=tuple(total.clipped.tolist()),
    )


def finish(out: Path, card: Card, progress: TextIO | None = None) -> Card:
    """Completes a latent dataset whose units are all published."""
    return finish_units(out, card, CARD, CardCompletion, progress)


def finish_units(
    out: Path,
    card: _Card,
    file: str,
    completion: Callable[[_Card], Completion[_Card]],
    progress: TextIO | None = None,
) -> _Card:
    """Publishes rejects, card and index of a dataset whose units are all published, in one pass over the units.

    Every process that does it, however often, writes the same bytes. The index comes last, because a stock reader
    takes a folder with an index for a whole dataset.

    Args:
        out: The dataset's folder.
        card: The card as it was first published.
        file: The card's file name.
        completion: Adds up the units for the card: `CardCompletion` for a `Card`, else `Completion`.
        progress: The stream for progress, or None.

    Returns:
        The completed card.
    """
    sync_published(out)  # other processes and earlier runs published some of the units
    total = completion(card)
    with replacement(out / INDEX) as index:
        with (
            replacement(out / REJECTS) as rejects,
            BriefProgress(card.units, "finish", progress, noun="unit") as bar,
        ):
            index.writelines(mds.merged_index(out, _added_units(out, card, total, rejects, bar)))
            _check_revision(out, card)
        completed = total.card()
        with replacement(out / file) as card_file:
            card_file.write(completed.to_toml())
            _check_revision(out, card)
        _check_revision(out, card)
    remove_dead(out)
    return completed


def _check_revision(out: Path, card: UnitCard) -> None:
    """Raises MismatchError if the dataset has been updated since its card was read; nothing is replaced then."""
    try:
        revision = Card.load(out).source.revision
    except (FileNotFoundError, FormatError):  # there is none yet, or it is replaced because it is broken
        return
    if revision > card.source.revision:
        raise MismatchError(f"{out}: update {revision} was finished in the meantime: run the same command again")


def finish_update(out: Path, card: Card, progress: TextIO | None = None) -> Card:
    """Publishes an update whose units are all published: until the index is replaced, the dataset is the old one.

    The new card is published first, under another name and with the hash of its index, so that it counts as soon as the
    index is there.

    Args:
        out: The dataset's folder.
        card: The card of the update, without counts and statistics.
        progress: The stream for progress, or None.

    Returns:
        The completed card.

    Raises:
        MismatchError: Another update is being finished, or a later one was.
    """
    sync_published(out)
    total = CardCompletion(card)
    with (
        replacement(out / REJECTS) as rejects,
        replacement(out / INDEX) as index,
        BriefProgress(card.units, "finish", progress, noun="unit") as bar,
    ):
        digest = hashlib.sha256()
        for chunk in mds.merged_index(out, _added_units(out, card, total, rejects, bar)):
            digest.update(chunk)
            index.write(chunk)
        completed = total.card()
        data = next_card_bytes(completed, digest.hexdigest())
        if not publish_once(out / NEXT_CARD, data) and read_regular(out / NEXT_CARD) != data:
            raise MismatchError(f"{out}: another update is being finished: run the same command again")
        try:  # from now on no other update is finished
            _check_revision(out, card)
        except MismatchError:
            (out / NEXT_CARD).unlink(missing_ok=True)
            raise
    with replacement(out / CARD) as card_file:
        card_file.write(completed.to_toml())
    (out / NEXT_CARD).unlink(missing_ok=True)
    remove_dead(out)
    return completed


def resume_update(out: Path, progress: TextIO | None = None) -> bool:
    """Completes the finish of an update that was killed, if there is one. All of its units are published.

    Args:
        out: The dataset's folder.
        progress: The stream for progress, or None.

    Returns:
        True if an update was completed.
    """
    with contextlib.suppress(FileNotFoundError):  # there is none, or another process completed it
        card = Card.load(out / NEXT_CARD)
        if card.source.revision < Card.load(out).source.revision:  # a process was killed before it gave way
            (out / NEXT_CARD).unlink()
        else:
            finish_update(out, card, progress)
            return True
    return False


def _added_units(out: Path, card: _Card, total: Completion[_Card], rejects: BinaryIO, bar: Progress) -> Iterator[str]:
    """Yields the name of every unit, after adding its facts to the total and its rejects to their file."""
    for name in unit_names(out, card):
        unit = UnitFacts.load(out / name / UNIT)
        total.add(unit)
        rejects.write(reject_lines(unit))
        yield name
        bar.update(1)


def rejects_by_stage(out: Path) -> dict[str, int]:
    """Returns the number of rejects of each stage, the largest first, from a finished output's rejects.tsv."""
    stages: Counter[str] = Counter()
    with (out / REJECTS).open(encoding="utf-8", errors="replace", newline="\n") as lines:
        stages.update(tsv_values(line.rstrip("\n"))[1] for line in lines)
    return dict(stages.most_common())


def reject_lines(unit: UnitFacts) -> bytes:
    """Returns the lines of rejects.tsv for a unit."""
    return "".join(f"{tsv_line((reject.key, reject.stage, reject.error))}\n" for reject in unit.rejects).encode()
