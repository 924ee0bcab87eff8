"""Archives that are no longer needed: deleted if the user asks for it."""

from __future__ import annotations

import itertools
import operator
import os
from pathlib import Path
from typing import cast

from latentq._core import LatentqError
from latentq.run.sample_list import SampleList, UnitEntry
from latentq.run.units import UnitCard, unit_done, units_done
from latentq.sources import Source, exists
from latentq.store.files import File
from latentq.store.local import sync_published


def archives_of(source: Source) -> dict[str, Path]:
    """Returns the archives of a source by name.

    Raises:
        LatentqError: It has none, or they are on a store.
    """
    files: dict[str, File] | None = getattr(source, "files", None)
    if files is None:
        raise LatentqError(f"delete_archives: a source of kind {source.kind} has no archives to delete")
    for file in files.values():
        if not isinstance(file, Path):
            raise LatentqError(f"delete_archives deletes files of this machine, and {file} is on a store")
    return cast("dict[str, Path]", files)


class ArchiveDeleter:
    """Deletes each archive of a source as soon as every unit with a sample of it is published.

    An archive that is broken from some offset on is kept: it may be worth fetching again. The whole list is read once;
    afterwards the numbers of each archive's first and last unit are in memory.

    Args:
        source: The source, opened.
        sample_list: Its list.
        out: The folder that units are published in.

    Raises:
        LatentqError: The source has no archives.
    """

    def __init__(self, source: Source, sample_list: SampleList, out: Path) -> None:
        files = archives_of(source)
        self._files, self._out, self._list = files, out, sample_list
        self._units_of: dict[str, range] = {}
        broken = set()
        for unit in sample_list.units():
            for archive, samples in itertools.groupby(sample_list.samples(unit), operator.attrgetter("archive")):
                if archive is not None:
                    first = self._units_of.get(archive, range(unit.number, 0)).start
                    self._units_of[archive] = range(first, unit.number + 1)
                    broken |= {archive for sample in samples if sample.key == archive}
        for archive in broken:
            del self._units_of[archive]

    def delete(self, unit: UnitEntry | None = None) -> None:
        """Deletes the archives whose units are all published: those of one unit, or of all units."""
        done = [
            archive
            for archive, units in self._units_of.items()
            if archive in self._files
            and (unit is None or unit.number in units)
            and all(unit_done(self._out, self._list.unit(needed).name) for needed in units)
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
