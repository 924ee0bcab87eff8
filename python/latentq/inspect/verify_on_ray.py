"""Checks the units of a dataset on a Ray cluster."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TextIO, TypeAlias

from latentq import mds
from latentq._core import LatentqError
from latentq.run.opened import opened
from latentq.run.options import RayOptions
from latentq.run.queue import UnitQueue
from latentq.run.ray import ClusterError, Workers
from latentq.run.sample_list import SampleList, UnitEntry
from latentq.run.units import UnitFacts, list_folder
from latentq.run.worker import Failure
from latentq.system.faults import is_machine_fault
from latentq.system.progress import Progress
from latentq.system.text import one_line

CheckedUnit: TypeAlias = tuple[UnitFacts, list[mds.Finding]]


class UnitChecker(Protocol):
    """The verification of a dataset, for its units."""

    def check_unit(self, unit: UnitEntry, samples: SampleList) -> CheckedUnit:
        """Returns the facts of a unit, and what is wrong with its bytes."""
        ...


@dataclass(frozen=True)
class VerifyWork:
    """The part of a worker in a verification: see `Work`.

    Attributes:
        checker: Returns the verification of the dataset in a folder.
        revision: How often the dataset was updated.
        name: The dataset: an absolute path, or a URL.
        options: For the URL of an object store.
    """

    checker: Callable[[Path], UnitChecker]
    revision: int
    name: str
    options: Mapping[str, str]

    def __call__(self, queue: UnitQueue, plan: str | None) -> None:  # noqa: ARG002  (as every work)
        """Checks the units that the queue gives; there is nothing to plan."""
        with opened(self.name, options=self.options) as dataset:
            dataset.need_others()
            checker = self.checker(dataset.folder)
            samples = SampleList(list_folder(dataset.folder, self.revision))
            queue.planned("nothing")
            for numbers in queue.waves():
                for number in numbers:
                    unit = samples.unit(number)
                    try:
                        dataset.need_unit(unit.name)
                        queue.done(number, checker.check_unit(unit, samples))
                    except (LatentqError, OSError, ValueError, LookupError, TypeError) as error:
                        if is_machine_fault(error):
                            raise
                        queue.done(number, Failure.of(error).error)


def checked_on_ray(
    work: VerifyWork, ray: RayOptions, progress: TextIO | None, samples: SampleList, bar: Progress
) -> Generator[CheckedUnit, None, None]:
    """Yields the facts and the findings of every unit of a list, in order, from the workers of a cluster.

    Args:
        work: What each worker does.
        ray: The cluster.
        progress: Stream for notes, or None.
        samples: The list.
        bar: Counts the samples of units that are checked.

    Raises:
        ClusterError: See `Workers`.
        Exception: That of a worker about the first unit that cannot be checked.
    """
    sizes = {unit.number: unit.samples for unit in samples.units()}
    early: dict[int, CheckedUnit | Exception] = {}
    following = 0
    with Workers(work, ray, progress, gpus=False) as workers:
        workers.note = bar.note
        workers.plan()
        for number, result in _results(workers, sizes):
            bar.update(sizes[number])
            early[number] = result
            while following in early:
                checked = early.pop(following)
                if isinstance(checked, Exception):
                    raise checked
                yield checked
                following += 1


def _results(workers: Workers, sizes: Mapping[int, int]) -> Iterator[tuple[int, CheckedUnit | Exception]]:
    """Yields the results of all units. A fault of the workers' machines is none of the dataset."""
    try:
        yield from workers.results(sizes)
    except OSError as error:
        raise ClusterError(one_line(error)) from error
