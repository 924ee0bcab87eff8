"""Units: the facts that each one records, and the finish, a pure function of the units."""

from __future__ import annotations

import functools
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
import tomli_w
from numpy.typing import NDArray

from latentq import mds
from latentq._core import FormatError
from latentq.format.card import CARD, Card, Counts, LatentFacts
from latentq.format.files import INDEX, REJECTS, UNIT
from latentq.format.tsv import tsv_line
from latentq.quantizer import Moments, Quantizer, Statistics
from latentq.store.local import remove_dead, replace_file


@dataclass(frozen=True)
class Reject:
    """A sample that was left out: its key, the stage that refused it, and why.

    The stages are `list`, `read`, `decode`, `size` and `encode`.
    """

    key: str
    stage: str
    error: str


@dataclass
class LatentSums:
    """What a unit records of one latent column.

    Attributes:
        clipped: (C,) int64: how many values were outside the quantiser's range.
        histogram: (C, levels) int64: how often each code occurs, for quantisers with codes.
        moments: float64 sums, for columns of floats, of samples or units in their order: adding up is left to the end,
            so that it does not depend on how they came together.
    """

    clipped: NDArray[np.int64]
    histogram: NDArray[np.int64] | None = None
    moments: list[Moments] = field(default_factory=list)

    @classmethod
    def of(cls, quantizer: Quantizer) -> LatentSums:
        """The sums of nothing."""
        return cls(np.zeros(quantizer.channels, np.int64))

    def add(self, other: LatentSums) -> None:
        """Adds what came after."""
        self.clipped = self.clipped + other.clipped
        if other.histogram is not None:
            self.histogram = other.histogram if self.histogram is None else self.histogram + other.histogram
        self.moments = self.moments + other.moments

    def statistics(self, quantizer: Quantizer) -> Statistics:
        """Of the values that a reader will see."""
        if self.moments:
            return functools.reduce(Moments.merge, self.moments).statistics()
        assert self.histogram is not None
        return Statistics.from_histogram(quantizer, self.histogram)


@dataclass
class UnitFacts:
    """What `unit.toml` holds.

    Attributes:
        samples: How many samples are stored.
        redone: How many samples were encoded again in float32.
        rejects: Those that were left out.
        latents: Sums of each column of latents or moments.
        clipped: Of each column of embeddings, how many values were outside the quantiser's range.
    """

    samples: int = 0
    redone: int = 0
    rejects: list[Reject] = field(default_factory=list)
    latents: dict[str, LatentSums] = field(default_factory=dict)
    clipped: dict[str, int] = field(default_factory=dict)

    def to_toml(self) -> bytes:
        """The bytes of `unit.toml`: a pure function of the facts."""
        data: dict[str, Any] = {
            "samples": self.samples,
            "redone": self.redone,
            "rejects": [vars(reject) for reject in self.rejects],
        }
        for name, sums in self.latents.items():
            table: dict[str, Any] = {"clipped": sums.clipped.tolist()}
            if sums.histogram is not None:
                table["histogram"] = sums.histogram.tolist()
            if sums.moments:
                table["moments"] = functools.reduce(Moments.merge, sums.moments).to_dict()
            data.setdefault("latents", {})[name] = table
        if self.clipped:
            data["embeddings"] = {name: {"clipped": count} for name, count in self.clipped.items()}
        return tomli_w.dumps(data).encode()

    @classmethod
    def load(cls, path: Path) -> UnitFacts:
        """Reads a unit's facts. Raises FormatError where they cannot be understood, naming the file."""
        try:
            data = tomllib.loads(path.read_bytes().decode())
            return cls(
                samples=int(data["samples"]),
                redone=int(data.get("redone", 0)),
                rejects=[Reject(**reject) for reject in data["rejects"]],
                latents={name: _sums(table) for name, table in data.get("latents", {}).items()},
                clipped={name: int(table["clipped"]) for name, table in data.get("embeddings", {}).items()},
            )
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise FormatError(f"{path}: not the facts of a unit: {error}") from None


def _sums(table: Mapping[str, Any]) -> LatentSums:
    return LatentSums(
        np.array(table["clipped"], np.int64),
        np.array(table["histogram"], np.int64) if "histogram" in table else None,
        [Moments.from_dict(table["moments"])] if "moments" in table else [],
    )


class UnitCard(Protocol):
    """What says of itself how many units it has: `Card`, and that of converted shards."""

    @property
    def units(self) -> int:
        """How many units there are."""
        ...

    def to_toml(self) -> bytes:
        """Its file's bytes."""
        ...


_C = TypeVar("_C", bound=UnitCard)


def unit_names(card: UnitCard) -> list[str]:
    """The folders of a dataset's units. Their order as text is their order, since all are of one width."""
    width = max(5, len(str(card.units - 1)))
    return [f"{number:0{width}}" for number in range(card.units)]


def unit_done(out: Path, name: str) -> bool:
    """Whether a unit is published."""
    return (out / name / INDEX).is_file()


def units_done(out: Path, card: UnitCard) -> int:
    """How many units are published."""
    return sum(unit_done(out, name) for name in unit_names(card))


def finish(out: Path, card: Card) -> Card:
    """Completes a dataset whose units are all there."""
    return finish_units(out, card, CARD, completed)


def finish_units(out: Path, card: _C, file: str, complete: Callable[[_C, list[UnitFacts]], _C]) -> _C:
    """Publishes what follows from the units, which are all there: rejects, card, and last of all the index.

    Whoever does it, however often, writes the same bytes. The index comes last, since by it a stock reader knows the
    dataset.

    Args:
        out: The dataset.
        card: Its card as it was published first.
        file: The card's name.
        complete: Makes the card complete.
    """
    names = unit_names(card)
    units = [UnitFacts.load(out / name / UNIT) for name in names]
    rejects = [reject for unit in units for reject in unit.rejects]
    whole = complete(card, units)
    files = {
        REJECTS: "".join(f"{tsv_line((reject.key, reject.stage, reject.error))}\n" for reject in rejects).encode(),
        file: whole.to_toml(),
        INDEX: mds.merged_index(out, names),
    }
    for name, data in files.items():
        path = out / name
        if not path.is_file() or path.read_bytes() != data:
            replace_file(path, data)
    remove_dead(out)
    return whole


def completed(card: Card, units: list[UnitFacts]) -> Card:
    """The card with counts and statistics."""
    latents: dict[str, LatentFacts] = {}
    for name, facts in card.latents.items():
        total = LatentSums.of(facts.quantizer)
        for unit in units:
            if name in unit.latents:
                total.add(unit.latents[name])
        stored = total.histogram is not None or bool(total.moments)
        latents[name] = replace(
            facts,
            statistics=total.statistics(facts.quantizer) if stored else None,
            clipped=tuple(total.clipped.tolist()),
        )
    embeddings = {
        name: replace(facts, clipped=sum(unit.clipped.get(name, 0) for unit in units))
        for name, facts in card.embeddings.items()
    }
    counts = Counts(
        samples=sum(unit.samples for unit in units),
        rejects=sum(len(unit.rejects) for unit in units),
        redone=sum(unit.redone for unit in units),
    )
    return replace(card, latents=latents, embeddings=embeddings, counts=counts)
