"""Stages that work at the same time, each a thread away from the next, and where their time goes."""

from __future__ import annotations

import queue
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, TypeVar

_T = TypeVar("_T")


_POLL = 0.1  # seconds after which a thread that waits looks whether it is to stop


LIST, IMAGES, COPY, NETWORK, QUANTISE, WRITE = "list", "read, decode", "copy", "network", "quantise", "write"


CAPTIONS = "captions"


class Profile:
    """How long each stage worked, waited for what the stage before it makes, or for the stage after it to take more.

    Attributes:
        seconds: By stage and one of `worked`, `starved`, `blocked`. Each is added to by one thread alone. Those of
            `copy`, `network` and `quantise` are the device's.
    """

    def __init__(self) -> None:
        self.seconds: defaultdict[tuple[str, str], float] = defaultdict(float)
        self._start = time.perf_counter()

    @contextmanager
    def timing(self, stage: str, what: str) -> Iterator[None]:
        """Adds what passes inside."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[stage, what] += time.perf_counter() - start

    def table(self) -> list[str]:
        """Lines to print: shares of the time since this profile was made."""
        wall = time.perf_counter() - self._start
        lines = [f"{'':<13} {'worked':>7} {'starved':>8} {'blocked':>8}   of {wall:.1f} s"]
        with_captions = (CAPTIONS,) if any(stage == CAPTIONS for stage, _ in self.seconds) else ()
        for stage in (LIST, IMAGES, COPY, NETWORK, QUANTISE, *with_captions, WRITE):
            shares = [self.seconds.get((stage, what), 0.0) / wall for what in ("worked", "starved", "blocked")]
            lines.append(f"{stage:<13} {shares[0]:>7.1%} {shares[1]:>8.1%} {shares[2]:>8.1%}")
        return lines


class _StopError(Exception):
    """Ends a stage whose work nobody wants any more."""


def ahead(items: Iterable[_T], depth: int, profile: Profile, stage: str, following: str) -> Generator[_T, None, None]:
    """The items, made by a thread that is up to `depth` ahead."""
    waiting: queue.Queue[tuple[str, Any]] = queue.Queue(depth)
    stop = threading.Event()

    def put(kind: str, value: Any) -> None:
        with profile.timing(stage, "blocked"):
            while not stop.is_set():
                with suppress(queue.Full):
                    return waiting.put((kind, value), timeout=_POLL)
            raise _StopError

    def make() -> None:
        try:
            iterator = iter(items)
            while True:
                with profile.timing(stage, "worked"):
                    try:
                        item = next(iterator)
                    except StopIteration:
                        break
                put("item", item)
            put("end", None)
        except _StopError:
            pass
        except BaseException as error:  # the consumer raises it
            with suppress(_StopError):
                put("error", error)

    thread = threading.Thread(target=make, name=f"latentq: {stage}", daemon=True)
    thread.start()
    try:
        while True:
            with profile.timing(following, "starved"):
                kind, value = waiting.get()
            if kind == "item":
                yield value
            elif kind == "error":
                raise value
            else:
                return
    finally:
        stop.set()
        thread.join()


@contextmanager
def behind(
    consume: Callable[[Iterator[_T]], None], depth: int, profile: Profile, stage: str, before: str
) -> Iterator[Callable[[_T], None]]:
    """A function that hands items to a thread, in which `consume` goes through them; up to `depth` wait for it.

    At the end of the block all are consumed. What `consume` raises is raised by that function or at the end of the
    block. What the block raises stops `consume`, by an exception at its next item.
    """
    waiting: queue.Queue[tuple[bool, Any]] = queue.Queue(depth)
    stop = threading.Event()
    failures: list[BaseException] = []

    def get() -> tuple[bool, Any]:
        with profile.timing(stage, "starved"):
            while not stop.is_set():
                with suppress(queue.Empty):
                    return waiting.get(timeout=_POLL)
            raise _StopError

    def items() -> Iterator[_T]:
        while True:
            more, item = get()
            if not more:
                return
            with profile.timing(stage, "worked"):
                yield item

    def run() -> None:
        try:
            consume(items())
        except BaseException as error:  # whoever hands items over raises it
            failures.append(error)

    def put(more: bool, item: Any) -> None:
        with profile.timing(before, "blocked"):
            while thread.is_alive():
                with suppress(queue.Full):
                    waiting.put((more, item), timeout=_POLL)
                    break
        if failures:
            raise failures[0]

    thread = threading.Thread(target=run, name=f"latentq: {stage}", daemon=True)
    thread.start()
    try:
        yield lambda item: put(True, item)
        put(False, None)
        thread.join()
    finally:
        stop.set()
        thread.join()
    if failures:
        raise failures[0]
