"""Archives as sources: tar (also compressed) and zip, one or many, with captions beside the images in them."""

from __future__ import annotations

import json
import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TextIO

from latentq._core import FormatError, LatentqError, MismatchError
from latentq.sources.columns import captions_of
from latentq.sources.folder import EXTENSIONS
from latentq.sources.listing import Listing, Sample, unchanged_files
from latentq.sources.member import Member
from latentq.sources.tar import Tar
from latentq.sources.zip import Zip
from latentq.system.progress import looking

_KINDS: dict[str, type[Tar | Zip]] = {"tar": Tar, "zip": Zip}


_SIDECARS = ("txt", "json")


NO_CAPTION = "no caption"


class Archives:
    """The images in archives of one kind: archive by archive, each in its own order.

    A sample's key is `<archive>/<member>`. What cannot be used is listed too, with its fault; so is an archive that is
    broken, under its own name.

    Args:
        kind: `tar` (plain or gzip) or `zip`.
        files: The archives in order, by the names they go by.
        captions: The members that hold captions: `txt`, `json` or `json:FIELD`, named as the image but for this
            extension. None takes those in .txt where there are any.
        progress: Where looking through them is told, if it takes long; None tells nothing.
    """

    def __init__(
        self,
        kind: str,
        files: Sequence[tuple[str, Path]],
        captions: str | None = None,
        progress: TextIO | None = None,
    ) -> None:
        self.kind = kind
        self.files = dict(files)
        self._progress = progress
        extension, _, field = (captions or "txt").partition(":")
        if extension not in _SIDECARS:
            raise LatentqError(f"captions {captions!r}: neither a file, nor txt, json or json:FIELD beside each image")
        self._sidecar = f".{extension}"
        self._field = (field or "caption") if extension == "json" else None
        self._required = captions is not None
        self._open: tuple[str, Tar | Zip] | None = None
        self._lock = threading.Lock()

    def listing(self) -> Listing:
        """Looks through every archive once; a compressed tar is decompressed for it.

        Raises:
            OSError: An archive cannot be read.
            FormatError: No archive holds anything that can be used.
        """
        samples: list[Sample] = []
        others = 0
        for name, path in looking(self.files.items(), self._progress):
            found, left_out = self._list(name, path)
            samples += found
            others += left_out
        if not any(sample.offset is not None for sample in samples):
            first = next(iter(self.files.values()))
            reason = f": {samples[0].fault}" if samples else ""
            raise FormatError(f"{first}{f' and {len(self.files) - 1} more' if len(self.files) > 1 else ''}"
                              f" hold no images{reason}")  # fmt: skip
        captioned = self._required or any(sample.caption for sample in samples if not sample.fault)
        if captioned:
            samples = [s if s.fault or s.caption is not None else replace(s, fault=NO_CAPTION) for s in samples]
        else:  # texts that belong to no image are then just other files
            others += sum(sample.fault == _NO_IMAGE for sample in samples)
            samples = [sample for sample in samples if sample.fault != _NO_IMAGE]
        notes = (f"members without an image's extension are left out: {others}",) if others else ()
        fields = ("archive", "archive_bytes", "offset", "packed", "fault")
        return Listing(tuple(samples), (*(("caption",) if captioned else ()), *fields), notes)

    def unchanged(self, listing: Listing) -> bool:
        """As of `unchanged_files`."""
        return unchanged_files(self.files, listing, self._bare)

    def _bare(self, name: str, path: Path) -> bool:
        """Whether an archive is whole and holds no image."""
        return all(sample.fault == _NO_IMAGE for sample in self._list(name, path)[0])

    def data(self, sample: Sample) -> bytes:
        """The bytes of a member."""
        with self._lock:
            return self._opened(sample).read(sample)

    def _opened(self, sample: Sample) -> Tar | Zip:
        """The sample's archive; the one before is closed."""
        assert sample.archive is not None
        if self._open is not None:
            if self._open[0] == sample.archive:
                return self._open[1]
            self._open[1].close()
            self._open = None
        path = self.files.get(sample.archive)
        try:
            archive = _KINDS[self.kind](path) if path is not None else None
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
        """The samples of one archive, and how many other members it has."""
        images: dict[str, tuple[str, Sample]] = {}  # by key: the member's stem
        captions: dict[str, tuple[str, str | None, str]] = {}  # by stem: the member, the caption, the fault
        others = 0
        archive = _KINDS[self.kind](path)
        whole = Sample(name, None, archive=name, archive_bytes=archive.bytes)
        fault = ""
        try:
            for member in archive.members(lambda name: name.lower().endswith(self._sidecar)):
                inside = _plain(member.name)
                base = inside.rpartition("/")[2].lower()
                if base.endswith(EXTENSIONS) and not base.startswith("._"):  # macOS's shadows of files
                    key, again = f"{name}/{inside}", 2
                    while key in images:
                        key, again = f"{name}/{inside}#{again}", again + 1
                    twice = "" if again == 2 else "a member of this name came before"
                    sample = replace(
                        whole,
                        key=key,
                        bytes=member.size,
                        offset=member.offset,
                        packed=member.packed,
                        fault=twice or member.fault,
                    )
                    images[key] = (_stem(inside), sample)
                elif base.endswith(self._sidecar):
                    captions.setdefault(_stem(inside), (inside, *self._caption(member)))
                else:
                    others += 1
        except FormatError as error:
            fault = str(error)
        finally:
            archive.close()
        samples = []
        for stem, sample in images.values():
            _, caption, wrong = captions.get(stem, ("", None, ""))
            samples.append(replace(sample, caption=caption, fault=sample.fault or wrong))
        alone = captions.keys() - {stem for stem, _ in images.values()}
        samples += [
            replace(whole, key=f"{name}/{inside}", fault=_NO_IMAGE)
            for stem, (inside, _, _) in captions.items()
            if stem in alone
        ]
        if fault:
            samples.append(replace(whole, fault=fault))
        return samples, others

    def _caption(self, member: Member) -> tuple[str | None, str]:
        """A sidecar's caption, and what is wrong with it."""
        if member.content is None:
            return None, f"its caption: {member.fault}"
        try:
            text = member.content.decode("utf-8-sig")
            if self._field is not None:
                text = json.loads(text)[self._field]
                if not isinstance(text, str):
                    raise TypeError
        except UnicodeDecodeError:
            return None, "its caption is not UTF-8"
        except (ValueError, KeyError, TypeError, RecursionError):
            return None, f"{NO_CAPTION}: no text {self._field!r} in its JSON"
        text = text.strip()
        return (text, "") if captions_of(text) else (None, f"{NO_CAPTION}: it is empty")


_NO_IMAGE = "no image for this caption"


def _plain(name: str) -> str:
    while name.startswith("./"):
        name = name[2:]
    return name


def _stem(name: str) -> str:
    """A member's name without its last extension."""
    folder, slash, base = name.rpartition("/")
    return f"{folder}{slash}{base.rpartition('.')[0]}"
