"""Compares the quantizer with NumPy in float64 and with the source system's formula."""

import math
import pickle
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tomli_w
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import latentq
from latentq.quantizer import Calibrator, NotFiniteError, Quantizer
from support.quantizers import BITS, SHAPES, per_channel, some_latents, some_quantizers


def f32(x: Any) -> np.ndarray:
    """Rounds the result of a float64 operation to float32, which equals the float32 operation for + - * /."""
    with np.errstate(over="ignore"):
        return np.asarray(x, np.float64).astype(np.float32).astype(np.float64)


def codes_by_definition(q: Quantizer, x: np.ndarray) -> np.ndarray:
    x = f32(x)
    low, high = per_channel(q.low, x.ndim), per_channel(q.high, x.ndim)
    top = 2**q.bits - 1
    if q.kind == "codebook":
        codes = np.empty(x.shape, np.uint8)
        for c, levels in enumerate(np.array(q.levels, np.float64)):
            codes[:, c] = np.abs(x[:, c, ..., None] - levels).argmin(-1)
        return codes
    step = f32(f32(high - low) / top)
    with np.errstate(divide="ignore", invalid="ignore"):
        if q.rounding == "truncate":
            span = f32(high - low)
            code = np.trunc(f32(f32(f32(np.clip(x, low, high) / span) + f32(-low / span)) * top))
        else:
            code = np.rint(f32(f32(x - low) * f32(1 / step)))
    return np.where(step > 0, np.clip(code, 0, top), 0).astype(np.uint8)


def values_by_definition(q: Quantizer, codes: np.ndarray) -> np.ndarray:
    if q.kind == "codebook":
        return np.stack([np.array(q.levels)[c][codes[:, c]] for c in range(q.channels)], axis=1)
    low, high = per_channel(q.low, codes.ndim), per_channel(q.high, codes.ndim)
    step = f32(f32(high - low) / (2**q.bits - 1))
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(step > 0, f32(f32(codes + f32(low / step)) * step), np.broadcast_to(low, codes.shape))


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.float64])
def test_codes_and_values_are_those_of_the_definition_in_float64(bits: int, shape: tuple[int, ...], dtype: Any) -> None:
    x = some_latents(shape, dtype)
    for q in some_quantizers(bits):
        codes = q.quantize(x)
        assert codes.dtype == np.uint8
        np.testing.assert_array_equal(codes, codes_by_definition(q, x))
        values = q.dequantize(codes)
        assert values.dtype == np.float32
        np.testing.assert_array_equal(values, values_by_definition(q, codes).astype(np.float32))
        np.testing.assert_array_equal(q.dequantize(codes, dtype=np.float16), values.astype(np.float16))


def test_truncation_equals_the_encoder_of_imagenet_int8() -> None:
    z = np.concatenate([some_latents((1, 4, 500_000), seed=1) * 3, np.full((1, 4, 1), 14.0, np.float32)], axis=2)
    expected = ((np.clip(z, -14, 14) / np.float32(28) + np.float32(0.5)) * np.float32(255)).astype(np.uint8)
    q = Quantizer.uniform(-14, 14, channels=4, rounding="truncate")
    np.testing.assert_array_equal(q.quantize(z), expected)
    lower_edge = (np.arange(256) / 255 - 0.5) * 28
    np.testing.assert_allclose(q.table()[0], lower_edge, atol=2e-6)


finite = st.floats(-1e6, 1e6, width=32)


@given(
    st.integers(2, 8),
    st.lists(st.tuples(finite, finite), min_size=1, max_size=3),
    st.data(),
)
def test_error_is_at_most_half_a_step_codes_are_monotone_and_values_are_fixed_points(
    bits: int, ranges: list[tuple[float, float]], data: st.DataObject
) -> None:
    q = Quantizer.affine([min(r) for r in ranges], [max(r) for r in ranges], bits=bits)
    x = data.draw(hnp.arrays(np.float32, (2, len(ranges), 9), elements=finite))
    x.sort(axis=2)
    codes = q.quantize(x)
    assert (np.diff(codes.astype(int), axis=2) >= 0).all()
    values = q.dequantize(codes)
    low, high = per_channel(q.low, 3), per_channel(q.high, 3)
    step = (high - low) / (2**bits - 1)
    ulp = np.spacing(np.maximum(abs(low), abs(high)).astype(np.float32)).astype(np.float64)
    inside = np.clip(x.astype(np.float64), low, high)
    # The last term allows for a range with subnormal steps, which decodes to a single value.
    assert (np.abs(values - inside) <= step / 2 * (1 + 1e-4) + 4 * ulp + 1e-36).all()
    resolved = np.broadcast_to(((step > 16 * ulp) & (step > 1e-37)) | (step == 0), x.shape)
    np.testing.assert_array_equal(q.quantize(values)[resolved], codes[resolved])


