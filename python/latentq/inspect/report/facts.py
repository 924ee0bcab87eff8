"""The facts of one dataset that a report shows."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from latentq.format.card import Card
from latentq.format.recipe import Recipe
from latentq.inspect.pictures import Picture
from latentq.inspect.report.channels import (
    Channels,
    Errors,
    Floats,
)
from latentq.inspect.report.contents import (
    Captions,
    Classes,
    RejectGroup,
    TokenUse,
)
from latentq.inspect.storage import StorageRow
from latentq.store.cache import is_remote

if TYPE_CHECKING:
    from latentq.format.options import Spread
    from latentq.reading.buckets import StoredBucket


@dataclass(frozen=True, eq=False)
class ColumnFacts:
    """A column that an encoder made.

    Attributes:
        name: Its name in the shards.
        content: Its content, such as `latent`.
        facts: Its facts: shape, quantizer, and with a card the statistics of all samples.
        channels: The values of its channels; None for tokens.
        errors: The error of its channels; None if it is not known.
        clip_rate: (C,) shares of values outside the quantizer's range, of all samples; None if it is not known.
        clipped: The share of all values outside the quantizer's range; None if it is not known.
        tokens: How often its tokens occur; None for other columns.
        spread: What follows the means of moments: `logvar` or `std`.
    """

    name: str
    content: str
    facts: Any
    channels: Channels | None = None
    errors: Errors | None = None
    clip_rate: Floats | None = None
    clipped: float | None = None
    tokens: TokenUse | None = None
    spread: Spread = "logvar"


@dataclass(frozen=True, eq=False)
class SampleFacts:
    """A sample that is shown.

    Attributes:
        index: Its index in the dataset.
        key: Its key; empty without a column of keys.
        label: Its class; empty without labels.
        caption: Its caption; empty without captions.
        pictures: Its pictures, see `compared`; empty if it cannot be decoded.
        score: Why it is among the worst: its SQNR in dB, or the share of its values at the ends of the range.
    """

    index: int
    key: str
    label: str
    caption: str
    pictures: list[Picture]
    score: float | None = None


@dataclass(frozen=True)
class Rates:
    """Samples per second on this machine.

    Attributes:
        read: Samples that are read and dequantized in a second by one thread, all columns.
        encoded: Images that are loaded and encoded in a second; None if none were.
        published: Samples in a second while the dataset was made, by the times of its units' files; None for one unit.
    """

    read: float
    encoded: float | None
    published: float | None


@dataclass(eq=False)
class DatasetFacts:
    """Facts that a report states about one dataset.

    Attributes:
        path: The dataset's folder; for a URL, the folder of the files that were downloaded.
        name: The dataset as the user named it: a folder or a URL.
        recipe: The recipe that made it.
        card: Its card; None for a folder without one.
        samples: The number of its samples.
        columns: The columns that encoders made.
        shown: The samples that are shown.
        worst: The samples with the largest error, worst first.
        buckets: Its buckets; empty without.
        classes: Its classes, if it has labels.
        captions: Its captions, if it has some.
        rejects: Its rejects by reason.
        storage: Its size in several forms.
        rates: Samples per second; None without samples.
        notes: What could not be shown, and why.
    """

    path: Path
    name: str
    recipe: Recipe
    card: Card | None
    samples: int
    columns: list[ColumnFacts] = field(default_factory=list)
    shown: list[SampleFacts] = field(default_factory=list)
    worst: list[SampleFacts] = field(default_factory=list)
    buckets: tuple[StoredBucket, ...] = ()
    classes: Classes | None = None
    captions: Captions | None = None
    rejects: list[RejectGroup] = field(default_factory=list)
    storage: list[StorageRow] = field(default_factory=list)
    rates: Rates | None = None
    notes: list[str] = field(default_factory=list)

    @property
    def is_remote(self) -> bool:
        """True if the dataset is at a URL."""
        return is_remote(self.name)

    @property
    def title(self) -> str:
        """The last part of the dataset's name."""
        return PurePosixPath(self.name).name if self.is_remote else self.path.resolve().name or self.name
