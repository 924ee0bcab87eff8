"""Lines of tab-separated values, with backslash escapes."""

from __future__ import annotations

from collections.abc import Iterable

_ESCAPES = {"\\": "\\\\", "\t": "\\t", "\n": "\\n", "\r": "\\r"}
_UNESCAPES = {escaped: character for character, escaped in _ESCAPES.items()}


def tsv_line(values: Iterable[object]) -> str:
    """Returns a line of tab-separated values, without a line break; None becomes an empty value."""
    return "\t".join("" if value is None else _escape(str(value)) for value in values)


def tsv_values(line: str) -> list[str]:
    """Returns the values of a line that `tsv_line` wrote; None comes back as an empty string."""
    cells = line.split("\t")
    return [_unescape(cell) for cell in cells] if "\\" in line else cells


def _escape(text: str) -> str:
    if not any(character in text for character in _ESCAPES):
        return text
    return "".join(_ESCAPES.get(character, character) for character in text)


def _unescape(text: str) -> str:
    parts, at = [], 0
    while (found := text.find("\\", at)) >= 0:
        parts += [text[at:found], _UNESCAPES.get(text[found : found + 2], text[found : found + 2])]
        at = found + 2
    return "".join([*parts, text[at:]])
