"""Opens the source of a run, and publishes its list or compares it with the published list."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import TextIO

from latentq._core import LatentqError, MismatchError
from latentq.collect import COLLECTIONS, Collection
from latentq.format.facts import SourceFacts
from latentq.format.files import SAMPLES
from latentq.sources import Captions, Listing, Sample, Source, open_source
from latentq.sources.label_values import MAX_LABEL, with_labels
from latentq.store.local import make_folder, publish_once, read_regular
from latentq.system.text import counted, one_line


def collection_of(name: str | Collection | None) -> Collection | None:
    """Returns the collection of a name; a `Collection` or None is returned as it is.

    Raises:
        ValueError: No collection has the name.
    """
    if not isinstance(name, str):
        return name
    if name not in COLLECTIONS:
        raise ValueError(f"there is no collection {name!r}: name one of {', '.join(COLLECTIONS)}")
    return COLLECTIONS[name]


def with_limits(captions: str | Captions | None, collection: Collection | None) -> str | Captions | None:
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
    out: Path,
    class_names: str | os.PathLike[str] | None = None,
    like: str | os.PathLike[str] | None = None,
    captions: str | Captions | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
    progress: TextIO | None = None,
) -> Source:
    """Opens the source of a run that writes to `out`, which is not listed even if it lies inside the source.

    Args:
        source: A path for `open_source`, or a `Source`, which is returned as it is.
        out: The folder that the run writes to.
        class_names: A file of readable class names, for `open_source`.
        like: A dataset whose class numbers are used.
        captions: Where captions are, for `open_source`.
        image_column: The column of images, for `open_source`.
        label_column: The column of labels, for `open_source`.
        progress: Stream that the progress of a long listing is printed to.

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
        return source
    classes: dict[str, tuple[int, str]] = {}
    if like is not None:
        file = Path(like) / SAMPLES
        for sample in Listing.from_tsv(read_regular(file), str(file)).samples:
            if sample.label is not None and sample.label_text is not None:
                facts = (sample.label, sample.label_text)
                classes |= {sample.label_text: facts, sample.key.partition("/")[0]: facts}
    return open_source(
        source,
        class_names=class_names,
        classes=classes or None,
        exclude=out,
        captions=captions,
        image_column=image_column,
        label_column=label_column,
        progress=progress,
    )


def list_source(source: Source, out: Path, *, compare: bool) -> Listing:
    """Returns the published list of a source, or lists the source if none is published.

    Args:
        source: The source.
        out: The folder of the run.
        compare: Check that the source still matches the published list; one process of a run does it for all.

    Raises:
        MismatchError: The source differs from the published list.
        LatentqError: Names are not ASCII, and the locale is not UTF-8: another machine would read other names.
    """
    file = out / SAMPLES
    if file.exists():
        published = Listing.from_tsv(read_regular(file), str(file))
        unchanged = getattr(source, "unchanged", None)
        if not compare or (unchanged is not None and unchanged(published)):
            return published
    listing = source.listing()
    encoding = sys.getfilesystemencoding()
    if encoding != "utf-8" and not all(sample.key.isascii() for sample in listing.samples):
        raise LatentqError(f"file names are read as {encoding} here, and not as UTF-8: set PYTHONUTF8=1")
    listing = storable(source.kind, listing)
    _check_listing(file, listing)
    return listing


def storable(kind: str, listing: Listing) -> Listing:
    """Returns a listing as it reads back from samples.tsv, so that every run sees the same values.

    User-defined sources may return labels of any type; the rules of `with_labels` apply to them too.

    Args:
        kind: Kind of the source, for messages.
        listing: The listing as the source gives it.

    Raises:
        LatentqError: A sample cannot be written to samples.tsv and read back; the message names it.
    """
    labels = [sample.label for sample in listing.samples]
    if any(label is not None and (type(label) is not int or not 0 <= label <= MAX_LABEL) for label in labels):
        samples, fields = with_labels(f"source of kind {kind}", listing.samples, labels)
        known = dict.fromkeys((*fields, *(field for field in listing.fields if field != "label")))
        listing = replace(listing, samples=tuple(samples), fields=tuple(known))
        if any(sample.fault for sample in samples) and "fault" not in known:
            listing = replace(listing, fields=(*listing.fields, "fault"))
    try:
        read_back = Listing.from_tsv(listing.to_tsv(), f"the list of a source of kind {kind}")
    except (TypeError, UnicodeEncodeError) as error:
        raise LatentqError(f"the list of a source of kind {kind} cannot be written: {error}") from None
    for sample, read in zip(listing.samples, read_back.samples, strict=True):
        if sample.key != read.key or sample.archive != read.archive:
            raise LatentqError(f"{sample.key!r}: samples.tsv cannot hold this key")
    return replace(read_back, notes=listing.notes)


def print_notes(notes: Iterable[str], stream: TextIO | None) -> None:
    """Prints notes, those of a listing for example, one to a line. Prints nothing if `stream` is None."""
    if stream is not None:
        with contextlib.suppress(OSError):  # a closed stream must not end the run
            for note in notes:
                print(one_line(note), file=stream, flush=True)


def publish_listing(out: Path, listing: Listing) -> None:
    """Publishes samples.tsv.

    Raises:
        MismatchError: Another list is published already.
    """
    make_folder(out)
    if not publish_once(out / SAMPLES, listing.to_tsv()):
        _check_listing(out / SAMPLES, listing)


def _check_listing(file: Path, listing: Listing) -> None:
    published = read_regular(file) if file.exists() else None
    if published is not None and published != listing.to_tsv():
        difference = _list_difference(file, Listing.from_tsv(published, str(file)), listing)
        raise MismatchError(f"{difference}: restore the source, or name another output folder")


def _list_difference(file: Path, old: Listing, new: Listing) -> str:
    counts = f"{file} lists {counted(len(old.samples), 'sample')}, the source has {len(new.samples)} now"
    for listed, found in zip(old.samples, new.samples, strict=False):
        if listed != found:
            return f"{counts}; the first difference: {_sample_text(listed)} there, {_sample_text(found)} now"
    if len(old.samples) == len(new.samples):
        return f"{counts}; it has {', '.join(old.fields) or 'no labels'} there, {', '.join(new.fields) or 'none'} now"
    longer, where = (old, "there") if len(old.samples) > len(new.samples) else (new, "now")
    extra = longer.samples[min(len(old.samples), len(new.samples))]
    return f"{counts}; {extra.key!r} only {where}"


def _sample_text(sample: Sample) -> str:
    label = "" if sample.label is None else f", label {sample.label}"
    size = "no file" if sample.bytes is None else counted(sample.bytes, "byte")
    return f"{sample.key!r} ({size}{label})"


def source_facts(kind: str, listing: Listing, unit_size: int) -> SourceFacts:
    """Returns the source's facts for a card; `units` is None if it follows from the number of samples."""
    total, units = len(listing.samples), len(listing.units(unit_size))
    return SourceFacts(kind, total, listing.sha256(), None if units == -(-total // unit_size) else units)
