"""Tar archives, plain and compressed, read by position: what is in them, and the bytes of one member.

Read here and not by `tarfile`, which takes a broken header for the end of the archive and says nothing.
"""

from __future__ import annotations

import gzip
import os
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol

from latentq._core import FormatError
from latentq.sources.listing import Sample
from latentq.sources.member import LARGEST, Member, broken

_BLOCK = 512


_LONGEST = 1 << 20  # bytes of a long name or of pax records


_CHUNK = 1 << 20


_REGULAR = (b"0", b"\0", b"7")


_FOLDER, _GNU_SPARSE = b"5", b"S"


_WITHOUT_DATA = (b"1", b"2", b"3", b"4", b"6", _FOLDER)


class _Bytes(Protocol):
    def read(self, offset: int, count: int) -> bytes:
        """So many bytes from there, or the fewer that there are."""
        ...

    def reaches(self, offset: int) -> bool:
        """Whether there are so many bytes."""
        ...

    def close(self) -> None: ...


class Tar:
    """A tar that is open for reading. Offsets count from the start of the tar, uncompressed."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._compressed = path.name.lower().endswith((".gz", ".tgz"))
        self.bytes = path.stat().st_size
        self._bytes = self._open()

    def _open(self) -> _Bytes:
        return _Stream(self._path) if self._compressed else _File(self._path)

    def close(self) -> None:
        """Closes the file."""
        self._bytes.close()

    def members(self, wanted: Callable[[str], bool]) -> Iterator[Member]:
        """Everything in it but folders, in order; with its content where `wanted` says so of a name.

        Raises:
            FormatError: From some offset on it is no tar, or it is cut short; what came before has been given.
        """
        return _members(self._bytes, wanted)

    def read(self, sample: Sample) -> bytes:
        """A member's bytes.

        Raises:
            FormatError: The archive is broken or ends before it.
        """
        assert sample.offset is not None
        assert sample.bytes is not None
        data = self._at(sample.offset).read(sample.offset, sample.bytes)
        if len(data) < sample.bytes:
            raise FormatError(f"cut short: the archive ends after {len(data)} of its {sample.bytes} bytes")
        return data

    def lines(self, member: Member) -> Iterator[bytes]:
        """The lines of a member, whatever its size.

        Raises:
            FormatError: The archive is broken or ends before it.
        """
        rest, at = b"", member.offset
        end = at + member.size
        while at < end:
            chunk = self._at(at).read(at, min(_CHUNK, end - at))
            if not chunk:
                raise broken(at, f"the archive ends within {member.name}")
            at += len(chunk)
            *whole, rest = (rest + chunk).split(b"\n")
            yield from whole
        yield rest

    def _at(self, offset: int) -> _Bytes:
        """The archive, opened anew where a stream is past the offset."""
        if isinstance(self._bytes, _Stream) and offset < self._bytes.at:
            self._bytes.close()
            self._bytes = self._open()
        return self._bytes


class _File:
    def __init__(self, path: Path) -> None:
        self._file = path.open("rb", buffering=0)
        self._size = os.fstat(self._file.fileno()).st_size

    def read(self, offset: int, count: int) -> bytes:
        return os.pread(self._file.fileno(), count, offset)

    def reaches(self, offset: int) -> bool:
        return offset <= self._size

    def close(self) -> None:
        self._file.close()


class _Stream:
    """What is in a gzip file, forwards."""

    def __init__(self, path: Path) -> None:
        self._file = gzip.open(path, "rb")  # noqa: SIM115  (closed by `close`)
        self.at = 0

    def read(self, offset: int, count: int) -> bytes:
        if not self.reaches(offset):
            return b""
        data = self._read(count)
        while len(data) < count and (more := self._read(count - len(data))):
            data += more
        return data

    def reaches(self, offset: int) -> bool:
        while self.at < offset:
            if not self._read(min(offset - self.at, _CHUNK)):
                return False
        return True

    def _read(self, count: int) -> bytes:
        try:
            data = self._file.read(count)
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise broken(self.at, f"the compressed data is broken or cut short: {error}") from None
        self.at += len(data)
        return data

    def close(self) -> None:
        self._file.close()


def _members(source: _Bytes, wanted: Callable[[str], bool]) -> Iterator[Member]:
    at = 0
    long_name: str | None = None
    records: dict[str, str] = {}
    everywhere: dict[str, str] = {}
    while True:
        header = source.read(at, _BLOCK)
        if len(header) == _BLOCK and not any(header):
            return
        if len(header) < _BLOCK:
            raise broken(at, "the archive is cut short: it has no end mark" if at or header else "an empty file")
        size, kind = _header(header, at)
        data = at + _BLOCK
        if kind in (b"L", b"K", b"x", b"g", b"X"):
            block = source.read(data, size) if size <= _LONGEST else b""
            if len(block) < size or not size:
                raise broken(at, f"a header's extension of {size} bytes, too long or cut short")
            if kind == b"L":
                long_name = _text(block)
            elif kind == b"g":
                everywhere |= _records(block, at)
            elif kind != b"K":
                records = _records(block, at)
            at = data + _rounded(size)
            continue
        known = everywhere | records
        name = known.get("path") or long_name or _name(header)
        try:
            size = int(known.get("size", size))
        except ValueError:
            raise broken(at, "a pax record of the size that is no number") from None
        sparse = kind == _GNU_SPARSE or any(key.startswith("GNU.sparse.") for key in known)
        if kind == _GNU_SPARSE and header[482]:
            more = True
            while more:
                block = source.read(data, _BLOCK)
                data, more = data + _BLOCK, len(block) == _BLOCK and block[504] != 0
        if not 0 <= size < 1 << 62:
            raise broken(at, f"a member of {size} bytes")
        stored = 0 if kind in _WITHOUT_DATA else size
        if kind != _FOLDER and not (kind == b"\0" and name.endswith("/")):
            fault = ""
            if sparse:
                fault = "a sparse member"
            elif kind not in _REGULAR:
                fault = "a link or device, not a file"
            elif size > LARGEST:
                fault = f"{size} bytes are more than a picture has"
            content = None
            if not fault and wanted(name):
                content = source.read(data, size)
            try:
                whole = source.reaches(data + stored)
            except FormatError:
                whole = False
            if not whole:
                fault = f"cut short: the archive ends within its {size} bytes"
            yield Member(name, data, size, fault=fault, content=None if fault else content)
        at = data + _rounded(stored)
        long_name, records = None, {}


def _header(header: bytes, at: int) -> tuple[int, bytes]:
    """Size and type, the checksum checked."""
    try:
        size = _number(header[124:136])
        found = _number(header[148:156])
    except ValueError:
        raise broken(at, "not a tar header: a number cannot be read") from None
    if found != sum(header) - sum(header[148:156]) + 8 * ord(" "):
        raise broken(at, "not a tar header: its checksum differs")
    return size, header[156:157]


def _number(field: bytes) -> int:
    """Octal digits, or GNU's binary form. Raises ValueError."""
    if field[0] & 0x80:
        if field[0] & 0x40:
            raise ValueError
        return int.from_bytes(bytes([field[0] & 0x3F]) + field[1:], "big")
    digits = field.split(b"\0", 1)[0].strip()
    if not all(48 <= digit < 56 for digit in digits):
        raise ValueError
    return int(digits or b"0", 8)


def _name(header: bytes) -> str:
    name = _text(header[:100])
    prefix = _text(header[345:500]) if header[257:263] == b"ustar\0" else ""
    return f"{prefix}/{name}" if prefix else name


def _text(field: bytes) -> str:
    return field.split(b"\0", 1)[0].decode("utf-8", "surrogateescape")


def _records(block: bytes, at: int) -> dict[str, str]:
    """The records of a pax header: `LENGTH KEY=VALUE` and a line end, one after the other."""
    found = {}
    start = 0
    while start < len(block) and block[start]:
        digits, _, _ = block[start : start + 20].partition(b" ")
        length = int(digits) if digits.isdigit() else 0
        record = block[start : start + length]
        key, equals, value = record[len(digits) + 1 : -1].partition(b"=")
        if not equals or len(record) < length:
            raise broken(at, "a pax header that cannot be understood")
        found[_text(key)] = value.decode("utf-8", "surrogateescape")
        start += length
    return found


def _rounded(size: int) -> int:
    return -(-size // _BLOCK) * _BLOCK
