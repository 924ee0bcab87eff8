"""Out of memory on the device: what counts as it, that memory is free before the next attempt, and what is kept."""

import gc
import weakref

import pytest
import torch

import latentq
from conftest import contents
from latentq import LatentqError, Recipe
from latentq.encoding.run import default_batch_size
from latentq.models.device import is_out_of_memory

AcceleratorError = getattr(torch, "AcceleratorError", RuntimeError)  # torch >= 2.8

ERRORS = {
    "torch's allocator": torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB."),
    "cuDNN": RuntimeError("GET was unable to find an engine to execute this computation"),
    "cuDNN, tried in turn": RuntimeError("FIND was unable to find an engine to execute this computation"),
    "cuDNN's own": RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
    "cuBLAS": RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    "the runtime": AcceleratorError("CUDA error: out of memory\nSearch for `cudaErrorMemoryAllocation'"),
    "the driver": RuntimeError("Triton Error [CUDA]: out of memory"),
}
OTHERS = [
    AcceleratorError("CUDA error: an illegal memory access was encountered"),
    RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasSgemm`"),
    RuntimeError("The size of tensor a (4) must match the size of tensor b (3)"),
    LatentqError("out of memory is only a word here"),
    KeyboardInterrupt(),
]


class Blocks:
    """Runs out of memory for more than three images, by the error that it is given."""

    name = family = "blocks"
    pixel_range = (0.0, 1.0)

    def __init__(self, error=None):
        self.error = error
        self.batches = []

    def latent_shape(self, size):
        return (3, size // 8, size // 8)

    def encode(self, pixels):
        self.batches.append(len(pixels))
        if self.error is not None and len(pixels) > 3:
            raise self.error
        return torch.nn.functional.avg_pool2d(pixels, 8)

    def decode(self, latents):
        return torch.nn.functional.interpolate(latents, scale_factor=8)


def recipe(kind, size=32):
    data = Recipe.load("default").to_dict()
    data["columns"]["latent"] |= {"quantizer": {"kind": kind}, "size": size}
    return Recipe.from_dict(data).override(unit_size=12)


@pytest.mark.parametrize("error", ERRORS.values(), ids=list(ERRORS))
def test_every_kind_of_exhausted_memory_halves_the_batch(photos, tmp_path, error):
    network = Blocks(error)
    latentq.encode(photos, tmp_path / "out", recipe=recipe("float32"), autoencoder=network, batch_size=12)
    assert network.batches == [12, 6, 3, 3, 3, 3]
    latentq.encode(photos, tmp_path / "three", recipe=recipe("float32"), autoencoder=Blocks(), batch_size=3)
    assert contents(tmp_path / "out") == contents(tmp_path / "three")


@pytest.mark.parametrize("error", OTHERS, ids=str)
def test_other_errors_end_the_run_at_once(photos, tmp_path, error):
    network = Blocks(error)
    assert not is_out_of_memory(error)
    with pytest.raises(type(error)):
        latentq.encode(photos, tmp_path / "out", recipe=recipe("float32"), autoencoder=network, batch_size=12)
    assert network.batches == [12]


def test_batch_size_that_was_halved_to_calibrate_stays_halved(photos, tmp_path):
    network = Blocks(ERRORS["torch's allocator"])
    latentq.encode(photos, tmp_path / "out", recipe=recipe("affine"), autoencoder=network, batch_size=12)
    assert network.batches == [12, 6, *[3] * 4, *[3] * 4]


class Watched(Blocks):
    """Runs out of memory at its second call; notes at the first call of a batch size which tensors are still there."""

    def __init__(self, cyclic):
        super().__init__()
        self.cyclic = cyclic
        self.tensors = []
        self.left = {}

    def encode(self, pixels):
        if len(pixels) not in self.batches:
            self.left[len(pixels)] = [name for name, tensor in self.tensors if tensor() is not None]
        latents = super().encode(pixels)
        self.tensors += [("pixels", weakref.ref(pixels)), ("latents", weakref.ref(latents))]
        if len(self.batches) == 2:
            raise self.failure()
        return latents

    def failure(self):
        error = torch.OutOfMemoryError("CUDA out of memory")
        if self.cyclic:  # as the error of a stopped stage, whose frame holds it
            error.itself = error
        return error


@pytest.mark.parametrize("cyclic", [False, True])
def test_tensors_of_a_failed_attempt_are_freed_before_the_next(photos, tmp_path, cyclic):
    network = Watched(cyclic)
    gc.collect()
    gc.disable()
    try:
        latentq.encode(photos, tmp_path / "out", recipe=recipe("float32"), autoencoder=network, batch_size=4)
    finally:
        gc.enable()
    assert network.batches == [4] * 2 + [2] * 6  # the first batch is in flight as the second fails
    assert network.left == {4: [], 2: []}


def test_default_batch_follows_the_size():
    assert {size: default_batch_size([(size, size), (32, 32)]) for size in (32, 256, 384, 512, 1024, 4096)} == {
        32: 64, 256: 64, 384: 28, 512: 16, 1024: 4, 4096: 1
    }  # fmt: skip
    assert default_batch_size([(832, 1216), (1216, 832)]) == 4
    # The largest output of SDXL's encoder: 128 channels at full resolution.
    assert all(default_batch_size([(size, size)]) * 128 * size**2 < 2**31 for size in range(8, 4096, 8))


def test_run_without_a_batch_size_takes_the_default_of_its_largest_size(photos, tmp_path):
    network = Blocks()
    latentq.encode(photos, tmp_path / "out", recipe=recipe("float32", 1024), autoencoder=network)
    assert network.batches == [4, 4, 4]
