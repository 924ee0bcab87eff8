"""A folder of images as a source; its subfolders are classes if every image is in one."""

from __future__ import annotations

import csv
import itertools
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TextIO

from latentq._core import LatentqError
from latentq.sources.columns import NamedColumns, caption_facts
from latentq.sources.file_dict import FileDict
from latentq.sources.kinds import HEAD_BYTES, image_by_name, is_image, is_junk_folder
from latentq.sources.label_values import Classes, numbered_classes
from latentq.sources.listing import Listing, Sample
from latentq.sources.sidecars import NO_CAPTION, SidecarRule, Sidecars, stem_of
from latentq.sources.spool import spooled
from latentq.system.faults import FILE_ERRNOS
from latentq.system.progress import counting_progress
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
        progress: The stream for progress, if listing takes long; None prints nothing.
    """

    path: Path
    class_names: dict[str, str]
    classes: Classes | None = None
    exclude: Path | None = None
    columns: NamedColumns = field(default_factory=NamedColumns)
    progress: TextIO | None = None
    kind: str = "folder"

    def data(self, sample: Sample) -> Path:
        """Returns the path of a sample's file."""
        return self.path / sample.key

    def listing(self) -> Listing:
        """Walks the folder, following links. The names in one folder of each depth are known at once.

        The samples raise OSError if a folder cannot be read, LatentqError if there is no image, and MismatchError if a
        class folder is not in `classes`.
        """
        notes: list[str] = []
        return Listing(self._samples(notes), notes)

    def _samples(self, notes: list[str]) -> Iterator[Sample]:
        walk = _Walk(self.path, self.exclude, SidecarRule.parse(self.columns.caption), self.columns.caption is not None)
        samples = counting_progress(walk.samples(), self.progress)
        if (first := next(samples, None)) is None:
            ignored = f" (files that are not images: {walk.others})" if walk.others else ""
            raise LatentqError(f"{self.path} holds no images{ignored}")
        samples = itertools.chain([first], samples)
        # The walk knows the images outside class folders from its start.
        yield from samples if walk.outside else self._with_labels(samples)
        notes += walk.notes()

    def _with_labels(self, samples: Iterable[Sample]) -> Iterator[Sample]:
        """Yields the samples labeled by their class folders, once all are taken: any folder may be empty."""
        folders: set[str] = set()

        def listed() -> Iterator[Sample]:
            for sample in samples:
                folders.add(sample.key.partition("/")[0])
                yield sample

        classes: Classes = {}
        for key, size, _, _, *facts in spooled(listed()):
            classes = classes or self._numbered(folders)
            label, text = classes[key.partition("/")[0]]
            yield Sample(key, size, label, text, *facts)

    def _numbered(self, folders: set[str]) -> Classes:
        """Returns the label and readable name of each class folder."""
        present = sorted(folders, key=os.fsencode)
        classes = numbered_classes(self.path, present, self.classes)
        return {name: (classes[name][0], self.class_names.get(name, classes[name][1])) for name in present}


