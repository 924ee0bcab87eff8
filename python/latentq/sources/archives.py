"""Archives as a source: one or many tars (plain or gzip) or zips, with captions next to the images in them."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal, TextIO

from latentq._core import FormatError, LatentqError, MismatchError
from latentq.sources.columns import captions_in
from latentq.sources.folder import EXTENSIONS
from latentq.sources.listing import Listing, Sample, unchanged_files
from latentq.sources.member import Member, plain_name
from latentq.sources.tar import Tar
from latentq.sources.zip import Zip
from latentq.system.faults import raise_machine_fault
from latentq.system.progress import listing_progress

ArchiveKind = Literal["tar", "zip"]

_OPENERS: dict[ArchiveKind, type[Tar | Zip]] = {"tar": Tar, "zip": Zip}
_SIDECARS = ("txt", "json")
_NO_CAPTION = "no caption"
_NO_IMAGE = "no image for this caption"


class Archives:
    """The images in archives of one kind: archive by archive, each in its own order.

    A sample's key is `<archive>/<member>`. Members that cannot be used are listed with their fault; so is a broken
    archive, under its own name.

    Args:
        kind: `tar` (plain or gzip) or `zip`.
        files: The archives in order, by their names in the source.
        captions: Which members hold captions: `txt`, `json` or `json:FIELD`, named as the image but for this
            extension. None takes those in .txt, if there are any.
        progress: The stream for progress, if listing takes long; None prints nothing.
    """

    def __init__(
        self,
        kind: ArchiveKind,
        files: Sequence[tuple[str, Path]],
        captions: str | None = None,
        progress: TextIO | None = None,
    ) -> None:
        self.kind: ArchiveKind = kind
        self.files = dict(files)
        self._progress = progress
        extension, _, json_field = (captions or "txt").partition(":")
        if extension not in _SIDECARS:
            raise LatentqError(
                f"captions {captions!r}: neither a file, nor txt, json or json:FIELD for members next to each image"
            )
        self._sidecar = f".{extension}"
        self._json_field = (json_field or "caption") if extension == "json" else None
        self._required = captions is not None
        self._open: tuple[str, Tar | Zip] | None = None
        self._lock = threading.Lock()

    def listing(self) -> Listing:
        """Looks through every archive once; a gzip tar is decompressed for it.

        Raises:
            OSError: An archive cannot be read.
            FormatError: No archive holds an image that can be used.
        """
        samples: list[Sample] = []
        others = 0
        for name, path in listing_progress(self.files.items(), self._progress):
            found, others_found = self._list(name, path)
            samples += found
            others += others_found
        if not any(sample.offset is not None for sample in samples):
            first = next(iter(self.files.values()))
            reason = f": {samples[0].fault}" if samples else ""
            more = f" and {len(self.files) - 1} more" if len(self.files) > 1 else ""
            raise FormatError(f"{first}{more} hold no images{reason}")
        captioned = self._required or any(sample.caption for sample in samples if not sample.fault)
        if captioned:
            samples = [s if s.fault or s.caption is not None else replace(s, fault=_NO_CAPTION) for s in samples]
        else:  # texts that belong to no image are ordinary other members then
            others += sum(sample.fault == _NO_IMAGE for sample in samples)
            samples = [sample for sample in samples if sample.fault != _NO_IMAGE]
        notes = (f"members without an image's extension are skipped: {others}",) if others else ()
        fields = ("archive", "archive_bytes", "offset", "packed", "fault")
        return Listing(tuple(samples), (*(("caption",) if captioned else ()), *fields), notes)

    def unchanged(self, listing: Listing) -> bool:
        """True if the archives are those of a listing, as `unchanged_files` compares them."""
        return unchanged_files(self.files, listing, self._has_no_images)

    def _has_no_images(self, name: str, path: Path) -> bool:
        """True if an archive is intact and holds no image."""
        return all(sample.fault == _NO_IMAGE for sample in self._list(name, path)[0])

    def data(self, sample: Sample) -> bytes:
        """Returns the bytes of a member."""
        with self._lock:
            return self._opened(sample).read(sample)

    def _opened(self, sample: Sample) -> Tar | Zip:
        """The sample's archive, open; the archive before it is closed."""
        assert sample.archive is not None
        if self._open is not None:
            if self._open[0] == sample.archive:
                return self._open[1]
            self._open[1].close()
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

    def _list(self, name: str, path: Path) -> tuple[list[Sample], int]:
        """The samples of one archive, and the number of its other members."""
        archive = _OPENERS[self.kind](path)
        contents = _Contents(Sample(name, None, archive=name, archive_bytes=archive.bytes))
        try:
            for member in archive.members(lambda name: name.lower().endswith(self._sidecar)):
                inside = plain_name(member.name)
                base = inside.rpartition("/")[2].lower()
                if base.endswith(EXTENSIONS) and not base.startswith("._"):  # macOS puts `._x.jpg` next to `x.jpg`
                    contents.add_image(inside, member)
                elif base.endswith(self._sidecar):
                    contents.captions.setdefault(_stem(inside), (inside, *self._caption(member)))
                else:
                    contents.others += 1
        except FormatError as error:
            raise_machine_fault(error, name)
            contents.fault = str(error)
        finally:
            archive.close()
        return list(contents.samples()), contents.others

    def _caption(self, member: Member) -> tuple[str | None, str]:
        """The caption in a member, and its fault."""
        if member.content is None:
            return None, f"its caption: {member.fault}"
        try:
            text = member.content.decode("utf-8-sig")
            if self._json_field is not None:
                text = json.loads(text)[self._json_field]
                if not isinstance(text, str):
                    raise TypeError
        except UnicodeDecodeError:
            return None, "its caption is not UTF-8"
        except (ValueError, KeyError, TypeError, RecursionError):
            return None, f"{_NO_CAPTION}: no text {self._json_field!r} in its JSON"
        text = text.strip()
        return (text, "") if captions_in(text) else (None, f"{_NO_CAPTION}: it is empty")


