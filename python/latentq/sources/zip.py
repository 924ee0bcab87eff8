"""Zip archives, read by position: what is in them, and the bytes of one member."""

from __future__ import annotations

import os
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

from latentq._core import FormatError
from latentq.sources.listing import Sample
from latentq.sources.member import LARGEST, Member, broken

_LOCAL = struct.Struct("<4s5H3L2H")  # the header before a member's data


_DESCRIPTOR = struct.Struct("<4sL")  # the checksum behind it, where it was not known before


_ENCRYPTED, _CHECKSUM_BEHIND = 0x1, 0x8


_NOT_A_ZIP = (
    zipfile.BadZipFile, ValueError, NotImplementedError, EOFError, OverflowError, IndexError, struct.error
)  # fmt: skip


class Zip:
    """A zip that is open for reading."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("rb", buffering=0)
        self.bytes = os.fstat(self._file.fileno()).st_size

    def close(self) -> None:
        """Closes the file."""
        self._file.close()

    def members(self, wanted: Callable[[str], bool]) -> Iterator[Member]:
        """Everything in its directory but folders, in order; with its content where `wanted` says so of a name.

        Raises:
            FormatError: It is no zip, or its directory is broken or cut off.
        """
        try:
            with zipfile.ZipFile(self._file) as archive:
                found = archive.infolist()
        except _NOT_A_ZIP as error:
            raise broken(0, f"not a zip: {error}" if self.bytes else "an empty file") from None
        for info in found:
            if info.is_dir():
                continue
            fault = ""
            if info.flag_bits & _ENCRYPTED:
                fault = "encrypted"
            elif info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                fault = f"compressed by method {info.compress_type}; only stored and deflated members can be read"
            elif info.file_size > LARGEST or info.compress_size > LARGEST:
                fault = f"{info.file_size} bytes are more than a picture has"
            elif info.compress_type == zipfile.ZIP_STORED and info.compress_size != info.file_size:
                fault = f"{info.compress_size} bytes are stored of {info.file_size}"
            elif not 0 <= info.header_offset <= self.bytes - _LOCAL.size - info.compress_size:
                fault = "its place is outside the archive"
            packed = info.compress_size if info.compress_type == zipfile.ZIP_DEFLATED else None
            content = None
            if not fault and wanted(info.filename):
                try:
                    content = self._read(info.header_offset, info.file_size, packed)
                except FormatError as error:
                    fault = str(error)
            yield Member(info.filename, info.header_offset, info.file_size, packed, fault, content)

    def read(self, sample: Sample) -> bytes:
        """A member's bytes, its checksum checked.

        Raises:
            FormatError: The member is broken.
        """
        assert sample.offset is not None
        assert sample.bytes is not None
        return self._read(sample.offset, sample.bytes, sample.packed)

    def _read(self, offset: int, size: int, packed: int | None) -> bytes:
        header = os.pread(self._file.fileno(), _LOCAL.size, offset)
        if len(header) < _LOCAL.size or header[:4] != b"PK\3\4":
            raise FormatError(f"offset {offset}: no member's header")
        _, _, flags, _, _, _, checksum, _, _, name, extra = _LOCAL.unpack(header)
        stored = size if packed is None else packed
        behind = _DESCRIPTOR.size if flags & _CHECKSUM_BEHIND else 0
        data = os.pread(self._file.fileno(), stored + behind, offset + _LOCAL.size + name + extra)
        if len(data) < stored + behind:
            raise FormatError(f"cut short: the archive ends after {len(data)} of its {stored} bytes")
        if behind:
            first, second = _DESCRIPTOR.unpack(data[stored:])
            checksum = second if first == b"PK\7\x08" else int.from_bytes(first, "little")
            data = data[:stored]
        if packed is not None:
            unpack = zlib.decompressobj(-zlib.MAX_WBITS)
            try:
                data = unpack.decompress(data, size + 1)  # no more than listed, whatever it would become
            except zlib.error as error:
                raise FormatError(f"the compressed data is broken: {error}") from None
            if len(data) != size:
                held = "more" if len(data) > size else f"only {len(data)}"
                raise FormatError(f"it holds {held} of the {size} bytes that are listed")
        if zlib.crc32(data) != checksum:
            raise FormatError("its checksum differs")
        return data
