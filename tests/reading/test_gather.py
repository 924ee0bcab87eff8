"""The core's `gather`: it refuses arrays that share memory, since it writes each from several threads, and those that
are not plain rows of bytes."""

import numpy as np
import pytest

from latentq import Quantizer, _core

TABLE = np.arange(40, dtype=np.uint8).reshape(5, 8)
QUANTIZER = Quantizer.uniform(0.0, 255.0, channels=2).for_gather(False)


def _gather(outs, kernels, indices=(3, 1)):
    tables = _core.MemoryTables([TABLE])
    columns = [0] * len(outs)
    return _core.gather(tables, np.array(indices, np.int64), columns, outs, kernels, None).result()


def _overlapping():
    rows = np.zeros((3, 8), np.uint8)
    floats = np.zeros((2, 2, 4), np.float32)
    return {
        "one array twice": ([rows[:2], rows[:2]], [None, None]),
        "overlapping views": ([rows[:2], rows[1:]], [None, None]),
        "floats and their bytes": (
            [floats, floats.reshape(2, 8).view(np.uint8)[:, :8].copy(), floats],
            [QUANTIZER, None, QUANTIZER],
        ),
        "a part": ([floats, floats.view(np.uint8).reshape(-1)[24:40].reshape(2, 8)], [QUANTIZER, None]),
    }


@pytest.mark.parametrize("case", _overlapping())
def test_outputs_that_share_memory_are_refused(case):
    outs, kernels = _overlapping()[case]
    with pytest.raises(ValueError, match="two outputs share memory"):
        _gather(outs, kernels)


def test_adjacent_and_empty_outputs_are_written():
    memory = np.zeros((4, 8), np.uint8)
    floats = np.zeros((2, 2, 4), np.float32)
    assert _gather([memory[:2], memory[2:], floats], [None, None, QUANTIZER]) == [None, None, None]
    np.testing.assert_array_equal(memory, TABLE[[3, 1, 3, 1]])
    np.testing.assert_allclose(floats.reshape(2, 8), TABLE[[3, 1]], atol=1e-4)
    empty = memory[:0]
    assert _gather([empty, empty], [None, None], indices=()) == [None, None]


def _unwritable():
    frozen = np.zeros((2, 8), np.uint8)
    frozen.flags.writeable = False
    return {
        "frozen": frozen,
        "not contiguous": np.zeros((2, 16), np.uint8)[:, ::2],
        "Fortran order": np.zeros((2, 8), np.uint8, order="F"),
        "objects": np.zeros((2, 1), object),
        "records with objects": np.zeros(2, [("a", object)]),
    }


@pytest.mark.parametrize("case", _unwritable())
def test_arrays_that_are_not_plain_rows_are_refused(case):
    with pytest.raises(ValueError, match="C-contiguous, writable array of numbers"):
        _gather([_unwritable()[case]], [None])


@pytest.mark.parametrize("out", [np.zeros((), np.uint8), np.zeros((3, 8), np.uint8), np.zeros((2, 9), np.uint8)])
def test_arrays_of_another_shape_are_refused(out):
    with pytest.raises(ValueError, match=r"out must have 2 rows|has 8 bytes, the output expects 9"):
        _gather([out], [None])


@pytest.mark.parametrize("dtype", [np.uint8, np.int64, np.float32, np.complex64, "S4"])
def test_rows_have_any_dtype_of_their_bytes(dtype):
    out = np.zeros((2, 8 // np.dtype(dtype).itemsize), dtype)
    assert _gather([out], [None]) == [None]
    assert out.tobytes() == TABLE[[3, 1]].tobytes()
