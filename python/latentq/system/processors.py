"""The number of processors that this process may use."""

import os


def processors() -> int:
    """Returns the number of processors in the process's affinity mask; all processors if the system has no mask."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
