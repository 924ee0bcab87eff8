"""Units: their names, and the facts that each one records in `unit.toml`."""

from __future__ import annotations

import functools
import hashlib
import itertools
import json
import os
import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Protocol

import numpy as np
import tomli_w
from numpy.typing import NDArray

from latentq._core import FormatError
from latentq.format.facts import SampleCounts, SourceFacts
from latentq.format.files import INDEX, LIST
from latentq.quantizer import AnyQuantizer, Moments, Quantizer, Statistics
from latentq.run.sample_list import SampleList
from latentq.store.local import read_regular

_FINISH_FIELDS = ("complete", "counts", "versions")  # of a card
_HISTOGRAM = re.compile(r'^(histogram = )"(.*)"$', re.MULTILINE)  # a basic string, of digits and [,]
_LIST_FIELDS = ("samples", "sha256", "units", "revision", "next_label")  # of its source


@dataclass(frozen=True)
class Reject:
    """A sample that is not stored.

    Attributes:
        key: The sample's key, as text.
        stage: The stage that rejected it: `list`, `read`, `decode`, `size` or `encode`.
        error: The reason, on one line.
    """

    key: str
    stage: str
    error: str


@dataclass
class LatentSums:
    """Sums over one latent column of a unit, from which the card's statistics follow.

    Attributes:
        clipped: (C,) int64, the number of values outside the quantizer's range.
        histogram: (C, levels) int64, the number of times each code occurs; None if the quantizer has no codes.
        moments: float64 sums of each sample or unit, in order, for columns of floats. They are added up at the end, so
            that the result does not depend on how samples were grouped into batches.
    """

    clipped: NDArray[np.int64]
    histogram: NDArray[np.int64] | None = None
    moments: list[Moments] = field(default_factory=list)

    @classmethod
    def empty(cls, quantizer: AnyQuantizer) -> LatentSums:
        """Returns the sums over no samples."""
        return cls(np.zeros(quantizer.channels, np.int64))

    def add(self, other: LatentSums) -> None:
        """Adds the sums of samples that follow these."""
        self.clipped = self.clipped + other.clipped
        if other.histogram is not None:
            self.histogram = other.histogram if self.histogram is None else self.histogram + other.histogram
        self.moments = self.moments + other.moments

    def statistics(self, quantizer: AnyQuantizer) -> Statistics:
        """Returns the statistics of the dequantized values, which are what a reader sees."""
        if self.moments:
            return functools.reduce(Moments.merge, self.moments).statistics()
        assert self.histogram is not None
        assert isinstance(quantizer, Quantizer)
        return Statistics.from_histogram(quantizer, self.histogram)


@dataclass
class UnitFacts:
    """The contents of `unit.toml`.

    Attributes:
        card: Hash of the card that the unit was made with, see `card_hash`; empty in units of older versions.
        listing: Hash of the unit's part of the list, see `SampleList.unit_sha256`; empty in units of older versions.
        samples: Number of samples that are stored.
        redone: Number of samples that were encoded again in float32.
        rejects: The samples that are not stored.
        latents: Sums of each column of latents or moments.
        clipped: For each column of embeddings, the number of values outside the quantizer's range.
        buckets: The number of stored samples in each bucket; empty without buckets.
    """

    card: str = ""
    listing: str = ""
    samples: int = 0
    redone: int = 0
    rejects: list[Reject] = field(default_factory=list)
    latents: dict[str, LatentSums] = field(default_factory=dict)
    clipped: dict[str, int] = field(default_factory=dict)
    buckets: list[int] = field(default_factory=list)

    def to_toml(self) -> bytes:
        """Returns the bytes of `unit.toml`, a pure function of the facts.

        A histogram is a string: the rows of counts as JSON. Parsing a thousand numbers of TOML, or a string with
        escapes, would take most of the time in which a dataset is finished.
        """
        data: dict[str, Any] = {"card": self.card, "list": self.listing} if self.card else {}
        data |= {
            "samples": self.samples,
            "redone": self.redone,
            **({"buckets": self.buckets} if self.buckets else {}),
            "rejects": [vars(reject) for reject in self.rejects],
        }
        for name, sums in self.latents.items():
            table: dict[str, Any] = {"clipped": sums.clipped.tolist()}
            if sums.histogram is not None:
                table["histogram"] = json.dumps(sums.histogram.tolist(), separators=(",", ":"))
            if sums.moments:
                table["moments"] = functools.reduce(Moments.merge, sums.moments).to_dict()
            data.setdefault("latents", {})[name] = table
        if self.clipped:
            data["embeddings"] = {name: {"clipped": count} for name, count in self.clipped.items()}
        return _HISTOGRAM.sub(r"\1'\2'", tomli_w.dumps(data)).encode()

    @classmethod
    def load(cls, path: Path) -> UnitFacts:
        """Reads `unit.toml`.

        Raises:
            FormatError: The file is not a valid `unit.toml`; the message names it.
            OSError: The file cannot be read.
        """
        text = read_regular(path)
        try:
            data = tomllib.loads(text.decode())
            return cls(
                card=str(data.get("card", "")),
                listing=str(data.get("list", "")),
                samples=int(data["samples"]),
                redone=int(data.get("redone", 0)),
                rejects=[Reject(**reject) for reject in data["rejects"]],
                latents={name: _sums(table) for name, table in data.get("latents", {}).items()},
                clipped={name: int(table["clipped"]) for name, table in data.get("embeddings", {}).items()},
                buckets=[int(count) for count in data.get("buckets", [])],
            )
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
            raise FormatError(f"{path}: not the facts of a unit: {error}") from None


