"""`latentq.system.faults`: faults of the machine and faults of a file are told apart."""

import errno
import os
import zlib

import pytest

from latentq import FormatError, ImageError
from latentq.system.faults import FILE_ERRNOS, is_machine_fault


def raised_from(cause):
    """Returns a FormatError that was raised while `cause` was handled."""
    try:
        try:
            raise cause
        except type(cause):
            raise FormatError("row group 0") from None
    except FormatError as error:
        return error


@pytest.mark.parametrize("code", [errno.EIO, errno.ENOMEM, errno.EMFILE, errno.ENFILE, errno.ESTALE, errno.ENOSPC])
def test_an_errno_of_the_machine_is_a_machine_fault(code):
    error = OSError(code, os.strerror(code))
    assert is_machine_fault(error)
    assert is_machine_fault(raised_from(error))


@pytest.mark.parametrize("code", FILE_ERRNOS)
def test_an_errno_of_a_file_is_no_machine_fault(code):
    error = OSError(code, os.strerror(code))
    assert not is_machine_fault(error)
    assert not is_machine_fault(raised_from(error))


def test_memory_error_and_its_texts():
    assert is_machine_fault(MemoryError())
    assert is_machine_fault(raised_from(MemoryError()))
    assert is_machine_fault(ImageError("x.jpg: JPEG: Insufficient memory (case 4)"))
    assert is_machine_fault(raised_from(zlib.error("Error -4 while decompressing data")))
    assert not is_machine_fault(raised_from(zlib.error("Error -3 while decompressing data: invalid block type")))
    assert not is_machine_fault(ImageError("out of memory.jpg: not an image"))


def test_memory_error_of_arrow():
    pa = pytest.importorskip("pyarrow")
    assert is_machine_fault(raised_from(pa.ArrowMemoryError("malloc of size 64 failed")))
    assert not is_machine_fault(raised_from(pa.ArrowInvalid("Parquet magic bytes not found in footer")))
