"""The usual names of columns in tables, shards and data sets of images, and the captions in a cell."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from latentq.sources.listing import Sample

IMAGE = ("jpg", "jpeg", "image", "img", "picture", "png", "webp", "image_bytes")
KEY = (
    "image_file", "path", "file", "file_name", "filename", "file_path", "filepath", "image", "image_path",
    "img_path", "image_name", "key", "id", "image_id",
)  # fmt: skip
LABEL = ("label", "class", "class_id", "label_id")
LABEL_TEXT = ("label_text", "label_as_text", "class_name", "label_name")
CAPTION = ("caption", "text", "prompt", "captions", "reference_strs")
ID = ("image_id", "id", "key")
_LONE_SURROGATE = re.compile("[\ud800-\udfff]")  # JSON can escape one; UTF-8 cannot encode it


def column_of(names: tuple[str, ...], columns: Collection[str]) -> str | None:
    """The first of `names` that is a column, or None."""
    return next((name for name in names if name in columns), None)


def captions_in(cell: object) -> tuple[str, ...]:
    """The captions in a cell: a text or a list of texts, without empty texts and those with a lone surrogate."""
    values = cell if isinstance(cell, list | tuple) else (cell,)
    return tuple(text for text in values if isinstance(text, str) and text and not _LONE_SURROGATE.search(text))


def caption_facts(captions: tuple[str, ...]) -> dict[str, Any]:
    """The fields `caption` (the first) and `captions` (all, if there are several) of a sample."""
    return {"caption": captions[0] if captions else None, "captions": captions if len(captions) > 1 else None}


def captions_field(samples: Iterable[Sample]) -> tuple[str, ...]:
    """The listing field `captions`, if any sample has several; otherwise no field."""
    return ("captions",) if any(sample.captions for sample in samples) else ()
