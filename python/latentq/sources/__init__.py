"""Sources: ordered collections of samples, each a key, the bytes of an image, and perhaps a label and a caption."""

from __future__ import annotations

import os
from pathlib import Path

from latentq._core import LatentqError
from latentq.sources.listing import Listing, Sample, Source

__all__ = ["Listing", "Sample", "Source", "open_source"]


def open_source(
    path: str | os.PathLike[str],
    *,
    class_names: str | os.PathLike[str] | None = None,
    classes: dict[str, tuple[int, str]] | None = None,
    exclude: str | os.PathLike[str] | None = None,
) -> Source:
    """The source at a path: a folder of images, or a CSV or TSV table of image paths.

    Args:
        path: A folder or a table.
        class_names: For a folder: a file of two columns, folder name and readable name.
        classes: Label and readable name of each class, by the name of its folder or in a table, instead of numbering
            names in their order.
        exclude: For a folder: a folder inside it that is left out (the output, say).

    Raises:
        FileNotFoundError: There is nothing at the path.
        LatentqError: It is neither a folder nor a table.
    """
    from latentq.sources.folder import Folder, read_class_names
    from latentq.sources.table import DELIMITERS, Table

    path = Path(path)
    if path.is_dir():
        names = read_class_names(Path(class_names)) if class_names is not None else {}
        return Folder(path, names, classes, Path(exclude) if exclude is not None else None)
    path.stat()  # FileNotFoundError, PermissionError
    if path.suffix.lower() not in DELIMITERS:
        known = ", ".join(DELIMITERS)
        raise LatentqError(f"{path} is neither a folder of images nor a table ({known})")
    if class_names is not None:
        raise LatentqError(f"class names are for a folder of class folders; {path} is a table with its own columns")
    return Table(path, classes)