@given(st.integers(2, 8), st.integers(0, 4), st.integers(0, 50), st.integers(0, 2**32 - 1))
def test_unpacking_restores_packed_codes(bits: int, samples: int, elements: int, seed: int) -> None:
    q = Quantizer.uniform(-1, 1, channels=1, bits=bits)
    codes = np.random.default_rng(seed).integers(0, 2**bits, (samples, 1, elements)).astype(np.uint8)
    packed = q.pack(codes)
    assert packed.shape == (samples, math.ceil(elements * bits / 8))
    np.testing.assert_array_equal(q.unpack(packed, codes.shape), codes)
    # NumPy packs the same bit stream.
    stream = np.unpackbits(codes[:, 0, :, None], axis=2, bitorder="little")[..., :bits]
    stream = stream.reshape(samples, elements * bits)
    np.testing.assert_array_equal(packed, np.packbits(stream, axis=1, bitorder="little"))


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("shape", [*SHAPES, (5, 2, 33, 31)])
def test_quantize_packed_equals_quantize_then_pack(bits: int, shape: tuple[int, ...]) -> None:
    x = some_latents(shape)
    for q in [*some_quantizers(bits), Quantizer.floating("bfloat16", channels=2)]:
        codes = q.quantize(x)
        packed = q.pack(codes)
        out = np.full(packed.shape, 7, np.uint8)
        assert q.quantize_packed(x, out=out) is out
        for other in (out, q.quantize_packed(x, threads=3)):
            np.testing.assert_array_equal(other, packed)
        for dtype in (np.float32, np.float16, "bfloat16"):
            values = q.dequantize(codes, dtype=dtype)
            np.testing.assert_array_equal(q.dequantize_packed(packed, shape, dtype=dtype), values)
        values = np.full(shape, 7, np.float32)
        assert q.dequantize_packed(packed, shape, out=values, threads=2) is values
        np.testing.assert_array_equal(values, q.dequantize(codes))


def test_packed_bytes_of_another_size_are_refused() -> None:
    q = Quantizer.uniform(-1, 1, channels=2, bits=6)
    packed = np.zeros((3, 6), np.uint8)
    for shape in [(3, 2, 5), (2, 2, 4), (3, 1, 8), (), (3,)]:
        with pytest.raises(ValueError):
            q.dequantize_packed(packed, shape)
    for shape in [(3, 2, 5), (2, 2, 4), ()]:
        with pytest.raises(ValueError):
            q.unpack(packed, shape)
    with pytest.raises(NotFiniteError, match="sample 1, channel 0"):
        q.quantize_packed(np.array([[[1.0], [1.0]], [[np.inf], [1.0]]], np.float32))


def test_codes_with_too_many_bits_are_refused() -> None:
    q = Quantizer.uniform(-1, 1, channels=2, bits=4)
    codes = np.array([[[0], [0]], [[1], [16]]], np.uint8)
    for refuse in (q.pack, q.dequantize, q.histogram):
        with pytest.raises(ValueError, match="sample 1"):
            refuse(codes)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("q", [*some_quantizers(8), Quantizer.floating("float16", channels=2)])
def test_non_finite_values_are_refused_by_sample_and_channel_or_masked(q: Quantizer, bad: float) -> None:
    x = some_latents((5, 2, 33))
    good = q.quantize(x)
    x[3, 1, 32] = bad
    with pytest.raises(NotFiniteError, match="sample 3, channel 1") as raised:
        q.quantize(x)
    assert isinstance(raised.value, ValueError)
    assert isinstance(raised.value, latentq.LatentqError)
    codes, counts = q.quantize_counted(x, threads=2)
    assert counts.bad.tolist() == [False, False, False, True, False]
    assert not codes[3].any()
    np.testing.assert_array_equal(codes[[0, 1, 2, 4]], good[[0, 1, 2, 4]])
    if q.kind != "float16":
        kept = x[~counts.bad]
        outside = (kept < per_channel(q.low, 3)) | (kept > per_channel(q.high, 3))
        assert counts.clipped.tolist() == outside.sum((0, 2)).tolist()


