"""Tar archives, plain and gzip, read by position: their members, and the bytes of each member.

`tarfile` is not used because it silently takes a broken header for the end of the archive.
"""

from __future__ import annotations

import gzip
import struct
import weakref
import zlib
from collections import deque
from collections.abc import Callable, Container, Iterator
from dataclasses import dataclass, field
from typing import Protocol

from latentq._core import FormatError
from latentq.sources.listing import Sample
from latentq.sources.member import Member, Reads, broken_archive, size_fault
from latentq.store.files import File, head_of, open_bytes, open_stream
from latentq.system.text import counted

_BLOCK, _RECORD_BLOCKS = 512, 20
_GZIP, _NOT_GZIP = b"\x1f\x8b", "Not a gzipped file"  # of the `gzip` module's error
_MAX_EXTENSION_BYTES = 1 << 20  # a long name, or pax records
_CHUNK = 1 << 20
_REGULAR = (b"0", b"\0", b"7")
_FOLDER, _GNU_SPARSE = b"5", b"S"
_NO_MEMBERS = (_FOLDER, b"A", b"D", b"V")  # folders, access lists of Solaris, GNU's lists of folders, volume labels
_WITHOUT_DATA = (b"1", b"2", b"3", b"4", b"6", _FOLDER)
_LONG_NAME, _LONG_LINK, _PAX_GLOBAL = b"L", b"K", b"g"
_EXTENSIONS = (_LONG_NAME, _LONG_LINK, _PAX_GLOBAL, b"x", b"X")


class _Bytes(Protocol):
    """The uncompressed bytes of a tar."""

    def read(self, offset: int, count: int) -> bytes:
        """Reads up to `count` bytes from `offset`; fewer only at the end."""
        ...

    def reaches(self, offset: int) -> bool:
        """True if the archive has at least `offset` bytes."""
        ...

    def close(self) -> None: ...


class Tar:
    """An open tar. Offsets count from the start of the uncompressed tar.

    Args:
        file: The tar.

    Attributes:
        compressed: True if it is gzip.
        bytes: The size of the file.
    """

    def __init__(self, file: File) -> None:
        self._file = file
        plain = open_bytes(file)
        self.bytes = plain.size
        # The name does not tell: a .tar may be gzip, a .tar.gz may not.
        self.compressed = head_of(file, plain, len(_GZIP)) == _GZIP
        self._bytes: _Bytes = plain
        if self.compressed:
            plain.close()
            self._bytes = _GzipBytes(file)

    def close(self) -> None:
        """Closes the file."""
        self._bytes.close()

    def members(self, reads_of: Callable[[str], Reads]) -> Iterator[Member]:
        """Yields every member except folders, in order.

        Args:
            reads_of: Takes a member's name; returns how much of it to read.

        Raises:
            FormatError: The archive is broken or cut short at some offset; the members before it have been yielded.
        """
        return _members(self._bytes, reads_of)

    def head(self, sample: Sample, count: int) -> bytes:
        """Returns the first bytes of a member."""
        assert sample.offset is not None
        return self._bytes_at(sample.offset).read(sample.offset, count)

    def read(self, sample: Sample) -> bytes:
        """Returns the bytes of a member.

        Raises:
            FormatError: The archive is broken, or ends within the member.
        """
        assert sample.offset is not None
        assert sample.bytes is not None
        data = self._bytes_at(sample.offset).read(sample.offset, sample.bytes)
        if len(data) < sample.bytes:
            raise FormatError(f"cut short: the archive ends after {len(data)} of {counted(sample.bytes, 'byte')}")
        return data

    def lines(self, member: Member) -> Iterator[bytes]:
        """Yields the lines of a member of any size.

        Raises:
            FormatError: The archive is broken, or ends within the member.
        """
        rest, offset = b"", member.offset
        end = offset + member.size
        while offset < end:
            chunk = self._bytes_at(offset).read(offset, min(_CHUNK, end - offset))
            if not chunk:
                raise broken_archive(offset, f"the archive ends within {member.name}")
            offset += len(chunk)
            *lines, rest = (rest + chunk).split(b"\n")
            yield from lines
        yield rest

    def _bytes_at(self, offset: int) -> _Bytes:
        """Returns the archive's bytes, reopened if a gzip stream has already passed the offset."""
        if isinstance(self._bytes, _GzipBytes) and offset < self._bytes.position:
            self._bytes.close()
            self._bytes = _GzipBytes(self._file)
        return self._bytes


