"""The empty caption's embedding, a file beside the card: what training without captions gives in a caption's place."""

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

_BROKEN = (
    ValueError, TypeError, KeyError, EOFError, OverflowError, RuntimeError, OSError, zipfile.BadZipFile, zlib.error
)  # fmt: skip


def to_bytes(arrays: Mapping[str, NDArray[Any]]) -> bytes:
    """The bytes of `empty_caption.npz`: by column what is stored of a sample, before it is packed."""
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


def load(path: Path) -> dict[str, NDArray[Any]]:
    """What `to_bytes` wrote.

    Raises:
        FileNotFoundError: There is no such file.
        FormatError: It is broken; its checksums are looked at.
    """
    data = path.read_bytes()
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
            return dict(arrays.items())
    except _BROKEN as error:
        raise FormatError(f"{path}: not an empty caption's embedding: {error}") from None