def _sums(table: Mapping[str, Any]) -> LatentSums:
    return LatentSums(
        np.array(table["clipped"], np.int64),
        _histogram(table["histogram"]) if "histogram" in table else None,
        [Moments.from_dict(table["moments"])] if "moments" in table else [],
    )


def _histogram(text: str) -> NDArray[np.int64]:
    """Returns (C, levels) counts, from JSON. Raises ValueError, TypeError or OverflowError if it is anything else."""
    rows = json.loads(text)
    if {*map(type, itertools.chain.from_iterable(rows))} != {int}:
        raise ValueError("a histogram holds something else than counts")
    counts = np.array(rows, np.int64)
    if counts.ndim != 2 or counts.min() < 0:
        raise ValueError("a histogram is not rows of counts")
    return counts


class UnitCard(Protocol):
    """The card of anything that is made unit by unit: `Card` and `ShardsCard`."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def source(self) -> SourceFacts:
        """The source that the samples come from."""
        ...

    @property
    def counts(self) -> SampleCounts | None:
        """Numbers of samples stored and rejected; None until all units are published."""
        ...

    @property
    def units(self) -> int:
        """Number of units that the samples are cut into."""
        ...

    def to_toml(self) -> bytes:
        """Returns the bytes of the card's file."""
        ...


def card_hash(data: bytes) -> str:
    """Hashes the fields of a card that decide what the stored values mean.

    These are all fields except the versions of libraries, the fields that finishing adds, and what an update changes:
    the list. The hash is taken over the fields in the file, so that a later version of latentq, which may have more
    fields, computes the same.

    Args:
        data: The bytes of the card's file, finished or not.

    Returns:
        The SHA-256 in hexadecimal.
    """
    fields = tomllib.loads(data.decode())
    for name in _FINISH_FIELDS:
        fields.pop(name, None)
    for name in _LIST_FIELDS:
        fields.get("source", {}).pop(name, None)
    for column in (*fields.get("latents", {}).values(), *fields.get("embeddings", {}).values()):
        column.pop("statistics", None)
        column.pop("clipped", None)
    return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()


def list_folder(out: Path, revision: int) -> Path:
    """Returns the folder of a dataset's list.

    Args:
        out: The dataset.
        revision: How often the dataset was updated.
    """
    return out / (f"{LIST}.{revision}" if revision else LIST)


def sample_list(out: Path, card: UnitCard) -> SampleList:
    """Opens the list that a card names.

    Raises:
        FormatError: The list is broken.
        OSError: The list cannot be read.
    """
    return SampleList(list_folder(out, card.source.revision))


def unit_names(out: Path, card: UnitCard) -> Iterator[str]:
    """Yields the folder names of all units that a card names, in order. Raises as `sample_list`."""
    return (unit.name for unit in sample_list(out, card).units())


def unit_done(out: Path, name: str) -> bool:
    """True if a unit is published."""
    return os.path.isfile(f"{out}/{name}/{INDEX}")  # noqa: PTH113  (a Path is slow, and there may be many units)


def units_done(out: Path, card: UnitCard) -> int:
    """Returns the number of published units."""
    return sum(unit_done(out, name) for name in unit_names(out, card))
