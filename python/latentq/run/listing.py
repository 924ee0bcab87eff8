"""Opens the source of a run, and publishes its list or compares it with the published list."""

from __future__ import annotations

import contextlib
import itertools
import operator
import os
import reprlib
import secrets
import shutil
import sys
import tempfile
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn, Self, TextIO

from latentq._core import LatentqError, MismatchError
from latentq.collect import COLLECTIONS
from latentq.collect import Collection as ImageCollection
from latentq.format.facts import SourceFacts
from latentq.format.files import LIST
from latentq.run.join import compare_lists
from latentq.run.sample_lines import NUMBERS
from latentq.run.sample_list import SampleList, cut_into_units, list_parts, write_list
from latentq.run.units import list_folder
from latentq.sources import Captions, Listing, Sample, Source, open_source
from latentq.sources.label_values import Classes, with_labels
from latentq.store.local import make_folder, sync
from latentq.system.text import counted, one_line


def collection_of(name: str | ImageCollection | None) -> ImageCollection | None:
    """Returns the collection of a name; a `Collection` or None is returned as it is.

    Raises:
        ValueError: No collection has the name.
    """
    if not isinstance(name, str):
        return name
    if name not in COLLECTIONS:
        raise ValueError(f"there is no collection {name!r}: name one of {', '.join(COLLECTIONS)}")
    return COLLECTIONS[name]


def with_limits(captions: str | Captions | None, collection: ImageCollection | None) -> str | Captions | None:
    """Adds the collection's limits to the `captions` option.

    Raises:
        LatentqError: The collection has limits, but `captions` names no file that has the limited columns.
    """
    if collection is None or not collection.limits:
        return captions
    if captions is None:
        raise LatentqError(
            f"limits on {', '.join(collection.limits)} need a file of captions with those columns: "
            "--captions FILE names it"
        )
    captions = Captions.parse(captions) if isinstance(captions, str) else captions
    return replace(captions, limits=collection.limits)


def open_run_source(
    source: str | os.PathLike[str] | Source,
    out: str | os.PathLike[str],
    class_names: str | os.PathLike[str] | None = None,
    classes: dict[str, tuple[int, str]] | None = None,
    captions: str | Captions | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
    progress: TextIO | None = None,
    storage_options: Mapping[str, str] | None = None,
) -> Source:
    """Opens the source of a run that writes to `out`, which is not listed even if it lies inside the source.

    Args:
        source: A path for `open_source`, or a `Source`.
        out: The folder or URL that the run writes to.
        class_names: A file of readable class names, for `open_source`.
        classes: Label and readable name of known classes, for `open_source`.
        captions: Where captions are, for `open_source`.
        image_column: The column of images, for `open_source`.
        label_column: The column of labels, for `open_source`.
        progress: Stream that the progress of a long listing is printed to.
        storage_options: For URLs, for `open_source`.

    Raises:
        ValueError: Captions or columns are given with a `Source`.
    """
    if not isinstance(source, str | os.PathLike):
        if captions is not None:
            raise ValueError(
                "captions can only be given with a path; for a Source, use open_source(path, captions=...)"
            )
        if image_column is not None or label_column is not None:
            raise ValueError(
                "columns can only be given with a path; for a Source, use open_source(path, image_column=...)"
            )
        return _UserSource(source, classes)
    return open_source(
        source,
        class_names=class_names,
        classes=classes,
        exclude=out,
        captions=captions,
        image_column=image_column,
        label_column=label_column,
        progress=progress,
        storage_options=storage_options,
    )


ADVICE = "restore the source, or name another output folder"


class RunList:
    """The list of a run: the published one, or a new one in a temporary folder next to its place.

    As a context manager it removes a new list that the block does not publish.

    Args:
        samples: The list.
        place: The folder that the list is published as.
        notes: Lines for the user about how the source was listed; empty if it was not.
        new_folders: The folders that were made for the list, from the inside out.
        advice: The advice to a user if another list is published first.
    """

    def __init__(
        self,
        samples: SampleList,
        place: Path,
        notes: Collection[str] = (),
        *,
        new_folders: Sequence[Path] = (),
        advice: str = ADVICE,
    ) -> None:
        self.samples = samples
        self.notes = notes
        self._place = place
        self._new_folders = new_folders
        self._advice = advice

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.samples.folder != self._place:
            _remove_list(self.samples.folder, self._new_folders)

    def publish(self) -> None:
        """Publishes the list. If another process published it first, that one is used from now on.

        Raises:
            MismatchError: Another list is published already.
        """
        ours, folder = self.samples, self._place
        if ours.folder == folder:
            return
        try:
            ours.folder.rename(folder)  # fails if there is a list, because a list is never empty
        except OSError:
            if not folder.is_dir():
                raise
        sync(folder.parent)
        published = SampleList(folder)
        if ours.folder.is_dir():
            if published.sha256 != ours.sha256:
                raise MismatchError(f"{_list_difference(published, ours)}: {self._advice}")
            shutil.rmtree(ours.folder)
        self.samples = published


