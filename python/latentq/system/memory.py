"""How much memory this process may still take."""

from pathlib import Path


def available_bytes() -> int | None:
    """Memory that the system and the control group still grant, the page cache counted as free; None where not told."""
    told = [_in_system(), _in_cgroup()]
    return min((number for number in told if number is not None), default=None)


def _in_system() -> int | None:
    try:
        return int(Path("/proc/meminfo").read_text().partition("MemAvailable:")[2].split()[0]) * 1024
    except (OSError, IndexError):
        return None


def _in_cgroup() -> int | None:
    """What the control group that a container sees, version 2 or 1, still grants."""
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
