"""Tests calibration, measured errors and statistics."""

import math
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tomli_w

from latentq.quantizer import Calibrator, Moments, NotFiniteError, Quantizer, Statistics
from support.quantizers import per_channel, some_latents, some_quantizers


@pytest.mark.parametrize("method", ["mse", "minmax", "percentile", "lloyd-max"])
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_calibration_does_not_depend_on_batches_or_their_order(method: str, bits: int) -> None:
    x = some_latents((40, 3, 8, 8)) * per_channel([1, 0.01, 30], 4).astype(np.float32)
    whole = Quantizer.calibrate(x, bits=bits, method=method)
    calibrator = Calibrator(3, bits=bits, method=method)
    for batch in np.split(x[::-1], 8):
        calibrator.update(batch)
    assert calibrator.quantizer() == whole
    assert (whole.bits, whole.channels) == (bits, 3)


def error(q: Quantizer, x: np.ndarray) -> np.ndarray:
    return np.square(q.dequantize(q.quantize(x)).astype(np.float64) - x).mean((0, *range(2, x.ndim)))


@pytest.mark.parametrize("bits", [2, 3, 4, 6, 8])
@pytest.mark.parametrize("shape", ["normal", "laplace", "uniform", "skewed", "outlier"])
def test_mse_is_as_good_as_the_best_of_a_grid_search(bits: int, shape: str) -> None:
    rng = np.random.default_rng(3)
    draw = {
        "normal": lambda n: rng.normal(5, 2, n),
        "laplace": lambda n: rng.laplace(0, 1, n),
        "uniform": lambda n: rng.uniform(-1, 1, n),
        "skewed": lambda n: rng.exponential(2, n),
        "outlier": lambda n: np.concatenate([rng.normal(0, 1, n - 1), [100.0]]),
    }[shape]
    x = draw(20_000).astype(np.float16).astype(np.float32).reshape(1, 1, -1)
    best = error(Quantizer.calibrate(x, bits=bits), x)[0]
    span = float(x.max() - x.min())
    for low in np.linspace(x.min(), x.min() + 0.9 * span, 40):
        for high in np.linspace(low + 0.02 * span, x.max(), 40):
            assert best <= error(Quantizer.affine([low], [high], bits=bits), x)[0] * 1.02


def test_minmax_clips_nothing_and_percentile_clips_the_tails() -> None:
    x = some_latents((100, 2, 30, 30))
    minmax = Quantizer.calibrate(x, method="minmax")
    assert minmax.low == tuple(x.min((0, 2, 3)).tolist())
    assert minmax.high == tuple(x.max((0, 2, 3)).tolist())
    assert minmax.measure(x).clip_rate == (0.0, 0.0)
    assert all(1e-4 < rate < 3e-4 for rate in Quantizer.calibrate(x, method="percentile").measure(x).clip_rate)


@pytest.mark.parametrize("method", ["mse", "minmax", "percentile", "lloyd-max"])
def test_a_constant_channel_is_restored_exactly(method: str) -> None:
    x = np.broadcast_to(per_channel([0.0, -7.25, 1e-40], 3), (2, 3, 5)).astype(np.float32)
    q = Quantizer.calibrate(x, bits=4, method=method)
    np.testing.assert_array_equal(q.dequantize(q.quantize(x)), x)


def test_a_calibrator_refuses_a_batch_with_non_finite_values_and_counts_none_of_it() -> None:
    x = some_latents((3, 2, 4))
    calibrator = Calibrator(2, bits=8, method="minmax")
    calibrator.update(x)
    before = calibrator.quantizer()
    bad = x * 100
    bad[1, 1, 2] = np.nan
    with pytest.raises(NotFiniteError, match="sample 1, channel 1"):
        calibrator.update(bad)
    assert calibrator.quantizer() == before


def test_measure_is_the_definition_of_sqnr() -> None:
    x = some_latents((30, 2, 9, 9))
    q = Quantizer.affine([-5, -1], [5, 2], bits=5)
    values = q.dequantize(q.quantize(x)).astype(np.float64)
    m = q.measure(x)
    signal, noise = np.square(x.astype(np.float64)).sum((0, 2, 3)), np.square(values - x).sum((0, 2, 3))
    np.testing.assert_allclose(m.sqnr_db, 10 * np.log10(signal / noise), rtol=1e-12)
    np.testing.assert_allclose(m.overall_sqnr_db, 10 * np.log10(signal.sum() / noise.sum()), rtol=1e-12)
    outside = ((x < per_channel(q.low, 4)) | (x > per_channel(q.high, 4))).mean((0, 2, 3))
    np.testing.assert_allclose(m.clip_rate, outside, rtol=1e-12)
    assert m.largest_error == np.abs(values - x).max()


