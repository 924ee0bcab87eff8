"""Makes the units of a dataset on a Ray cluster, up to the finish."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self, TypeVar

from latentq._core import FormatError, LatentqError
from latentq.run.listing import print_notes
from latentq.run.mirror import Mirror
from latentq.run.options import RunSettings
from latentq.run.queue import UnitQueue
from latentq.run.ray import Workers
from latentq.run.sample_list import SampleList
from latentq.run.share import PlannedUnits, UnitReport
from latentq.run.units import UnitCard, list_folder, units_done
from latentq.run.worker import Work
from latentq.system.progress import Progress

_Settings = TypeVar("_Settings", bound=RunSettings)

VISIBLE_S = 65.0
"""Seconds until a file system of several machines shows a new file on all of them: NFS caches folders for 60."""


def make_units(
    work: Work, settings: RunSettings, out: Path, mirror: Mirror | None, *, label: str, gpus: bool
) -> PlannedUnits[Any]:
    """Has the workers of a cluster plan a run and make its units.

    Args:
        work: What each worker does.
        settings: How the run is done; `ray` is set.
        out: The folder of the units.
        mirror: The object store that they are on, if `out` is its local folder.
        label: The name of the work.
        gpus: True if the work uses GPUs.

    Returns:
        What was planned; all of its units are published, and seen from here.

    Raises:
        LatentqError: The machines do not share the folder; or see `Workers`.
        Exception: That of a worker.
    """
    assert settings.ray is not None
    stream = settings.progress
    with Workers(work, settings.ray, stream, gpus=gpus) as workers:
        planned: PlannedUnits[Any] = workers.plan()
        if mirror is not None:
            mirror.fetch()
            mirror.fetch_list(planned.card.source.revision)
        check_shared(out, planned.card)
        with Progress(planned.samples, label, stream, totals=settings.totals, detail=workers.rates) as bar:
            workers.note = bar.note
            bar.skip(planned.samples - sum(planned.missing.values()))
            for _, report in workers.results(planned.missing):
                _count(bar, report)
        print_notes(workers.summary(), stream)
    if mirror is not None:
        mirror.find_units()
    elif not _seen(lambda: units_done(out, planned.card) == planned.card.units):
        raise _not_shared(out)
    return planned


@dataclass(frozen=True)
class Place:
    """Where a dataset is made, for workers on other machines.

    Attributes:
        path: The folder, absolute; or the URL.
        options: The options of the URL's store.
    """

    path: Path | str
    options: dict[str, str]

    @classmethod
    def of(cls, named: Path, mirror: Mirror | None) -> Self:
        """Returns the place of a folder, or of the object store whose local folder it is."""
        return cls(named.absolute(), {}) if mirror is None else cls(mirror.store.url, mirror.store.options)

    def check(self, out: Path, plan: PlannedUnits[Any] | None) -> None:
        """Refuses a folder that this worker does not share with the one that planned the run.

        Raises:
            LatentqError: What was planned is not seen from here.
        """
        if plan is not None and isinstance(self.path, Path):
            check_shared(out, plan.card)


def worker_settings(settings: _Settings, queue: UnitQueue, plan: PlannedUnits[Any] | None) -> _Settings:
    """Returns the settings of a worker.

    Only the first worker, which plans the run, compares the source with a list that is published.

    Args:
        settings: Those of the whole run, without `ray` and streams.
        queue: The worker's queue.
        plan: What the first worker planned; None for the first worker itself.
    """
    rank, world_size = (0, 1) if plan is None else (1, 2)
    return replace(
        settings,
        threads=settings.threads or queue.cpus,
        rank=rank,
        world_size=world_size,
        progress=queue.notes,
        queue=queue,
    )


def check_shared(out: Path, card: UnitCard) -> None:
    """Refuses a folder in which the list that another worker published is not seen from here.

    Args:
        out: The folder of the units.
        card: The card of the run.

    Raises:
        LatentqError: It is not seen.
    """

    def is_seen() -> bool:
        try:
            return SampleList(list_folder(out, card.source.revision)).sha256 == card.source.sha256
        except (OSError, FormatError):
            return False

    if not _seen(is_seen):
        raise _not_shared(out)


def _seen(is_seen: Callable[[], bool]) -> bool:
    end = time.monotonic() + VISIBLE_S
    while not is_seen():
        if time.monotonic() > end:
            return False
        time.sleep(0.5)
    return True


def _not_shared(out: Path) -> LatentqError:
    return LatentqError(
        f"{out}: {socket.gethostname()} does not see what a worker on another machine published there: name a folder "
        "that all machines of the cluster share, or the URL of an object store"
    )


def _count(bar: Progress, report: UnitReport) -> None:
    for reject in report.rejects:
        bar.reject(reject.key, reject.stage, reject.error)
    bar.update(report.samples)
    bar.wrote(report.bytes)
