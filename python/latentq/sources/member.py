"""Members of archives, whatever the kind of archive."""

from __future__ import annotations

from dataclasses import dataclass

from latentq._core import FormatError

MAX_MEMBER_BYTES = 1 << 30
"""The largest member that is read into memory."""


@dataclass(frozen=True, slots=True)
class Member:
    """A file in an archive.

    Attributes:
        name: The name in the archive; bytes that are not UTF-8 are escaped as in file names (`surrogateescape`).
        offset: Where the member begins, in bytes: its data in a tar, its header in a zip.
        size: Uncompressed size in bytes.
        packed: Deflated size in bytes, or None if the member is not deflated.
        fault: Why the member cannot be read, or empty.
        content: The bytes, if they were asked for and can be read.
    """

    name: str
    offset: int
    size: int
    packed: int | None = None
    fault: str = ""
    content: bytes | None = None


def broken_archive(offset: int, reason: str) -> FormatError:
    """The error for an archive that cannot be read past `offset`."""
    return FormatError(f"offset {offset}: {reason}; the rest of the archive cannot be read")


def plain_name(name: str) -> str:
    """A name without leading `./`."""
    while name.startswith("./"):
        name = name[2:]
    return name
