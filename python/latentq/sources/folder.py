"""A folder of images as a source; its subfolders are classes if every image is in one."""

from __future__ import annotations

import csv
import errno
import itertools
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TextIO

from latentq._core import LatentqError
from latentq.sources.columns import NamedColumns, caption_facts
from latentq.sources.file_dict import FileDict
from latentq.sources.kinds import HEAD_BYTES, image_by_name, is_image, is_junk_folder
from latentq.sources.label_values import Classes, numbered_classes
from latentq.sources.listing import Listing, Sample
from latentq.sources.member import Reads, size_fault
from latentq.sources.sidecars import NO_CAPTION, SidecarRule, Sidecars, stem_of
from latentq.sources.spool import spooled
from latentq.store.files import CONNECTIONS, File, StoredFolder
from latentq.store.objects import StoredObject
from latentq.system.faults import is_file_fault
from latentq.system.progress import counting_progress
from latentq.system.text import counted
from latentq.system.threads import in_order


@dataclass(frozen=True)
class Folder:
    """The images of a folder and its subfolders, in the order of their paths as bytes.

    Files are images by their names, or by their bytes if the name does not tell.

    Attributes:
        path: The folder, or the prefix on a store that stands for one.
        class_names: Readable names of class folders; any other folder keeps its own name.
        classes: Label and readable name of each class folder; None numbers the folders that hold images in sorted
            order, as torchvision's ImageFolder does.
        exclude: A folder to skip, or its URL.
        columns: The columns that the user names; `caption` is parsed by `SidecarRule.parse`.
        progress: The stream for progress, if listing takes long; None prints nothing.
    """

    path: Path | StoredFolder
    class_names: dict[str, str]
    classes: Classes | None = None
    exclude: Path | str | None = None
    columns: NamedColumns = field(default_factory=NamedColumns)
    progress: TextIO | None = None
    kind: str = "folder"

    @property
    def connections(self) -> int:
        """See `Source.data`."""
        return 0 if isinstance(self.path, Path) else CONNECTIONS

    def data(self, sample: Sample) -> bytes | Path:
        """Returns the path of a sample's file; from a store its bytes.

        Raises:
            MismatchError: The object is not the one that was listed.
            OSError: It cannot be read.
        """
        if isinstance(self.path, Path):
            return self.path / sample.key
        return read_object(self.path.read, sample)

    def deferred(self, sample: Sample) -> Callable[[], bytes] | None:
        """Returns a function that reads a sample from a store; None if it is a file of its own."""
        return None if isinstance(self.path, Path) else partial(read_object, self.path.read, sample)

    def listing(self) -> Listing:
        """Walks the folder, following links. The names in one folder of each depth are known at once.

        The samples raise OSError if a folder cannot be read, LatentqError if there is no image, and MismatchError if a
        class folder is not in `classes`.
        """
        notes: list[str] = []
        return Listing(self._samples(notes), notes)

    def _samples(self, notes: list[str]) -> Iterator[Sample]:
        rule, captioned = SidecarRule.parse(self.columns.caption), self.columns.caption is not None
        walk: _FolderWalk | _StoreWalk
        if isinstance(self.path, Path):
            walk = _FolderWalk(rule, captioned, self.path, None if self.exclude is None else Path(self.exclude))
        else:
            walk = _StoreWalk(rule, captioned, self.path, None if self.exclude is None else str(self.exclude))
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
    """A walk through a folder and its subfolders.

    Attributes:
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

    rule: SidecarRule
    captioned: bool
    images: int = field(default=0, init=False)
    others: int = field(default=0, init=False)
    lone_texts: int = field(default=0, init=False)
    described: int = field(default=0, init=False)
    outside: int = field(default=0, init=False)
    first_outside: str = field(default="", init=False)
    junk: set[str] = field(default_factory=set, init=False)

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

    def _count_image(self, name: str, *, is_outside: bool) -> None:
        self.images += 1
        if is_outside:
            self.outside += 1
            self.first_outside = min(self.first_outside or name, name, key=os.fsencode)

    def _count_texts(self, names: FileDict[None], texts: FileDict[tuple[str, ...]]) -> None:
        """Counts images with sidecars, and sidecars without an image, given the names of both."""
        wanted: FileDict[None] = FileDict()
        for name in names.sorted_keys():
            if name[-1] != "/":
                wanted[name] = wanted[stem_of(name)] = None
                self.described += name in texts or stem_of(name) in texts
        self.lone_texts += sum(len(group) for group in texts.values() if stem_of(group[0]) not in wanted)

    def _captioned(
        self,
        sample: Sample,
        texts: Iterable[str],
        read: Callable[[str, int], tuple[bytes | None, str]],
    ) -> Sample:
        """Returns a sample with captions from its sidecars; without one, its `fault` is `NO_CAPTION`.

        Args:
            sample: The sample.
            texts: The keys of the sidecars.
            read: Returns the content of a sidecar of a limited size, and why it cannot be read.
        """
        sidecars = Sidecars(self.rule)
        for text in sorted(texts, key=os.fsencode):
            sidecars.add(text, *read(text, self.rule.limit(text)))
        caption = sidecars.caption_of(sample.key)
        if caption is None:
            return sample._replace(fault=NO_CAPTION)
        return sample._replace(**caption_facts(caption.captions), fault=caption.fault)


@dataclass
class _FolderWalk(_Walk):
    """A walk on this machine, depth first, in the order of the keys as bytes.

    Attributes:
        root: The folder.
        exclude: A folder to skip.
    """

    root: Path
    exclude: Path | None
    _seen: FileDict[None] = field(default_factory=FileDict, init=False)

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
                yield self._described(Sample(key, size), folder, name) if self.captioned else Sample(key, size)
            else:
                pending.pop()

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
                    self._count_image(name, is_outside=not prefix)
                elif self.rule.limit(name):
                    texts[stem_of(name)] = (*(texts.get(stem_of(name)) or ()), name)
                else:
                    self.others += 1
        if texts:
            self._count_texts(names, texts)
        return _OpenFolder(prefix, names.sorted_keys(), texts)

    def _is_wanted(self, folder: os.DirEntry[str]) -> bool:
        """True if a folder is neither hidden (such as `.ipynb_checkpoints`) nor excluded."""
        if folder.name.startswith("."):
            return False
        return self._excluded is None or Path(folder.path).resolve() != self._excluded

    def _described(self, sample: Sample, folder: _OpenFolder, name: str) -> Sample:
        texts = [folder.prefix + text for stem in {stem_of(name), name} for text in folder.texts.get(stem) or ()]
        return self._captioned(sample, texts, lambda text, limit: _read_sidecar(self.root / text, limit))


@dataclass
class _StoreWalk(_Walk):
    """A walk through the objects below a prefix, in the order of their keys as bytes.

    Attributes:
        root: The prefix.
        exclude: The URL of a prefix to skip.
    """

    root: StoredFolder
    exclude: str | None

    def samples(self) -> Iterator[Sample]:
        """Yields every image, without labels, once all objects are listed.

        Raises:
            OSError: The store cannot be read.
        """
        sizes: FileDict[int] = FileDict()
        images: FileDict[None] = FileDict()
        texts: FileDict[tuple[str, ...]] = FileDict()
        objects = filter(self._is_wanted, self.root.objects())
        for entry, is_picture in in_order(self._with_kind, objects, CONNECTIONS):
            if is_picture:
                images[entry.name] = None
                self._count_image(entry.name, is_outside="/" not in entry.name)
            elif self.rule.limit(entry.name):
                texts[stem_of(entry.name)] = (*(texts.get(stem_of(entry.name)) or ()), entry.name)
            else:
                self.others += 1
                continue
            sizes[entry.name] = entry.size
        if texts:
            self._count_texts(images, texts)
        samples = (Sample(key, sizes.get(key)) for key in images.sorted_keys())
        if not self.captioned:
            yield from samples
            return

        def described(wanted: tuple[Sample, Sequence[tuple[str, int]]]) -> Sample:
            sample, found = wanted
            size_of_text = dict(found)

            def read(text: str, limit: int) -> tuple[bytes | None, str]:
                size = size_of_text[text]
                return (self.root.read(text, size), "") if size <= limit else (None, _too_long(limit))

            return self._captioned(sample, size_of_text, read)

        def with_texts() -> Iterator[tuple[Sample, Sequence[tuple[str, int]]]]:
            for sample in samples:
                names = [text for stem in {stem_of(sample.key), sample.key} for text in texts.get(stem) or ()]
                yield sample, [(name, sizes.get(name) or 0) for name in names]

        yield from in_order(described, with_texts(), CONNECTIONS)

    def _is_wanted(self, entry: StoredObject) -> bool:
        """True if an object is in no folder that is hidden, excluded, or an operating system's."""
        *folders, _ = entry.name.split("/")
        for folder in folders:
            if is_junk_folder(folder):
                self.junk.add(folder)
                return False
            if folder.startswith("."):
                return False
        return self.exclude is None or not f"{self.root}/{entry.name}".startswith(f"{self.exclude}/")

    def _with_kind(self, entry: StoredObject) -> tuple[StoredObject, bool]:
        """Returns an object, and True if it is an image."""
        named = image_by_name(entry.name.rpartition("/")[2])
        if named is None and entry.size:
            named = is_image(self.root.file(entry).read(0, min(HEAD_BYTES, entry.size)))
        return entry, bool(named)


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
        if not is_file_fault(error):
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
        if not is_file_fault(error):
            raise
        return None, str(error.strerror)
    return (content, "") if len(content) <= limit else (None, _too_long(limit))


def _too_long(limit: int) -> str:
    return f"more than the {counted(limit, 'byte')} that are read"


def read_object(read: Callable[[str, int], bytes], sample: Sample) -> bytes:
    """Returns the bytes of an object that is a sample's image.

    Args:
        read: Returns the bytes of the object of a key that has a size.
        sample: The sample.

    Raises:
        MismatchError: The object is not the one that was listed.
        LatentqError: There was none, or it is too large to be an image.
        OSError: It cannot be read.
    """
    if sample.bytes is None:
        raise LatentqError(os.strerror(errno.ENOENT))
    if fault := size_fault(sample.bytes, Reads()):
        raise LatentqError(fault)
    return read(sample.key, sample.bytes)


def file_size(path: Path) -> int | None:
    """Returns the size of a file in bytes, or None if it cannot be read; encoding then rejects the file."""
    try:
        return path.stat().st_size
    except (OSError, ValueError):
        return None


def read_class_names(path: File) -> dict[str, str]:
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
