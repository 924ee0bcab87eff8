"""Which pages of files the system has in memory.

`mincore` tells without reading: a `preadv` with RWF_NOWAIT fails, but begins to read the missing pages.
"""

import ctypes
import mmap
import os
import time

PAGE = mmap.PAGESIZE


def evict(folder):
    """Has the shards of a folder leave memory; they stay in a file system without a disk."""
    for path in folder.glob("*.mds"):
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def pages_in_memory(path):
    """Returns for each page of a file whether it is in memory."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
    with path.open("rb") as file:
        size = path.stat().st_size
        start = libc.mmap(None, size, mmap.PROT_READ, mmap.MAP_SHARED, file.fileno(), 0)
    flags = (ctypes.c_ubyte * -(-size // PAGE))()
    assert libc.mincore(ctypes.c_void_p(start), ctypes.c_size_t(size), flags) == 0
    libc.munmap(ctypes.c_void_p(start), ctypes.c_size_t(size))
    return [bool(flag & 1) for flag in flags]


def is_resident(path):
    """True if all of a file is in memory."""
    return all(pages_in_memory(path))


def resident(folder):
    """Returns the share of the pages of the shards that are in memory: 1 after `evict` if they have no disk."""
    pages = [page for path in sorted(folder.glob("*.mds")) for page in pages_in_memory(path)]
    return sum(pages) / len(pages)


def soon(condition):
    """Waits until a condition is true, but not for long. Returns whether it is."""
    deadline = time.monotonic() + 20
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.001)
    return condition()