@dataclass
class _Contents:
    """The members found in one archive.

    Attributes:
        archive: A sample that stands for the archive.
        images: By key: the member's stem and its sample.
        captions: By stem: the member's name, the caption and its fault.
        others: How many other members there are.
        fault: Why the rest of the archive cannot be read, or empty.
    """

    archive: Sample
    images: dict[str, tuple[str, Sample]] = field(default_factory=dict)
    captions: dict[str, tuple[str, str | None, str]] = field(default_factory=dict)
    others: int = 0
    fault: str = ""

    def add_image(self, inside: str, member: Member) -> None:
        """Adds an image by its name in the archive; the second image of a name is a reject, as `name#2`."""
        key, count = f"{self.archive.key}/{inside}", 1
        while key in self.images:
            count += 1
            key = f"{self.archive.key}/{inside}#{count}"
        duplicate = "a member of this name came before" if count > 1 else ""
        sample = replace(
            self.archive,
            key=key,
            bytes=member.size,
            offset=member.offset,
            packed=member.packed,
            fault=duplicate or member.fault,
        )
        self.images[key] = (_stem(inside), sample)

    def samples(self) -> Iterator[Sample]:
        """Yields the images with their captions, then captions without an image, then the archive if it is broken."""
        for stem, sample in self.images.values():
            _, caption, fault = self.captions.get(stem, ("", None, ""))
            yield replace(sample, caption=caption, fault=sample.fault or fault)
        stems = {stem for stem, _ in self.images.values()}
        for stem, (inside, _, _) in self.captions.items():
            if stem not in stems:
                yield replace(self.archive, key=f"{self.archive.key}/{inside}", fault=_NO_IMAGE)
        if self.fault:
            yield replace(self.archive, fault=self.fault)


def _stem(name: str) -> str:
    """A member's name without its last extension."""
    folder, slash, base = name.rpartition("/")
    return f"{folder}{slash}{base.rpartition('.')[0]}"
