"""The memory that this process may still allocate, and how often Python's garbage collector looks for cycles in it."""

import contextlib
import gc
from collections.abc import Iterator
from pathlib import Path

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
    limits = [_in_system(), _in_cgroup()]
    return min((limit for limit in limits if limit is not None), default=None)


def _in_system() -> int | None:
    try:
        return int(Path("/proc/meminfo").read_text().partition("MemAvailable:")[2].split()[0]) * 1024
    except (OSError, IndexError):
        return None


def _in_cgroup() -> int | None:
    """Returns what the container's control group, version 2 or 1, still grants."""
    for folder, limit, used in (
        (Path("/sys/fs/cgroup"), "memory.max", "anon"),
        (Path("/sys/fs/cgroup/memory"), "memory.limit_in_bytes", "total_rss"),
    ):
        try:
            granted = (folder / limit).read_text().strip()
            taken = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())[used]
        except (OSError, KeyError, ValueError):
            continue
        if granted != "max":
            return int(granted) - int(taken)
    return None
