"""The control groups that this process is in: limits that its container or its job has."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

CGROUPS = Path("/sys/fs/cgroup")
OWN_CGROUPS = Path("/proc/self/cgroup")


def groups(controller: str) -> Iterator[Path]:
    """Yields the folders of this process's control group of version 1, or 2 if there is no controller, and its parents.

    In a container the name may be the host's, of which only the root exists here.
    """
    root = CGROUPS / controller
    yield root
    for line in text_of(OWN_CGROUPS).splitlines():
        _, controllers, name = line.split(":", 2)
        if controller in controllers.split(","):
            group = root / name.strip("/")
            yield from (group, *group.parents[: len(group.parents) - len(root.parents) - 1])


def text_of(path: Path) -> str:
    """Returns the text of a file, or nothing if there is no such file."""
    try:
        return path.read_text().strip()
    except OSError:
        return ""
