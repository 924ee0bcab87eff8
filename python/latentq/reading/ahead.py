"""Asking for the shards of the steps that come: they are downloaded while training takes earlier batches."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterator, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from latentq.reading.gather import Pinned
from latentq.reading.steps import Step

_SAMPLES = 1 << 20  # of the steps ahead, at most


class Files(Protocol):
    """Caches of the files of samples: those of a loader's datasets that are remote."""

    def pin(self, indices: NDArray[np.int64], *, within: bool = False) -> Pinned | None:
        """Keeps the files of some samples, and begins to download those that are missing.

        Args:
            indices: The indices of the samples.
            within: True to do nothing, and return None, if much is being downloaded already or the files do not fit.
        """


class JointPins:
    """Several kept files as one: see `Pinned`.

    Args:
        parts: The files.
    """

    def __init__(self, parts: Sequence[Pinned]) -> None:
        self._parts = parts

    def wait(self) -> None:
        """Waits until all are there."""
        for part in self._parts:
            part.wait()

    def release(self) -> None:
        """Ends keeping them."""
        for part in self._parts:
            part.release()


ALL_THERE = JointPins(())
"""No files: all are there, and stay there."""


def with_files(steps: Iterator[Step], files: Files | None) -> Generator[tuple[Step, Pinned]]:
    """Yields steps with their files kept, and keeps those of as many later steps as there is room for.

    Args:
        steps: The steps.
        files: The files, or None if all are there.
    """
    if files is None:
        yield from ((step, ALL_THERE) for step in steps)
        return
    ready: deque[tuple[Step, Pinned]] = deque()
    held: Step | None = None  # a step whose files had no room
    samples = 0
    try:
        while True:
            while samples < _SAMPLES:
                step = held or next(steps, None)
                held = step
                if step is None:
                    break
                pinned = files.pin(step.indices, within=bool(ready))
                if pinned is None:
                    break
                ready.append((step, pinned))
                samples += len(step.indices)
                held = None
            if not ready:
                return
            step, pinned = ready.popleft()
            samples -= len(step.indices)
            yield step, pinned
    finally:
        for _, pinned in ready:
            pinned.release()
