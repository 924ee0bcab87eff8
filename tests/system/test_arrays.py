"""`new_array` is `numpy.empty` to its caller, and takes the memory of large arrays that are gone."""

import os
import pickle
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from latentq import Quantizer, _core
from latentq.system.arrays import LARGE, new_array

SHAPE = (3, LARGE)


def address(array: np.ndarray) -> int:
    return array.__array_interface__["data"][0]


@pytest.mark.parametrize("dtype", [np.uint8, np.float32, np.dtype("<i8"), np.float16])
@pytest.mark.parametrize("shape", [(), (0,), (5,), (0, 3), SHAPE, (2, 3, LARGE)])
def test_nobody_can_tell(shape, dtype):
    array, expected = new_array(shape, dtype), np.empty(shape, dtype)
    assert (array.shape, array.dtype, array.strides) == (expected.shape, expected.dtype, expected.strides)
    assert {name: array.flags[name] for name in ("C", "W", "O", "A")} == dict.fromkeys("CWOA", True)
    assert array.base is None
    if array.nbytes >= LARGE:
        assert address(array) % 64 == 0
    array[...] = 3
    assert np.array_equal(pickle.loads(pickle.dumps(array)), array)
    assert torch.from_numpy(array).eq(3).all()


def test_memory_of_arrays_that_are_gone_is_used_again():
    first = new_array(SHAPE, np.float32)
    first[...] = 1
    at, view = address(first), first[1:]
    del first
    other = new_array(SHAPE, np.float32)  # the view keeps the memory
    assert address(other) != at
    other[...] = 2
    assert (view == 1).all()
    del view
    assert address(new_array(SHAPE, np.float32)) == at


def test_an_array_may_be_resized_in_place():
    array = new_array((LARGE,), np.float32)
    array[...] = 5
    array.resize(4 * LARGE, refcheck=False)
    assert (array[:LARGE] == 5).all()
    assert not array[LARGE:].any()
    array.resize(3, refcheck=False)
    assert array.tolist() == [5, 5, 5]


def test_threads_get_memory_of_their_own():
    barrier = threading.Barrier(4)

    def work(value: int) -> bool:
        barrier.wait()
        for _ in range(30):
            array = new_array((LARGE + 1000 * value,), np.uint8)
            array[...] = value
            if not (array == value).all():
                return False
        return True

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(work, range(4)))


def test_a_forked_child_has_memory_of_its_own():
    array = new_array(SHAPE, np.uint8)
    array[...] = 7
    child = os.fork()
    if not child:
        other = new_array(SHAPE, np.uint8)
        other[...] = 8
        array[...] = 9
        del array, other
        again = new_array(SHAPE, np.uint8)
        again[...] = 1
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert (array == 7).all()


def test_results_are_written_over_old_memory_entirely():
    quantizer = Quantizer.uniform(-1, 1, channels=2, bits=6)
    x = np.linspace(-1, 1, 2 * LARGE, dtype=np.float32).reshape(4, 2, -1)
    codes = quantizer.quantize(x).copy()
    values, packed = quantizer.dequantize(codes).copy(), quantizer.pack(codes).copy()
    for _ in range(3):
        for dtype, size in ((np.uint8, codes.nbytes), (np.uint8, packed.nbytes), (np.float32, values.size)):
            old = new_array((size,), dtype)
            old[...] = 255
            del old
        assert np.array_equal(quantizer.quantize(x), codes)
        assert np.array_equal(quantizer.dequantize(codes), values)
        assert np.array_equal(quantizer.pack(codes), packed)
        assert np.array_equal(quantizer.unpack(packed, codes.shape), codes)


def test_bad_shapes_and_types_are_errors():
    with pytest.raises(MemoryError):
        new_array((1 << 46,), np.float32)
    with pytest.raises((ValueError, OverflowError)):
        _core.new_array((1 << 62, 1 << 62), np.float32)
    with pytest.raises(ValueError, match="objects"):
        _core.new_array((LARGE,), object)
