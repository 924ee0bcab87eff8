"""Compares the transform codec with the published vectors, with itself on every path, and with what must be refused."""

import json
import math
import pickle
import re
import tomllib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tomli_w
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from latentq._core import FormatError, LatentqError
from latentq.quantizer import (
    NotFiniteError,
    Quantizer,
    Transform,
    TransformCalibrator,
    check_transform_shape,
    quantizer_from_dict,
)
from quantizer.test_trellis import made

VECTORS = json.loads((Path(__file__).parents[1] / "support" / "transform_vectors.json").read_text())


def published(sample_bytes: int | None = None) -> Transform:
    floats = (np.array(VECTORS[name], "<f4").tobytes() for name in ("mean", "basis", "inverse"))
    base, frequency = bytes.fromhex(VECTORS["base"]), np.array(VECTORS["frequency"], "<u2").tobytes()
    return Transform(float(np.float32(VECTORS["step0"][0])), *floats, base, frequency, sample_bytes)


def latents(seed: int, n: int, channels: int, height: int, width: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    strength = np.exp2(rng.uniform(-2, 3, (1, channels, 1, 1)))
    z = made(n, channels, height, width) * strength + rng.normal(0, 0.3, (n, channels, height, width))
    return z.astype(np.float32)


def test_published_vectors_are_reproduced_to_the_bit() -> None:
    z = made(4, 2, 8, 8)
    assert z[0, 0, 0].tolist() == VECTORS["first"]
    transform, fixed = published(), published(72)
    encoded = transform.encode(z)
    assert [row.hex() for row in encoded] == VECTORS["bytes"]
    assert [value.tobytes().hex() for value in transform.decode(encoded, (2, 8, 8)).astype("<f4")] == VECTORS["values"]
    rows = fixed.encode(z)
    assert [row.tobytes().hex() for row in rows] == VECTORS["bytes_72"]
    assert [value.tobytes().hex() for value in fixed.decode(rows, (2, 8, 8)).astype("<f4")] == VECTORS["values_72"]


SHAPES = st.sampled_from([(4, 8, 8), (3, 28, 36), (18, 3, 5), (128, 2, 1), (5, 9, 17), (7, 7, 7)])


@settings(max_examples=12, deadline=None)
@given(SHAPES, st.integers(0, 2**31), st.sampled_from([1.5, 4.0, 8.0]), st.integers(1, 4))
def test_every_way_to_decode_gives_the_same_values(
    shape: tuple[int, int, int], seed: int, rate: float, threads: int
) -> None:
    z = latents(seed, 11, *shape)
    transform = Transform.calibrate(z, rate=rate)
    z[0] *= 40
    z[1, 0, 0, 0] = 900
    encoded = transform.encode(z, threads=threads)
    assert transform.encode(torch.from_numpy(z).double()) == encoded
    values = transform.decode(encoded, shape, threads=threads)
    assert np.array_equal(transform.decode(encoded[3:4], shape), values[3:4])
    on_device = transform.decode_tensor(encoded, shape, device="cpu")
    assert np.array_equal(on_device.numpy().view(np.uint32), values.view(np.uint32))
    half = transform.decode(encoded, shape, dtype=np.float16)
    assert np.array_equal(half, values.astype(np.float16))
    bfloat = transform.decode_tensor(encoded, shape, dtype=torch.bfloat16)
    assert torch.equal(bfloat, torch.from_numpy(values).bfloat16())
    assert np.array_equal(transform.decode(encoded, shape, dtype="bfloat16"), bfloat.view(torch.uint16).numpy())


def test_a_constant_step_bounds_the_error_and_a_budget_fixes_the_bytes() -> None:
    z = latents(1, 60, 8, 16, 16)
    errors = []
    for bytes_ in (512, 1024, 1536):
        transform = Transform.calibrate(z[::2], bytes=bytes_)
        rows = transform.encode(z[1::2])
        assert rows.shape == (30, bytes_)
        assert transform.packed_bytes(2048) == bytes_
        errors.append(transform.measure(z[1::2]).overall_sqnr_db)
    assert errors[1] > errors[0] + 8
    assert errors[2] > errors[1] + 8
    codebook = Quantizer.calibrate(z[::2], bits=4, method="lloyd-max")
    assert errors[1] > codebook.measure(z[1::2]).overall_sqnr_db + 3
    varying = Transform.calibrate(z[::2], rate=4)
    lengths = {len(row) for row in varying.encode(z[1::2])}
    assert len(lengths) > 1
    assert abs(sum(map(len, varying.encode(z[::2]))) * 8 / z[::2].size - 4) < 0.15


def test_padded_rows_decode_to_the_same_values() -> None:
    z = latents(2, 5, 4, 8, 8)
    transform = Transform.calibrate(z, rate=3)
    encoded = transform.encode(z)
    longest = max(map(len, encoded))
    rows = np.stack([np.frombuffer(row.ljust(longest, b"\0"), np.uint8) for row in encoded])
    assert np.array_equal(transform.decode(rows, z.shape), transform.decode(encoded, z.shape))
    tensor = transform.decode(torch.from_numpy(rows), z.shape, dtype=torch.float16)
    assert torch.equal(tensor, torch.from_numpy(transform.decode(rows, z.shape)).half())
    out = np.empty(z.shape, np.float32)
    assert transform.decode(rows, z.shape, out=out) is out


def test_a_constant_channel_decodes_to_its_mean() -> None:
    z = latents(3, 20, 4, 8, 8)
    z[:, 2] = 0.7
    transform = Transform.calibrate(z, rate=4)
    values = transform.decode(transform.encode(z), z.shape)
    assert np.abs(values[:, 2] - 0.7).max() < 1e-5


def test_numbers_beyond_16_bits_are_32_bits_wide() -> None:
    z = latents(4, 4, 4, 8, 8)
    transform = Transform.calibrate(z, rate=4)
    numbers, steps = transform.numbers(transform.encode(z), z.shape)
    assert numbers.dtype == np.int16
    assert steps.tolist() == [transform.step] * 4
    strongest = np.frombuffer(transform.basis, "<f4").reshape(4, 4)[:, 0]
    z[1] += 5000 * transform.step * strongest.reshape(4, 1, 1)  # a mean of 40,000 steps
    encoded = transform.encode(z)
    numbers, _ = transform.numbers(encoded, z.shape)
    assert numbers.dtype == np.int32
    values = transform.decode(encoded, z.shape)
    assert np.array_equal(transform.decode_tensor(encoded, z.shape).numpy(), values)
    assert np.abs(values - z).max() < 6 * transform.step


def test_a_budget_larger_than_a_sample_needs_keeps_integers_in_16_bits() -> None:
    """Latents of few strong coefficients need few bytes at the smallest step that their integers allow."""
    random = np.random.default_rng(0)
    x = random.normal(size=(40, 16, 1, 1)) * 10 * 0.3 ** np.arange(16)[:, None, None]
    x = (x + 0.05 * random.normal(size=(40, 16, 8, 8)) * 0.5 ** np.arange(16)[:, None, None]).astype(np.float32)
    q = Transform.calibrate(x[::2], bytes=512)
    decoded = q.decode(q.encode(x[1::2]), x[1::2].shape)
    assert q.measure(x[1::2]).overall_sqnr_db > 60
    assert np.abs(decoded - x[1::2]).max() < 4 * q.step


def test_the_dictionary_is_exact_in_toml_and_pickle() -> None:
    transform = Transform.calibrate(latents(5, 10, 4, 8, 8), bytes=128)
    again = quantizer_from_dict(tomllib.loads(tomli_w.dumps(transform.to_dict())))
    assert again == transform == pickle.loads(pickle.dumps(transform))
    assert hash(transform) == hash(again)
    varying = Transform.calibrate(latents(5, 10, 4, 8, 8), rate=4)
    assert "bytes" not in varying.to_dict()
    assert Transform.from_dict(varying.to_dict()) == varying
    quantizer = Quantizer.uniform(-1, 1, channels=2)
    assert quantizer_from_dict(quantizer.to_dict()) == quantizer


@pytest.mark.parametrize(
    ("entry", "value"),
    [
        ("step", 0.0),
        ("step", math.inf),
        ("step", "1"),
        ("bytes", 0),
        ("bytes", 1.5),
        ("mean", "AAAA"),
        ("mean", 3),
        ("basis", "not base64"),
        ("base", "AAAA"),
        ("frequency", "AAAA"),
        ("kind", "affine"),
        ("extra", 1),
    ],
)
def test_a_damaged_dictionary_is_refused(entry: str, value: object) -> None:
    data = published(72).to_dict()
    data[entry] = value
    with pytest.raises(ValueError):
        Transform.from_dict(data)
    data = published().to_dict()
    data.pop("base")
    with pytest.raises(ValueError, match="base"):
        Transform.from_dict(data)


def test_what_cannot_be_encoded_is_named() -> None:
    z = latents(6, 6, 4, 8, 8)
    transform = Transform.calibrate(z, bytes=128)
    z[2, 1, 0, 0] = np.nan
    with pytest.raises(NotFiniteError, match="sample 2, channel 1"):
        transform.encode(z)
    z[2] = 0
    z[4] *= 1e9
    with pytest.raises(LatentqError, match=r"sample 4 .*calibration"):
        transform.encode(z)
    encoded = transform.encode_counted(z)
    assert list(encoded.bad) == [4]
    assert encoded.lengths.tolist() == [128] * 6
    with pytest.raises(LatentqError, match="bytes is too small"):
        replace(transform, sample_bytes=17).encode(latents(7, 1, 4, 8, 8))


def test_arguments_out_of_range_are_errors() -> None:
    z = latents(8, 6, 4, 8, 8)
    with pytest.raises(ValueError, match="either rate="):
        Transform.calibrate(z)
    with pytest.raises(ValueError, match="either rate="):
        Transform.calibrate(z, rate=4, bytes=100)
    with pytest.raises(ValueError, match="rate must be"):
        Transform.calibrate(z, rate=99)
    with pytest.raises(ValueError, match="trellis"):
        Transform.calibrate(z[:, :, :4, :4], rate=4)
    with pytest.raises(ValueError, match="no samples"):
        TransformCalibrator(4).transform(rate=4)
    with pytest.raises(ValueError, match=r"\(N, C, h, w\)"):
        Transform.calibrate(z[0], rate=4)
    with pytest.raises(NotFiniteError):
        Transform.calibrate(np.full((2, 4, 8, 8), np.inf, np.float32), rate=4)
    transform = Transform.calibrate(z, rate=4)
    encoded = transform.encode(z)
    for shape in ((5, 8, 8), (4, 8), (3, 4, 8, 8)):
        with pytest.raises(ValueError):
            transform.decode(encoded, shape)
    with pytest.raises(ValueError):
        transform.encode(z[:, :3])
    with pytest.raises(ValueError, match="out must be"):
        transform.decode(encoded, z.shape, out=np.empty(z.shape, np.float16))
    check_transform_shape((4, 8, 8))
    with pytest.raises(ValueError, match="trellis"):
        check_transform_shape((4, 4, 4))
    with pytest.raises(ValueError, match="channels"):
        check_transform_shape((129, 16, 16))
    with pytest.raises(ValueError, match=r"\(C, h, w\)"):
        check_transform_shape((129, 16))


def test_damaged_bytes_are_a_format_error() -> None:
    z = latents(9, 6, 4, 8, 8)
    transform = Transform.calibrate(z, bytes=150)
    rows = transform.encode(z)
    rows[3, 40] ^= 255
    damaged = transform.damaged(rows, z.shape)
    assert list(damaged) == [3]
    with pytest.raises(FormatError, match="sample 3"):
        transform.decode(rows, z.shape)
    with pytest.raises(FormatError, match="sample 3"):
        transform.decode_tensor(rows, z.shape)
    with pytest.raises(FormatError, match="sample 0"):
        transform.decode([b""] * 2, (4, 8, 8))


def test_a_change_of_scale_is_part_of_the_codec() -> None:
    z = latents(10, 8, 4, 8, 8)
    transform = Transform.calibrate(z, bytes=150)
    rows = transform.encode(z)
    shift, factor = np.array([1.0, -2, 0.5, 0]), np.array([2.0, 0.25, 1, 3])
    values = transform.decode(rows, z.shape)
    expected = (values - shift.reshape(-1, 1, 1)) * factor.reshape(-1, 1, 1)
    assert np.allclose(transform.changed(shift, factor).decode(rows, z.shape), expected, rtol=1e-4, atol=1e-4)


def test_a_metric_spends_the_bits_where_they_count() -> None:
    z = latents(11, 60, 4, 8, 8)
    metric = np.diag([1.0, 1, 1, 900])
    plain, weighted = Transform.calibrate(z, rate=3), Transform.calibrate(z, rate=3, metric=metric)
    assert weighted.measure(z).sqnr_db[3] > plain.measure(z).sqnr_db[3] + 3
    assert Transform.calibrate(z, rate=3, metric=np.eye(4)).measure(z).overall_sqnr_db == pytest.approx(
        plain.measure(z).overall_sqnr_db, abs=0.01
    )


def test_the_examples_of_the_page_run() -> None:
    page = (Path(__file__).parents[2] / "docs" / "codec.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", page, re.S)
    assert len(blocks) > 2
    exec("\n".join(blocks), {})


def test_wrong_arguments_are_named_before_memory_is_taken():
    latents = np.random.default_rng(0).normal(size=(8, 4, 16, 16)).astype(np.float32)
    assert Transform.calibrate(latents, bytes=np.int64(300)).sample_bytes == 300
    with pytest.raises(TypeError, match="integer"):
        Transform.calibrate(latents, bytes="300")
    transform = Transform.calibrate(latents, rate=3.0)
    stored = transform.encode(latents)
    with pytest.raises(ValueError, match="not a single one"):
        transform.decode(stored[0], (4, 16, 16))
    with pytest.raises(ValueError, match="too large for a transform"):
        transform.decode(stored[:1], (1, 4, 10**6, 10**6))
    for text, message in (
        ("\u00e9", "mean of a transform is not base64"),
        ("AAA", "mean of a transform is not base64"),
    ):
        with pytest.raises(ValueError, match=message):
            Transform.from_dict(transform.to_dict() | {"mean": text})