@dataclass
class _Walk:
    """A walk through a folder and its subfolders, depth first, in the order of the keys as bytes.

    Attributes:
        root: The folder.
        exclude: A folder to skip.
        rule: Which files are sidecars.
        captioned: True if the captions in sidecars are read.
        images: The number of images so far.
        others: The number of other files so far, without sidecars.
        lone_texts: The number of sidecars of no image so far.
        described: The number of images with a sidecar so far.
        outside: The number of images that are in no subfolder, all of which are counted before the first is yielded.
        first_outside: The first of them.
        junk: The names of skipped folders of operating systems.
    """

    root: Path
    exclude: Path | None
    rule: SidecarRule
    captioned: bool
    images: int = 0
    others: int = 0
    lone_texts: int = 0
    described: int = 0
    outside: int = 0
    first_outside: str = ""
    junk: set[str] = field(default_factory=set)
    _seen: FileDict[None] = field(default_factory=FileDict)

    def __post_init__(self) -> None:
        self._root = os.fspath(self.root)
        self._excluded = None if self.exclude is None else self.exclude.resolve()

    def samples(self) -> Iterator[Sample]:
        """Yields every image, without labels.

        Raises:
            OSError: A folder cannot be read.
        """
        pending = [self._open("")]
        while pending:
            folder = pending[-1]
            for name in folder.names:
                key = folder.prefix + name
                if name[-1] == "/":
                    pending.append(self._open(key))
                    break
                try:
                    size = os.stat(f"{self._root}/{key}").st_size  # noqa: PTH116  (a Path is slow)
                except (OSError, ValueError):
                    size = None
                yield self._captioned(Sample(key, size), folder, name) if self.captioned else Sample(key, size)
            else:
                pending.pop()

    def notes(self) -> Iterator[str]:
        """Yields what was skipped, and why there are no labels or captions."""
        if self.others + self.lone_texts:
            yield f"files that are not images are skipped: {self.others + self.lone_texts}"
        if self.junk:
            yield f"folders of operating systems are skipped: {', '.join(sorted(self.junk))}"
        if 0 < self.outside < self.images:
            yield f"no labels: {counted(self.outside, 'image')} outside class folders, {self.first_outside} first"
        if self.described and not self.captioned:
            yield f"images with a .txt of the same name: {self.described}; --captions txt takes those as captions"

    def _open(self, prefix: str) -> _OpenFolder:
        """Takes the names in a folder, whose path from the root is `prefix` with a `/` behind each name."""
        path = f"{self._root}/{prefix[:-1]}" if prefix else self._root
        status = os.stat(path)  # noqa: PTH116  (a Path is slow)
        identity = f"{status.st_dev}:{status.st_ino}"
        if identity in self._seen:  # a link to a folder already walked
            return _OpenFolder(prefix, iter(()))
        self._seen[identity] = None
        names: FileDict[None] = FileDict()
        texts: FileDict[tuple[str, ...]] = FileDict()
        with os.scandir(path) as entries:
            for entry in entries:
                name = entry.name
                if _is_folder(entry):
                    if is_junk_folder(name):
                        self.junk.add(name)
                    elif self._is_wanted(entry):
                        names[f"{name}/"] = None
                elif (named := image_by_name(name)) or (named is None and is_image(_head(Path(entry.path)))):
                    names[name] = None
                    self.images += 1
                    if not prefix:
                        self.outside += 1
                        self.first_outside = min(self.first_outside or name, name, key=os.fsencode)
                elif self.rule.limit(name):
                    texts[stem_of(name)] = (*(texts.get(stem_of(name)) or ()), name)
                else:
                    self.others += 1
        if texts:
            self._count_texts(names, texts)
        return _OpenFolder(prefix, names.sorted_keys(), texts)

    def _count_texts(self, names: FileDict[None], texts: FileDict[tuple[str, ...]]) -> None:
        wanted: FileDict[None] = FileDict()
        for name in names.sorted_keys():
            if name[-1] != "/":
                wanted[name] = wanted[stem_of(name)] = None
                self.described += name in texts or stem_of(name) in texts
        self.lone_texts += sum(len(group) for group in texts.values() if stem_of(group[0]) not in wanted)

    def _is_wanted(self, folder: os.DirEntry[str]) -> bool:
        """True if a folder is neither hidden (such as `.ipynb_checkpoints`) nor excluded."""
        if folder.name.startswith("."):
            return False
        return self._excluded is None or Path(folder.path).resolve() != self._excluded

    def _captioned(self, sample: Sample, folder: _OpenFolder, name: str) -> Sample:
        """Returns a sample with captions from its sidecars; without one, its `fault` is `NO_CAPTION`."""
        sidecars = Sidecars(self.rule)
        for stem in {stem_of(name), name}:
            for text in sorted(folder.texts.get(stem) or (), key=os.fsencode):
                path = folder.prefix + text
                sidecars.add(path, *_read_sidecar(self.root / path, self.rule.limit(text)))
        caption = sidecars.caption_of(sample.key)
        if caption is None:
            return sample._replace(fault=NO_CAPTION)
        return sample._replace(**caption_facts(caption.captions), fault=caption.fault)


@dataclass(frozen=True)
class _OpenFolder:
    """A folder in the course of a walk.

    Attributes:
        prefix: Its path from the root, with a `/` behind each name.
        names: The images and the folders that are still to come, in order; those of folders end with `/`.
        texts: The names of its sidecars, by their names without the extension.
    """

    prefix: str
    names: Iterator[str]
    texts: FileDict[tuple[str, ...]] = field(default_factory=FileDict)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    """True for a folder, or a link to one."""
    try:
        return entry.is_dir()
    except OSError:
        return False


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
