"""The normalization of an autoencoder: the formula from its raw latents to those that models are trained on."""

from __future__ import annotations

import hashlib
import io
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from latentq._core import FormatError, LatentqError
from latentq.format.files import NORMALIZATION
from latentq.store.local import read_regular

_SHA256 = re.compile(r"sha256:[0-9a-f]{64}")


@dataclass(frozen=True)
class Normalization:
    """The formula from raw latents z to scaled latents: (z - mean) * factor / std.

    Attributes:
        factor: The factor, of all channels.
        mean: One number for all channels, or one for each; of the channels after `patchify`.
        std: The same.
        patchify: 2 if z is first made of blocks of 2 x 2 positions, (C, h, w) to (4C, h/2, w/2), by
            `torch.nn.functional.pixel_unshuffle`; else 1.
        positions: If mean and std differ by position, the hash of the file that holds them, `sha256:...`, and `mean`
            and `std` are unused; else empty.
    """

    factor: float = 1.0
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    patchify: int = 1
    positions: str = ""

    def __post_init__(self) -> None:
        numbers = (self.factor, *self.mean, *self.std)
        if not all(type(number) in (int, float) and math.isfinite(number) for number in numbers):
            raise ValueError("normalization: factor, mean and std must be finite numbers")
        if not self.factor or not self.mean or not self.std or min(self.std) <= 0:
            raise ValueError("normalization: factor must not be 0, and each std must be positive")
        if type(self.patchify) is not int or self.patchify not in (1, 2):
            raise ValueError(f"normalization: patchify must be 1 or 2, not {self.patchify!r}")
        if not isinstance(self.positions, str) or (self.positions and not _SHA256.fullmatch(self.positions)):
            raise ValueError(f"normalization: positions must be sha256:..., not {self.positions!r}")

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Normalization:
        """Returns the normalization of the card's table.

        Raises:
            TypeError: A field is unknown or has the wrong type.
            ValueError: A field is out of range.
        """
        values: dict[str, Any] = {key: tuple(value) if key in ("mean", "std") else value for key, value in data.items()}
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        """Returns the card's table: the factor, and each other field that is not its default."""
        data = {entry.name: getattr(self, entry.name) for entry in fields(self)}
        changed = {key: value for key, value in data.items() if key == "factor" or value != getattr(_IDENTITY, key)}
        return {key: list(value) if isinstance(value, tuple) else value for key, value in changed.items()}

    def shape(self, shape: tuple[int, int, int]) -> tuple[int, int, int]:
        """Returns the shape of scaled latents for the shape (C, h, w) of raw ones.

        Raises:
            ValueError: h or w is not a multiple of `patchify`.
        """
        channels, height, width = shape
        if height % self.patchify or width % self.patchify:
            raise ValueError(
                f"latents of {height} x {width} positions have no blocks of {self.patchify} x {self.patchify}"
            )
        return channels * self.patchify**2, height // self.patchify, width // self.patchify

    def check_channels(self, channels: int) -> None:
        """Checks that mean and std have as many numbers as latents have channels.

        Args:
            channels: C of raw latents.

        Raises:
            ValueError: They have another number.
        """
        expected = channels * self.patchify**2
        for name, values in (("mean", self.mean), ("std", self.std)):
            if len(values) not in (1, expected):
                raise ValueError(f"normalization: {name} has {len(values)} numbers for {expected} channels")

    @property
    def formula(self) -> str:
        """The formula, as Python over a tensor `z` (N, C, h, w) of raw latents.

        Numbers that are the same in all channels are in it; `mean` and `std` stand for the others.
        """
        text = "z" if self.patchify == 1 else f"pixel_unshuffle(z, {self.patchify})"
        if self.positions or len(self.mean) > 1:
            text = f"({text} - mean)"
        elif self.mean[0]:
            text = f"({text} - {self.mean[0]!r})" if self.mean[0] > 0 else f"({text} + {-self.mean[0]!r})"
        if self.factor != 1:
            text += f" * {self.factor!r}"
        if self.positions or len(self.std) > 1:
            text += " / std"
        elif self.std[0] != 1:
            text += f" / {self.std[0]!r}"
        return text


_IDENTITY = Normalization()


def positions_bytes(positions: NDArray[np.float32]) -> bytes:
    """Returns the bytes of `normalization.npy`.

    Args:
        positions: float32 (2, C, h, w), the mean and then the standard deviation of each position, after `patchify`.
    """
    file = io.BytesIO()
    np.save(file, np.ascontiguousarray(positions, "<f4"), allow_pickle=False)
    return file.getvalue()


def positions_hash(data: bytes) -> str:
    """Returns the hash of `normalization.npy` that `Normalization.positions` holds."""
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def load_positions(folder: Path, normalization: Normalization) -> NDArray[np.float32]:
    """Loads the mean and std of each position from a dataset's folder.

    Args:
        folder: The folder.
        normalization: The normalization of the dataset's card; it has `positions`.

    Returns:
        float32 (2, C, h, w): mean, then std.

    Raises:
        LatentqError: There is no such file.
        FormatError: The file is not that of the card.
    """
    path = folder / NORMALIZATION
    try:
        data = read_regular(path)
    except FileNotFoundError:
        raise LatentqError(f"{path} is missing: it holds the normalization of scaled latents") from None
    if positions_hash(data) != normalization.positions:
        raise FormatError(f"{path}: its hash is {positions_hash(data)}, the card has {normalization.positions}")
    try:
        array = np.load(io.BytesIO(data), allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise FormatError(f"{path}: not a .npy file: {error}") from None
    if array.ndim != 4 or len(array) != 2 or array.dtype != np.float32:
        raise FormatError(f"{path}: it must hold float32 (2, C, h, w), not {array.dtype} {array.shape}")
    if not np.isfinite(array).all() or (array[1] <= 0).any():
        raise FormatError(f"{path}: its means must be finite and its standard deviations positive")
    positions: NDArray[np.float32] = array
    return positions
