"""The columns of tables, shards and datasets of images: their usual names, and how one is chosen."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from latentq._core import LatentqError

IMAGE = ("jpg", "jpeg", "image", "img", "picture", "png", "webp", "image_bytes")
KEY = (
    "image_file", "path", "file", "file_name", "filename", "file_path", "filepath", "image", "image_path",
    "img_path", "image_name", "key", "id", "image_id",
)  # fmt: skip
LABEL = ("label", "class", "class_id", "label_id", "cls")
LABEL_TEXT = ("label_text", "label_as_text", "class_name", "label_name")
CAPTION = ("caption", "text", "prompt", "captions", "reference_strs", "txt")
ID = ("image_id", "id", "key", "__key__")
_LIKELY = (
    ("label", "label|class|category", "encode --label-column"),
    ("caption", "caption|prompt|description|text", "--captions"),
)
_MOST_NAMED = 5
_LONE_SURROGATE = re.compile("[\ud800-\udfff]")  # JSON can escape one; UTF-8 cannot encode it


@dataclass(frozen=True)
class NamedColumns:
    """The columns that a user names; None looks for a usual name.

    Attributes:
        image: The column of images; in archives the field of WebDataset, such as `image` in `0001.image.png`.
        label: The column of labels.
        caption: The column of captions; in archives and folders `txt`, `json` or `json:FIELD`.
    """

    image: str | None = None
    label: str | None = None
    caption: str | None = None

    def find(self, source: object, columns: Sequence[str], texts: Collection[str]) -> dict[str, str]:
        """Finds the columns of facts by field of `Sample`.

        Args:
            source: The source, for messages.
            columns: The names of all columns.
            texts: The names of the columns that hold texts.

        Raises:
            LatentqError: A named column does not exist.
        """
        found = {
            "label": named_column(source, self.label, columns, "labels") or column_of(LABEL, columns),
            "label_text": column_of(LABEL_TEXT, columns),
            "caption": named_column(source, self.caption, columns, "captions") or caption_column(columns, texts),
            "id": column_of(ID, columns),
        }
        return {field: column for field, column in found.items() if column is not None}

    def find_image(self, source: object, columns: Iterable[str], candidates: Sequence[str]) -> str:
        """Finds the column of images: the named one, one with a usual name, or the only likely candidate.

        Args:
            source: The source, for messages.
            columns: The names of all columns.
            candidates: The names of the columns that may hold images.

        Raises:
            LatentqError: There is no candidate, the named column is not one, or several have unusual names.
        """
        if not candidates:
            raise LatentqError(f"{source} has no column of images: it has {', '.join(columns)}")
        if self.image is not None:
            return named_column(source, self.image, candidates, "images") or ""
        if (known := column_of(IMAGE, candidates)) is not None:
            return known
        likely = [column for column in candidates if re.search("image|img|picture|photo", column, re.IGNORECASE)]
        if len(candidates) == 1 or len(likely) == 1:
            return (likely or candidates)[0]
        raise LatentqError(
            f"{source} has several columns of images ({', '.join(candidates)}): choose by --image-column"
        )


def column_of(names: tuple[str, ...], columns: Iterable[str]) -> str | None:
    """Returns the column with the first of these names, in any case; None if there is none."""
    by_name: dict[str, str] = {}
    for column in columns:
        by_name.setdefault(column.strip().lower(), column)
    return next((by_name[name] for name in names if name in by_name), None)


def caption_column(columns: Iterable[str], texts: Collection[str]) -> str | None:
    """Returns the column of captions: the first of texts with a usual name, or whose name begins with `caption`."""
    candidates = [column for column in columns if column in texts]
    return column_of(CAPTION, candidates) or next((c for c in candidates if c.lower().startswith("caption")), None)


def named_column(source: object, name: str | None, columns: Iterable[str], content: str) -> str | None:
    """Returns the column that a user named, or None without a name. Raises LatentqError if there is no such column.

    Args:
        source: The source's path or name, for the message.
        name: The column that the user named.
        columns: The names of all columns.
        content: The plural of what the column holds, for the message.
    """
    columns = list(columns)
    if name is not None and name not in columns:
        raise LatentqError(f"{source} has no column {name!r} of {content}: it has {', '.join(columns)}")
    return name


def columns_note(image: str, columns: Mapping[str, str], all_columns: Iterable[str]) -> str:
    """Returns the note that says which columns are taken, and where labels and captions may be if there are none.

    Args:
        image: The column of images.
        columns: The columns that are taken, by field of `Sample`.
        all_columns: The names of all columns.
    """
    names = {"caption": "captions", "label": "labels", "label_text": "names of labels"}
    parts = [f"images from {image!r}", *(f"{names[f]} from {column!r}" for f, column in columns.items() if f in names)]
    note = f"columns: {', '.join(parts)}"
    free = [column for column in all_columns if column != image and column not in columns.values()]
    for field, pattern, option in _LIKELY:
        likely = [repr(column) for column in free if re.search(pattern, column, re.IGNORECASE)][:_MOST_NAMED]
        if field not in columns and likely:
            note += f"; {names[field]} may be in {', '.join(likely)}: {option} NAME takes one"
    return note


def captions_in(cell: object) -> tuple[str, ...]:
    """Returns the captions in a cell: a text or a list of texts, stripped of white space.

    Blank texts and texts with a lone surrogate are not captions.
    """
    if hasattr(cell, "tolist"):
        cell = cell.tolist()
    values = cell if isinstance(cell, list | tuple) else (cell,)
    texts = (value.strip() for value in values if isinstance(value, str))
    return tuple(text for text in texts if text and not _LONE_SURROGATE.search(text))


def caption_facts(captions: tuple[str, ...]) -> dict[str, Any]:
    """Returns the fields `caption` (the first) and `captions` (all, if there are several) of a sample."""
    return {"caption": captions[0] if captions else None, "captions": captions if len(captions) > 1 else None}
