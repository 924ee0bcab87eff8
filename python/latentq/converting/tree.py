"""The files below a folder, as a stream in the order of their relative paths."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from latentq._core import FormatError


def walk(root: Path, suffix: str, prefix: str = "") -> Iterator[str]:
    """Yields the relative paths, with `/`, of the files with a suffix, compared as bytes. Hidden ones are skipped.

    Only the names in one folder, and in those around it, are in memory.

    Args:
        root: The folder.
        suffix: The suffix, in lower case.
        prefix: Put before every path.

    Raises:
        FormatError: A name is not UTF-8.
        OSError: A folder cannot be listed.
    """
    with os.scandir(root) as entries:
        names = sorted(
            (entry.name + "/" if entry.is_dir() else entry.name for entry in entries if not entry.name.startswith(".")),
            key=os.fsencode,
        )
    for name in names:
        if name.endswith("/"):
            yield from walk(root / name, suffix, prefix + name)
        elif name.lower().endswith(suffix):
            try:
                name.encode()
            except UnicodeEncodeError:
                raise FormatError(f"{root / name}: the name is not UTF-8") from None
            yield prefix + name


def first_file(root: Path, suffix: str, *, depth: int = 3) -> Path | None:
    """Returns a file with a suffix that is at most `depth` folders below a folder, or None.

    Only the first folder of each level is looked into, so that this is fast in folders of millions of files.

    Args:
        root: The folder.
        suffix: The suffix, in lower case.
        depth: How many levels are searched.
    """
    folders = []
    with os.scandir(root) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if entry.is_dir():
                folders.append(entry.path)
            elif entry.name.lower().endswith(suffix):
                return Path(entry.path)
    for folder in sorted(folders)[:8] if depth > 1 else ():
        found = first_file(Path(folder), suffix, depth=depth - 1)
        if found is not None:
            return found
    return None


def class_folders(root: Path) -> list[str]:
    """Returns the names of the folders in a folder, in the order in which torchvision's ImageFolder numbers classes."""
    with os.scandir(root) as entries:
        return sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith("."))


def integer_files(folder: Path, suffix: str) -> list[int]:
    """Returns the numbers of the files `0.npy`, `1.npy` and so on in a folder, sorted.

    Args:
        folder: The folder.
        suffix: The suffix, such as `.npy`.
    """
    numbers = []
    with os.scandir(folder) as entries:
        for entry in entries:
            stem = entry.name.removesuffix(suffix)
            if stem != entry.name and stem.isdecimal() and stem.isascii() and str(int(stem)) == stem:
                numbers.append(int(stem))
    return sorted(numbers)
