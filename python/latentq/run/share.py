"""The share of one process in a run: the units it makes, and the work that follows once they are published."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self, TextIO, TypeVar

from latentq._core import LatentqError
from latentq.format.files import REJECTS
from latentq.run.archives import ArchiveDeleter
from latentq.run.finish import Completion, finish_units
from latentq.run.mirror import Mirror, finished_on_store
from latentq.run.options import RunSettings
from latentq.run.sample_list import SampleList, UnitEntry
from latentq.run.units import UnitCard, unit_done, units_done
from latentq.sources import Source
from latentq.store.local import sync_published
from latentq.system.progress import Progress
from latentq.system.text import counted

_Card = TypeVar("_Card", bound=UnitCard)


@dataclass(frozen=True)
class Share:
    """The units that this process makes: `rank`, `rank + world_size`, and so on.

    Attributes:
        out: The folder that units are published in.
        units: The units of this process, in order.
        archives: Deletes archives that are no longer needed; None if the user did not ask for it.
        mirror: Publishes units on an object store; None if the dataset is the folder.
    """

    out: Path
    units: list[UnitEntry]
    archives: ArchiveDeleter | None
    mirror: Mirror | None = None

    @classmethod
    def for_process(
        cls, out: Path, source: Source, sample_list: SampleList, settings: RunSettings, mirror: Mirror | None = None
    ) -> Self:
        """Returns the share of the process that `settings` describe.

        Args:
            out: The folder of the units.
            source: The source, opened.
            sample_list: Its list.
            settings: How the run is done.
            mirror: The object store that the dataset is on, if `out` is its local folder.

        Raises:
            LatentqError: `settings.delete_archives` is set, but the source has no archives.
        """
        archives = ArchiveDeleter(source, sample_list, out) if settings.delete_archives else None
        numbers = range(settings.rank, sample_list.totals.units, settings.world_size)
        return cls(out, [sample_list.unit(number) for number in numbers], archives, mirror)

    @property
    def samples(self) -> int:
        """Number of samples in the units of this process."""
        return sum(unit.samples for unit in self.units)

    def path(self, unit: UnitEntry) -> Path:
        """Returns a unit's folder."""
        return self.out / unit.name

    def pending(self, bar: Progress) -> list[UnitEntry]:
        """Returns the units that are not published yet, and advances the bar past the published units."""
        if self.out.is_dir():
            sync_published(self.out)
        pending = [unit for unit in self.units if not unit_done(self.out, unit.name)]
        bar.skip(self.samples - sum(unit.samples for unit in pending))
        return pending

    def unit_published(self, unit: UnitEntry) -> None:
        """Publishes a unit on the store too, and deletes the archives that are no longer needed."""
        if self.mirror is not None:
            self.mirror.publish_unit(unit.name)
        if self.archives is not None:
            self.archives.delete(unit)

    def missing(self, card: UnitCard) -> int:
        """Returns the number of units of all processes that are not published."""
        if self.mirror is not None:
            self.mirror.find_units()
        return card.units - units_done(self.out, card)

    def finish(
        self,
        card: _Card,
        file: str,
        completion: Callable[[_Card], Completion[_Card]],
        progress: TextIO | None = None,
    ) -> _Card:
        """Finishes the run if the units of all processes are published.

        Args:
            card: The card as it was first published.
            file: The card's file name.
            completion: Adds up the units for the card, as in `finish_units`.
            progress: The stream for progress, or None.

        Returns:
            The completed card, or the card without counts if units of other processes are missing.

        Raises:
            LatentqError: Every sample was rejected.
        """
        if self.archives is not None:
            self.archives.delete()
        if self.missing(card):  # nothing is removed: another process may still use its temporary list
            return replace(card, counts=None)
        with finished_on_store(self.mirror, card):
            card = finish_units(self.out, card, file, completion, progress)
        if card.counts is not None and not card.counts.samples:
            samples = counted(card.source.samples, "sample")
            raise LatentqError(f"none of {samples} could be stored: see {self.out / REJECTS}")
        return card