def list_source(
    source: Source, out: Path, unit_size: int, *, compare: bool, revision: int = 0, advice: str = ADVICE
) -> RunList:
    """Returns the published list of a source, or lists the source if none is published.

    Args:
        source: The source.
        out: The folder of the run.
        unit_size: The largest number of samples in a unit.
        compare: Check that the source still matches the published list; one process of a run does it for all.
        revision: How often the dataset was updated.
        advice: The advice to a user whose source differs from the published list.

    Raises:
        MismatchError: The source differs from the published list.
        LatentqError: Names are not ASCII, and the locale is not UTF-8: another machine would read other names. Or a
            sample cannot be written to the list; the message names it.
    """
    place = list_folder(out, revision)
    if place.is_dir():
        published = SampleList(place)
        if not compare:
            return RunList(published, place)
        try:
            return RunList(published, place, _compare(source, published, unit_size, is_updated=revision > 0))
        except MismatchError as error:
            raise MismatchError(f"{error}: {advice}") from None
    new_folders = make_folder(out)
    temporary = temporary_list(place)
    try:
        listing = source.listing()
        write_list(temporary, listed_parts(source, listing, unit_size))
        return RunList(SampleList(temporary), place, listing.notes, new_folders=new_folders)
    except BaseException as error:
        was_removed = isinstance(error, FileNotFoundError) and not temporary.exists()
        _remove_list(temporary, new_folders)
        if was_removed and place.is_dir():  # by another process, which published the list
            return list_source(source, out, unit_size, compare=compare, revision=revision, advice=advice)
        raise


def temporary_list(place: Path) -> Path:
    """Returns a path for a list that is not published yet. A killed run's is removed once there is a list.

    Args:
        place: The folder that the list will be published as.
    """
    return place.with_name(f".{place.name}.{secrets.token_hex(4)}")


def _remove_list(temporary: Path, new_folders: Sequence[Path]) -> None:
    """Removes an unpublished list, and the folders that were made for it unless something else is in them."""
    shutil.rmtree(temporary, ignore_errors=True)
    with contextlib.suppress(OSError):
        for folder in new_folders:
            folder.rmdir()


def listed_parts(source: Source, listing: Listing, unit_size: int) -> Iterator[bytes]:
    """Yields the parts of a list.

    Raises:
        LatentqError: A sample cannot be written to the list, or there are no samples.
    """
    samples = listing.samples
    if sys.getfilesystemencoding() != "utf-8":
        samples = map(_checked_name, samples)
    empty = True
    try:
        for part in list_parts((unit, 0) for unit in cut_into_units(samples, unit_size)):
            empty = False
            yield part
    except (TypeError, ValueError) as error:
        raise LatentqError(f"the list of a source of kind {source.kind} cannot be written: {error}") from None
    if empty:
        raise LatentqError(f"the source of kind {source.kind} has no samples")


def _checked_name(sample: Sample) -> Sample:
    if not sample.key.isascii():
        encoding = sys.getfilesystemencoding()
        raise LatentqError(f"file names are read as {encoding} here, and not as UTF-8: set PYTHONUTF8=1")
    return sample


class _UserSource:
    """A source that a user defines. Its labels may be of any type; the rules of `with_labels` apply to them.

    Args:
        source: The source, whose optional attributes this one has too.
        classes: Label and readable name of known classes, or None.
    """

    def __init__(self, source: Source, classes: Classes | None) -> None:
        self._source = source
        self._classes = classes
        self.kind = source.kind
        self.data = source.data

    def __getattr__(self, name: str) -> Any:
        return getattr(self._source, name)

    def listing(self) -> Listing:
        """Returns the source's listing with labels that are numbers."""
        listing = self._source.listing()
        notes = list(listing.notes)
        rows = ((_plain(sample), sample.label) for sample in listing.samples)
        return Listing(with_labels(f"source of kind {self.kind}", rows, self._classes, notes), notes)


