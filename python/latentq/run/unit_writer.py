"""Writes and publishes one unit, whichever pipeline makes its samples."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from latentq import mds
from latentq._core import LatentqError, MdsBuffers
from latentq.format.files import HASHES, UNIT
from latentq.run.units import Reject, UnitFacts, unit_done
from latentq.sources import Sample, Source
from latentq.sources.listing import reason_of
from latentq.store.local import bytes_below
from latentq.system.progress import Progress

_SHARD_BYTES = 1 << 26


class UnitWriter:
    """Stores the samples of one unit, and counts those that are rejected.

    Args:
        shards: Where samples are written.
        facts: The unit's facts; modified in place.
        bar: Advanced with every sample.

    Attributes:
        facts: The unit's facts.
        group: The name of the group of samples that was begun last; empty before the first.
    """

    def __init__(self, shards: mds.Writer, facts: UnitFacts, bar: Progress) -> None:
        self._shards = shards
        self.facts = facts
        self._bar = bar
        self.group = ""

    def begin_group(self, name: str, columns: Mapping[str, str]) -> None:
        """Begins a group of samples, whose arrays have other shapes: see `mds.Writer.begin_group`."""
        self._shards.begin_group(name, columns)
        self.group = name

    def write(self, columns: Mapping[str, Any], count: int) -> None:
        """Stores `count` samples, given as columns."""
        self._shards.write_batch(columns)
        self._count(count)

    def write_sample(self, sample: Mapping[str, Any]) -> None:
        """Stores one sample."""
        self._shards.write(sample)
        self._count(1)

    def reject(self, source: Source, sample: Sample, stage: str, error: Exception, *, strict: bool) -> None:
        """Counts a sample that is not stored.

        Args:
            source: The source, opened.
            sample: The rejected sample.
            stage: What failed: `list`, `read`, `decode`, `size` and so on.
            error: The reason.
            strict: True to end the run instead, unless the stage is `size`.

        Raises:
            LatentqError: As `raise_if_strict` says.
        """
        raise_if_strict(source, sample, stage, error, strict=strict)
        reason = reason_of(error, own_file(source, sample))
        self.facts.rejects.append(Reject(sample.text, stage, reason))
        self._bar.reject(sample.text, stage, reason)

    def _count(self, samples: int) -> None:
        self.facts.samples += samples
        self._bar.update(samples)


def publish_unit(
    path: Path,
    columns: Mapping[str, str],
    facts: UnitFacts,
    bar: Progress,
    fill: Callable[[UnitWriter], None],
    *,
    files: Mapping[str, bytearray] | None = None,
    shard_bytes: int = _SHARD_BYTES,
    buffers: MdsBuffers | None = None,
) -> None:
    """Writes one unit and publishes it. If another process publishes the unit first, that one stays.

    If `fill` raises, nothing is published, and the bar goes back: the unit may be tried again.

    Args:
        path: The unit's folder, which must not exist yet.
        columns: MDS encoding of each column.
        facts: The unit's facts, completed by `fill`.
        bar: Counts the unit's samples.
        fill: Writes every sample of the unit. It may be cut short if another process is first.
        files: Further files of the unit by name; `fill` completes their bytes.
        shard_bytes: Upper limit of a shard's size in bytes.
        buffers: Memory for shards, which the units of a process use in turn.
    """
    try:
        with mds.Writer(path, dict(columns), hashes=HASHES, size_limit=shard_bytes, buffers=buffers) as shards:
            fill(UnitWriter(shards, facts, bar))
            for name, data in (files or {}).items():
                shards.add_file(name, bytes(data))
            shards.add_file(UNIT, facts.to_toml())
    except (FileExistsError, FileNotFoundError):
        # The other process may also have removed our temporary folder at its finish.
        if not unit_done(path.parent, path.name):
            raise
    except BaseException:
        bar.undo(facts.samples, ((reject.stage, reject.error) for reject in facts.rejects))
        raise
    else:
        bar.wrote(bytes_below(path))


def raise_if_strict(source: Source, sample: Sample, stage: str, error: Exception, *, strict: bool) -> None:
    """Ends a strict run at a rejected sample, unless it is rejected for its size.

    Args:
        source: The source, opened.
        sample: The rejected sample.
        stage: What failed: `list`, `read`, `decode`, `size` and so on.
        error: The reason.
        strict: True if the run is strict.

    Raises:
        LatentqError: The run is strict; the message names the file, the stage and the reason.
    """
    if strict and stage != "size":
        file = own_file(source, sample)
        raise LatentqError(f"{file or sample.text}: {stage}: {reason_of(error, file)}")


def own_file(source: Source, sample: Sample) -> Path | None:
    """Returns the path of a sample that is a file of its own, or None."""
    if sample.archive is not None or sample.fault:
        return None
    try:
        data = source.data(sample)
    except LatentqError:  # of an object on a store that is not there
        return None
    return data if isinstance(data, Path) else None
