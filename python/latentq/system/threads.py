"""Work on several threads."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


def in_order(function: Callable[[_Item], _Result], items: Iterable[_Item], threads: int) -> Iterator[_Result]:
    """Yields what a function returns for each item, in order. Unlike `Executor.map` it takes items as it goes.

    Args:
        function: Called on `threads` threads, for up to four items per thread ahead of the result that is yielded.
        items: The items, which the calling thread iterates over.
        threads: The number of threads.

    Raises:
        Exception: What the function raises.
    """
    pending: deque[Future[_Result]] = deque()
    pool = ThreadPoolExecutor(threads, "latentq: in order")
    try:
        for item in items:
            pending.append(pool.submit(function, item))
            while len(pending) > 4 * threads or (pending and pending[0].done()):
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
