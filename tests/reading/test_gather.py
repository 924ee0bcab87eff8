"""The core's `gather`: arrays that share memory are refused, since it writes each from several threads."""

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
