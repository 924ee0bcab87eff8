"""Reads and writes .npy and .npz files of many samples: one read per file, and headers parsed once."""

from __future__ import annotations

import io
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Callable, Collection, Mapping
from functools import lru_cache
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from latentq._core import FormatError
from latentq.store.local import check_regular, read_regular

_MAGIC = b"\x93NUMPY"
_LOCAL = struct.Struct("<4sHHHHHLLLHH")  # a zip member's local header
_SIGNATURE = b"PK\x03\x04"
_END = 22  # bytes of the end of a zip without a comment
_UNKNOWN = 0xFFFFFFFF
MAX_MEMBER = 1 << 28
"""The largest member of an .npz in bytes: none of these tools' latents are near it, and a zip bomb is."""
_BAD = (zipfile.BadZipFile, ValueError, EOFError, KeyError, NotImplementedError, RuntimeError, zlib.error, struct.error)
# Errors that NumPy's parser of headers raises, next to ValueError: it is Python's own parser.
_UNPARSED = (tokenize.TokenError, SyntaxError, TypeError, MemoryError, RecursionError)
_KINDS = "fiub"
_HEADER_BYTES = 1 << 12


@lru_cache(4096)
def _parsed_header(header: bytes) -> tuple[np.dtype[Any], tuple[int, ...], bool]:
    """Returns dtype, shape and order of a .npy header with its magic, or raises ValueError."""
    file = io.BytesIO(header)
    npy: Any = np.lib.format
    version = npy.read_magic(file)
    read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
    try:
        shape, fortran, dtype = read(file)
    except _UNPARSED as error:
        raise ValueError(f"the .npy header is broken: {error or 'it is nested too deeply'}") from None
    if any(type(side) is not int or side < 0 for side in shape):
        raise ValueError(f"the .npy header is broken: the shape is {shape}")
    if dtype.kind not in _KINDS or dtype.hasobject:
        raise ValueError(f"it holds {dtype}, not numbers")
    return dtype, shape, fortran


def _header_of(view: memoryview) -> bytes:
    """Returns the header of a .npy file with its magic, or raises ValueError."""
    if bytes(view[:6]) != _MAGIC or len(view) < 12:
        raise ValueError("not a .npy file, or truncated")
    start = 10 if view[6] == 1 else 12
    end = start + int.from_bytes(view[8:start], "little")
    if end > len(view):
        raise ValueError("the .npy header is truncated")
    return bytes(view[:end])


def npy_array(data: memoryview | bytes) -> NDArray[Any]:
    """Returns the array of a .npy file's bytes, without a copy where it can be.

    Raises:
        ValueError: It is no .npy file, is truncated, or holds something else than numbers.
    """
    view = memoryview(data)
    header = _header_of(view)
    end = len(header)
    dtype, shape, fortran = _parsed_header(header)
    count = prod(shape)
    if end + count * dtype.itemsize > len(view):
        raise ValueError(f"truncated: {shape} {dtype} needs {count * dtype.itemsize} bytes, {len(view) - end} follow")
    array: NDArray[Any] = np.frombuffer(view, dtype, count, end)
    array = array.reshape(shape[::-1]).T if fortran else array.reshape(shape)
    return array if dtype.isnative else array.astype(dtype.newbyteorder("="))


def load_npy(path: Path) -> NDArray[Any]:
    """Reads a .npy file.

    Raises:
        FormatError: It is broken, or holds something else than numbers; the message names it.
        OSError: It cannot be read.
    """
    data = read_regular(path)
    try:
        return npy_array(data)
    except ValueError as error:
        raise FormatError(f"{path}: {error}") from None


def npy_bytes(array: NDArray[Any]) -> bytes:
    """Returns the bytes of a .npy file of a C-contiguous array, as np.save writes it."""
    return _header(array.dtype.str, array.shape) + array.tobytes()


@lru_cache(4096)
def _header(dtype: str, shape: tuple[int, ...]) -> bytes:
    file = io.BytesIO()
    npy: Any = np.lib.format
    npy.write_array_header_1_0(file, {"descr": dtype, "fortran_order": False, "shape": shape})
    return file.getvalue()


