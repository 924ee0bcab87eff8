"""The share of one process in a run: the units it makes, and the work that follows once they are published."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self, TypeVar

from latentq._core import LatentqError
from latentq.format.files import REJECTS
from latentq.run.archives import ArchiveDeleter
from latentq.run.finish import finish_units
from latentq.run.options import RunSettings
from latentq.run.units import UnitCard, UnitFacts, unit_done, unit_names, units_done
from latentq.sources import Listing, Source
from latentq.store.local import remove_dead, sync_published
from latentq.system.progress import Progress
from latentq.system.text import counted

_Card = TypeVar("_Card", bound=UnitCard)


@dataclass(frozen=True)
class Share:
    """The units that this process makes: `rank`, `rank + world_size`, and so on.

    Attributes:
        out: The folder that units are published in.
        names: The folder names of all units of the run, by unit number.
        units: The sample indices of each unit of this process, by unit number.
        archives: Deletes archives that are no longer needed; None if the user did not ask for it.
    """

    out: Path
    names: list[str]
    units: dict[int, range]
    archives: ArchiveDeleter | None

    @classmethod
    def for_process(
        cls, out: Path, card: UnitCard, source: Source, listing: Listing, unit_size: int, settings: RunSettings
    ) -> Self:
        """Returns the share of the process that `settings` describe.

        Args:
            out: The folder of the units.
            card: The card of the output.
            source: The source, opened.
            listing: Its listing.
            unit_size: Samples per unit.
            settings: How the run is done.

        Raises:
            LatentqError: `settings.delete_archives` is set, but the source has no archives.
        """
        names, units = unit_names(card), listing.units(unit_size)
        archives = ArchiveDeleter(source, listing, units, out, names) if settings.delete_archives else None
        mine = {number: units[number] for number in range(settings.rank, len(units), settings.world_size)}
        return cls(out, names, mine, archives)

    @property
    def samples(self) -> int:
        """Number of samples in the units of this process."""
        return sum(map(len, self.units.values()))

    def path(self, unit: int) -> Path:
        """Returns a unit's folder."""
        return self.out / self.names[unit]

    def pending(self, bar: Progress) -> dict[int, range]:
        """Returns the units that are not published yet, and advances the bar past the published units."""
        if self.out.is_dir():
            sync_published(self.out)
        pending = {unit: indices for unit, indices in self.units.items() if not unit_done(self.out, self.names[unit])}
        bar.skip(self.samples - sum(map(len, pending.values())))
        return pending

    def unit_published(self, unit: int) -> None:
        """Deletes the archives that are no longer needed now that a unit is published."""
        if self.archives is not None:
            self.archives.delete(unit)

    def finish(self, card: _Card, file: str, complete: Callable[[_Card, list[UnitFacts]], _Card]) -> _Card:
        """Finishes the run if the units of all processes are published.

        Args:
            card: The card as it was first published.
            file: The card's file name.
            complete: Returns the card with counts and statistics added.

        Returns:
            The completed card, or the card without counts if units of other processes are missing.

        Raises:
            LatentqError: Every sample was rejected.
        """
        if self.archives is not None:
            self.archives.delete()
        if units_done(self.out, card) < card.units:
            remove_dead(self.out)
            return replace(card, counts=None)
        card = finish_units(self.out, card, file, complete)
        if card.counts is not None and not card.counts.samples:
            samples = counted(card.source.samples, "sample")
            raise LatentqError(f"none of {samples} could be stored: see {self.out / REJECTS}")
        return card
