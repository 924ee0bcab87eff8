"""The card of JPEG shards, `shards.toml`."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import tomli_w

from latentq._core import FormatError
from latentq.collect import Columns
from latentq.format.card import Counts, SourceFacts
from latentq.format.files import SHARDS
from latentq.run.units import UnitFacts

_FORMAT = 1


@dataclass(frozen=True)
class ShardsCard:
    """`shards.toml`: what a folder of converted shards says of itself.

    Attributes:
        source: Where the samples came from.
        contents: The columns: what each holds, and its encoding.
        min_size: Both sides have at least so many pixels.
        max_size: The short side has at most so many.
        quality: Of the JPEGs that were made anew.
        unit_size: Samples in a unit.
        counts: What became of the samples; None until all units are there.
        versions: Of what made the bytes.
    """

    source: SourceFacts
    contents: Columns
    min_size: int
    max_size: int
    quality: int
    unit_size: int
    counts: Counts | None = None
    versions: Mapping[str, str] = field(default_factory=dict)

    @property
    def units(self) -> int:
        """How many units the source is cut into."""
        return self.source.units or -(-self.source.samples // self.unit_size)

    @property
    def columns(self) -> dict[str, str]:
        """The MDS encoding of every column."""
        return {name: encoding for name, (_, encoding) in self.contents.items()}

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> ShardsCard:
        """The card in a folder.

        Raises:
            FileNotFoundError: There is none.
            FormatError: It cannot be understood.
        """
        file = Path(path) / SHARDS
        try:
            data = tomllib.loads(file.read_bytes().decode())
            if data.pop("format") != _FORMAT:
                raise ValueError("another format")
            columns = {name: (column["from"], column["encoding"]) for name, column in data.pop("columns").items()}
            counts = Counts(**data.pop("counts")) if "counts" in data else None
            return cls(**{**data, "source": SourceFacts(**data["source"])}, contents=columns, counts=counts)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise FormatError(f"{file}: not the card of converted shards: {error}") from None

    def to_dict(self) -> dict[str, Any]:
        """As TOML has it."""
        data: dict[str, Any] = {"format": _FORMAT}
        for name in ("min_size", "max_size", "quality", "unit_size"):
            data[name] = getattr(self, name)
        if self.counts is not None:
            data["counts"] = vars(self.counts).copy()
        data["source"] = self.source.to_dict()
        columns = self.contents.items()
        data["columns"] = {name: {"from": content, "encoding": encoding} for name, (content, encoding) in columns}
        data["versions"] = dict(self.versions)
        return data

    def to_toml(self) -> bytes:
        """The bytes of `shards.toml`: a pure function of the card."""
        return ("# Shards made by `latentq shards`.\n" + tomli_w.dumps(self.to_dict())).encode()

    def completed(self, units: list[UnitFacts]) -> ShardsCard:
        """The card with counts."""
        counts = Counts(samples=sum(unit.samples for unit in units), rejects=sum(len(unit.rejects) for unit in units))
        return replace(self, counts=counts)
