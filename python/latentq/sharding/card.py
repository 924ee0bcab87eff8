"""The card of JPEG shards, `shards.toml`."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tomli_w

from latentq._core import FormatError
from latentq.collect import Columns
from latentq.format.facts import SampleCounts, SourceFacts
from latentq.format.files import SHARDS
from latentq.store.local import read_regular

_FORMAT = 2


@dataclass(frozen=True)
class ShardsCard:
    """The contents of `shards.toml`.

    Attributes:
        source: The source of the samples.
        contents: Content and MDS encoding of each column.
        min_size: Smallest side in pixels.
        max_size: Longest short side in pixels.
        quality: JPEG quality of images that were encoded again.
        unit_size: Samples per unit.
        counts: Numbers of samples stored and rejected; None until all units are published.
        versions: Versions of the packages that made the bytes.
    """

    source: SourceFacts
    contents: Columns
    min_size: int
    max_size: int
    quality: int
    unit_size: int
    counts: SampleCounts | None = None
    versions: Mapping[str, str] = field(default_factory=dict)

    @property
    def units(self) -> int:
        """Number of units that the samples are cut into."""
        return self.source.units or -(-self.source.samples // self.unit_size)

    @property
    def columns(self) -> dict[str, str]:
        """The MDS encoding of every column."""
        return {name: encoding for name, (_, encoding) in self.contents.items()}

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> ShardsCard:
        """Reads the card in a folder.

        Raises:
            FileNotFoundError: The folder has no card.
            FormatError: The card is not valid.
        """
        file = Path(path) / SHARDS
        text = read_regular(file)
        try:
            data = tomllib.loads(text.decode())
            if (version := data.pop("format")) != _FORMAT:
                hint = ": make the shards again" if version == 1 else ""
                raise ValueError(f"format {version!r}; this latentq reads format {_FORMAT}{hint}")
            columns = {name: (column["from"], column["encoding"]) for name, column in data.pop("columns").items()}
            counts = SampleCounts.from_dict(data.pop("counts")) if "counts" in data else None
            return cls(**{**data, "source": SourceFacts(**data["source"])}, contents=columns, counts=counts)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise FormatError(f"{file}: not the card of converted shards: {error}") from None

    def to_dict(self) -> dict[str, Any]:
        """Returns the tables of `shards.toml`."""
        data: dict[str, Any] = {"format": _FORMAT}
        for name in ("min_size", "max_size", "quality", "unit_size"):
            data[name] = getattr(self, name)
        if self.counts is not None:
            data["counts"] = self.counts.to_dict()
        data["source"] = self.source.to_dict()
        columns = self.contents.items()
        data["columns"] = {name: {"from": content, "encoding": encoding} for name, (content, encoding) in columns}
        data["versions"] = dict(self.versions)
        return data

    def to_toml(self) -> bytes:
        """Returns the bytes of `shards.toml`, a pure function of the card."""
        return ("# Shards made by `latentq shards`.\n" + tomli_w.dumps(self.to_dict())).encode()
