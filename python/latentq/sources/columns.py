"""What columns are called by those who make tables, shards and data sets of images."""

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


_HALF = re.compile("[\ud800-\udfff]")  # as JSON may escape it; no file can hold it as UTF-8


def column_of(names: tuple[str, ...], columns: Collection[str]) -> str | None:
    """The first of the names that a column has."""
    return next((name for name in names if name in columns), None)


def captions_of(value: Any) -> tuple[str, ...]:
    """The captions in a cell: one, or a list of several; an empty one is none, nor is half a surrogate pair."""
    values = value if isinstance(value, list | tuple) else (value,)
    return tuple(text for text in values if isinstance(text, str) and text and not _HALF.search(text))


def caption_facts(captions: tuple[str, ...]) -> dict[str, Any]:
    """What a sample keeps of its captions: the first, and all where there are several."""
    return {"caption": captions[0] if captions else None, "captions": captions if len(captions) > 1 else None}


def several(samples: Iterable[Sample]) -> tuple[str, ...]:
    """The field for several captions, where a sample has them."""
    return ("captions",) if any(sample.captions for sample in samples) else ()
