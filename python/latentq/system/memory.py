"""The memory that this process may still allocate."""

from pathlib import Path


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
