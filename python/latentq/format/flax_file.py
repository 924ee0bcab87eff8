"""Reads the files of `flax.serialization`: nested MessagePack maps of arrays, without Flax or JAX.

An array is an extension of type 1, a NumPy scalar one of type 3; both hold a MessagePack array of the shape, the
dtype's name and the bytes. Arrays of more than 2^30 bytes are maps of flat chunks.

Nothing that a file declares is allocated before it is there: the file is read as a stream, and what it may hold next
to the bytes of its arrays (entries, names, shapes) is limited.
"""

from __future__ import annotations

from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from latentq._core import FormatError
from latentq.format.safe_torch_file import STORAGES
from latentq.store.local import check_regular
from latentq.system.text import one_line

_ARRAY, _SCALAR = 1, 3  # types of MessagePack extensions
_CHUNKED = "__msgpack_chunked_array__"
_DTYPES = frozenset(STORAGES.values())
_MOST_ENTRIES = 1 << 16  # of all maps together
_LARGEST_MAP = 1 << 10  # entries
_MOST_AXES = 32
_DEEPEST = 16  # maps within maps
_LONGEST_NAME = 128  # bytes
_READ = 1 << 20  # bytes at once


def read_arrays(path: Path) -> dict[str, NDArray[Any]]:
    """Reads all arrays of a file.

    Args:
        path: The file.

    Returns:
        The arrays by their path in the file, joined with `/`; bfloat16 as float32.

    Raises:
        FormatError: It is no such file, or truncated, or holds something other than arrays of numbers.
        ModuleNotFoundError: msgpack is not installed.
        OSError: It cannot be read.
    """
    import msgpack

    check_regular(path)
    size = path.stat().st_size
    try:
        with path.open("rb") as file:
            unpacker = msgpack.Unpacker(
                file,
                read_size=_READ,
                max_buffer_size=max(size, _READ),
                object_pairs_hook=_Maps(),
                ext_hook=_array,
                max_str_len=_LONGEST_NAME,
                max_map_len=_LARGEST_MAP,
                max_ext_len=size,
                max_bin_len=0,
                max_array_len=0,
            )
            tree = unpacker.unpack()
            if unpacker.tell() != size:
                raise ValueError(f"it ends after {unpacker.tell()} of {size} bytes")
        return _flattened(tree)
    except (msgpack.UnpackException, ValueError, TypeError, OverflowError, MemoryError) as error:
        reasons = {
            msgpack.OutOfData: "it is truncated",
            msgpack.FormatError: "it is not MessagePack",
            msgpack.StackError: "it is nested too deeply",
        }
        reason = reasons.get(type(error)) or one_line(error) or type(error).__name__
        raise FormatError(f"{path}: not a file of flax.serialization, or broken: {reason}") from None


class _Maps:
    """Makes dicts of maps, and counts their entries."""

    def __init__(self) -> None:
        self._entries = 0

    def __call__(self, pairs: list[tuple[Any, Any]]) -> dict[str, Any]:
        self._entries += len(pairs)
        if self._entries > _MOST_ENTRIES:
            raise ValueError(f"it has more than {_MOST_ENTRIES} entries")
        entries = dict(pairs)
        if len(entries) < len(pairs) or not all(isinstance(name, str) for name in entries):
            raise ValueError("the names in a map are not different texts")
        return entries


def _array(kind: int, data: bytes) -> NDArray[Any]:
    """Makes an array of an extension, without a copy."""
    if kind not in (_ARRAY, _SCALAR):
        raise ValueError(f"it holds an extension of type {kind}, which is no array")
    import msgpack

    parts = msgpack.unpackb(
        data, max_array_len=_MOST_AXES, max_str_len=_LONGEST_NAME, max_map_len=0, max_ext_len=0, max_bin_len=len(data)
    )
    if not isinstance(parts, list) or len(parts) != 3:
        raise ValueError("an array is not a shape, a dtype and bytes")
    shape, dtype, values = parts
    _check_shape(shape)
    if not isinstance(dtype, str) or dtype not in _DTYPES:
        raise ValueError(f"an array is of dtype {one_line(repr(dtype))}, which is not supported")
    stored = np.dtype("uint16" if dtype == "bfloat16" else dtype).newbyteorder("<")
    if not isinstance(values, bytes) or prod(shape) * stored.itemsize != len(values):
        raise ValueError(f"an array of shape {tuple(shape)} and dtype {dtype} does not have that many bytes")
    array = np.frombuffer(values, stored).reshape(shape)
    return (array.astype(np.uint32) << 16).view(np.float32) if dtype == "bfloat16" else array


def _flattened(tree: object) -> dict[str, NDArray[Any]]:
    """Joins the names of nested maps, and the chunks of arrays."""
    arrays = {}
    pending: list[tuple[str, object, int]] = [("", tree, 0)]
    while pending:
        name, value, depth = pending.pop()
        if isinstance(value, dict) and _CHUNKED in value:
            arrays[name] = _joined(value, name)
        elif isinstance(value, dict):
            if depth == _DEEPEST:
                raise ValueError(f"its maps are nested more than {_DEEPEST} deep")
            pending += [(f"{name}/{part}" if name else part, inner, depth + 1) for part, inner in value.items()]
        elif isinstance(value, np.ndarray) and name:
            arrays[name] = value
        else:
            raise ValueError(f"it holds something other than arrays at {name or 'its top'}: {one_line(repr(value))}")
    return arrays


def _joined(chunked: dict[str, Any], name: str) -> NDArray[Any]:
    """Joins the chunks of an array. The shape and the chunks are lists as Flax writes them: maps of "0", "1", ..."""
    shape, chunks = (_listed(chunked.get(part)) for part in ("shape", "chunks"))
    _check_shape(shape)
    if not chunks or not all(isinstance(chunk, np.ndarray) and chunk.ndim == 1 for chunk in chunks):
        raise ValueError(f"the chunks of {name} are not flat arrays")
    if len({chunk.dtype for chunk in chunks}) > 1 or sum(map(len, chunks)) != prod(shape):
        raise ValueError(f"the chunks of {name} are not an array of shape {tuple(shape)}")
    joined: NDArray[Any] = np.concatenate(chunks).reshape(shape)
    return joined


def _listed(parts: object) -> list[Any]:
    if not isinstance(parts, dict) or parts.keys() != {str(index) for index in range(len(parts))}:
        raise ValueError("the parts of a chunked array are not numbered")
    return [parts[str(index)] for index in range(len(parts))]


def _check_shape(shape: object) -> None:
    if not isinstance(shape, list) or not all(type(side) is int and side >= 0 for side in shape):
        raise ValueError(f"{one_line(repr(shape))} is not a shape")
    if len(shape) > _MOST_AXES:
        raise ValueError(f"an array has more than {_MOST_AXES} axes")
