"""Checks that tensors give the codes and values of arrays, by the Rust kernels and by torch operations."""

from typing import Any

import numpy as np
import pytest

from latentq.quantizer import NotFiniteError, Quantizer

torch = pytest.importorskip("torch")
tensors = pytest.importorskip("latentq.quantizer.tensors")

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.float64]
LEVELS = np.sort(np.random.default_rng(0).normal(0, 2, (3, 32)), axis=1)
QUANTIZERS = [
    Quantizer.uniform(-5, 6, channels=3),
    Quantizer.uniform(-14, 14, channels=3, rounding="truncate"),
    Quantizer.uniform(-4.7, 5.1, channels=3, rounding="truncate", bits=5),
    Quantizer.affine([-4.1, 0.7, -900], [5.3, 0.7, 3], bits=6),
    Quantizer.affine([-3, 0, -1e-3], [5, 0, 2e-3]),
    Quantizer.codebook(LEVELS),
    *(Quantizer.floating(kind, channels=3) for kind in ("float16", "bfloat16", "float32")),
]


def latents(dtype: Any, shape: tuple[int, ...] = (5, 3, 17, 9)) -> Any:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 3
    x.view(-1)[::97] *= 20
    return x.to(dtype)


def bits(x: Any) -> np.ndarray:
    """Returns the bytes of a tensor or array."""
    return tensors.to_numpy(x).view(np.uint8) if isinstance(x, torch.Tensor) else x.view(np.uint8)


@pytest.mark.parametrize("q", QUANTIZERS, ids=lambda q: f"{q.kind}{q.bits}{q.rounding[0]}")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(5, 3, 17, 9), (4, 3), (0, 3, 8), (2, 3, 64, 64)])
def test_tensors_give_the_codes_values_and_counts_of_arrays(q: Quantizer, dtype: Any, shape: tuple[int, ...]) -> None:
    x = latents(dtype, shape)
    codes, counts = q.quantize_counted(tensors.to_numpy(x))
    for device in DEVICES:
        on_device = x.to(device)
        np.testing.assert_array_equal(bits(q.quantize(on_device)), bits(codes))
        # On the CPU, too, the torch operations give the codes of the kernels.
        by_operations, clipped, bad = tensors.encode(q, on_device)
        np.testing.assert_array_equal(bits(by_operations), bits(codes))
        assert clipped.sum(0).tolist() == counts.clipped.tolist()
        assert not bad.any()
        for out in ("float32", "float16", "bfloat16"):
            values = q.dequantize(codes, dtype=out)
            dtype_out = getattr(torch, out)
            np.testing.assert_array_equal(bits(q.dequantize(by_operations, dtype=dtype_out)), bits(values))
            np.testing.assert_array_equal(bits(tensors.decode(q, by_operations, dtype_out)), bits(values))
            stored = torch.from_numpy(q.pack(codes).copy()).to(device)
            np.testing.assert_array_equal(bits(q.dequantize_packed(stored, shape, dtype=dtype_out)), bits(values))
        packed = q.pack(codes)
        np.testing.assert_array_equal(bits(q.pack(by_operations)), packed)
        np.testing.assert_array_equal(bits(tensors.pack(q, by_operations)), packed)
        np.testing.assert_array_equal(bits(q.quantize_packed(on_device)), packed)
        stored = torch.from_numpy(packed.copy()).to(device)
        np.testing.assert_array_equal(bits(q.unpack(stored, shape)), bits(codes))
        np.testing.assert_array_equal(bits(tensors.unpack(q, stored, shape)), bits(codes))


@pytest.mark.parametrize("q", QUANTIZERS, ids=lambda q: f"{q.kind}{q.bits}{q.rounding[0]}")
def test_non_finite_values_are_refused_or_masked(q: Quantizer) -> None:
    x = latents(torch.float32, (4, 3, 11))
    x[2, 1, 5] = float("nan")
    x[2, 2, 5] = float("inf")
    codes, counts = q.quantize_counted(x.numpy())
    by_operations, clipped, bad = tensors.encode(q, x)
    np.testing.assert_array_equal(bits(by_operations), bits(codes))
    assert bad.nonzero().tolist() == [[2, 1], [2, 2]]
    assert clipped[~bad.any(1)].sum(0).tolist() == counts.clipped.tolist()
    for device in DEVICES:
        masked, same = q.quantize_counted(x.to(device))
        np.testing.assert_array_equal(bits(masked), bits(codes))
        assert same.clipped.tolist() == counts.clipped.tolist()
        assert same.bad.tolist() == [False, False, True, False]
        with pytest.raises(NotFiniteError, match="sample 2, channel 1"):
            q.quantize(x.to(device))


