"""A folder of images as a source; its subfolders are classes if every image is in one."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from latentq._core import LatentqError, MismatchError
from latentq.sources.columns import NamedColumns, caption_facts, captions_field
from latentq.sources.kinds import HEAD_BYTES, image_by_name, is_image, is_junk_folder
from latentq.sources.label_values import Classes
from latentq.sources.listing import Listing, Sample
from latentq.sources.sidecars import NO_CAPTION, SidecarRule, Sidecars, stem_of
from latentq.system.faults import FILE_ERRNOS
from latentq.system.text import counted


@dataclass(frozen=True)
class Folder:
    """The images of a folder and its subfolders, in the order of their paths as bytes.

    Files are images by their names, or by their bytes if the name does not tell.

    Attributes:
        path: The folder.
        class_names: Readable names of class folders; any other folder keeps its own name.
        classes: Label and readable name of each class folder; None numbers the folders that hold images in sorted
            order, as torchvision's ImageFolder does.
        exclude: A folder to skip.
        columns: The columns that the user names; `caption` is parsed by `SidecarRule.parse`.
    """

    path: Path
    class_names: dict[str, str]
    classes: Classes | None = None
    exclude: Path | None = None
    columns: NamedColumns = field(default_factory=NamedColumns)
    kind: str = "folder"

    def data(self, sample: Sample) -> Path:
        """Returns the path of a sample's file."""
        return self.path / sample.key

    def listing(self) -> Listing:
        """Walks the folder, following links.

        Raises:
            OSError: A folder cannot be read.
            LatentqError: There is no image, or a class folder is not in `classes`.
        """
        found = self._walk()
        if not found.images:
            ignored = f" (files that are not images: {found.others})" if found.others else ""
            raise LatentqError(f"{self.path} holds no images{ignored}")
        keys = sorted(found.images, key=os.fsencode)
        samples = [Sample(key, found.images[key]) for key in keys]
        fields: tuple[str, ...] = ()
        notes = list(found.notes())
        outside = [key for key in keys if "/" not in key]
        if not outside:
            samples = self._with_labels(samples)
            fields = ("label", "label_text")
        elif len(outside) < len(keys):
            notes.append(f"no labels: {counted(len(outside), 'image')} outside class folders, {outside[0]} first")
        if self.columns.caption is not None:
            samples = self._with_captions(samples, found.texts)
            fields = (*fields, "caption", *captions_field(samples), "fault")
        elif described := found.described():
            notes.append(f"images with a .txt of the same name: {described}; --captions txt takes those as captions")
        return Listing(tuple(samples), fields, tuple(notes))

    def _with_labels(self, samples: list[Sample]) -> list[Sample]:
        """Returns the samples labeled by their class folders."""
        folders = sorted({sample.key.partition("/")[0] for sample in samples}, key=os.fsencode)
        classes = self.classes
        if classes is None:
            classes = {name: (number, name) for number, name in enumerate(folders)}
        elif unknown := [folder for folder in folders if folder not in classes]:
            raise MismatchError(
                f"{self.path} has a class folder {unknown[0]!r} that the dataset of --like does not have"
            )
        labeled = []
        for sample in samples:
            folder = sample.key.partition("/")[0]
            label, text = classes[folder]
            labeled.append(replace(sample, label=label, label_text=self.class_names.get(folder, text)))
        return labeled

    def _with_captions(self, samples: list[Sample], texts: list[str]) -> list[Sample]:
        """Returns the samples with captions from their sidecars; without one, a sample's `fault` is `NO_CAPTION`."""
        rule = SidecarRule.parse(self.columns.caption)
        sidecars = Sidecars(rule)
        wanted = {name for sample in samples for name in (stem_of(sample.key), sample.key)}
        for name in sorted(texts, key=os.fsencode):
            if stem_of(name) in wanted and (limit := rule.limit(name)):
                sidecars.add(name, *_read_sidecar(self.path / name, limit))
        captioned = []
        for sample in samples:
            caption = sidecars.caption_of(sample.key)
            facts = caption_facts(caption.captions) if caption is not None else {"caption": None}
            captioned.append(replace(sample, **facts, fault=NO_CAPTION if caption is None else caption.fault))
        return captioned

    def _wanted(self, folder: Path) -> bool:
        """True if a folder is neither hidden (such as `.ipynb_checkpoints`) nor excluded."""
        hidden = folder.name.startswith(".")
        return not hidden and (self.exclude is None or folder.resolve() != self.exclude.resolve())

    def _walk(self) -> _Found:
        def refuse(error: OSError) -> None:
            raise error

        found = _Found()
        seen = set()
        for folder, folders, names in os.walk(self.path, onerror=refuse, followlinks=True):
            status = Path(folder).stat()
            if (status.st_dev, status.st_ino) in seen:  # a link to a folder already walked
                folders.clear()
                continue
            seen.add((status.st_dev, status.st_ino))
            found.junk += [name for name in folders if is_junk_folder(name)]
            folders[:] = [name for name in folders if not is_junk_folder(name) and self._wanted(Path(folder, name))]
            relative = os.path.relpath(folder, self.path).replace(os.sep, "/")
            prefix = "" if relative == "." else relative + "/"
            for name in names:
                found.add(prefix + name, Path(folder, name), SidecarRule.parse(self.columns.caption))
        return found