@pytest.mark.parametrize("method", ["mse", "minmax", "percentile", "lloyd-max"])
def test_a_calibrator_measures_the_error_of_its_quantizer(method: str) -> None:
    x = some_latents((30, 2, 9, 9), np.float16)
    calibrator = Calibrator(2, bits=5, method=method)
    calibrator.update(x[:10])
    calibrator.update(x[10:])
    q = calibrator.quantizer()
    report, expected = calibrator.measure(q), q.measure(x)
    np.testing.assert_allclose(report.sqnr_db, expected.sqnr_db, rtol=1e-9)
    np.testing.assert_allclose(report.overall_sqnr_db, expected.overall_sqnr_db, rtol=1e-9)
    assert (report.clip_rate, report.largest_error) == (expected.clip_rate, expected.largest_error)
    for other in (Quantizer.uniform(-1, 1, channels=3), Quantizer.floating("float16", channels=2)):
        with pytest.raises(ValueError):
            calibrator.measure(other)


@pytest.mark.parametrize("bits", [2, 5, 8])
def test_statistics_of_codes_are_those_of_the_values_a_reader_sees(bits: int) -> None:
    for q in some_quantizers(bits):
        codes = q.quantize(some_latents((50, 2, 8, 8)))
        values = q.dequantize(codes).astype(np.float64)
        parts = [q.histogram(part) for part in np.array_split(codes, 7)]
        s = Statistics.from_histogram(q, sum(parts[1:], parts[0]))
        assert s == Statistics.from_histogram(q, q.histogram(codes[::-1]))
        assert s.count == (3200, 3200)
        np.testing.assert_allclose(s.mean, values.mean((0, 2, 3)), rtol=1e-12)
        np.testing.assert_allclose(s.std, values.std((0, 2, 3)), rtol=1e-9, atol=1e-12)
        assert s.min == tuple(values.min((0, 2, 3)).tolist())
        assert s.max == tuple(values.max((0, 2, 3)).tolist())


@pytest.mark.parametrize("shape", [(300, 4, 32, 32), (7, 3, 5), (2, 700, 1), (1, 2, 300_000), (5, 1, 0)])
def test_a_histogram_counts_every_code(shape: tuple[int, ...]) -> None:
    q = Quantizer.affine([-1.0] * shape[1], [1.0] * shape[1], bits=5)
    codes = np.random.default_rng(0).integers(0, 32, shape, np.uint8)
    expected = [np.bincount(row, minlength=32).tolist() for row in codes.swapaxes(0, 1).reshape(shape[1], -1)]
    assert q.histogram(codes).tolist() == expected
    if codes.size:
        codes.reshape(-1)[-1] = 32
        with pytest.raises(ValueError, match=f"sample {shape[0] - 1}, channel {shape[1] - 1} has the code 32"):
            q.histogram(codes)


@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.float64])
def test_moments_of_samples_merge_to_those_of_the_column(dtype: Any) -> None:
    x = some_latents((20, 3, 5, 7), dtype)
    total = Moments.of(x[0])
    for sample in x[1:]:
        total = total.merge(Moments.of(sample))
    assert Moments.from_dict(tomllib.loads(tomli_w.dumps(total.to_dict()))) == total
    s = total.statistics()
    wide = x.astype(np.float64)
    assert s.count == (700,) * 3
    np.testing.assert_allclose(s.mean, wide.mean((0, 2, 3)), rtol=1e-12)
    np.testing.assert_allclose(s.std, wide.std((0, 2, 3)), rtol=1e-12)
    assert s.min == tuple(wide.min((0, 2, 3)).tolist())
    assert s.max == tuple(wide.max((0, 2, 3)).tolist())


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 1e200])
def test_moments_refuse_non_finite_values(bad: float) -> None:
    with pytest.raises(NotFiniteError, match="channel 1"):
        Moments.of(np.array([[1.0, 2.0], [bad, 3.0]]))


def test_the_mean_of_no_values_is_nan() -> None:
    q = Quantizer.uniform(-1, 1, channels=2)
    nothing = Statistics.from_histogram(q, q.histogram(np.zeros((0, 2, 3), np.uint8)))
    assert nothing.count == (0, 0)
    assert all(map(math.isnan, nothing.mean))
    assert Moments.of(np.zeros((2, 0), np.float32)).statistics().count == (0, 0)


@pytest.mark.parametrize(
    ("method", "bits", "decibels"),
    [("mse", 8, 39.5), ("lloyd-max", 8, 42), ("lloyd-max", 6, 30), ("lloyd-max", 4, 19.7)],
)
def test_sqnr_on_real_latents(latents: Path, method: str, bits: int, decibels: float) -> None:
    x = np.load(latents / "f8c32.npy")
    q = Quantizer.calibrate(x[::2], bits=bits, method=method)
    assert q.measure(x[1::2]).overall_sqnr_db >= decibels