def test_values_next_to_every_bound_get_equal_codes() -> None:
    q = Quantizer.affine([-4.1, -1e-3, 2], [5.3, 7, 9])
    middle = (q.table()[:, :-1].astype(np.float64) + q.table()[:, 1:]) / 2
    around = middle.astype(np.float32)
    x = np.stack([np.nextafter(around, np.float32(-np.inf)), around, np.nextafter(around, np.float32(np.inf))])
    for device in DEVICES:
        codes, _, _ = tensors.encode(q, torch.from_numpy(x).to(device))
        np.testing.assert_array_equal(bits(codes), q.quantize(x))


def test_cpu_tensors_are_read_and_written_in_place() -> None:
    q = Quantizer.uniform(-5, 6, channels=3)
    x = latents(torch.bfloat16)
    assert tensors.to_numpy(x).ctypes.data == x.data_ptr()
    codes = torch.empty(x.shape, dtype=torch.uint8)
    assert q.quantize(x, out=codes) is codes
    values = torch.empty(x.shape, dtype=torch.bfloat16)
    assert q.dequantize(codes, dtype=torch.bfloat16, out=values) is values
    assert torch.equal(values, q.dequantize(q.quantize(x)).to(torch.bfloat16))


def test_out_on_another_device_is_refused() -> None:
    q = Quantizer.uniform(-5, 6, channels=3)
    x = latents(torch.float32)
    codes = q.quantize(x)
    for device in ["meta", *DEVICES[1:]]:
        with pytest.raises(ValueError, match="out must be"):
            q.quantize(x, out=torch.zeros(x.shape, dtype=torch.uint8, device=device))
        with pytest.raises(ValueError, match="out must be"):
            q.dequantize(codes, out=torch.zeros(x.shape, device=device))
    with pytest.raises(ValueError, match="out must be"):
        q.quantize(x, out=np.zeros(x.shape, np.uint8))


def test_gradients_and_memory_formats_do_not_matter() -> None:
    q = Quantizer.uniform(-5, 6, channels=3)
    x = latents(torch.float32).requires_grad_()
    codes = q.quantize(x)
    assert torch.equal(q.quantize(x.transpose(2, 3)), codes.transpose(2, 3))
    assert torch.equal(q.quantize(x.to(memory_format=torch.channels_last)), codes)


def test_calibration_and_measuring_take_tensors() -> None:
    x = latents(torch.bfloat16)
    q = Quantizer.calibrate(x)
    assert q == Quantizer.calibrate(x.float().numpy())
    assert q.measure(x) == q.measure(x.float().numpy())


def test_quantizing_without_waiting_gives_the_same_codes_and_counts() -> None:
    x = latents(torch.float32, (4, 3, 11))
    x[2, 1, 5] = float("nan")
    for q in QUANTIZERS:
        expected, counts = q.quantize_counted(x)
        for device in DEVICES:
            codes, clipped, bad = q.quantize_on_device(x.to(device))
            np.testing.assert_array_equal(bits(codes), bits(expected))
            assert codes.dtype == expected.dtype
            assert (clipped.tolist(), bad.tolist()) == (counts.clipped.tolist(), counts.bad.tolist())


def test_quantizing_vectors_on_a_device_makes_no_int64_of_their_size() -> None:
    """Embeddings are (tokens, width): counts of that shape take a gigabyte for 64 captions of T5's."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Elements(TorchDispatchMode):
        most = 0  # of an int64 tensor that an operation makes

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            result = func(*args, **(kwargs or {}))
            if isinstance(result, torch.Tensor) and result.dtype == torch.int64:
                self.most = max(self.most, result.numel())
            return result

    x = latents(torch.float32, (50, 3))
    for q in QUANTIZERS:
        with Elements() as elements:
            tensors.quantize_counted(q, x, None)
        assert 0 < elements.most <= 3, q
