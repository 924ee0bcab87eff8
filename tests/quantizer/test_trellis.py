"""Compares the trellis with the published vectors, and with a slow NumPy version of the specification."""

import json
import pickle
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tomli_w
from hypothesis import given, settings
from hypothesis import strategies as st

from latentq.quantizer import Calibrator, NotFiniteError, Quantizer, Statistics

VECTORS = json.loads((Path(__file__).parents[1] / "support" / "trellis_vectors.json").read_text())
STATES = np.arange(8)  # bit 0: u[i-1], bit 1: u[i-2], bit 2: u[i-3]
BEFORE = np.stack([STATES >> 1, STATES >> 1 | 4])
LABEL = 2 * ((STATES ^ BEFORE ^ BEFORE >> 2) & 1) + (BEFORE >> 1 & 1)


def made(n: int, channels: int, height: int, width: int) -> np.ndarray:
    """Returns latents by an integer formula: smooth waves and the noise of a linear congruential generator."""
    noise, v = np.empty(n * channels * height * width), 12345
    for i in range(len(noise)):
        v = (v * 1103515245 + 12345) % 2**31
        noise[i] = (v >> 11) / 2**20 * 2 - 1
    i, j = np.arange(height)[:, None], np.arange(width)[None]
    wave = [[((3 * i + (a + c) * j + 7 * a) % 64 - 32) / 16 for c in range(channels)] for a in range(n)]
    latents = np.round((np.array(wave) + noise.reshape(n, channels, height, width)) * 256) / 256
    return latents.astype(np.float32)