@pytest.mark.parametrize("threads", [-1, 0, -(2**70)])
def test_less_than_one_thread_is_refused(threads: int) -> None:
    x = np.zeros((2, 4, 4), np.float32)
    for q in (Quantizer.uniform(-1, 1, channels=4, bits=4), Quantizer.floating("bfloat16", channels=4)):
        with pytest.raises(ValueError, match="threads"):
            q.quantize(x, threads=threads)
        with pytest.raises(ValueError, match="threads"):
            q.dequantize(q.quantize(x), threads=threads)
        assert q.quantize(x, threads=2**70).shape == x.shape


def test_number_of_threads_does_not_change_results() -> None:
    x = some_latents((50, 2, 63, 41))
    for q in some_quantizers(6):
        codes, counts = q.quantize_counted(x)
        for threads in (2, 5):
            again, same = q.quantize_counted(x, threads=threads)
            np.testing.assert_array_equal(again, codes)
            np.testing.assert_array_equal(same.clipped, counts.clipped)
            np.testing.assert_array_equal(q.dequantize(codes, threads=threads), q.dequantize(codes))
            np.testing.assert_array_equal(q.pack(codes, threads=threads), q.pack(codes))


@pytest.mark.parametrize("plane", [(8, 8), (17, 61), (2049, 1025)])
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_a_large_array_gets_the_codes_of_the_definition(plane: tuple[int, int], dtype: Any) -> None:
    """Arrays of 8 Mi codes and more are written by non-temporal stores, in two streams."""
    samples = math.ceil(2**23 / (2 * math.prod(plane)))
    x = some_latents((samples, 2, *plane), np.float32).astype(dtype)
    bad = sorted({0, samples // 2, samples - 1}) if samples > 4 else [1]
    for n in bad:
        x[n, 1, n % plane[0], -1] = np.nan
    good = np.setdiff1d(np.arange(samples), bad)
    buffer = np.full(x.size + 64, 9, np.uint8)
    for q in (Quantizer.affine([-4.1, -3.0], [5.3, 2.2], bits=7), Quantizer.codebook(np.arange(-8.0, 8).reshape(2, 8))):
        for threads, start in [(1, 13), (3, 64)]:
            out = buffer[start : start + x.size].reshape(x.shape)
            _, counts = q.quantize_counted(x, out=out, threads=threads)
            assert np.flatnonzero(counts.bad).tolist() == bad
            assert not out[bad].any()
            clipped = np.zeros(2, np.int64)
            for part in np.array_split(good, max(1, min(16, len(good)))):
                np.testing.assert_array_equal(out[part], codes_by_definition(q, x[part]))
                outside = (x[part] < per_channel(q.low, 4)) | (x[part] > per_channel(q.high, 4))
                clipped += outside.sum((0, 2, 3))
            assert counts.clipped.tolist() == clipped.tolist()


def layouts(x: np.ndarray) -> list[np.ndarray]:
    """Returns the same values strided, transposed, big-endian, unaligned and read-only."""
    wide = np.zeros((*x.shape[:-1], 2 * x.shape[-1]), x.dtype)
    wide[..., ::2] = x
    raw = np.frombuffer(b"\0" + x.tobytes(), np.uint8)[1:]
    frozen = x.copy()
    frozen.flags.writeable = False
    swapped = x.astype(x.dtype.newbyteorder(">"))
    return [wide[..., ::2], np.asfortranarray(x), swapped, raw.view(x.dtype).reshape(x.shape), frozen]


@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.float64])
def test_every_memory_layout_gives_the_same_codes(dtype: Any) -> None:
    q = Quantizer.uniform(-4, 4, channels=2)
    x = some_latents((3, 2, 5, 7), dtype)
    codes = q.quantize(x)
    for other in layouts(x):
        np.testing.assert_array_equal(q.quantize(other), codes)
    for other in layouts(codes):
        np.testing.assert_array_equal(q.dequantize(other), q.dequantize(codes))
        np.testing.assert_array_equal(q.pack(other), q.pack(codes))


