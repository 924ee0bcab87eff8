"""Archives that are no longer needed, deleted where the user says so."""

from __future__ import annotations

import itertools
import os
from collections.abc import Sequence
from pathlib import Path

from latentq._core import LatentqError
from latentq.run.units import UnitCard, unit_done, units_done
from latentq.sources import Listing, Source, exists


class SpentArchives:
    """The archives of a source, each deleted as soon as every unit with a sample of it is published.

    One that is broken from some offset on is kept: it may be worth fetching again.

    Args:
        source: What was named as the source, opened.
        listing: Its listing.
        units: The units of the listing: ranges of samples' numbers.
        out: Where units are published.
        names: Their names.

    Raises:
        LatentqError: The source is not of archives.
    """

    def __init__(self, source: Source, listing: Listing, units: Sequence[range], out: Path, names: list[str]) -> None:
        files: dict[str, Path] | None = getattr(source, "files", None)
        if files is None:
            raise LatentqError(f"archives are to be deleted, and the source is of kind {source.kind}, without archives")
        self._files, self._out, self._names = files, out, names
        self._needed_by: dict[str, set[int]] = {}
        broken = set()
        for unit, numbers in enumerate(units):
            for archive, samples in itertools.groupby(
                (listing.samples[number] for number in numbers), key=lambda sample: sample.archive
            ):
                if archive is not None:
                    self._needed_by.setdefault(archive, set()).add(unit)
                    broken |= {archive for sample in samples if sample.key == archive}
        for archive in broken:
            del self._needed_by[archive]

    def delete(self, unit: int | None = None) -> None:
        """Deletes those that are not needed any more: of a unit, or of all."""
        for archive, units in self._needed_by.items():
            path = self._files.get(archive)
            if path is None or (unit is not None and unit not in units):
                continue
            if all(unit_done(self._out, self._names[needs]) for needs in units):
                path.unlink(missing_ok=True)
                del self._files[archive]


def all_spent(source: str | os.PathLike[str] | Source, out: Path, card: UnitCard) -> bool:
    """Whether the source is gone and not needed any more: every unit is published."""
    return (
        isinstance(source, str | os.PathLike) and not exists(os.fspath(source)) and units_done(out, card) == card.units
    )
