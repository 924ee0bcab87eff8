"""Archives as a source: one or many tars (plain or gzip) or zips, with captions next to the images in them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal, TextIO

from latentq._core import FormatError, LatentqError, MismatchError
from latentq.sources.columns import NamedColumns, caption_facts
from latentq.sources.file_dict import FileDict
from latentq.sources.kinds import HEAD_BYTES, image_by_name, is_image, is_junk_folder
from latentq.sources.label_values import Classes, with_labels
from latentq.sources.listing import GZIP_SUFFIXES, Listing, Sample, unchanged_files
from latentq.sources.member import Member, Reads, plain_name
from latentq.sources.sidecars import NO_CAPTION, NO_IMAGE, SidecarRule, Sidecars, webdataset_key
from latentq.sources.spool import spooled
from latentq.sources.tar import Tar
from latentq.sources.zip import Zip
from latentq.store.files import File, connections_of
from latentq.system.faults import raise_machine_fault
from latentq.system.progress import listing_progress
from latentq.system.text import size_text

ArchiveKind = Literal["tar", "zip"]

_OPENERS: dict[ArchiveKind, type[Tar | Zip]] = {"tar": Tar, "zip": Zip}
_HEAD, _NOTHING = Reads(head=HEAD_BYTES), Reads()
_TEXT_BYTES = 1 << 29  # captions and labels of one archive, or its size if that is more: a guard against bombs
_LARGE_BYTES = 1 << 26  # members that are read only if they begin as an image does


class Archives:
    """The images in archives of one kind: archive by archive, each in its own order.

    A sample's key is `<archive>/<member>`. Members that cannot be used are listed with their fault; so is a broken
    archive, under its own name. Members are images by their names, or by their bytes if the name does not tell.

    Args:
        kind: `tar` (plain or gzip) or `zip`.
        files: The archives in order, by their names in the source.
        columns: What a user names: as `caption` the sidecars with captions, as `SidecarRule.parse` takes it; as `image`
            the field of WebDataset that holds the image. Without a caption, those in .txt are taken, if there are any.
        classes: Label and readable name of each class name; None numbers the names.
        progress: The stream for progress, if listing takes long; None prints nothing.

    Attributes:
        files: The archives by their names.
        connections: See `connections_of`.
    """

    def __init__(
        self,
        kind: ArchiveKind,
        files: Sequence[tuple[str, File]],
        columns: NamedColumns | None = None,
        classes: Classes | None = None,
        progress: TextIO | None = None,
    ) -> None:
        columns = columns or NamedColumns()
        self.kind: ArchiveKind = kind
        self.files = dict(files)
        self.connections = connections_of(self.files.values())
        self._image_field = columns.image
        self._rule = SidecarRule.parse(columns.caption)
        self._required = columns.caption is not None
        self._classes = classes
        self._progress = progress
        self._open: tuple[str, Tar | Zip] | None = None
        self._lock = threading.Lock()

    def listing(self) -> Listing:
        """Looks through every archive once; a gzip tar is decompressed for it.

        The samples raise OSError if an archive cannot be read, and FormatError if no archive holds an image that can be
        used.
        """
        notes: list[str] = []
        found = _Found(captioned=self._required)
        rows = self._rows(found, notes)
        return Listing(with_labels(self.kind, rows, self._classes, notes, finish=found.finish), notes)

    def _rows(self, found: _Found, notes: list[str]) -> Iterator[tuple[Sample, str | None]]:
        """Yields the samples of every archive, with their labels."""
        others = 0
        for name, path in listing_progress(self.files.items(), self._progress):
            contents = self._contents(name, path)
            for sample, label in contents.samples():
                found.add(sample)
                yield sample, label
            others += contents.others
            notes += contents.notes()
        if not found.images:
            first = next(iter(self.files.values()))
            reason = f": {found.fault}" if found.fault else ""
            more = f" and {len(self.files) - 1} more" if len(self.files) > 1 else ""
            raise FormatError(f"{first}{more} hold no images{reason}")
        if not found.captioned:  # texts that belong to no image are ordinary other members then
            others += found.texts
        if others:
            notes.append(f"members that are not images are skipped: {others}")

    def unchanged(self, samples: Iterable[Sample]) -> bool:
        """True if the archives are those of the listed samples, as `unchanged_files` compares them."""
        return unchanged_files(self.files, samples, self._has_no_images)

    def _has_no_images(self, name: str, path: File) -> bool:
        """True if an archive is intact and holds no image."""
        return all(sample.fault == NO_IMAGE for sample, _ in self._contents(name, path).samples())

    def data(self, sample: Sample) -> bytes:
        """Returns the bytes of a member.

        Raises:
            MismatchError: The archive is not the one that was listed.
            FormatError: The member is broken, or large and not an image.
        """
        with self._lock:
            return _read(self._opened(sample), sample)

    def deferred(self, sample: Sample) -> Callable[[], bytes] | None:
        """Returns a function that reads a member, for any thread to call; None in a gzip, which is read in order.

        Raises:
            MismatchError: The archive is not the one that was listed.
        """
        with self._lock:
            archive = self._opened(sample)
        return None if isinstance(archive, Tar) and archive.compressed else partial(_read, archive, sample)

    def _opened(self, sample: Sample) -> Tar | Zip:
        """Returns the sample's archive, open; the one before it is closed once its deferred reads are done."""
        assert sample.archive is not None
        if self._open is not None:
            if self._open[0] == sample.archive:
                return self._open[1]
            self._open = None
        path = self.files.get(sample.archive)
        try:
            archive = _OPENERS[self.kind](path) if path is not None else None
        except (FileNotFoundError, NotADirectoryError):
            archive = None
        if archive is None:
            raise MismatchError(
                f"{path or sample.archive} is listed with {sample.archive_bytes} bytes and is not there"
            )
        if archive.bytes != sample.archive_bytes:
            archive.close()
            raise MismatchError(f"{path} is listed with {sample.archive_bytes} bytes and has {archive.bytes} bytes now")
        self._open = (sample.archive, archive)
        return archive

    def _contents(self, name: str, path: File) -> _Contents:
        """Opens one archive to be looked through."""
        archive = _OPENERS[self.kind](path)
        sidecars = Sidecars(self._rule, webdataset=self.kind == "tar")
        contents = _Contents(Sample(name, None, archive=name, archive_bytes=archive.bytes), sidecars, self._image_field)
        contents.renamed = isinstance(archive, Tar) and archive.compressed and not name.lower().endswith(GZIP_SUFFIXES)
        contents.images = spooled(self._images(archive, contents))
        return contents

    def _images(self, archive: Tar | Zip, contents: _Contents) -> Iterator[tuple[Any, ...]]:
        """Yields the images of an archive as `_Contents` has them, gives it everything else, and closes the archive."""
        text_bytes, most = 0, max(_TEXT_BYTES, archive.bytes)
        try:
            for member in archive.members(self._reads):
                inside = plain_name(member.name)
                if self._rule.limit(inside):
                    text_bytes += len(member.content or b"")
                    if text_bytes > most:
                        name = contents.archive.key
                        raise LatentqError(f"{name}: its captions and labels take more than {size_text(most)}")
                    contents.sidecars.add(inside, member.content, member.fault)
                elif self._is_image(inside, member):
                    yield contents.image(inside, member)
                else:
                    contents.others += 1
        except FormatError as error:
            raise_machine_fault(error, contents.archive.key)
            contents.fault = str(error)
        finally:
            archive.close()

    def _reads(self, name: str) -> Reads:
        """Returns how much of a member to list it by: all of a sidecar, the first bytes if its name does not tell."""
        if limit := self._rule.limit(name):
            return Reads(whole=limit)
        return _HEAD if image_by_name(name.rpartition("/")[2]) is None else _NOTHING

    def _is_image(self, inside: str, member: Member) -> bool:
        folder, _, base = inside.rpartition("/")
        named = image_by_name(base)
        if not (is_image(member.head) if named is None else named):
            return False
        if folder and any(is_junk_folder(name) for name in folder.split("/")):
            return False
        if self._image_field is None:
            return True
        _, image_field = webdataset_key(inside)
        return self._image_field in (image_field, image_field.rpartition(".")[0])


