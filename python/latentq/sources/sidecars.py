"""Sidecars: members or files with the caption or label of the image next to them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from latentq._core import LatentqError
from latentq.sources.columns import CAPTION, captions_in, column_of
from latentq.sources.file_dict import FileDict

MAX_TEXT_BYTES, MAX_JSON_BYTES = 1 << 16, 1 << 20
NO_CAPTION = "no caption"
NO_IMAGE = "no image for this caption"
_TEXTS = ("txt", "text", "caption")
_JSON, _LABEL = "json", "cls"
_LIMITS = {
    "txt": dict.fromkeys((*_TEXTS, _LABEL), MAX_TEXT_BYTES),
    _JSON: {_JSON: MAX_JSON_BYTES, _LABEL: MAX_TEXT_BYTES},
}


@dataclass(frozen=True)
class SidecarRule:
    """The rule for which files next to images contain their captions.

    Attributes:
        extension: `txt` or `json`.
        json_field: The field of the JSON; None looks for a usual name.
    """

    extension: str = "txt"
    json_field: str | None = None

    @classmethod
    def parse(cls, captions: str | None) -> SidecarRule:
        """Parses `txt`, `json` or `json:FIELD`; None is `txt`.

        Raises:
            LatentqError: `captions` is none of these.
        """
        extension, _, json_field = (captions or "txt").partition(":")
        if extension not in ("txt", _JSON) or (json_field and extension != _JSON):
            raise LatentqError(
                f"captions {captions!r}: neither a file, nor txt, json or json:FIELD for members next to each image"
            )
        return cls(extension, json_field or None)

    def limit(self, name: str) -> int:
        """Returns the number of bytes of a file to read as a sidecar; 0 if the file is not a sidecar."""
        return _LIMITS[self.extension].get(name.rpartition(".")[2].lower(), 0)


class Caption(NamedTuple):
    """The captions in a sidecar.

    Attributes:
        name: The sidecar's name.
        captions: The captions.
        fault: Why there is none, or empty.
    """

    name: str
    captions: tuple[str, ...] = ()
    fault: str = ""


@dataclass
class Sidecars:
    """The sidecars of an archive or folder, found by the names of images.

    A sidecar belongs to the image of the same name without the last extension, or, if that image has no other, to the
    image whose whole name it extends, as in `0001.png.txt`. With `webdataset`, names may also end at their first dot:
    `0001.image.png` has `0001.txt` or `0001.caption.txt`. A `.txt` comes before a `.text` and a `.caption`.

    Attributes:
        rule: Which files hold captions.
        webdataset: True if names may end at their first dot.
    """

    rule: SidecarRule
    webdataset: bool = False
    _by_stem: FileDict[tuple[Any, ...]] = field(default_factory=FileDict)  # the fields of a `Caption`
    _by_key: FileDict[dict[str, str]] = field(default_factory=FileDict)  # stems by WebDataset's field, or ""
    _labels: FileDict[str] = field(default_factory=FileDict)
    _used: FileDict[None] = field(default_factory=FileDict)
    _keys: FileDict[None] = field(default_factory=FileDict)  # of the images that were asked for

    def add(self, name: str, content: bytes | None, fault: str) -> None:
        """Adds a sidecar.

        Args:
            name: The path of the sidecar.
            content: The bytes, or None if they cannot be read.
            fault: Why they cannot be read, or empty.
        """
        key, sidecar_field = webdataset_key(name)
        if sidecar_field.rpartition(".")[2] == _LABEL:
            if content is not None:
                label = content.decode("utf-8", "replace").strip()
                for stem in (stem_of(name), *((key,) if self.webdataset else ())):
                    if stem not in self._labels:
                        self._labels[stem] = label
            return
        caption = self._caption(name, content, fault)
        stem = stem_of(name)
        other = self._by_stem.get(stem)
        if other is None or _rank(name) < _rank(other[0]):
            self._by_stem[stem] = tuple(caption)
        fields = sidecar_field.split(".")
        if self.webdataset and (len(fields) == 1 or (len(fields) == 2 and fields[0] in CAPTION)):
            caption_field = fields[0] if len(fields) == 2 else ""
            stems = self._by_key.get(key) or {}
            other = self._by_stem.get(stems.get(caption_field, ""))
            if other is None or _rank(name) < _rank(other[0]):
                self._by_key[key] = stems | {caption_field: stem}

    def caption_of(self, image: str) -> Caption | None:
        """Returns the caption of an image by its path, or None."""
        if not self._by_stem:
            return None
        caption = self._by_stem.get(stem_of(image))
        if self._by_key:
            key, _ = webdataset_key(image)
            self._keys[key] = None
            if caption is None:
                stems = self._by_key.get(key) or {}
                stem = next((stems[name] for name in ("", *CAPTION) if name in stems), None)
                caption = None if stem is None else self._by_stem.get(stem)
        if caption is None:
            caption = self._by_stem.get(image)
        if caption is None:
            return None
        self._used[caption[0]] = None
        return Caption(*caption)

    def label_of(self, image: str) -> str | None:
        """Returns the label of an image by its path, or None."""
        if not self._labels:
            return None
        label = self._labels.get(stem_of(image))
        return self._labels.get(webdataset_key(image)[0]) if label is None else label

    def without_image(self) -> Iterator[str]:
        """Yields the names of captions whose image has not been asked for."""
        for name, *_ in self._by_stem.values():
            if name in self._used:
                continue
            key, _ = webdataset_key(name)
            if key not in self._keys or stem_of(name) not in (self._by_key.get(key) or {}).values():
                yield name

    def _caption(self, name: str, content: bytes | None, fault: str) -> Caption:
        if content is None:
            return Caption(name, fault=f"its caption: {fault}")
        try:
            text = content.decode("utf-8-sig")
        except UnicodeDecodeError:
            return Caption(name, fault="its caption is not UTF-8")
        if self.rule.extension != _JSON:
            captions = captions_in(text)
            return Caption(name, captions, "" if captions else f"{NO_CAPTION}: it is empty")
        try:
            row = json.loads(text)
            column = self.rule.json_field or column_of(CAPTION, row)
            captions = captions_in(row[column])
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            captions = ()
        wanted = repr(self.rule.json_field) if self.rule.json_field else f"of a usual name ({', '.join(CAPTION)})"
        return Caption(name, captions, "" if captions else f"{NO_CAPTION}: no text {wanted} in its JSON")


def _rank(name: str) -> int:
    extension = name.rpartition(".")[2].lower()
    return _TEXTS.index(extension) if extension in _TEXTS else 0


def stem_of(name: str) -> str:
    """Returns a path without its last extension."""
    folder, slash, base = name.rpartition("/")
    return f"{folder}{slash}{base.rpartition('.')[0] or base}"


def webdataset_key(name: str) -> tuple[str, str]:
    """Returns WebDataset's key and field: the path is split at the base name's first dot, the field in lower case."""
    folder, slash, base = name.rpartition("/")
    key, _, extension = base.partition(".")
    return f"{folder}{slash}{key}", extension.lower()
