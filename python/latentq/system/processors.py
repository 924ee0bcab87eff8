"""The number of processors that this process may use."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from latentq.system.ranks import local_world_size

CGROUPS = Path("/sys/fs/cgroup")
OWN_CGROUPS = Path("/proc/self/cgroup")


def processors() -> int:
    """Returns this process's share of the processors, at least 1.

    The processors of the machine, or of the control groups that this process is in, are divided by the processes that
    torchrun started here. The affinity mask of this process is a limit on its share.
    """
    available = min((os.cpu_count() or 1, *_limits()))
    share = available // local_world_size()
    if hasattr(os, "sched_getaffinity"):
        share = min(share, len(os.sched_getaffinity(0)))
    return max(share, 1)


def _limits() -> Iterator[int]:
    """Yields the limits of the control groups, version 2 or 1: CPU time in processors, and sets of processors."""
    for group in _groups(""):
        yield from _quota(*_text(group / "cpu.max").split())
        yield from _set_size(_text(group / "cpuset.cpus.effective"))
    for group in _groups("cpu"):
        yield from _quota(_text(group / "cpu.cfs_quota_us"), _text(group / "cpu.cfs_period_us"))
    for group in _groups("cpuset"):
        yield from _set_size(_text(group / "cpuset.effective_cpus"))


def _groups(controller: str) -> Iterator[Path]:
    """Yields the folders of this process's control group of version 1, or 2 if there is no controller, and its parents.

    In a container the name may be the host's, of which only the root exists here.
    """
    root = CGROUPS / controller
    yield root
    for line in _text(OWN_CGROUPS).splitlines():
        _, controllers, name = line.split(":", 2)
        if controller in controllers.split(","):
            group = root / name.strip("/")
            yield from (group, *group.parents[: len(group.parents) - len(root.parents) - 1])


def _quota(quota: str = "", period: str = "", *_: str) -> Iterator[int]:
    """Yields a limit of CPU time, rounded up. `max` and -1 are none."""
    if quota.isdigit() and period.isdigit() and int(period):
        yield max(1, -(-int(quota) // int(period)))


def _set_size(text: str) -> Iterator[int]:
    """Yields the number of processors in a set such as `0-3,8`."""
    ranges = [[int(end) for end in part.split("-")] for part in text.split(",") if part]
    if ranges:
        yield sum(part[-1] - part[0] + 1 for part in ranges)


def _text(path: Path) -> str:
    """Returns the text of a file, or nothing if there is no such file."""
    try:
        return path.read_text().strip()
    except OSError:
        return ""
