"""Distinguishes faults of the machine, which end a run, from faults of a file, which make its sample a reject."""

from __future__ import annotations

import errno

FILE_ERRNOS = (errno.EACCES, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG, errno.ENOENT, errno.ENOTDIR, errno.EPERM)
"""Errors of a single file, which make its sample a reject. Any other error is the machine's, and ends the run."""


class DeniedError(PermissionError):
    """A store denies access: never a fault of the object that was asked for."""


def is_file_fault(error: OSError) -> bool:
    """True if an error is of a single file, so that its sample is a reject."""
    return error.errno in FILE_ERRNOS and not isinstance(error, DeniedError)


# Decoders report a failed allocation as text: ours, libjpeg's, libpng's, and zlib's Z_MEM_ERROR.
_MEMORY_TEXTS = ("no memory", "out of memory", "insufficient memory", "not enough memory", "error -4 while")


def is_machine_fault(error: BaseException | None) -> bool:
    """True if an error, or one that it was raised from, is the machine's: too little memory, too few descriptors, I/O.

    The same work may succeed another time, so a sample must not be rejected for it.
    """
    while error is not None:
        if isinstance(error, MemoryError):
            return True
        if isinstance(error, OSError) and error.errno is not None and not is_file_fault(error):
            return True
        reason = str(error).rpartition(": ")[2].lower()  # without names of files, which may say anything
        if any(text in reason for text in _MEMORY_TEXTS):
            return True
        error = error.__cause__ or error.__context__
    return False


def raise_machine_fault(error: Exception, name: str) -> None:
    """Raises an error that is the machine's; does nothing for one of the file.

    Args:
        error: The error.
        name: The sample's name, for the message.

    Raises:
        MemoryError: There is too little memory.
        OSError: Files cannot be opened or read.
    """
    if isinstance(error, OSError):
        if not is_file_fault(error):
            raise error
    elif is_machine_fault(error):
        cause: BaseException | None = error
        while cause is not None:
            if isinstance(cause, OSError):
                raise cause
            cause = cause.__cause__ or cause.__context__
        raise MemoryError(
            f"{name}: {error}; free memory, use fewer threads or take the file out of the source, and run again"
        )
