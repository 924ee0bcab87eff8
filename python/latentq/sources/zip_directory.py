"""The directory of a zip, read entry by entry. `zipfile` keeps all entries in memory, of which there may be millions.

Formats: PKWARE's APPNOTE.TXT, sections 4.3.12 (entries), 4.3.14 to 4.3.16 (end records), 4.5.3 (zip64) and 4.6.9 (names
in Unicode).
"""

from __future__ import annotations

import contextlib
import struct
import zlib
from collections.abc import Iterator
from typing import NamedTuple

from latentq.sources.member import broken_archive
from latentq.store.blocks import RandomBytes

_END, _END_MARK = struct.Struct("<4s4H2LH"), b"PK\5\6"
_LOCATOR, _LOCATOR_MARK = struct.Struct("<4sLQL"), b"PK\6\7"
_END64, _END64_MARK = struct.Struct("<4sQ2H2L4Q"), b"PK\6\6"
_ENTRY, _ENTRY_MARK = struct.Struct("<4s6H3L5H2L"), b"PK\1\2"
_EXTRA = struct.Struct("<HH")
_PATH = struct.Struct("<BL")  # version, checksum of the name in the entry
_MAX_COMMENT = (1 << 16) - 1
_MAX32 = (1 << 32) - 1  # the number is in the zip64 field
_ZIP64_FIELD, _PATH_FIELD = 1, 0x7075
_UTF8 = 0x800
_CHUNK = 1 << 20


class Entry(NamedTuple):
    """An entry of the directory.

    Attributes:
        name: The member's name, up to its first NUL: in UTF-8 if the flags or another field say so, else in CP437.
        flags: The general purpose flags.
        method: The compression method.
        packed: Stored size in bytes.
        size: Uncompressed size in bytes.
        offset: Where the member's local header begins, in bytes from the start of the file.
    """

    name: str
    flags: int
    method: int
    packed: int
    size: int
    offset: int


def entries(file: RandomBytes) -> Iterator[Entry]:
    """Yields every entry in the order of the directory.

    Args:
        file: The open file.

    Raises:
        FormatError: The file has no directory, or the directory is broken; the entries before have been yielded.
    """
    start, size, prefix = _place(file)
    buffer, used, position, end = b"", 0, start, start + size
    while position < end:
        if len(buffer) - used < min(_ENTRY.size + 3 * _MAX_COMMENT, end - position):
            buffer, used = file.read(position, min(_CHUNK, end - position)), 0
        if len(buffer) - used < _ENTRY.size:
            raise broken_archive(position, "the directory is cut short")
        fields = _ENTRY.unpack_from(buffer, used)
        mark, _, _, flags, method, _, _, _, packed, size, name_bytes, extra_bytes, comment_bytes, *_, offset = fields
        if mark != _ENTRY_MARK:
            raise broken_archive(position, "not an entry of the directory")
        length = _ENTRY.size + name_bytes + extra_bytes + comment_bytes
        if len(buffer) - used < length:
            raise broken_archive(position, "the directory is cut short")
        name_end = used + _ENTRY.size + name_bytes
        name = buffer[used + _ENTRY.size : name_end]
        extra = buffer[name_end : name_end + extra_bytes]
        if _MAX32 in (packed, size, offset):
            size, packed, offset = _wide(extra, size, packed, offset)
        yield Entry(_text(name, extra, flags, position), flags, method, packed, size, offset + prefix)
        used += length
        position += length


def _place(file: RandomBytes) -> tuple[int, int, int]:
    """Returns where the directory begins, its size, and the number of bytes that stand before the zip in the file."""
    tail_start = max(0, file.size - _END.size - _MAX_COMMENT)
    tail = file.read(tail_start, file.size - tail_start)
    at = len(tail) - _END.size
    if at < 0 or tail[at : at + 4] != _END_MARK or tail[-2:] != b"\0\0":  # there is a comment behind it
        at = tail.rfind(_END_MARK)
    if at < 0 or len(tail) - at < _END.size:
        raise broken_archive(0, "not a zip: it has no directory at its end" if file.size else "an empty file")
    *_, size, offset, _ = _END.unpack_from(tail, at)
    end = tail_start + at
    behind = file.read(end - _LOCATOR.size, _LOCATOR.size) if end >= _LOCATOR.size + _END64.size else b""
    if behind[:4] == _LOCATOR_MARK:
        _, disk, _, disks = _LOCATOR.unpack(behind)
        if disk or disks > 1:
            raise broken_archive(0, "not a zip: it spans several disks")
        wide_at = end - _LOCATOR.size - _END64.size
        wide = file.read(wide_at, _END64.size)
        if wide[:4] == _END64_MARK:
            *_, size, offset = _END64.unpack(wide)
            end = wide_at
    start = end - size
    if start < 0:
        raise broken_archive(0, "not a zip: its directory is not where its end says")
    return start, size, start - offset


def _wide(extra: bytes, size: int, packed: int, offset: int) -> tuple[int, int, int]:
    """Returns uncompressed size, stored size and offset; those that do not fit in 32 bits are in the zip64 field."""
    content = _field(extra, _ZIP64_FIELD)
    numbers = iter(struct.unpack_from(f"<{len(content) // 8}Q", content))
    size, packed, offset = (next(numbers, number) if number == _MAX32 else number for number in (size, packed, offset))
    return size, packed, offset


def _text(name: bytes, extra: bytes, flags: int, position: int) -> str:
    path = _field(extra, _PATH_FIELD)
    if path.startswith(_PATH.pack(1, zlib.crc32(name))):  # else a program that does not know the field changed the name
        with contextlib.suppress(UnicodeDecodeError):
            if text := path[_PATH.size :].decode():
                return text.partition("\0")[0]
    try:
        text = name.decode("utf-8" if flags & _UTF8 else "cp437")
    except UnicodeDecodeError:
        raise broken_archive(position, "the name in an entry of the directory is not UTF-8") from None
    return text.partition("\0")[0]


def _field(extra: bytes, kind: int) -> bytes:
    """Returns the content of the first extra field of a kind; empty if there is none, or it is cut short."""
    at = 0
    while at + _EXTRA.size <= len(extra):
        found, length = _EXTRA.unpack_from(extra, at)
        at += _EXTRA.size
        if found == kind:
            return extra[at : at + length] if at + length <= len(extra) else b""
        at += length
    return b""
