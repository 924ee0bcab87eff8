"""A folder of images as a source; its sub-folders are classes if every image is in one."""

from __future__ import annotations

import csv
import os
from dataclasses import dataclass
from pathlib import Path

from latentq._core import LatentqError, MismatchError
from latentq.sources.listing import Listing, Sample

EXTENSIONS = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff")
"""Extensions of the files that are listed as images; the decoder finds the format from the bytes."""


@dataclass(frozen=True)
class Folder:
    """The images of a folder and its sub-folders, in the order of their paths as bytes.

    Attributes:
        path: The folder.
        class_names: Readable names of class folders; any other folder keeps its own name.
        classes: Label and readable name of each class folder; None numbers the folders in sorted order, as
            torchvision's ImageFolder does.
        exclude: A folder to skip.
    """

    path: Path
    class_names: dict[str, str]
    classes: dict[str, tuple[int, str]] | None = None
    exclude: Path | None = None
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
        files, others = self._walk()
        if not files:
            ignored = f" (files without an image's extension: {others})" if others else ""
            raise LatentqError(f"{self.path} holds no images{ignored}")
        files.sort(key=lambda file: os.fsencode(file[0]))
        notes = [f"files without an image's extension are skipped: {others}"] if others else []
        outside = [key for key, _ in files if "/" not in key]
        if outside:
            if len(outside) < len(files):
                notes.append(f"no labels: {len(outside)} images are outside class folders, {outside[0]} first")
            return Listing(tuple(Sample(key, size) for key, size in files), (), tuple(notes))
        labels = self._labels()
        samples = []
        for key, size in files:
            folder = key.partition("/")[0]
            if folder not in labels:
                raise MismatchError(
                    f"{self.path} has a class folder {folder!r} that the dataset of --like does not have"
                )
            label, text = labels[folder]
            samples.append(Sample(key, size, label, self.class_names.get(folder, text)))
        return Listing(tuple(samples), ("label", "label_text"), tuple(notes))

    def _labels(self) -> dict[str, tuple[int, str]]:
        if self.classes is not None:
            return self.classes
        with os.scandir(self.path) as entries:
            folders = [entry.name for entry in entries if entry.is_dir() and self._wanted(Path(entry.path))]
        return {name: (number, name) for number, name in enumerate(sorted(folders, key=os.fsencode))}

    def _wanted(self, folder: Path) -> bool:
        """True if a folder is neither hidden (such as `.ipynb_checkpoints`) nor excluded."""
        hidden = folder.name.startswith(".")
        return not hidden and (self.exclude is None or folder.resolve() != self.exclude.resolve())

    def _walk(self) -> tuple[list[tuple[str, int | None]], int]:
        """The keys and sizes of the images, and the number of other files."""

        def refuse(error: OSError) -> None:
            raise error

        files: list[tuple[str, int | None]] = []
        others = 0
        seen = set()
        for folder, folders, names in os.walk(self.path, onerror=refuse, followlinks=True):
            status = Path(folder).stat()
            if (status.st_dev, status.st_ino) in seen:  # a link to a folder already walked
                folders.clear()
                continue
            seen.add((status.st_dev, status.st_ino))
            folders[:] = [name for name in folders if self._wanted(Path(folder, name))]
            relative = os.path.relpath(folder, self.path).replace(os.sep, "/")
            prefix = "" if relative == "." else relative + "/"
            for name in names:
                if name.lower().endswith(EXTENSIONS) and not name.startswith(
                    "._"
                ):  # macOS puts `._x.jpg` next to `x.jpg`
                    files.append((prefix + name, file_size(Path(folder, name))))
                else:
                    others += 1
        return files, others


def file_size(path: Path) -> int | None:
    """The size of a file in bytes, or None if it cannot be read; encoding then rejects the file."""
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
