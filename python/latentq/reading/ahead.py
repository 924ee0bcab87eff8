"""Asking for the samples of the steps that come: they are read, or their shards downloaded, during earlier steps."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from latentq._core import Threads
from latentq.reading.gather import Pinned
from latentq.reading.steps import Step

_SAMPLES = 1 << 20  # of the steps ahead, at most


class Files(Protocol):
    """The files of samples of a loader: downloaded, or read ahead as a whole, before they are needed."""

    def pin(self, indices: NDArray[np.int64], *, within: bool = False) -> Pinned | None:
        """Keeps the files of some samples, and begins to download or read those that are missing.

        Args:
            indices: The indices of the samples.
            within: True to do nothing, and return None, if much is being downloaded already or the files do not fit.
        """


class Waited(Protocol):
    """Samples that may have to be waited for: those of a loader's source."""

    @property
    def samples_ahead(self) -> int:
        """How many samples to ask for before they are read; 0 if samples are not waited for."""

    def ask(self, indices: NDArray[np.int64], threads: Threads) -> None:
        """Asks the system on a thread for samples that will be read soon, without waiting for them."""


class JointPins:
    """Several kept files as one: see `Pinned`.

    Args:
        parts: The files.
    """

    def __init__(self, parts: Sequence[Pinned]) -> None:
        self._parts = parts

    @property
    def missing(self) -> int:
        """The number of files that are not there yet."""
        return sum(part.missing for part in self._parts)

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


def asked_for(steps: Iterator[Step], source: Waited, threads: Threads) -> Iterator[Step]:
    """Yields steps. While samples are waited for, those of later steps are asked for.

    Args:
        steps: The steps.
        source: The samples.
        threads: The threads that ask for them.
    """
    coming: deque[Step] = deque()
    samples = 0
    while True:
        while samples < source.samples_ahead and (step := next(steps, None)) is not None:
            source.ask(step.indices, threads)
            coming.append(step)
            samples += len(step.indices)
        if coming:
            yield (step := coming.popleft())
            samples -= len(step.indices)
        elif (step := next(steps, None)) is not None:
            yield step
        else:
            return


def with_files(
    steps: Iterator[Step], files: Files | None, following: Iterator[Step], ahead: list[Pinned]
) -> Generator[tuple[Step, Pinned]]:
    """Yields steps with their files kept, and keeps those of as many later steps as there is room for.

    Args:
        steps: The steps.
        files: The files, or None if all are there.
        following: The steps of the next epoch: at the end of this one their files are downloaded, if there is room.
        ahead: Gets those files after the last step, for the caller to release.
    """
    if files is None:
        yield from ((step, ALL_THERE) for step in steps)
        return
    coming = itertools.chain(((step, True) for step in steps), ((step, False) for step in following))
    ready: deque[tuple[Step, bool, Pinned]] = deque()
    coming_own: list[Pinned] = []  # files of this epoch that may still be missing
    held: tuple[Step, bool] | None = None  # a step whose files had no room
    samples = 0
    try:
        while True:
            while samples < _SAMPLES:
                held = held or next(coming, None)
                if held is None:
                    break
                step, is_own = held
                while coming_own and not coming_own[-1].missing:
                    coming_own.pop()
                if coming_own and not is_own:
                    break  # this epoch's files come first
                pinned = files.pin(step.indices, within=bool(ready) or not is_own)
                if pinned is None:
                    break
                ready.append((step, is_own, pinned))
                if is_own:
                    coming_own.append(pinned)
                samples += len(step.indices)
                held = None
            if not ready or not ready[0][1]:
                ahead.extend(pinned for _, _, pinned in ready)
                ready.clear()
                return
            step, _, pinned = ready.popleft()
            samples -= len(step.indices)
            yield step, pinned
    finally:
        for _, _, pinned in ready:
            pinned.release()