def test_measuring_bfloat16_bits_does_not_depend_on_their_byte_order() -> None:
    q = Quantizer.uniform(-4, 4, channels=2)
    bits = Quantizer.floating("bfloat16", channels=2).quantize(some_latents((3, 2, 5)))
    assert q.measure(bits.astype(">u2")) == q.measure(bits)


def test_out_is_filled_and_returned_or_refused() -> None:
    q = Quantizer.uniform(-4, 4, channels=2)
    x = some_latents((3, 2, 4, 4))
    codes, values = np.full(x.shape, 9, np.uint8), np.full(x.shape, 9, np.float32)
    assert q.quantize(x, out=codes) is codes
    np.testing.assert_array_equal(codes, q.quantize(x))
    assert q.dequantize(codes, out=values) is values
    np.testing.assert_array_equal(values, q.dequantize(codes))
    frozen = np.zeros(x.shape, np.uint8)
    frozen.flags.writeable = False
    for out in (frozen, np.zeros(x.shape, np.int8), np.zeros((3, 2, 16), np.uint8), codes.T.copy().T):
        with pytest.raises(ValueError, match="out must be"):
            q.quantize(x, out=out)
    for out in (np.zeros(x.shape, np.float64), np.zeros(x.shape, np.uint16), values.T.copy().T, values[::-1], [1.0]):
        with pytest.raises(ValueError, match="out must be"):
            q.dequantize(codes, out=out)
    for out in (np.zeros(x.shape, np.uint16), values):
        with pytest.raises(ValueError, match="out must be"):
            q.dequantize(codes, dtype=np.float16, out=out)


@pytest.mark.parametrize(
    "x", [np.zeros((2, 3, 4), np.float32), np.zeros(2, np.float32), np.float32(1), np.zeros((2, 0))]
)
def test_a_wrong_shape_is_refused(x: Any) -> None:
    for q in (Quantizer.uniform(-4, 4, channels=2), Quantizer.floating("float16", channels=2)):
        with pytest.raises((ValueError, TypeError), match="expected an array"):
            q.quantize(x)


@pytest.mark.parametrize(
    "x", [np.zeros((1, 2, 3), np.int32), np.zeros((1, 2, 3), np.uint8), np.zeros((1, 2), bool), [[1.0]]]
)
def test_a_wrong_dtype_is_refused(x: Any) -> None:
    with pytest.raises(TypeError):
        Quantizer.uniform(-4, 4, channels=2).quantize(x)


@pytest.mark.parametrize(
    "make",
    [
        lambda: Quantizer.uniform(1, -1, channels=1),
        lambda: Quantizer.uniform(-1, math.inf, channels=1),
        lambda: Quantizer.uniform(-3e38, 3e38, channels=1),
        lambda: Quantizer.uniform(-1, 1, channels=0),
        lambda: Quantizer.uniform(-1, 1, channels=1, bits=9),
        lambda: Quantizer.uniform(-1, 1, channels=1, bits=1),
        lambda: Quantizer.uniform(-1, 1, channels=1, bits=-8),
        lambda: Quantizer.from_dict({"kind": "affine", "low": [0.0], "high": [1.0], "bits": 2**40}),
        lambda: Quantizer.uniform(-1, 1, channels=1, rounding="up"),
        lambda: Quantizer.affine([], []),
        lambda: Quantizer.affine([0, 0], [1]),
        lambda: Quantizer.affine([math.nan], [1]),
        lambda: Quantizer.codebook([[0.0, 1.0, 2.0]]),
        lambda: Quantizer.codebook([[0.0, 2.0, 1.0, 3.0]]),
        lambda: Quantizer.codebook([[0.0, 1.0, 2.0, math.nan]]),
        lambda: Quantizer.from_dict({"kind": "affine", "low": [0.0]}),
        lambda: Quantizer.from_dict({"kind": "uniform", "low": 0.0, "high": 1.0, "channels": 1, "color": 3}),
        lambda: Quantizer.from_dict({"kind": "float8", "channels": 1}),
        lambda: Quantizer.from_dict({}),
        lambda: Quantizer.calibrate(np.zeros((0, 2, 3), np.float32)),
        lambda: Quantizer.calibrate(np.zeros((1, 2, 3), np.float32), method="median"),
        lambda: Quantizer.from_dict({"kind": "uniform", "low": 0.0, "high": 1.0, "channels": 10**15}),
        lambda: Quantizer.from_dict({"kind": "float16", "channels": 10**15}),
        lambda: Calibrator(10**15),
        lambda: Quantizer("affine", 8, "truncate", (0.0,), (1.0,)),
        lambda: Quantizer("affine", 8, "nearest", (0.1,), (1.0,)),
        lambda: Quantizer("affine", 8, "nearest", (0.0,), (1.0,), ((0.0, 1.0),)),
        lambda: Quantizer("uniform", 8, "nearest", (0.0, 0.5), (1.0, 1.0)),
        lambda: Quantizer("codebook", 2, "nearest", (0.0,), (4.0,), ((0.0, 1.0, 2.0, 3.0),)),
        lambda: Quantizer("float16", 8, "nearest", (-65504.0,), (65504.0,)),
        lambda: Quantizer("float16", 16, "nearest", (0.0,), (1.0,)),
        lambda: Quantizer("float16", 16, "nearest", (), ()),
    ],
)
def test_arguments_out_of_range_are_value_errors(make: Any) -> None:
    with pytest.raises(ValueError):
        make()