def defined_numbers(levels: np.ndarray, z: np.ndarray) -> np.ndarray:
    """Returns the number of each element's level (n, N): the Viterbi algorithm of docs/codec.md, step by step."""
    x = z.reshape(len(z), -1)
    n, length = x.shape
    plane = length // len(levels)
    metric = np.full((n, 8), np.float32(1e30))
    metric[:, 0] = 0
    back, nearest = np.zeros((length, n, 8), int), np.zeros((length, n, 4), int)
    with np.errstate(over="ignore", invalid="ignore"):
        for i in range(length):
            table = levels[i // plane]
            for label in range(4):
                bounds = ((table[label::4][1:].astype(np.float64) + table[label::4][:-1]) / 2).astype(np.float32)
                nearest[i, :, label] = 4 * np.searchsorted(bounds, x[:, i], side="left") + label
            error = x[:, i, None] - table[nearest[i]]
            cost = error * error
            a, b = (metric[:, BEFORE[k]] + cost[:, LABEL[k]] for k in (0, 1))
            metric = np.where(b < a, b, a)
            metric -= metric.min(1, keepdims=True)
            back[i] = (b < a) if i >= 3 else 0
    reachable = np.where(np.isnan(metric), np.inf, metric)[:, : min(8, 2**length)]
    state, rows, numbers = reachable.argmin(1), np.arange(n), np.empty((n, length), int)
    for i in reversed(range(length)):
        branch = back[i, rows, state]
        numbers[:, i] = nearest[i, rows, LABEL[branch, state]]
        state = BEFORE[branch, state]
    return numbers


def defined_codes(numbers: np.ndarray) -> np.ndarray:
    """Returns the codes (n, N) of a path of level numbers."""
    u = np.zeros((len(numbers), numbers.shape[1] + 3), int)
    for i in range(numbers.shape[1]):
        u[:, i + 3] = (numbers[:, i] >> 1 & 1) ^ u[:, i + 2] ^ u[:, i]
    return 2 * (numbers >> 2) + u[:, 3:]


def values_of(levels: np.ndarray, numbers: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    channel = np.repeat(np.arange(len(levels)), numbers.shape[1] // len(levels))
    return levels[channel, numbers].reshape(shape)


def some_trellis(bits: int, channels: int, scale: float = 1.0) -> Quantizer:
    levels = np.random.default_rng(bits).normal(0, 2 * scale, (channels, 2 ** (bits + 1)))
    return Quantizer.trellis(np.sort(levels, axis=1))


def test_bytes_and_values_are_those_of_the_vectors() -> None:
    z = made(4, 2, 8, 8)
    assert z[0, 0, 0].tolist() == VECTORS["first"]
    q = Quantizer.trellis(VECTORS["levels"])
    assert [packed.tobytes().hex() for packed in q.quantize_packed(z)] == VECTORS["bytes"]
    stored = np.array([list(bytes.fromhex(text)) for text in VECTORS["bytes"]], np.uint8)
    values = q.dequantize_packed(stored, z.shape)
    assert [sample.astype("<f4").tobytes().hex() for sample in values] == VECTORS["values"]


@pytest.mark.parametrize("shape", [(2, 28, 36), (3, 3, 5), (4, 1, 1), (1, 2), (1, 1), (2, 129), (3,)])
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_codes_and_values_are_those_of_the_specification(bits: int, shape: tuple[int, ...]) -> None:
    z = np.random.default_rng(1).normal(0.3, 2.5, (19, *shape)).astype(np.float32)
    q = some_trellis(bits, shape[0])
    levels = np.array(q.levels, np.float32)
    numbers = defined_numbers(levels, z)
    codes = q.quantize(z)
    np.testing.assert_array_equal(codes.reshape(len(z), -1), defined_codes(numbers))
    np.testing.assert_array_equal(q.dequantize(codes), values_of(levels, numbers, z.shape))
    np.testing.assert_array_equal(q.quantize_packed(z, threads=2), q.pack(codes))
    np.testing.assert_array_equal(q.dequantize_packed(q.pack(codes), z.shape, threads=2), q.dequantize(codes))
    histogram = q.histogram(codes)
    per_channel = numbers.reshape(len(z), shape[0], -1).swapaxes(0, 1).reshape(shape[0], -1)
    assert histogram.tolist() == [np.bincount(row, minlength=q.level_count).tolist() for row in per_channel]


@settings(max_examples=60, deadline=None)
@given(
    st.integers(2, 8),
    st.integers(1, 3),
    st.integers(1, 40),
    st.sampled_from([1e-30, 1e-6, 1.0, 1e6, 1e17, 1e30, 1e38]),
    st.integers(0, 2**32 - 1),
)
def test_any_finite_input_decodes_to_what_the_encoder_chose(
    bits: int, channels: int, plane: int, scale: float, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    values = rng.normal(0, 1, (3, channels, plane)) * rng.choice([scale, 1.0], (3, channels, 1))
    z = values.clip(-3e38, 3e38).astype(np.float32)  # finite in float32
    q = some_trellis(bits, channels, min(scale, 1e37))
    levels = np.array(q.levels, np.float32)
    numbers = defined_numbers(levels, z)
    codes = q.quantize(z)
    np.testing.assert_array_equal(codes.reshape(3, -1), defined_codes(numbers))
    np.testing.assert_array_equal(q.dequantize(codes), values_of(levels, numbers, z.shape))


def test_a_constant_channel_is_restored_exactly() -> None:
    z = made(6, 3, 5, 4)
    z[:, 1] = 0.7
    for bits in (2, 4, 8):
        q = Quantizer.calibrate(z, bits=bits, method="trellis")
        np.testing.assert_array_equal(q.dequantize(q.quantize(z))[:, 1], z[:, 1])


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_non_finite_values_are_refused_or_masked_and_change_no_other_sample(bad: float) -> None:
    z = made(20, 2, 4, 4)
    q = Quantizer.calibrate(z, bits=4, method="trellis")
    whole = q.quantize(z)
    z[5, 1, 2, 3] = bad
    with pytest.raises(NotFiniteError, match="sample 5, channel 1"):
        q.quantize(z)
    codes, counts = q.quantize_counted(z)
    assert counts.bad.nonzero()[0].tolist() == [5]
    assert not codes[5].any()
    others = np.arange(20) != 5
    np.testing.assert_array_equal(codes[others], whole[others])


def reference_levels(batches: list[np.ndarray], bits: int, rounds: int) -> np.ndarray:
    """Returns the levels of the specification's calibration."""
    channels, size = batches[0].shape[1], 2 ** (bits + 1)
    p = np.concatenate([[0, 0.001, 0.005], np.linspace(0.01, 0.99, 24), [0.995, 0.999, 1]])
    tables = []
    for channel in range(channels):
        q = np.quantile(np.concatenate([z[:, channel].ravel() for z in batches]).astype(np.float64), p)
        margin = {6: 0.1, 7: 0.2, 8: 0.2}.get(bits, 0.02) * (q[-1] - q[0])
        q[0] -= margin
        q[-1] += margin
        width = np.maximum(np.diff(q), 1e-12 + 1e-9 * (q[-1] - q[0]))
        mass = np.concatenate([[0], np.cumsum(width * np.cbrt(np.diff(p) / width))])
        tables.append(np.interp((np.arange(size) + 0.5) / size, mass / mass[-1], q))
    levels = np.array(tables)
    for _ in range(rounds):
        sums, counts = np.zeros((2, channels * size))
        for z in batches:
            numbers = defined_numbers(levels.astype(np.float32), z)
            key = (np.repeat(np.arange(channels), numbers.shape[1] // channels) * size + numbers).ravel()
            sums += np.bincount(key, z.ravel().astype(np.float64), channels * size)
            counts += np.bincount(key, minlength=channels * size)
        levels = np.sort(((sums + 0.5 * levels.ravel()) / (counts + 0.5)).reshape(channels, size), 1)
    return levels


@pytest.mark.parametrize("bits", [2, 4, 6, 8])
def test_calibrated_levels_are_those_of_the_specification(bits: int) -> None:
    z = made(30, 2, 4, 4)
    q = Quantizer.calibrate(z, bits=bits, method="trellis")
    assert (q.kind, q.bits, q.level_count) == ("trellis", bits, 2 ** (bits + 1))
    np.testing.assert_allclose(q.levels, reference_levels([z], bits, 15 if bits < 6 else 0), rtol=1e-6, atol=1e-7)


def test_batches_and_dtypes_of_equal_values_do_not_change_the_levels() -> None:
    z = made(24, 2, 4, 4).astype(np.float16)
    calibrator = Calibrator(2, bits=4, method="trellis")
    for batch in (z[:5], z[5:6], z[6:]):
        calibrator.update(batch)
    assert calibrator.quantizer() == Quantizer.calibrate(z.astype(np.float64), bits=4, method="trellis")


def test_samples_of_several_shapes_are_encoded_one_by_one() -> None:
    shapes = [(4, 4), (4, 4), (2, 9), (5, 3), (4, 4)]
    samples = [made(1, 2, *shape) for shape in shapes]
    calibrator = Calibrator(2, bits=3, method="trellis")
    for sample in samples:
        calibrator.update(sample)
    np.testing.assert_allclose(calibrator.quantizer().levels, reference_levels(samples, 3, 15), rtol=1e-6, atol=1e-7)


def test_a_calibrator_refuses_measuring() -> None:
    calibrator = Calibrator(2, bits=4, method="trellis")
    with pytest.raises(ValueError, match="no samples"):
        calibrator.quantizer()
    calibrator.update(made(3, 2, 4, 4))
    with pytest.raises(NotFiniteError):
        calibrator.update(np.full((1, 2, 4, 4), np.nan, np.float32))
    q = calibrator.quantizer()
    with pytest.raises(ValueError, match=r"Quantizer\.measure"):
        calibrator.measure(q)
    counting = Calibrator(2)
    counting.update(made(3, 2, 4, 4))
    with pytest.raises(ValueError, match="measured on samples"):
        counting.measure(q)


@pytest.mark.parametrize("bits", range(2, 9))
def test_a_trellis_has_less_error_than_a_codebook_of_the_same_bits(bits: int) -> None:
    z = np.random.default_rng(2).normal(0, 1, (64, 2, 32, 32)).astype(np.float32)
    ratios = {
        method: Quantizer.calibrate(z[::2], bits=bits, method=method).measure(z[1::2]).overall_sqnr_db
        for method in ("lloyd-max", "trellis")
    }
    assert ratios["trellis"] > ratios["lloyd-max"] + 1


def test_statistics_are_those_of_the_values_a_reader_sees() -> None:
    z = made(9, 3, 4, 4)
    q = Quantizer.calibrate(z, bits=3, method="trellis")
    codes = q.quantize(z)
    parts = q.histogram(codes[:4]) + q.histogram(codes[4:])
    statistics = Statistics.from_histogram(q, parts)
    values = q.dequantize(codes).astype(np.float64)
    np.testing.assert_allclose(statistics.mean, values.mean((0, 2, 3)), rtol=1e-12)
    np.testing.assert_allclose(statistics.std, values.std((0, 2, 3)), rtol=1e-12)
    assert statistics.max == tuple(values.max((0, 2, 3)))
    assert statistics.count == (9 * 16,) * 3


@pytest.mark.parametrize("bits", range(2, 9))
def test_a_trellis_survives_toml_and_pickle_exactly(bits: int) -> None:
    q = some_trellis(bits, 3)
    assert Quantizer.from_dict(tomllib.loads(tomli_w.dumps(q.to_dict()))) == q
    assert pickle.loads(pickle.dumps(q)) == q


ASCENDING = np.arange(32.0).reshape(1, 32)


@pytest.mark.parametrize(
    "make",
    [
        lambda: Quantizer.trellis(np.zeros((1, 4))),
        lambda: Quantizer.trellis(np.zeros((1, 1024))),
        lambda: Quantizer.trellis(np.zeros((0, 32))),
        lambda: Quantizer.trellis(np.zeros(32)),
        lambda: Quantizer.trellis(ASCENDING[:, ::-1]),
        lambda: Quantizer.trellis(np.where(ASCENDING == 5, np.nan, ASCENDING)),
        lambda: Quantizer.trellis(np.where(ASCENDING == 31, np.inf, ASCENDING)),
        lambda: Quantizer.from_dict({"kind": "trellis", "bits": 4}),
        lambda: Quantizer.from_dict({"kind": "trellis", "bits": 4, "levels": "AAA"}),
        lambda: Quantizer.from_dict({"kind": "trellis", "bits": 4, "levels": "no base64!"}),
        lambda: Quantizer.from_dict({"kind": "trellis", "bits": 4, "levels": ""}),
        lambda: Quantizer.from_dict({"kind": "trellis", "bits": 4, "levels": [1.0]}),
        lambda: Quantizer.from_dict({"kind": "trellis", "bits": 9, "levels": ""}),
        lambda: Quantizer.from_dict({"kind": "trellis", "bits": "4", "levels": ""}),
        lambda: Quantizer.from_dict({**some_trellis(4, 1).to_dict(), "bits": 5}),
        lambda: Quantizer.from_dict({**some_trellis(4, 1).to_dict(), "low": [0.0]}),
    ],
)
def test_levels_that_are_no_trellis_are_value_errors(make: Any) -> None:
    with pytest.raises(ValueError):
        make()


def test_codes_with_too_many_bits_and_other_shapes_are_refused() -> None:
    q = some_trellis(4, 2)
    codes = np.zeros((3, 2, 5), np.uint8)
    codes[1, 1, 2] = 16
    for refused in (q.dequantize, q.histogram, q.pack):
        with pytest.raises(ValueError, match="more than 4 bits"):
            refused(codes)
    with pytest.raises(ValueError, match="expected an array"):
        q.dequantize(codes[:, :1])
    with pytest.raises(ValueError, match="packed bytes"):
        q.dequantize_packed(np.zeros((3, 4), np.uint8), (3, 2, 5))


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("shape", [(5, 3, 17, 9), (4, 3), (2, 3, 0), (0, 3, 8), (3, 3, 1, 1)])
def test_torch_operations_give_the_values_of_the_kernels(bits: int, shape: tuple[int, ...]) -> None:
    torch = pytest.importorskip("torch")
    from latentq.quantizer import tensors

    q = some_trellis(bits, 3)
    z = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    codes = q.quantize(z)
    np.testing.assert_array_equal(codes.numpy(), q.quantize(z.numpy()))
    packed = q.pack(codes)
    for device in ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]:
        for name in ("float32", "float16", "bfloat16"):
            dtype = getattr(torch, name)
            values = q.dequantize(codes, dtype=dtype)
            assert torch.equal(tensors.decode(q, codes.to(device), dtype).cpu(), values)
            assert torch.equal(tensors.dequantize_packed(q, packed.to(device), shape, name, None).cpu(), values)
        on_device, clipped, bad = q.quantize_on_device(z.to(device))
        assert torch.equal(on_device.cpu(), codes)
        assert clipped.tolist() == q.quantize_counted(z.numpy())[1].clipped.tolist()
        assert not bad.any()
        assert torch.equal(q.quantize_packed(z.to(device)).cpu(), packed)


@pytest.mark.parametrize(
    ("name", "bits", "decibels"), [("f8c32", 4, 21.5), ("f8c32", 8, 44.9), ("f32c32", 4, 21.4), ("f32c32", 8, 44.6)]
)
def test_sqnr_on_real_latents(latents: Path, name: str, bits: int, decibels: float) -> None:
    z = np.load(latents / f"{name}.npy")
    q = Quantizer.calibrate(z[::2], bits=bits, method="trellis")
    assert q.measure(z[1::2]).overall_sqnr_db >= decibels - 0.05


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"bits": "4"}, "bits of a trellis must be 2 to 8, not '4'"),
        ({"levels": "AAAA"}, "levels of a trellis have 3 bytes, not 32 for each channel"),
        ({"levels": ""}, "levels of a trellis have 0 bytes"),
        ({"levels": "\u00e9"}, "levels of a trellis are not base64"),
    ],
)
def test_broken_levels_in_a_card_are_named(entry, message):
    good = Quantizer.trellis(np.arange(16.0).reshape(2, 8)).to_dict()
    with pytest.raises(ValueError, match=message):
        Quantizer.from_dict(good | entry)
