"""What every source gives: a listing, written as samples.tsv, and the bytes of a sample."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from latentq._core import FormatError

_ESCAPES = {"\\": "\\\\", "\t": "\\t", "\n": "\\n", "\r": "\\r"}
_UNESCAPES = {escaped: character for character, escaped in _ESCAPES.items()}
_COLUMNS = ("key", "bytes", "label", "label_text", "caption")


@dataclass(frozen=True, slots=True)
class Sample:
    """One image and what is known of it.

    Attributes:
        key: Its name, unique in a folder: the relative path with `/`; in a table the path as it stands there.
        bytes: The size of its file; None where there is no such file.
        label: Its class, a number of at least 0.
        label_text: The name of its class.
        caption: A text that describes it.
    """

    key: str
    bytes: int | None
    label: int | None = None
    label_text: str | None = None
    caption: str | None = None

    @property
    def text(self) -> str:
        r"""The key as text: what of a file's name is not UTF-8 is written `\\udc80` and so on."""
        return self.key.encode("utf-8", "backslashreplace").decode()


@dataclass(frozen=True)
class Listing:
    """The samples of a source, in order.

    Attributes:
        samples: The samples.
        fields: Which of `label`, `label_text` and `caption` every sample has.
        notes: What a user should be told of how the listing was made, one line each.
    """

    samples: tuple[Sample, ...]
    fields: tuple[str, ...]
    notes: tuple[str, ...] = ()

    def to_tsv(self) -> bytes:
        r"""The bytes of samples.tsv: a header, then a line for each sample.

        Tabs, line ends and backslashes inside a value are written `\t`, `\n`, `\r` and `\\`. A key that is not UTF-8
        (a file's name may be any bytes) keeps its bytes.
        """
        columns = ("key", "bytes", *self.fields)
        lines = ["\t".join(columns)]
        lines += [tsv_line(getattr(sample, column) for column in columns) for sample in self.samples]
        return ("\n".join(lines) + "\n").encode("utf-8", "surrogateescape")

    @classmethod
    def from_tsv(cls, data: bytes, where: str) -> Listing:
        """The listing that `to_tsv` wrote.

        Raises:
            FormatError: The bytes are not such a listing; the message begins with `where` and names the line.
        """
        lines = data.decode("utf-8", "surrogateescape").split("\n")
        columns = lines[0].split("\t")
        if columns[:2] != ["key", "bytes"] or not set(columns) <= set(_COLUMNS) or lines.pop() != "":
            raise FormatError(f"{where}: not a list of samples")
        samples = []
        for number, line in enumerate(lines[1:], start=2):
            cells = dict(zip(columns, map(_unescape, line.split("\t")), strict=False))
            try:
                if len(cells) != len(columns):
                    raise ValueError
                samples.append(
                    Sample(
                        key=cells["key"],
                        bytes=int(cells["bytes"]) if cells["bytes"] else None,
                        label=int(cells["label"]) if "label" in cells else None,
                        label_text=cells.get("label_text"),
                        caption=cells.get("caption"),
                    )
                )
            except ValueError:
                raise FormatError(f"{where}, line {number}: not a sample") from None
        return cls(tuple(samples), tuple(columns[2:]))

    def sha256(self) -> str:
        """The hash of samples.tsv, by which two listings are told apart."""
        return hashlib.sha256(self.to_tsv()).hexdigest()


class Source(Protocol):
    """An ordered collection of samples."""

    @property
    def kind(self) -> str:
        """`folder` or `table`; the card names it."""
        ...

    def listing(self) -> Listing:
        """Looks at everything there is, in the order of the dataset."""
        ...

    def data(self, sample: Sample) -> bytes | Path:
        """What `latentq.image` decodes for a sample of the listing: its bytes, or the path of a file of its own."""
        ...


def tsv_line(values: Iterable[object]) -> str:
    """A line of tab-separated values, escaped as in samples.tsv; None is empty."""
    return "\t".join("" if value is None else _escape(str(value)) for value in values)


def _escape(text: str) -> str:
    if not any(character in text for character in _ESCAPES):
        return text
    return "".join(_ESCAPES.get(character, character) for character in text)


def _unescape(text: str) -> str:
    if "\\" not in text:
        return text
    parts, at = [], 0
    while (found := text.find("\\", at)) >= 0:
        parts += [text[at:found], _UNESCAPES.get(text[found : found + 2], text[found : found + 2])]
        at = found + 2
    return "".join([*parts, text[at:]])