class _GzipBytes:
    """The bytes of a gzip tar, forward only."""

    def __init__(self, file: File) -> None:
        self._raw = open_stream(file)
        self._file = gzip.GzipFile(fileobj=self._raw)
        weakref.finalize(self, self._raw.close)
        self.position = 0
        self._ended = False

    def read(self, offset: int, count: int) -> bytes:
        if not self.reaches(offset):
            return b""
        data = self._read(count)
        while len(data) < count and (more := self._read(count - len(data))):
            data += more
        return data

    def reaches(self, offset: int) -> bool:
        while self.position < offset:
            if not self._read(min(offset - self.position, _CHUNK)):
                return False
        return True

    def _read(self, count: int) -> bytes:
        if self._ended:
            return b""
        try:
            data = self._file.read(count)
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            if self.position and _NOT_GZIP in str(
                error
            ):  # other data after the compressed data, which gzip ignores too
                self._ended = True
                return b""
            raise broken_archive(self.position, f"the compressed data is broken or cut short: {error}") from None
        self.position += len(data)
        return data

    def close(self) -> None:
        self._file.close()
        self._raw.close()


@dataclass
class _Extensions:
    """The fields that extension headers set for the member after them."""

    long_name: str | None = None
    records: dict[str, str] = field(default_factory=dict)
    global_records: dict[str, str] = field(default_factory=dict)

    def add(self, kind: bytes, block: bytes, offset: int) -> None:
        """Adds the content of an extension header."""
        if kind == _LONG_NAME:
            self.long_name = _text(block)
        elif kind == _PAX_GLOBAL:
            self.global_records |= _records(block, offset)
        elif kind != _LONG_LINK:
            self.records = _records(block, offset)

    def next_member(self) -> None:
        """Forgets what was said of one member only."""
        self.long_name, self.records = None, {}


def _members(source: _Bytes, reads_of: Callable[[str], Reads]) -> Iterator[Member]:
    offset = 0
    extensions = _Extensions()
    recent: deque[bytes] = deque(maxlen=_RECORD_BLOCKS)
    while True:
        header = source.read(offset, _BLOCK)
        if len(header) == _BLOCK and not any(header):
            _check_end(source, offset + _BLOCK, recent)
            return
        if len(header) < _BLOCK:
            reason = "the archive is cut short: it has no end mark" if offset or header else "an empty file"
            raise broken_archive(offset, reason)
        size, kind = _size_and_kind(header, offset)
        recent.append(header)
        if kind in _EXTENSIONS:
            block = source.read(offset + _BLOCK, size) if size <= _MAX_EXTENSION_BYTES else b""
            if len(block) < size:
                raise broken_archive(offset, f"a header extension of {counted(size, 'byte')} is too long or cut short")
            extensions.add(kind, block, offset)
            offset += _BLOCK + _padded(size)
            continue
        member, offset = _member(source, header, offset, size, kind, extensions, reads_of)
        if member is not None:
            yield member
        extensions.next_member()


def _check_end(source: _Bytes, offset: int, recent: Container[bytes]) -> None:
    """Raises FormatError if another archive follows the end mark, which tar would not read.

    Other data are ignored: some writers fill the last record with them, or with what the record before it held.

    Args:
        source: The archive.
        offset: Where the end mark ends.
        recent: The headers of the last record.
    """
    header = b""
    while chunk := source.read(offset, _CHUNK):
        if rest := chunk.lstrip(b"\0"):
            zeros = (len(chunk) - len(rest)) // _BLOCK * _BLOCK
            offset, header = offset + zeros, chunk[zeros : zeros + _BLOCK]
            break
        offset += len(chunk)
    if len(header) < _BLOCK or header in recent:
        return
    try:
        _size_and_kind(header, offset)
    except FormatError:
        return
    raise broken_archive(offset, "another archive begins after the end mark, as if archives had been joined by cat")


