"""Counts and estimates of a run that writes nothing."""

from __future__ import annotations

import contextlib
import itertools
import tempfile
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from latentq.format.files import INDEX
from latentq.run.join import Changes
from latentq.run.options import RunSettings
from latentq.run.sample_list import SampleList, UnitEntry
from latentq.run.share import Share
from latentq.run.unit_writer import UnitWriter, publish_unit
from latentq.run.units import UnitCard, UnitFacts, list_folder, sample_list, unit_done
from latentq.sources import Sample, Source
from latentq.store.local import bytes_below
from latentq.system.progress import Progress

_UNIT = "00000"


@dataclass(frozen=True)
class Trial:
    """The expected work of a run, measured on some of its samples.

    Attributes:
        samples: The number of samples that were tried.
        seconds: The time that they took.
        rejects: The number of samples among them that were rejected.
        first_reject: Key, stage and reason of the first of those; empty if there is none.
        sample_bytes: The mean bytes that a stored sample adds to its unit; 0 if all were rejected.
        unit_bytes: The bytes of a unit without samples, its entry in the merged index included.
    """

    samples: int
    seconds: float
    rejects: int
    first_reject: str
    sample_bytes: float
    unit_bytes: float

    @property
    def rate(self) -> float:
        """Samples per second."""
        return self.samples / max(self.seconds, 1e-9)


@dataclass(frozen=True)
class UnitCounts:
    """The units of a list, and those of them that are published.

    Attributes:
        units: The number of units.
        samples: The number of their samples.
        missing_units: The number of units that are not published.
        missing_samples: The number of their samples.
        first_missing: The name of the first of them; empty if there is none.
        published_bytes: The size of the published units and of their entries in the merged index.
    """

    units: int
    samples: int
    missing_units: int
    missing_samples: int
    first_missing: str
    published_bytes: int

    @classmethod
    def of(cls, out: Path, samples: SampleList) -> UnitCounts:
        """Counts the units of a list.

        Args:
            out: The folder that the units are published in.
            samples: The list.
        """
        missing_units = missing_samples = published_bytes = 0
        first_missing = ""
        for unit in samples.units():
            if unit_done(out, unit.name):
                published_bytes += bytes_below(out / unit.name) + (out / unit.name / INDEX).stat().st_size
            else:
                missing_units, missing_samples = missing_units + 1, missing_samples + unit.samples
                first_missing = first_missing or unit.name
        totals = samples.totals
        return cls(totals.units, totals.samples, missing_units, missing_samples, first_missing, published_bytes)


@dataclass(frozen=True)
class DryRun:
    """The work that a run would do.

    Attributes:
        counts: The units of the dataset that the run would work on.
        own_units: The number of missing units that this process would make.
        own_samples: The number of their samples.
        extra_samples: The number of samples that it would process besides, to calibrate on.
        trial: The trial of some of these samples; None if there are none.
        fixed_bytes: The size of list and card.
        listed_bytes: The bytes that a unit takes for each listed sample, stored or not.
        changes: What an update would change; None if the run is no update.
    """

    counts: UnitCounts
    own_units: int
    own_samples: int
    extra_samples: int
    trial: Trial | None
    fixed_bytes: int
    listed_bytes: int = 0
    changes: Changes | None = None

    @property
    def bytes(self) -> int | None:
        """The size of the whole dataset, an estimate; None if nothing was tried."""
        counts = self.counts
        known = self.fixed_bytes + counts.published_bytes
        if not counts.missing_units:
            return known
        if self.trial is None:
            return None
        stored = counts.missing_samples * (1 - self.trial.rejects / self.trial.samples)
        missing = counts.missing_units * self.trial.unit_bytes + counts.missing_samples * self.listed_bytes
        return round(known + missing + stored * self.trial.sample_bytes)

    @property
    def seconds(self) -> float:
        """The time of this process, an estimate."""
        return (self.own_samples + self.extra_samples) / self.trial.rate if self.trial is not None else 0.0