@dataclass
class _Found:
    """The files of a folder: sizes of images by path, sidecars, the number of other files, and skipped folders."""

    images: dict[str, int | None] = field(default_factory=dict)
    texts: list[str] = field(default_factory=list)
    others: int = 0
    junk: list[str] = field(default_factory=list)

    def add(self, key: str, path: Path, rule: SidecarRule) -> None:
        """Adds a file by its path in the folder."""
        named = image_by_name(path.name)
        if named or (named is None and is_image(_head(path))):
            self.images[key] = file_size(path)
        elif rule.limit(path.name):
            self.texts.append(key)
        else:
            self.others += 1

    def described(self) -> int:
        """Returns the number of images with a sidecar."""
        stems = {stem_of(name) for name in self.texts}
        return sum(key in stems or stem_of(key) in stems for key in self.images)

    def notes(self) -> Iterator[str]:
        """Yields what was skipped."""
        names = {name for key in self.images for name in (stem_of(key), key)}
        others = self.others + sum(stem_of(name) not in names for name in self.texts)
        if others:
            yield f"files that are not images are skipped: {others}"
        if self.junk:
            yield f"folders of operating systems are skipped: {', '.join(sorted(set(self.junk)))}"


def _head(path: Path) -> bytes:
    """Returns the first bytes of a regular file; empty if it cannot be read. Raises OSError for a machine fault."""
    try:
        if not path.is_file():
            return b""
        with path.open("rb", buffering=0) as file:
            return file.read(HEAD_BYTES)
    except OSError as error:
        if error.errno not in FILE_ERRNOS:
            raise
        return b""


def _read_sidecar(path: Path, limit: int) -> tuple[bytes | None, str]:
    """Returns the content of a sidecar, and why it cannot be read. Raises OSError for a machine fault."""
    try:
        if not path.is_file():
            return None, "not a regular file"
        with path.open("rb") as file:
            content = file.read(limit + 1)
    except OSError as error:
        if error.errno not in FILE_ERRNOS:
            raise
        return None, str(error.strerror)
    return (content, "") if len(content) <= limit else (None, f"more than the {counted(limit, 'byte')} that are read")


def file_size(path: Path) -> int | None:
    """Returns the size of a file in bytes, or None if it cannot be read; encoding then rejects the file."""
    try:
        return path.stat().st_size
    except (OSError, ValueError):
        return None


def read_class_names(path: Path) -> dict[str, str]:
    """Reads a file of two columns, folder name and readable name, split at a comma, a tab or the first white space.

    Raises:
        LatentqError: A line has only one column; the message names the line.
    """
    names = {}
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError:
        raise LatentqError(f"{path} is not UTF-8 text") from None
    delimiter = {".csv": ",", ".tsv": "\t"}.get(path.suffix.lower()) or (
        "\t" if any("\t" in x for x in lines) else None
    )
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        cells = next(csv.reader([line], delimiter=delimiter)) if delimiter else line.split(maxsplit=1)
        if len(cells) < 2 or not cells[1].strip():
            raise LatentqError(f"{path}, line {number}: expected two columns, a folder name and a readable name")
        names[cells[0].strip()] = cells[1].strip()
    return names