def _member(
    source: _Bytes,
    header: bytes,
    offset: int,
    size: int,
    kind: bytes,
    extensions: _Extensions,
    reads_of: Callable[[str], Reads],
) -> tuple[Member | None, int]:
    """Returns the member of a header, or None for a folder; and the offset of the next header.

    Args:
        source: The archive's bytes.
        header: The member's header, 512 bytes.
        offset: Offset of the header in the archive.
        size: The size in the header, in bytes; a pax record overrides it.
        kind: The type flag of the header, one byte.
        extensions: The extension headers before this one.
        reads_of: Returns what is read of a member while listing, by its name.
    """
    known = extensions.global_records | extensions.records if extensions.global_records else extensions.records
    name = known.get("GNU.sparse.name") or known.get("path") or extensions.long_name or _name(header)
    try:
        size = int(known.get("size") or size)
    except ValueError:
        raise broken_archive(offset, "a pax record of the size is not a number") from None
    if not 0 <= size < 1 << 62:
        raise broken_archive(offset, f"a member of {counted(size, 'byte')}")
    data = offset + _BLOCK if kind != _GNU_SPARSE else _sparse_data_offset(source, header, offset)
    stored = 0 if kind in _WITHOUT_DATA else size
    next_offset = data + _padded(stored)
    if kind in _NO_MEMBERS or (kind == b"\0" and name.endswith("/")):
        return None, next_offset
    fault, reads = "", reads_of(name)
    if kind == _GNU_SPARSE or (known and any(key.startswith("GNU.sparse.") for key in known)):
        fault = "a sparse member"
    elif kind not in _REGULAR:
        fault = "a link or device, not a file"
    else:
        fault = size_fault(size, reads)
    content = source.read(data, size) if not fault and reads.whole else None
    head = source.read(data, min(size, reads.head)) if not fault and reads.head else b""
    try:
        complete = source.reaches(data + stored)
    except FormatError:
        complete = False
    if not complete:
        fault = f"cut short: the archive ends within its {counted(size, 'byte')}"
    return Member(name, data, size, fault=fault, content=None if fault else content, head=head), next_offset


def _sparse_data_offset(source: _Bytes, header: bytes, offset: int) -> int:
    """Returns the offset of the data of GNU's sparse member: after its header and the blocks of its map."""
    data = offset + _BLOCK
    more = header[482] != 0
    while more:
        block = source.read(data, _BLOCK)
        data, more = data + _BLOCK, len(block) == _BLOCK and block[504] != 0
    return data


def _size_and_kind(header: bytes, offset: int) -> tuple[int, bytes]:
    """Returns the size and type in a header, whose checksum is verified."""
    try:
        size = _parsed_number(header[124:136])
        checksum = _parsed_number(header[148:156])
    except ValueError:
        raise broken_archive(offset, "not a tar header: a number cannot be read") from None
    summed = header[:148] + b" " * 8 + header[156:]
    # Old tars, such as SunOS's, summed signed bytes.
    if checksum != sum(summed) and checksum != sum(struct.unpack(f"{_BLOCK}b", summed)):
        raise broken_archive(offset, "not a tar header: its checksum differs")
    return size, header[156:157]


def _parsed_number(field: bytes) -> int:
    """Returns a number in octal digits or GNU's binary form. Raises ValueError."""
    if field[0] & 0x80:
        if field[0] & 0x40:
            raise ValueError
        return int.from_bytes(bytes([field[0] & 0x3F]) + field[1:], "big")
    digits = field.split(b"\0", 1)[0].strip()
    if digits.translate(None, b"01234567"):
        raise ValueError
    return int(digits or b"0", 8)


def _name(header: bytes) -> str:
    name = _text(header[:100])
    prefix = _text(header[345:500]) if header[257:263] == b"ustar\0" else ""
    return f"{prefix}/{name}" if prefix else name


def _text(field: bytes) -> str:
    return field.split(b"\0", 1)[0].decode("utf-8", "surrogateescape")


def _records(block: bytes, offset: int) -> dict[str, str]:
    """Returns the records of a pax header: lines of `LENGTH KEY=VALUE`."""
    records = {}
    start = 0
    while start < len(block) and block[start]:
        digits, _, _ = block[start : start + 20].partition(b" ")
        length = int(digits) if digits.isdigit() else 0
        record = block[start : start + length]
        key, equals, value = record[len(digits) + 1 : -1].partition(b"=")
        if not equals or len(record) < length:
            raise broken_archive(offset, "a pax header that cannot be understood")
        records[_text(key)] = value.decode("utf-8", "surrogateescape")
        start += length
    return records


def _padded(size: int) -> int:
    return -(-size // _BLOCK) * _BLOCK
