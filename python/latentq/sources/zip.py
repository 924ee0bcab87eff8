"""Zip archives, read by position: their members, and the bytes of each member."""

from __future__ import annotations

import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator

from latentq._core import FormatError
from latentq.sources.listing import Sample
from latentq.sources.member import Member, Reads, size_fault
from latentq.sources.zip_directory import Entry, entries
from latentq.store.files import File, open_bytes
from latentq.system.text import counted

_LOCAL_HEADER = struct.Struct("<4s5H3L2H")
_DESCRIPTOR = struct.Struct("<4sL")  # after the data, if the checksum was not known when the header was written
_HEAD_BYTES = 4096  # deflated, for the first bytes of a member
_ENCRYPTED, _HAS_DESCRIPTOR = 0x1, 0x8


class Zip:
    """An open zip.

    Args:
        file: The zip.

    Attributes:
        bytes: The size of the file.
    """

    def __init__(self, file: File) -> None:
        self._file = open_bytes(file)
        self.bytes = self._file.size

    def close(self) -> None:
        """Closes the file."""
        self._file.close()

    def members(self, reads_of: Callable[[str], Reads]) -> Iterator[Member]:
        """Yields every member of the directory except folders, in order.

        Args:
            reads_of: Takes a member's name; returns how much of it to read.

        Raises:
            FormatError: The file is not a zip, or its directory is broken or cut off.
        """
        for entry in entries(self._file):
            if entry.name.endswith("/"):
                continue
            reads = reads_of(entry.name)
            fault = self._fault(entry, reads)
            packed = entry.packed if entry.method == zipfile.ZIP_DEFLATED else None
            content, head = None, b""
            try:
                if not fault and reads.whole:
                    content = self._read(entry.offset, entry.size, packed)
                elif not fault and reads.head:
                    head = self._head(entry.offset, packed, reads.head)
            except FormatError as error:
                fault = str(error)
            yield Member(entry.name, entry.offset, entry.size, packed, fault, content, head)

    def _head(self, offset: int, packed: int | None, count: int) -> bytes:
        """Returns the first bytes of a member; empty if it is broken, which reading it will report.

        Args:
            offset: Offset of the member's local header.
            packed: The compressed size in bytes; None if the member is stored.
            count: The number of bytes wanted.
        """
        header = self._file.read(offset, _LOCAL_HEADER.size)
        if len(header) < _LOCAL_HEADER.size:
            return b""
        *_, name, extra = _LOCAL_HEADER.unpack(header)
        data = self._file.read(offset + len(header) + name + extra, _HEAD_BYTES)
        if packed is None:
            return data[:count]
        try:
            return zlib.decompressobj(-zlib.MAX_WBITS).decompress(data, count)
        except zlib.error:
            return b""

    def _fault(self, entry: Entry, reads: Reads) -> str:
        """Returns why a member cannot be read, judging by the directory alone; empty if it can."""
        if entry.flags & _ENCRYPTED:
            return "encrypted"
        if entry.method not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            return f"compressed by method {entry.method}; only stored and deflated members can be read"
        if fault := size_fault(max(entry.size, entry.packed), reads):
            return fault
        if entry.method == zipfile.ZIP_STORED and entry.packed != entry.size:
            return f"{entry.packed} bytes are stored of {entry.size}"
        if not 0 <= entry.offset <= self.bytes - _LOCAL_HEADER.size - entry.packed:
            return "it lies outside the archive"
        return ""

    def head(self, sample: Sample, count: int) -> bytes:
        """Returns the first bytes of a member."""
        assert sample.offset is not None
        assert sample.bytes is not None
        return self._head(sample.offset, sample.packed, count)

    def read(self, sample: Sample) -> bytes:
        """Returns the bytes of a member, whose checksum is verified.

        Raises:
            FormatError: The member is broken.
        """
        assert sample.offset is not None
        assert sample.bytes is not None
        return self._read(sample.offset, sample.bytes, sample.packed)

    def _read(self, offset: int, size: int, packed: int | None) -> bytes:
        header = self._file.read(offset, _LOCAL_HEADER.size)
        if len(header) < _LOCAL_HEADER.size or header[:4] != b"PK\3\4":
            raise FormatError(f"offset {offset}: not the header of a member")
        _, _, flags, _, _, _, checksum, _, _, name, extra = _LOCAL_HEADER.unpack(header)
        packed_size = size if packed is None else packed
        descriptor = _DESCRIPTOR.size if flags & _HAS_DESCRIPTOR else 0
        data = self._file.read(offset + _LOCAL_HEADER.size + name + extra, packed_size + descriptor)
        if len(data) < packed_size + descriptor:
            raise FormatError(f"cut short: the archive ends after {len(data)} of {counted(packed_size, 'byte')}")
        checksums = [checksum]
        if descriptor:  # some writers announce it, write the checksum in the header all the same, and no descriptor
            first, second = _DESCRIPTOR.unpack(data[packed_size:])
            checksums.append(second if first == b"PK\7\x08" else int.from_bytes(first, "little"))
            data = data[:packed_size]
        if packed is not None:
            data = _inflated(data, size)
        if zlib.crc32(data) not in checksums:
            raise FormatError("its checksum differs")
        return data


def _inflated(data: bytes, size: int) -> bytes:
    """Inflates a member to its listed size, and never further. Raises FormatError if it has another size."""
    try:
        inflated = zlib.decompressobj(-zlib.MAX_WBITS).decompress(data, size + 1)
    except zlib.error as error:
        raise FormatError(f"the compressed data is broken: {error}") from None
    if len(inflated) != size:
        found = "more" if len(inflated) > size else f"only {len(inflated)}"
        raise FormatError(f"it holds {found} of the {size} bytes that are listed")
    return inflated
