"""The embedding of the empty caption, a file next to the card: unconditional training takes it for the caption's."""

from __future__ import annotations

import io
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from latentq._core import FormatError
from latentq.store.local import read_regular

_BROKEN = (
    ValueError, TypeError, KeyError, EOFError, OverflowError, RuntimeError, OSError, zipfile.BadZipFile, zlib.error
)  # fmt: skip


def to_bytes(arrays: Mapping[str, NDArray[Any]]) -> bytes:
    """Returns the bytes of `empty_caption.npz`.

    Args:
        arrays: For each column the values that a sample stores, before they are packed.
    """
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


def load(path: Path) -> dict[str, NDArray[Any]]:
    """Reads the arrays that `to_bytes` wrote.

    Raises:
        FileNotFoundError: There is no such file.
        FormatError: It is broken; its checksums are verified.
    """
    data = read_regular(path)
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
            return dict(arrays.items())
    except _BROKEN as error:
        raise FormatError(f"{path}: not an empty caption's embedding: {error}") from None
