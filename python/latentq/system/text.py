"""Text for people: errors on one line, control characters escaped, sizes and durations."""

from __future__ import annotations

import re

_DIGITS = re.compile("[0-9]+")
_LINE_BREAKS = re.compile(r"\s*[\r\n]\s*")
# C0, DEL and C1 controls, marks that change the direction of text, line separators, and lone surrogates, which cannot
# be encoded
_CONTROLS = re.compile("[\x00-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def one_line(text: object) -> str:
    """Returns a message on one line that is safe to print.

    A line break and the whitespace around it become one space; other control characters are escaped.

    Args:
        text: A message, or an exception; an exception without a message gives the name of its class.
    """
    message = _LINE_BREAKS.sub(" ", str(text).strip())
    if not message and isinstance(text, BaseException):
        message = type(text).__name__
    return escaped(message)


def escaped(text: object) -> str:
    r"""Returns text with its control characters escaped, e.g. `\x1b` and `\n`, so that a terminal does not obey them.

    Args:
        text: A name, key, path or caption of the data.
    """
    return _CONTROLS.sub(lambda match: match[0].encode("unicode_escape").decode(), str(text))


def reject_group(stage: str, reason: str) -> str:
    """Returns a text that rejects share whose reasons differ in numbers only, such as the sizes of images."""
    return f"{stage}: {_DIGITS.sub('0', reason)}"


def counted(count: int, noun: str) -> str:
    """Returns a count with its noun, e.g. `1 sample`, `0 samples`.

    Args:
        count: The number.
        noun: The singular of what is counted; its plural must end with `s`.
    """
    return f"{count} {noun if count == 1 else f'{noun}s'}"


def size_text(count: int) -> str:
    """Returns a number of bytes in decimal units, e.g. `1.5 MB`."""
    if count < 1000:
        return counted(count, "byte")
    size = count / 1000
    for unit in ("kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"


def duration_text(seconds: float) -> str:
    """Returns a duration as `minutes:seconds`, or `hours:minutes:seconds` from an hour on."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