def _plain(sample: Sample) -> Sample:
    """Returns a sample without its label, its values of Python's own types, and not NumPy's or subclasses.

    Raises:
        TypeError: A number is not a whole number.
    """
    given = sample._asdict() | {"label": None}
    values: dict[str, Any] = {n: value if value is None else _plain_value(n, value) for n, value in given.items()}
    return Sample(**values)


def _plain_value(name: str, value: Any) -> Any:
    if name in NUMBERS:
        return operator.index(value)
    return tuple(map(str, value)) if name == "captions" else str(value)


def _compare(source: Source, published: SampleList, unit_size: int, *, is_updated: bool) -> Collection[str]:
    """Compares a source with its published list, part by part.

    Returns:
        The notes of the listing.

    Raises:
        MismatchError: They differ.
    """
    unchanged = getattr(source, "unchanged", None)
    if unchanged is not None and unchanged(published):
        return ()
    listing = source.listing()
    if is_updated:
        with tempfile.TemporaryDirectory(prefix="latentq-") as folder:
            write_list(Path(folder) / LIST, listed_parts(source, listing, unit_size))
            changes = compare_lists(published, SampleList(Path(folder) / LIST), Path(folder)).changes
        if changes:
            raise MismatchError(f"{published.folder} is not the list of the source: {changes}")
        return listing.notes
    same = 0
    for part in (parts := listed_parts(source, listing, unit_size)):
        if same == published.parts or part != published.part_bytes(same):
            _raise_difference(published, itertools.chain(map(published.part_bytes, range(same)), [part], parts))
        same += 1
    if same < published.parts:
        _raise_difference(published, map(published.part_bytes, range(same)))
    return listing.notes


def _raise_difference(published: SampleList, parts: Iterable[bytes]) -> NoReturn:
    with tempfile.TemporaryDirectory(prefix="latentq-") as folder:
        write_list(Path(folder) / LIST, parts)
        raise MismatchError(_list_difference(published, SampleList(Path(folder) / LIST)))


def print_notes(notes: Iterable[str], stream: TextIO | None) -> None:
    """Prints notes, those of a listing for example, one to a line. Prints nothing if `stream` is None."""
    if stream is not None:
        with contextlib.suppress(OSError):  # a closed stream must not end the run
            for note in notes:
                print(one_line(note), file=stream, flush=True)


def _list_difference(old: SampleList, new: SampleList) -> str:
    """Returns the message that a source is not the one that was listed, with the first difference."""
    counts = f"{old.folder} lists {counted(len(old), 'sample')}, the source has {len(new)} now"
    for listed, found in itertools.zip_longest(old, new):
        if listed is None or found is None:
            extra, where = (found, "now") if listed is None else (listed, "there")
            return f"{counts}; {extra.key!r} only {where}"
        if listed != found:
            return f"{counts}; the first difference: {_difference_text(listed, found)}"
    return f"{counts}, cut into other units"


def _difference_text(listed: Sample, found: Sample) -> str:
    if (there := _sample_text(listed)) != (now := _sample_text(found)):
        return f"{there} there, {now} now"
    name, old, new = next(
        (name, old, new) for name, old, new in zip(Sample._fields, listed, found, strict=True) if old != new
    )
    return f"{listed.key!r}: {name} {reprlib.repr(old)} there, {reprlib.repr(new)} now"  # captions may be long


def _sample_text(sample: Sample) -> str:
    label = "" if sample.label is None else f", label {sample.label}"
    size = "no file" if sample.bytes is None else counted(sample.bytes, "byte")
    return f"{sample.key!r} ({size}{label})"


def source_facts(kind: str, samples: SampleList, unit_size: int, revision: int = 0) -> SourceFacts:
    """Returns the source's facts for a card; `units` is None if it follows from the number of samples."""
    total, units = samples.totals.samples, samples.totals.units
    units_given = None if units == -(-total // unit_size) else units
    return SourceFacts(kind, total, samples.sha256, units_given, revision=revision)
