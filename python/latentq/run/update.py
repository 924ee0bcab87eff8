"""Plans the update of a dataset whose source has changed: the list that it will have, and what that changes."""

from __future__ import annotations

import itertools
import re
import shutil
from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Self

from latentq._core import MismatchError
from latentq.format.facts import SourceFacts
from latentq.format.files import LIST
from latentq.run.join import SAME_FACTS, Changes, added_samples, compare_lists, updated_units
from latentq.run.listing import RunList, listed_parts, source_facts, temporary_list
from latentq.run.sample_list import SampleList, UnitEntry, cut_into_units, list_parts, write_list
from latentq.run.units import UnitCard, list_folder, sample_list
from latentq.sources import Sample, Source

_REVISION = re.compile(rf"{LIST}\.([1-9]\d*)")


class UpdatePlan:
    """The plan of an update. As a context manager it removes the files that are only needed to make it.

    The source is listed again, and compared with the dataset's list by key. Units without a changed or removed sample
    stay as they are. Every other unit has the number of the update in its name, so that it cannot be taken for a unit
    of another update that was killed.

    Args:
        source: The source.
        out: The dataset.
        card: Its card.
        unit_size: The largest number of samples in a unit.
        folder: A folder for temporary files; by default in the dataset, so that the new list can be published.
    """

    def __init__(self, source: Source, out: Path, card: UnitCard, unit_size: int, folder: Path | None = None) -> None:
        if source.kind != card.source.kind:
            raise MismatchError(f"{out} was made from a source of kind {card.source.kind}; this one is a {source.kind}")
        self._out, self._card, self._unit_size = out, card, unit_size
        last = max(card.source.revision, *_revisions(out), 0)
        self._folder = temporary_list(list_folder(out, last + 1)) if folder is None else folder / LIST
        self._folder.mkdir()
        try:
            self._old = sample_list(out, card)
            listing = source.listing()
            write_list(self._folder / "source", listed_parts(source, listing, unit_size))
            self._new = SampleList(self._folder / "source")
            self.notes: Collection[str] = listing.notes
            self._difference = compare_lists(self._old, self._new, self._folder)
            self._check_archives(source)
        except BaseException as error:
            self.__exit__(type(error), error)
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, *_: object) -> None:
        if isinstance(error, FileNotFoundError) and not self._folder.exists():  # it is of no use once an update is done
            message = f"{self._out}: another process finished an update in the meantime: run the same command again"
            raise MismatchError(message) from None
        shutil.rmtree(self._folder, ignore_errors=True)

    def _check_archives(self, source: Source) -> None:
        """Refuses to drop the samples of archives that are gone: a run may have deleted them after encoding them.

        Raises:
            MismatchError: An archive or table of the dataset's samples is not in the source.
        """
        files: Mapping[str, Path] | None = getattr(source, "files", None)
        if files is None or not self.changes.removed:
            return
        for unit in self._old.units():
            if self._difference.new_of[unit.first : unit.first + unit.samples].any():
                for sample in self._old.samples(unit):
                    if sample.archive is not None and sample.archive not in files:
                        raise MismatchError(
                            f"{sample.archive}, whose samples are in {self._out}, is gone (--delete-archives deletes "
                            "what is encoded): an update would drop them; put it back, or encode to another folder"
                        )

    @property
    def changes(self) -> Changes:
        """The numbers of samples that are new, changed and gone."""
        return self._difference.changes

    @property
    def compared(self) -> int:
        """The number of samples whose facts are unchanged."""
        return len(self._old) - self.changes.changed - self.changes.removed

    def unchanged(self) -> Iterator[tuple[UnitEntry, list[tuple[int, Sample]]]]:
        """Yields each unit of the dataset with its samples whose facts are unchanged, by their position in the unit."""
        for unit in self._old.units():
            new_of = self._difference.new_of[unit.first : unit.first + unit.samples].tolist()
            samples = enumerate(self._old.samples(unit))
            yield unit, [(position, sample) for position, sample in samples if not new_of[position]]

    def mark_changed(self, index: int) -> None:
        """Has a sample made again although its facts are unchanged.

        Args:
            index: The sample's number in the dataset's list.
        """
        self._difference.new_of[index] = SAME_FACTS
        self.changes.changed += 1

    def listed(self) -> tuple[RunList, SourceFacts]:
        """Returns the list that the dataset will have, and its facts for the card."""
        last = max(self._card.source.revision, *_revisions(self._out), 0)
        begun = list_folder(self._out, last)
        if last > self._card.source.revision:  # of an update that was not finished: this one, perhaps
            planned = self._write(last)
            if planned.sha256 == SampleList(begun).sha256:
                return RunList(SampleList(begun), begun), self._facts(planned, last)
        planned = self._write(last + 1)
        new = RunList(planned, list_folder(self._out, last + 1), advice="run the same command again")
        return new, self._facts(planned, last + 1)

    def _units(self, revision: int) -> Iterator[tuple[list[Sample], int]]:
        added = cut_into_units(added_samples(self._new, self._difference), self._unit_size)
        return itertools.chain(
            updated_units(self._old, self._new, self._difference, revision), ((unit, revision) for unit in added)
        )

    def _write(self, revision: int) -> SampleList:
        folder = self._folder / f"planned.{revision}"
        write_list(folder, list_parts(self._units(revision)))
        return SampleList(folder)

    def _facts(self, samples: SampleList, revision: int) -> SourceFacts:
        facts = source_facts(self._card.source.kind, samples, self._unit_size, revision)
        return replace(
            facts,
            image_column=self._card.source.image_column,
            next_label=max(self._card.source.next_label, _next_label(self._old)),
        )


def _next_label(samples: SampleList) -> int:
    """Returns the number after the largest one of a class with a name; 0 if there are none."""
    if not samples.totals.known.get("label_text"):
        return 0
    return 1 + max((sample.label for sample in samples if sample.label is not None), default=-1)


def _revisions(out: Path) -> Iterator[int]:
    """Yields the numbers of the updates that have a list."""
    for entry in out.iterdir():
        if match := _REVISION.fullmatch(entry.name):
            yield int(match[1])
