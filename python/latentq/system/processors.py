"""The number of processors that this process may use."""

from __future__ import annotations

import os
from collections.abc import Iterator

from latentq.system.groups import groups, text_of
from latentq.system.ranks import local_world_size


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
    for group in groups(""):
        yield from _quota(*text_of(group / "cpu.max").split())
        yield from _set_size(text_of(group / "cpuset.cpus.effective"))
    for group in groups("cpu"):
        yield from _quota(text_of(group / "cpu.cfs_quota_us"), text_of(group / "cpu.cfs_period_us"))
    for group in groups("cpuset"):
        yield from _set_size(text_of(group / "cpuset.effective_cpus"))


def _quota(quota: str = "", period: str = "", *_: str) -> Iterator[int]:
    """Yields a limit of CPU time, rounded up. `max` and -1 are none."""
    if quota.isdigit() and period.isdigit() and int(period):
        yield max(1, -(-int(quota) // int(period)))


def _set_size(text: str) -> Iterator[int]:
    """Yields the number of processors in a set such as `0-3,8`."""
    ranges = [[int(end) for end in part.split("-")] for part in text.split(",") if part]
    if ranges:
        yield sum(part[-1] - part[0] + 1 for part in ranges)
