"""The options of reading another tool's data."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ReadOptions:
    """The options of reading another tool's data.

    Attributes:
        autoencoder: The autoencoder that made the latents: a name in `known.KNOWN`, or of any model; None for the
            layout's usual one.
        variant: The kind of files to read, if a folder has several: what follows the colon in `--from kohya:sdxl`.
        codebook: The number of tokens in the codebook; None for the layout's usual one.
    """

    autoencoder: str | None = None
    codebook: int | None = None
    variant: str | None = None