def load_npz(path: Path, wanted: Callable[[str], bool], limit: int = MAX_MEMBER) -> dict[str, NDArray[Any]]:
    """Reads some arrays of an .npz file.

    Args:
        path: The file.
        wanted: True for the names of the arrays to read.
        limit: The largest array in bytes.

    Raises:
        FormatError: It is broken, truncated, too large, or holds something else than numbers; the message names it.
        OSError: It cannot be read.
    """
    data = read_regular(path)
    try:
        arrays = _stored_members(memoryview(data), wanted)
        return _zip_members(data, wanted, limit) if arrays is None else arrays
    except _BAD as error:
        raise FormatError(f"{path}: not an .npz file, or truncated: {error}") from None


def npz_shapes(path: Path, wanted: Callable[[str], bool]) -> dict[str, tuple[np.dtype[Any], tuple[int, ...]]]:
    """Returns the dtype and shape of some arrays of an .npz file, of which only the headers are read.

    Args:
        path: The file.
        wanted: True for the names of the arrays.

    Raises:
        FormatError: It is broken or truncated; the message names it.
        OSError: It cannot be read.
    """
    found = {}
    check_regular(path)
    try:
        with zipfile.ZipFile(path) as archive:
            for info in archive.infolist():
                key = info.filename.removesuffix(".npy")
                if wanted(key):
                    with archive.open(info) as member:
                        start = member.read(_HEADER_BYTES)
                    dtype, shape, _ = _parsed_header(_header_of(memoryview(start)))
                    found[key] = dtype, shape
    except _BAD as error:
        raise FormatError(f"{path}: not an .npz file, or truncated: {error}") from None
    return found


def npz_bytes(arrays: Mapping[str, NDArray[Any]]) -> bytes:
    """Returns the bytes of an .npz file, as np.savez writes it."""
    file = io.BytesIO()
    savez: Any = np.savez
    savez(file, **arrays)
    return file.getvalue()


def _stored_members(data: memoryview, wanted: Callable[[str], bool]) -> dict[str, NDArray[Any]] | None:
    """Returns the arrays of an .npz that np.savez wrote, by its local headers; None if it is of another kind.

    The checksum of each array that is read is compared.
    """
    arrays: dict[str, NDArray[Any]] = {}
    position = 0
    if bytes(data[-_END:][:4]) != b"PK\x05\x06":
        return None
    while bytes(data[position : position + 4]) == _SIGNATURE:
        if position + _LOCAL.size > len(data):
            return None
        header = _LOCAL.unpack_from(data, position)
        flags, method, crc, size, whole, name_length, extra_length = *header[2:4], *header[6:11]
        start = position + _LOCAL.size + name_length + extra_length
        if flags & ~0x800 or method:
            return None
        name = bytes(data[position + _LOCAL.size : position + _LOCAL.size + name_length]).decode()
        if whole == _UNKNOWN:
            extra = data[start - extra_length : start]
            if extra_length < 20 or bytes(extra[:2]) != b"\x01\x00":
                return None
            whole, size = struct.unpack_from("<QQ", extra, 4)
        if size != whole or start + size > len(data):
            return None
        key = name.removesuffix(".npy")
        if wanted(key):
            member = data[start : start + size]
            if zlib.crc32(member) != crc:
                raise ValueError(f"{name} has another checksum")
            arrays[key] = npy_array(member)
        position = start + size
    return arrays if bytes(data[position : position + 4]) in (b"PK\x01\x02", b"PK\x05\x06") else None


def _zip_members(data: bytes, wanted: Callable[[str], bool], limit: int) -> dict[str, NDArray[Any]]:
    """Returns the arrays of any .npz, whose members may be compressed."""
    arrays = {}
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        for info in archive.infolist():
            key = info.filename.removesuffix(".npy")
            if not wanted(key):
                continue
            if info.file_size > limit:
                raise ValueError(f"{info.filename} has {info.file_size} bytes, more than {limit}")
            with archive.open(info) as member:
                content = member.read(limit + 1)
            if len(content) != info.file_size:
                raise ValueError(f"{info.filename} does not have the {info.file_size} bytes that the directory says")
            arrays[key] = npy_array(content)
    return arrays


def any_of(names: Collection[str]) -> Callable[[str], bool]:
    """Returns a function that is True for some names."""
    return frozenset(names).__contains__
