"""The memory that this process may still allocate, and how often Python's garbage collector looks for cycles in it."""

import contextlib
import gc
from collections.abc import Iterator
from pathlib import Path

from latentq.system.groups import groups, text_of

_ALLOCATIONS = 100_000  # between two collections, instead of Python's 700


@contextlib.contextmanager
def fewer_collections() -> Iterator[None]:
    """Has the garbage collector run less often during the block, which should make many objects and no cycles.

    The collector costs such code a fifth of its time and more.
    """
    first, *others = gc.get_threshold()
    if not 0 < first < _ALLOCATIONS:  # 0 is off; or a block of another thread has set it, and sets it back
        yield
        return
    gc.set_threshold(_ALLOCATIONS, *others)
    try:
        yield
    finally:
        gc.set_threshold(first, *others)


def available_bytes() -> int | None:
    """Returns the bytes that system and control group still grant, page cache counted as free; None if unknown."""
    system = _in_system()
    return min([*_in_groups(), *([] if system is None else [system])], default=None)


def _in_system() -> int | None:
    try:
        return int(Path("/proc/meminfo").read_text().partition("MemAvailable:")[2].split()[0]) * 1024
    except (OSError, IndexError):
        return None


def _in_groups() -> Iterator[int]:
    """Yields what the control groups of this process, version 2 or 1, still grant."""
    for controller, limit, used in (("", "memory.max", "anon"), ("memory", "memory.limit_in_bytes", "total_rss")):
        for group in groups(controller):
            granted = text_of(group / limit)
            taken = dict(line.split() for line in text_of(group / "memory.stat").splitlines()).get(used, "")
            if granted.isdigit() and taken.isdigit():  # without a limit, the first is `max` or very large
                yield int(granted) - int(taken)
