"""Archives that are no longer needed: deleted if the user asks for it."""

from __future__ import annotations

import itertools
import os
from collections.abc import Sequence
from pathlib import Path

from latentq._core import LatentqError
from latentq.run.units import UnitCard, unit_done, units_done
from latentq.sources import Listing, Source, exists
from latentq.store.local import sync_published


class ArchiveDeleter:
    """Deletes each archive of a source as soon as every unit with a sample of it is published.

    An archive that is broken from some offset on is kept: it may be worth fetching again.

    Args:
        source: The source, opened.
        listing: Its listing.
        units: The units of the listing: ranges of sample indices.
        out: The folder that units are published in.
        names: The units' names.

    Raises:
        LatentqError: The source has no archives.
    """

    def __init__(self, source: Source, listing: Listing, units: Sequence[range], out: Path, names: list[str]) -> None:
        files: dict[str, Path] | None = getattr(source, "files", None)
        if files is None:
            raise LatentqError(f"delete_archives: a source of kind {source.kind} has no archives to delete")
        self._files, self._out, self._names = files, out, names
        self._units_of: dict[str, set[int]] = {}
        broken = set()
        for unit, indices in enumerate(units):
            for archive, samples in itertools.groupby(
                (listing.samples[index] for index in indices), key=lambda sample: sample.archive
            ):
                if archive is not None:
                    self._units_of.setdefault(archive, set()).add(unit)
                    broken |= {archive for sample in samples if sample.key == archive}
        for archive in broken:
            del self._units_of[archive]

    def delete(self, unit: int | None = None) -> None:
        """Deletes the archives whose units are all published: those of one unit, or of all units."""
        done = [
            archive
            for archive, units in self._units_of.items()
            if archive in self._files
            and (unit is None or unit in units)
            and all(unit_done(self._out, self._names[needed]) for needed in units)
        ]
        if done:
            sync_published(self._out)  # other processes published some of the units
        for archive in done:
            self._files.pop(archive).unlink(missing_ok=True)


def source_is_deleted(source: str | os.PathLike[str] | Source, out: Path, card: UnitCard) -> bool:
    """True if the source is gone and every unit is published, so that it is no longer needed."""
    return (
        isinstance(source, str | os.PathLike) and not exists(os.fspath(source)) and units_done(out, card) == card.units
    )