@pytest.mark.parametrize("bits", [2, 5, 8])
def test_a_quantizer_survives_toml_and_pickle_exactly(bits: int) -> None:
    floats = [Quantizer.floating(kind, channels=3) for kind in ("float16", "bfloat16", "float32")]
    for q in [*some_quantizers(bits), *floats, Quantizer.uniform(0.1, 0.7, channels=1)]:
        assert Quantizer.from_dict(tomllib.loads(tomli_w.dumps(q.to_dict()))) == q
        assert pickle.loads(pickle.dumps(q)) == q
        assert hash(q) == hash(Quantizer.from_dict(q.to_dict()))
        assert all(np.float32(v) == v for v in (*q.low, *q.high))


def test_a_recipe_writes_the_source_systems_quantizer() -> None:
    text = 'kind = "uniform"\nlow = -14\nhigh = 14.0\nbits = 8\nrounding = "truncate"\nchannels = 4'
    q = Quantizer.from_dict(tomllib.loads(text))
    assert (q.low, q.high, q.channels, q.rounding) == ((-14.0,) * 4, (14.0,) * 4, 4, "truncate")


@pytest.mark.parametrize("kind", ["float16", "bfloat16", "float32"])
def test_floats_are_stored_unchanged(kind: str) -> None:
    q = Quantizer.floating(kind, channels=2)
    x = some_latents((3, 2, 5))
    codes = q.quantize(x)
    assert codes.dtype == {"float16": np.float16, "bfloat16": np.uint16, "float32": np.float32}[kind]
    values = q.dequantize(codes)
    np.testing.assert_allclose(values, x, rtol={"float16": 2**-11, "bfloat16": 2**-8, "float32": 0}[kind])
    if kind != "bfloat16":
        np.testing.assert_array_equal(codes, x.astype(codes.dtype))
    packed = q.pack(codes)
    assert packed.shape == (3, 10 * q.bits // 8)
    assert packed.dtype == np.uint8
    assert packed.tobytes() == codes.tobytes()
    np.testing.assert_array_equal(q.unpack(packed, codes.shape), codes)


def test_a_number_too_large_for_float16_is_not_stored_as_infinity() -> None:
    x = np.array([[[65519.0]], [[65520.0]]], np.float32)
    q = Quantizer.floating("float16", channels=1)
    codes, counts = q.quantize_counted(x)
    assert counts.bad.tolist() == [False, True]
    assert codes.ravel().tolist() == [65504.0, 0.0]


def test_the_example_of_the_page_runs() -> None:
    page = (Path(__file__).parents[2] / "docs" / "quantizer.md").read_text()
    first, *_ = re.findall(r"^```python\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    names: dict[str, Any] = {}
    exec(first, names)
    assert names["stored"].shape == (64, 3072)
    assert np.abs(names["values"] - names["latents"]).mean() < 0.2


def test_the_quantizer_is_imported_without_torch() -> None:
    code = (
        "import sys, latentq.quantizer; sys.exit(bool({'torch', 'diffusers', 'streaming', 'PIL'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_mask_without_memory_is_a_memory_error() -> None:
    samples = 1 << 47  # without values: only the mask of bad samples would take memory
    q = Quantizer("affine", 8, "nearest", (-1.0,), (1.0,))
    with pytest.raises(MemoryError):
        q.quantize_counted(np.empty((samples, 1, 0), np.float32))
