"""Members of archives, whatever the kind of archive."""

from __future__ import annotations

from dataclasses import dataclass

from latentq._core import FormatError
from latentq.image import MAX_PIXELS
from latentq.system.text import counted

MAX_MEMBER_BYTES = 4 * MAX_PIXELS
"""The largest member that is read as an image: the pixel limit in uncompressed RGBA."""


@dataclass(frozen=True, slots=True)
class Reads:
    """The amount of a member that is read while an archive is listed.

    Attributes:
        whole: Reads the whole member if it has at most this number of bytes; a larger one gets a fault. 0 reads
            nothing.
        head: Reads this number of bytes at the start of the member.
    """

    whole: int = 0
    head: int = 0


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
        head: The first bytes, if they were asked for.
    """

    name: str
    offset: int
    size: int
    packed: int | None = None
    fault: str = ""
    content: bytes | None = None
    head: bytes = b""


def broken_archive(offset: int, reason: str) -> FormatError:
    """Returns the error for an archive that cannot be read past `offset`."""
    return FormatError(f"offset {offset}: {reason}; the rest of the archive cannot be read")


def plain_name(name: str) -> str:
    """Returns a name without leading `./`."""
    while name.startswith("./"):
        name = name[2:]
    return name


def size_fault(size: int, reads: Reads) -> str:
    """Returns why a member of this size is not read; empty if it is."""
    if reads.whole and size > reads.whole:
        return f"{counted(size, 'byte')}, more than the {reads.whole} that are read"
    if size > MAX_MEMBER_BYTES:
        return f"{counted(size, 'byte')}, more than the {MAX_MEMBER_BYTES} of an image at the pixel limit"
    return ""
