"""How many processors this process may use."""

import os


def processors() -> int:
    """The processors that this process may run on, where the system tells; all of them elsewhere."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
