"""Recycled memory: tensors that are alive never share it, and what is dropped is used again."""

import copy
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from latentq.benchmark.loading import latent_dataset, write_numpy
from latentq.reading import buffers
from latentq.reading.buffers import CACHE_LINE, RecycledMemory, private, shareable
from latentq.system.arrays import LARGE

DTYPES = [torch.uint8, torch.float32, torch.bfloat16, torch.int64]


@pytest.fixture
def all_recycled(monkeypatch):
    """Recycles small tensors too."""
    monkeypatch.setattr(buffers, "_SMALL", 0)


@settings(max_examples=40, deadline=None)
@given(
    steps=st.lists(st.tuples(st.integers(1, 3000), st.sampled_from(DTYPES), st.integers(0, 4)), min_size=1, max_size=40)
)
def test_living_tensors_share_no_memory(steps):
    small, buffers._SMALL = buffers._SMALL, 0
    try:
        allocate = RecycledMemory()
        alive: list[tuple[torch.Tensor, int]] = []
        for number, (size, dtype, dropped) in enumerate(steps):
            tensor = allocate((size,), dtype)
            assert (tensor.shape, tensor.dtype) == ((size,), dtype)
            assert tensor.data_ptr() % CACHE_LINE == 0
            tensor.fill_(number)
            alive.append((tensor, number))
            del tensor
            if dropped < len(alive):
                del alive[dropped]
            assert all((tensor == value).all() for tensor, value in alive)
    finally:
        buffers._SMALL = small


def test_a_smaller_batch_takes_the_memory_of_a_larger_one(all_recycled):
    allocate = RecycledMemory()
    large = allocate((1000, 4), torch.float32)
    address = large.data_ptr()
    del large
    for rows in (1000, 990, 700, 300):  # the buckets' batches, nearly as large, and a last one
        batch = allocate((rows, 4), torch.float32)
        assert batch.data_ptr() == address
        del batch
    few = allocate((10, 4), torch.float32)
    assert few.data_ptr() != address
    with_few = allocate((900, 4), torch.float32)
    assert with_few.data_ptr() == address
    view = np.asarray(with_few[5:6])
    del with_few
    assert allocate((900, 4), torch.float32).data_ptr() != address  # a view is alive
    del view
    assert allocate((990, 4), torch.float32).data_ptr() == address


@pytest.mark.parametrize("allocate", [private, shareable])
@pytest.mark.parametrize("dtype", [*DTYPES, torch.float16, torch.int32, torch.float64, torch.bool])
def test_large_tensors_of_one_process_take_the_memory_of_those_that_are_gone(allocate, dtype):
    tensor = allocate((3, LARGE), dtype)
    assert (tensor.shape, tensor.dtype, tensor.is_contiguous()) == ((3, LARGE), dtype, True)
    tensor.fill_(1)
    address, view = tensor.data_ptr(), tensor[1:]
    del tensor
    other = allocate((3, LARGE), dtype)
    assert other.data_ptr() != address  # a view is alive
    other.fill_(0)
    assert (view == 1).all()
    del view
    if dtype in DTYPES:
        assert allocate((3, LARGE), dtype).data_ptr() == address


def test_a_large_tensor_is_resized_as_far_as_one_of_numpy():
    for tensor in (private((LARGE,), torch.uint8), torch.from_numpy(np.zeros(LARGE, np.uint8))):
        tensor.fill_(7)
        assert tensor.resize_(LARGE // 2).sum() == 7 * (LARGE // 2)
        with pytest.raises(RuntimeError, match="not resizable"):
            tensor.resize_(LARGE + 1)
        assert tensor.clone().resize_(LARGE + 1).numel() == LARGE + 1


def test_a_batch_in_a_forked_process_is_its_own():
    tensor = private((LARGE,), torch.uint8).fill_(1)
    address = tensor.data_ptr()
    del tensor  # its memory is kept
    context = torch.multiprocessing.get_context("fork")
    parent, child = context.Pipe()
    process = context.Process(target=_fill_in_child, args=(child,))
    process.start()
    try:
        assert parent.poll(60)
        assert parent.recv() == 2
    finally:
        process.join(60)
    again = private((LARGE,), torch.uint8)
    assert again.data_ptr() == address
    assert (again.fill_(3) == 3).all()


def _fill_in_child(pipe):
    array = private((LARGE,), torch.uint8).numpy()  # torch's threads do not survive a fork
    array.fill(2)
    pipe.send(int(array.min()))


def test_a_copied_or_pickled_allocator_has_no_memory():
    allocate = RecycledMemory()
    address = allocate((LARGE,), torch.uint8).data_ptr()
    for other in (pickle.loads(pickle.dumps(allocate)), copy.deepcopy(allocate)):
        assert other((LARGE,), torch.uint8).data_ptr() != address
    assert allocate((LARGE,), torch.uint8).data_ptr() == address


def test_a_loader_uses_the_memory_of_the_last_epoch_again(tmp_path):
    write_numpy(tmp_path, 512)
    loader = latent_dataset(tmp_path).loader(64, shuffle=True)
    first, second = ({batch["latent"].data_ptr() for batch in loader} for _ in range(2))
    assert second <= first
    again = pickle.loads(pickle.dumps(loader))
    assert sum(len(batch["label"]) for batch in again) == 512


def test_memory_beyond_a_bound_is_forgotten(all_recycled, monkeypatch):
    monkeypatch.setattr(buffers, "_MOST_KEPT", 3 << 16)
    allocate = RecycledMemory()

    def free():
        return sum(len(loans) for loans in allocate._free.values())

    tensors = [allocate((1 << 16,), torch.uint8).fill_(number) for number in range(9)]
    del tensors[7:]
    allocate.trim()  # forgets what is free, and the first four of seven that are alive
    assert (free(), len(allocate._loans)) == (0, 3)
    assert all((tensor == number).all() for number, tensor in enumerate(tensors))
    addresses = {tensor.data_ptr() for tensor in tensors[4:]}
    del tensors
    assert (free(), len(allocate._loans)) == (3, 3)
    again = [allocate((1 << 16,), torch.uint8) for _ in range(3)]
    assert {tensor.data_ptr() for tensor in again} == addresses
    allocate.trim()  # nothing is beyond it
    del again
    assert (free(), len(allocate._loans)) == (3, 3)


def test_a_loader_does_not_keep_the_memory_of_an_epoch_whose_batches_were_all_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(buffers, "_MOST_KEPT", 1 << 20)
    write_numpy(tmp_path, 512)
    loader = latent_dataset(tmp_path).loader(32)
    batches = list(loader)
    assert sum(batch["latent"].nbytes for batch in batches) == 8 << 20
    del batches
    held = sum(loan.memory.nbytes for loan in loader._memory._loans.values())
    assert 0 < held <= 1 << 20
    first = next(iter(loader))["latent"]
    assert torch.equal(first, next(iter(latent_dataset(tmp_path).loader(32)))["latent"])
