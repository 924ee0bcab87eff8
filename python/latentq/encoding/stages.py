"""Pipeline stages that run at the same time, each in a thread, and the time that each takes."""

from __future__ import annotations

import queue
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, Literal, TypeVar

_T = TypeVar("_T")

_POLL = 0.1  # seconds between a waiting thread's checks whether it is to stop
LIST, IMAGES, COPY, NETWORK, QUANTIZE, WRITE = "list", "read, decode", "copy", "network", "quantize", "write"
CAPTIONS, CODEC = "captions", "codec"

State = Literal["worked", "starved", "blocked"]
"""A stage computes, waits for the stage before it, or waits for the stage after it."""
_Message = Literal["item", "error", "end"]


class Profile:
    """The time that each stage works and waits.

    Attributes:
        seconds: By stage and `State`. Only one thread adds to each entry. The entries of `copy`, `network` and
            `quantize` are measured by the device's clock. Those of `codec`, a trellis or a transform on the CPU, are a
            part of `write`.
    """

    def __init__(self) -> None:
        self.seconds: defaultdict[tuple[str, State], float] = defaultdict(float)
        self._start = time.perf_counter()

    @contextmanager
    def timing(self, stage: str, state: State) -> Iterator[None]:
        """Adds the time that passes inside the block."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[stage, state] += time.perf_counter() - start

    def worked(self) -> dict[str, float]:
        """Returns the seconds that each stage worked, by its name."""
        return {stage: seconds for (stage, state), seconds in self.seconds.items() if state == "worked"}

    def busy_text(self, device: str) -> Callable[[], str]:
        """Returns a function whose result names the share of the time since now in which the device worked.

        Args:
            device: The type of torch's device, such as `cuda`.
        """

        def seconds() -> float:
            return sum(self.seconds.get((stage, "worked"), 0.0) for stage in (COPY, NETWORK, QUANTIZE))

        start, before, name = time.perf_counter(), seconds(), "network" if device == "cpu" else "GPU"
        return lambda: f"{name} {min(1.0, (seconds() - before) / max(time.perf_counter() - start, 1e-9)):.0%}"

    def table(self) -> list[str]:
        """Returns lines to print: each stage's shares of the time since this profile was made."""
        wall = time.perf_counter() - self._start
        lines = [f"{'':<13} {'worked':>7} {'starved':>8} {'blocked':>8}   of {wall:.1f} s"]
        seen = {stage for stage, _ in self.seconds}
        optional = [stage for stage in (CAPTIONS, CODEC) if stage in seen]
        states: tuple[State, ...] = ("worked", "starved", "blocked")
        for stage in (LIST, IMAGES, COPY, NETWORK, QUANTIZE, *optional, WRITE):
            shares = [self.seconds.get((stage, state), 0.0) / wall for state in states]
            lines.append(f"{stage:<13} {shares[0]:>7.1%} {shares[1]:>8.1%} {shares[2]:>8.1%}")
        return lines


class _WeighedQueue(queue.Queue[tuple[bool, Any]]):
    """A queue that is full at a total weight, not at a number of items."""

    def __init__(self, limit: int, weigh: Callable[[Any], int]) -> None:
        self._weigh = weigh
        self._total = 0
        super().__init__(limit)

    def _qsize(self) -> int:
        return self._total

    def _put(self, item: tuple[bool, Any]) -> None:
        self._total += self._weight(item)
        super()._put(item)

    def _get(self) -> tuple[bool, Any]:
        item = super()._get()
        self._total -= self._weight(item)
        return item

    def _weight(self, item: tuple[bool, Any]) -> int:
        more, value = item
        return max(1, self._weigh(value)) if more else 1


class _StoppedError(Exception):
    """Ends a stage whose results are no longer needed."""


def prefetched(
    items: Iterable[_T], depth: int, profile: Profile, stage: str, consumer: str
) -> Generator[_T, None, None]:
    """Yields the items, which a thread makes ahead of time.

    An exception of the thread is raised here. Closing the generator stops the thread.

    Args:
        items: Iterated in the thread.
        depth: The largest number of items made ahead.
        profile: Collects the time of both stages.
        stage: Name of the stage that makes items.
        consumer: Name of the stage that takes them.
    """
    results: queue.Queue[tuple[_Message, Any]] = queue.Queue(depth)
    stop = threading.Event()

    def put(kind: _Message, value: Any) -> None:
        with profile.timing(stage, "blocked"):
            while not stop.is_set():
                with suppress(queue.Full):
                    return results.put((kind, value), timeout=_POLL)
            raise _StoppedError

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
        except _StoppedError:
            pass
        except BaseException as error:
            with suppress(_StoppedError):
                put("error", error)
        finally:
            if isinstance(items, Generator):
                items.close()  # here: what it has entered, such as a current device, is this thread's own

    thread = threading.Thread(target=make, name=f"latentq: {stage}", daemon=True)
    thread.start()
    try:
        while True:
            with profile.timing(consumer, "starved"):
                kind, value = results.get()
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
def background_consumer(
    consume: Callable[[Iterator[_T]], None],
    limit: int,
    profile: Profile,
    stage: str,
    producer: str,
    weigh: Callable[[_T], int] = lambda _: 1,
) -> Iterator[Callable[[_T], None]]:
    """Runs `consume` in a thread, and gives the block a function that sends it items.

    At the end of the block every item is consumed. An exception of `consume` is raised by the sending function, or at
    the end of the block. An exception of the block stops `consume` at its next item.

    Args:
        consume: Iterates over the items in the thread.
        limit: The weight of waiting items at which sending waits.
        profile: Collects the time of both stages.
        stage: Name of the stage that consumes items.
        producer: Name of the stage that sends them.
        weigh: Returns the weight of an item; by default its number is limited.
    """
    waiting = _WeighedQueue(limit, weigh)
    stop = threading.Event()
    failures: list[BaseException] = []

    def get() -> tuple[bool, Any]:
        with profile.timing(stage, "starved"):
            while not stop.is_set():
                with suppress(queue.Empty):
                    return waiting.get(timeout=_POLL)
            raise _StoppedError

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
        except BaseException as error:
            failures.append(error)

    def put(more: bool, item: Any) -> None:
        with profile.timing(producer, "blocked"):
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