@dataclass
class _Found:
    """The findings of listing all archives.

    Attributes:
        captioned: True if images without a caption are rejects.
        images: True if there is an image.
        texts: The number of texts that belong to no image.
        fault: The fault of the first sample.
    """

    captioned: bool
    images: bool = False
    texts: int = 0
    fault: str | None = None

    def add(self, sample: Sample) -> None:
        """Adds a sample as its archive has it."""
        if self.fault is None:
            self.fault = sample.fault
        self.images = self.images or sample.offset is not None
        self.texts += sample.fault == NO_IMAGE
        self.captioned = self.captioned or bool(sample.caption and not sample.fault)

    def finish(self, sample: Sample) -> Sample | None:
        """Returns a sample as it is listed, or None if it is not, once all samples are added."""
        if self.captioned:
            return sample if sample.fault or sample.caption is not None else sample._replace(fault=NO_CAPTION)
        return sample if sample.fault != NO_IMAGE else None


def _read(archive: Tar | Zip, sample: Sample) -> bytes:
    if (sample.bytes or 0) > _LARGE_BYTES and not is_image(archive.head(sample, HEAD_BYTES)):
        raise FormatError("not an image")
    return archive.read(sample)


@dataclass
class _Contents:
    """The findings of listing one archive. They are complete once `images` is exhausted.

    Attributes:
        archive: A sample that stands for the archive.
        sidecars: The captions and labels.
        image_field: The field of WebDataset that a user named.
        images: The path in the archive of each image, and the fields of its sample; nothing is yielded before all
            members were looked at.
        others: How many other members there are.
        renamed: True if the archive is gzip, and its name does not say so.
        fault: Why the rest of the archive cannot be read, or empty.
    """

    archive: Sample
    sidecars: Sidecars
    image_field: str | None
    images: Iterable[tuple[Any, ...]] = ()
    others: int = 0
    renamed: bool = False
    fault: str = ""
    _names: FileDict[int] = field(default_factory=FileDict)  # by key, the number of images of that name
    _by_webdataset_key: FileDict[str] = field(default_factory=FileDict)
    _of_one_key: tuple[str, str] | None = None

    def image(self, inside: str, member: Member) -> tuple[Any, ...]:
        """Returns an image by its path in the archive; the second image of a name is a reject, as `name#2`."""
        key = f"{self.archive.key}/{inside}"
        fault = member.fault
        if count := self._names.get(key):
            fault, name = "a member of this name came before", key
            count += 1
            while (key := f"{name}#{count}") in self._names:
                count += 1
            self._names[name] = count
        self._names[key] = 1
        if self.image_field is None and self.sidecars.webdataset and self._of_one_key is None:
            group, _ = webdataset_key(inside)
            other = self._by_webdataset_key.get(group)
            if other is None:
                self._by_webdataset_key[group] = inside
            elif other != inside:
                self._of_one_key = other, inside
        sample = self.archive._replace(
            key=key, bytes=member.size, offset=member.offset, packed=member.packed, fault=fault
        )
        return inside, *sample

    def samples(self) -> Iterator[tuple[Sample, str | None]]:
        """Yields the images with their captions and labels, then captions without an image, then a broken archive."""
        for inside, *fields in self.images:
            sample = Sample(*fields)
            caption = self.sidecars.caption_of(inside)
            if caption is not None:
                facts = caption_facts(caption.captions)
                sample = sample._replace(**facts, fault=sample.fault or caption.fault)
            yield sample, self.sidecars.label_of(inside)
        for name in self.sidecars.without_image():
            yield self.archive._replace(key=f"{self.archive.key}/{name}", fault=NO_IMAGE), None
        if self.fault:
            yield self.archive._replace(fault=self.fault), None

    def notes(self) -> Iterator[str]:
        """Yields what the user should know about the archive."""
        if self.renamed:
            yield f"{self.archive.key} is gzip: named .tar.gz, it would be one unit, and be decompressed once"
        if self._of_one_key is not None:
            other, inside = self._of_one_key
            yield (
                f"{self.archive.key} has several images of one key, {other} and {inside}: each is a sample; "
                "--image-column names the one to take"
            )
