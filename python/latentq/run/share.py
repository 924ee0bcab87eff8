"""The share of one process in a run: the units it makes, and the work that follows once they are published."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Generic, Self, TextIO, TypeVar

from latentq._core import LatentqError
from latentq.format.files import INDEX, REJECTS, UNIT
from latentq.run.archives import ArchiveDeleter
from latentq.run.finish import Completion, finish_units
from latentq.run.mirror import Mirror, finished_on_store
from latentq.run.options import RunSettings
from latentq.run.queue import PendingUnits, UnitQueue
from latentq.run.sample_list import SampleList, UnitEntry
from latentq.run.units import Reject, UnitCard, UnitFacts, unit_done, units_done
from latentq.sources import Source
from latentq.store.local import bytes_below, sync_published
from latentq.system.progress import Progress
from latentq.system.text import counted

_Card = TypeVar("_Card", bound=UnitCard)


@dataclass(frozen=True)
class PlannedUnits(Generic[_Card]):
    """Work that the first worker of a cluster finds to be done.

    Attributes:
        card: The card of the run, without counts and statistics.
        samples: Number of samples in all units.
        missing: The number of samples of each unit that is not published, by the unit's number.
    """

    card: _Card
    samples: int
    missing: dict[int, int]


@dataclass(frozen=True)
class UnitReport:
    """A unit that a worker of a cluster has published.

    Attributes:
        samples: Number of samples that are stored.
        rejects: The samples that are not.
        bytes: The size of its shards.
    """

    samples: int
    rejects: list[Reject]
    bytes: int


@dataclass(frozen=True)
class Share:
    """The units that this process makes: `rank`, `rank + world_size`, and so on; or those that a queue gives it.

    Attributes:
        out: The folder that units are published in.
        sample_list: The list of all samples.
        units: The units of this process, in order; of workers with a queue the first has all of them, the others none.
        archives: Deletes archives that are no longer needed; None if the user did not ask for it.
        mirror: Publishes units on an object store; None if the dataset is the folder.
        queue: Gives this process its units, if it is a worker of a cluster.
    """

    out: Path
    sample_list: SampleList
    units: list[UnitEntry]
    archives: ArchiveDeleter | None
    mirror: Mirror | None = None
    queue: UnitQueue | None = None

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
        if settings.queue is not None and settings.rank:
            numbers = range(0)
        units = [sample_list.unit(number) for number in numbers]
        return cls(out, sample_list, units, archives, mirror, settings.queue)

    @property
    def samples(self) -> int:
        """Number of samples in the units of this process."""
        return sum(unit.samples for unit in self.units)

    def path(self, unit: UnitEntry) -> Path:
        """Returns a unit's folder."""
        return self.out / unit.name

    def pending(self, bar: Progress, card: UnitCard) -> Iterator[PendingUnits]:
        """Yields the units to make: once those of this process, or again and again what the queue has.

        Args:
            bar: Advanced past the units that are published already.
            card: The card of the run.
        """
        if self.out.is_dir():
            sync_published(self.out)
        missing = [unit for unit in self.units if not unit_done(self.out, unit.name)]
        bar.skip(self.samples - sum(unit.samples for unit in missing))
        if self.queue is None:
            yield PendingUnits(missing)
            return
        sizes = {unit.number: unit.samples for unit in missing}
        self.queue.planned(PlannedUnits(card, self.sample_list.totals.samples, sizes))
        for numbers in self.queue.waves():
            yield PendingUnits(self._not_done(numbers))

    def _not_done(self, numbers: Iterator[int]) -> Iterator[UnitEntry]:
        """Yields units that no other worker has published, and reports those that one has."""
        for number in numbers:
            unit = self.sample_list.unit(number)
            if unit_done(self.out, unit.name):
                self._report(unit)
            else:
                yield unit

    def unit_published(self, unit: UnitEntry, bar: Progress) -> None:
        """Publishes a unit on the store too, deletes the archives that are no longer needed, and tells the queue.

        Args:
            unit: The unit.
            bar: Has counted the unit's bytes; it takes them back if the store has the unit of another process.
        """
        if self.mirror is not None:
            size = bytes_below(self.path(unit))
            if not self.mirror.publish_unit(unit.name):
                bar.wrote(-size)
        if self.archives is not None:
            self.archives.delete(unit)
        self._report(unit)

    def _report(self, unit: UnitEntry) -> None:
        if self.queue is None:
            return
        if self.mirror is not None:
            self.mirror.fetch_units([unit.name])
        facts = UnitFacts.load(self.path(unit) / UNIT)
        shards = json.loads((self.path(unit) / INDEX).read_bytes())["shards"]
        size = sum(shard["raw_data"]["bytes"] for shard in shards)
        self.queue.done(unit.number, UnitReport(facts.samples, facts.rejects, size))

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
            The completed card, or the card without counts if units of other processes are missing. A worker with a
            queue leaves the finish to the process that filled the queue.

        Raises:
            LatentqError: Every sample was rejected.
        """
        if self.archives is not None:
            self.archives.delete()
        if self.queue is not None or self.missing(
            card
        ):  # nothing is removed: another process may still use its temporary list
            return replace(card, counts=None)
        with finished_on_store(self.mirror, card):
            card = finish_units(self.out, card, file, completion, progress)
        if card.counts is not None and not card.counts.samples:
            samples = counted(card.source.samples, "sample")
            raise LatentqError(f"none of {samples} could be stored: see {self.out / REJECTS}")
        return card
