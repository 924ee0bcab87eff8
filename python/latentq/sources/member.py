"""What the kinds of archives have in common: a member, and how a fault in an archive is told."""

from __future__ import annotations

from dataclasses import dataclass

from latentq._core import FormatError

LARGEST = 1 << 30


"""Bytes of the largest member that is read at once."""


@dataclass(frozen=True, slots=True)
class Member:
    """A file in an archive.

    Attributes:
        name: As it stands there; what is not UTF-8 is escaped as in the names of files.
        offset: Where it begins: its data in a tar, its header in a zip.
        size: In bytes.
        packed: Its size in the archive, where it is deflated.
        fault: Why it cannot be read; empty where it can.
        content: Its bytes, where they were asked for.
    """

    name: str
    offset: int
    size: int
    packed: int | None = None
    fault: str = ""
    content: bytes | None = None


def broken(offset: int, what: str) -> FormatError:
    """What is wrong with an archive from some offset on."""
    return FormatError(f"offset {offset}: {what}; what follows cannot be read")