def planned(
    out: Path,
    card: UnitCard,
    source: Source,
    samples: SampleList,
    settings: RunSettings,
    attempt: Callable[[list[UnitEntry]], Trial],
    *,
    extra_samples: int = 0,
    listed_bytes: int = 0,
    changes: Changes | None = None,
) -> DryRun:
    """Counts the units of a run, and has samples of those that this process would make tried.

    Args:
        out: The folder of the run.
        card: Its card.
        source: The source, opened.
        samples: Its list.
        settings: How the run would be done.
        attempt: Tries samples of the given units.
        extra_samples: As in `DryRun`.
        listed_bytes: As in `DryRun`.
        changes: As in `DryRun`.

    Raises:
        LatentqError: `settings.delete_archives` is set, but the source has no archives.
    """
    share = Share.for_process(out, source, samples, settings)
    counts = UnitCounts.of(out, samples)
    units = [unit for unit in share.units if not unit_done(out, unit.name)]
    own_samples = sum(unit.samples for unit in units)
    return DryRun(
        counts,
        len(units),
        own_samples,
        extra_samples,
        attempt(units) if own_samples else None,
        _fixed_bytes(card, samples),
        listed_bytes,
        changes,
    )


def published(out: Path, card: UnitCard, changes: Changes | None = None) -> DryRun:
    """Returns the dry run of a run that has nothing to make.

    Args:
        out: The folder of the run.
        card: Its card.
        changes: As in `DryRun`.
    """
    samples = sample_list(out, card)
    return DryRun(UnitCounts.of(out, samples), 0, 0, 0, None, _fixed_bytes(card, samples), changes=changes)


@contextlib.contextmanager
def temporary_folder() -> Iterator[Path]:
    """Yields a folder outside the dataset, for files that are needed for a while."""
    with tempfile.TemporaryDirectory(prefix="latentq-") as folder:
        yield Path(folder)


def folder_of_list(out: Path, revision: int, temporary: Path) -> Path:
    """Returns the folder to list a source in: that of the run if it has a list, else a temporary one.

    Args:
        out: The folder of the run.
        revision: How often the dataset was updated.
        temporary: The temporary folder.
    """
    return out if list_folder(out, revision).is_dir() else temporary


def spread(samples: SampleList, units: Sequence[UnitEntry], count: int) -> tuple[list[int], list[Sample]]:
    """Returns the numbers of evenly spread samples, and the samples.

    Args:
        samples: The list.
        units: The units to choose from.
        count: The number of samples, if the units have as many.
    """
    starts = [0, *itertools.accumulate(unit.samples for unit in units)]
    count = min(count, starts[-1])
    numbers = []
    for step in range(count):
        position = step * starts[-1] // count
        unit = bisect_right(starts, position) - 1
        numbers.append(units[unit].first + position - starts[unit])
    return numbers, [samples.sample(number) for number in numbers]


def trial_of(
    columns: Mapping[str, str], facts: UnitFacts, samples: int, seconds: float, fill: Callable[[UnitWriter], None]
) -> Trial:
    """Writes a unit to a temporary folder to see its size, and returns the trial.

    Args:
        columns: MDS encoding of each column.
        facts: The facts of a unit without samples.
        samples: The number of samples that were tried.
        seconds: The time that they took.
        fill: Writes the tried samples.
    """
    with temporary_folder() as folder:
        publish_unit(folder / _UNIT, columns, facts, Progress(samples, "try", None), fill)
        stored = sum(map(_sample_bytes, (folder / _UNIT).glob("shard.*.mds")))
        whole = bytes_below(folder / _UNIT) + (folder / _UNIT / INDEX).stat().st_size
    first = facts.rejects[0] if facts.rejects else None
    return Trial(
        samples,
        seconds,
        len(facts.rejects),
        f"{first.key}: {first.stage}: {first.error}" if first is not None else "",
        stored / max(1, facts.samples),
        whole - stored,
    )


def _fixed_bytes(card: UnitCard, samples: SampleList) -> int:
    return bytes_below(samples.folder) + len(card.to_toml())


def _sample_bytes(shard: Path) -> int:
    """Returns the bytes of a shard's samples, each with its offset in the shard's head."""
    count, first = np.fromfile(shard, "<u4", 2).tolist()
    return int(shard.stat().st_size - first + 4 * count)
