"""What columns are called by those who make tables, shards and data sets of images."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

IMAGE = ("jpg", "jpeg", "image", "img", "picture", "png", "webp", "image_bytes")
KEY = (
    "image_file", "path", "file", "file_name", "filename", "file_path", "filepath", "image", "image_path",
    "img_path", "image_name", "key", "id", "image_id",
)  # fmt: skip
LABEL = ("label", "class", "class_id", "label_id")
LABEL_TEXT = ("label_text", "label_as_text", "class_name", "label_name")
CAPTION = ("caption", "text", "prompt", "captions", "reference_strs")
ID = ("image_id", "id", "key")


def column_of(names: tuple[str, ...], columns: Collection[str]) -> str | None:
    """The first of the names that a column has."""
    return next((name for name in names if name in columns), None)


def caption_of(value: Any) -> str | None:
    """A caption as text: the first of several; None where there is none."""
    if isinstance(value, list | tuple):
        value = value[0] if value else None
    return value if isinstance(value, str) else None
