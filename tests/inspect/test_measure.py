"""`latentq measure`: the table for choosing a quantizer."""

import io
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import latentq
from latentq.cli.main import main
from latentq.inspect import measure
from latentq.quantizer import NotFiniteError, Quantizer


def latents(samples: int = 20) -> np.ndarray:
    return np.random.default_rng(0).normal(0.5, 2, (samples, 3, 16, 16)).astype(np.float32)


def test_even_samples_calibrate_and_odd_samples_are_measured() -> None:
    x = latents()
    rows = {(row.scheme, row.bits): row for row in measure.measure(x, bits=[8, 5], methods=["mse"])}
    schemes = [(scheme, bits) for scheme in ("uniform", "mse", "transform") for bits in (8, 5)]
    assert list(rows) == [("float16", 16), *schemes]
    q = Quantizer.calibrate(x[::2], bits=5)
    m, row = q.measure(x[1::2]), rows["mse", 5]
    assert (row.sqnr_db, row.worst_sqnr_db, row.largest_error) == (m.overall_sqnr_db, min(m.sqnr_db), m.largest_error)
    entropies = []
    for channel in range(3):
        share = np.bincount(q.quantize(x[1::2])[:, channel].ravel()) / (10 * 256)
        entropies.append(-sum(p * math.log2(p) for p in share if p))
    assert row.entropy == pytest.approx(np.mean(entropies))
    assert row.psnr_images_db is None
    assert row.psnr_decoded_db is None


def test_samples_can_be_an_iterator_or_a_file(tmp_path: Path) -> None:
    x = latents()
    np.save(tmp_path / "x.npy", x)
    rows = measure.measure(x)
    assert measure.measure(iter(x)) == rows
    assert measure.measure(measure.load(tmp_path / "x.npy")) == rows


class ChannelsAsImages:
    """An autoencoder that decodes to the first three channels of the latents."""

    pixel_range = (-8.0, 8.0)

    def decode(self, latents: Any) -> Any:
        return latents[:, :3]


def test_decoded_images_are_compared_with_the_originals_and_with_the_unquantized() -> None:
    pytest.importorskip("torch")
    x = latents().clip(-8, 8)
    images = np.round((x + 8) / 16 * 255).astype(np.uint8)
    rows = measure.measure(x, bits=[8, 4], methods=["mse", "trellis"], autoencoder=ChannelsAsImages(), images=images)
    assert {row.scheme for row in rows} >= {"trellis", "transform"}
    assert all(row.psnr_decoded_db and row.psnr_images_db for row in rows)
    by_name = {(row.scheme, row.bits): row for row in rows}
    fine, coarse = by_name["mse", 8], by_name["mse", 4]
    assert fine.psnr_decoded_db is not None
    assert coarse.psnr_decoded_db is not None
    assert fine.psnr_decoded_db > coarse.psnr_decoded_db > 20
    assert coarse.psnr_images_db == pytest.approx(coarse.psnr_decoded_db, abs=0.5)
    q = Quantizer.calibrate(x[::2], bits=4)
    again = q.dequantize(q.quantize(x[1::2]))
    errors = np.square((again.clip(-8, 8) - x[1::2]) / 16).mean((1, 2, 3))
    assert coarse.psnr_decoded_db == pytest.approx(np.mean(-10 * np.log10(errors)), abs=1e-3)


def test_the_table_has_a_line_per_row_and_the_json_an_object_per_row(tmp_path: Path, capsys: Any) -> None:
    results = measure.measure(latents(), bits=[8])
    text = io.StringIO()
    measure.print_table(results, file=text)
    np.save(tmp_path / "latents.npy", latents())
    assert main(["measure", str(tmp_path / "latents.npy"), "--bits", "8", "--json", "--quiet"]) == 0
    lines = text.getvalue().splitlines()
    assert [line.split()[0] for line in lines[1:]] == ["float16", "uniform", *measure.METHODS, "transform"]
    assert "PSNR" not in lines[0]
    rows = json.loads(capsys.readouterr().out)
    assert [row["scheme"] for row in rows] == ["float16", "uniform", *measure.METHODS, "transform"]
    assert rows[0]["entropy"] is None
    best = max(rows[1:], key=lambda row: row["sqnr_db"])["scheme"]
    marked = {word: [line.split()[0] for line in lines if word in line] for word in ("default", "least error")}
    assert marked == {"default": ["mse"], "least error": [best]}


def test_a_sample_that_a_transform_cannot_encode_ends_nothing() -> None:
    x = latents()
    x[7] *= 3000
    rows = {row.scheme: row for row in measure.measure(x, bits=[4], methods=["trellis"])}
    assert {scheme: row.refused for scheme, row in rows.items()} == {
        "float16": 0, "uniform": 0, "trellis": 0, "transform": 1
    }  # fmt: skip
    assert rows["trellis"].largest_error < 10  # of the others
    assert rows["transform"].sqnr_db > 10
    text = io.StringIO()
    measure.print_table(list(rows.values()), file=text)
    assert "refuses 1 sample" in text.getvalue().splitlines()[-1]


def test_a_transform_that_can_encode_no_sample_has_no_row() -> None:
    x = np.random.default_rng(0).normal(size=(2, 4, 8, 8)).astype(np.float32)
    x[1] *= 3000
    with pytest.warns(UserWarning, match=r"^no row for a transform of 128 bytes: it can encode none of the samples$"):
        rows = measure.measure(x, bits=[4], methods=["mse"])
    assert [row.scheme for row in rows] == ["float16", "uniform", "mse"]


def test_latents_that_overflow_float16_are_compared_with_bfloat16() -> None:
    x = np.random.default_rng(0).normal(0, 3, (4, 2, 8, 8)).astype(np.float32)
    for largest, scheme in ((65519.0, "float16"), (65520.0, "bfloat16"), (-1e30, "bfloat16")):
        x[1, 0, 0, 0] = largest
        kept = measure.measure(x, bits=(8,), methods=("minmax",))[0]
        assert (kept.scheme, kept.bits) == (scheme, 16)
        assert kept.sqnr_db > 40


@pytest.mark.parametrize("nothing", [[], np.zeros((0, 3, 4), np.float32), np.zeros(3, np.float32)])
def test_no_latents_are_an_error(nothing: Any) -> None:
    with pytest.raises(ValueError, match="no latents"):
        measure.measure(nothing)


@pytest.mark.parametrize("sample", [4, 7])
def test_a_value_that_is_not_finite_is_named_by_its_index(sample: int) -> None:
    x = latents()
    x[sample, 2, 3, 3] = np.nan
    with pytest.raises(NotFiniteError, match=f"sample {sample}, channel 2"):
        measure.measure(x)


def test_a_file_with_other_content_is_an_error(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.zeros((3, 4), np.longdouble))
    with pytest.raises(ValueError, match=r"x\.npy"):
        measure.load(tmp_path / "x.npy")
    np.save(tmp_path / "x.npy", np.zeros((3, 4), np.int32))
    with pytest.raises(ValueError, match=r"x\.npy"):
        measure.load(tmp_path / "x.npy")
    with pytest.raises(FileNotFoundError):
        measure.load(tmp_path / "absent.npy")


def test_the_number_of_images_that_are_encoded_and_decoded_is_bounded(
    pictures: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    pytest.importorskip("torch")
    decoded = []

    class Counting(ChannelsAsImages):
        def decode(self, latents: Any) -> Any:
            decoded.append(len(latents))
            return super().decode(latents)

    x = latents(2 * measure.DECODED + 20).clip(-8, 8)
    rows = measure.measure(x, bits=[8], methods=["mse"], autoencoder=Counting())
    assert sum(decoded) == measure.DECODED * (1 + len(rows))
    latentq.encode(pictures, tmp_path / "out", size=64)
    monkeypatch.setattr(measure, "ENCODED", 5)
    values, network, images = measure.of_dataset(tmp_path / "out", source=pictures)
    assert network is not None
    assert images is not None
    assert len(values) == len(images) == 5
    assert len(measure.of_dataset(tmp_path / "out")[0]) == 12


def test_a_transform_has_the_bits_of_codes_in_any_shape() -> None:
    x = np.random.default_rng(0).normal(size=(24, 4, 27, 13)).astype(np.float32)  # 526.5 bytes at 3 bits
    assert [row.bits for row in measure.measure(x, bits=(3,), methods=()) if row.scheme == "transform"] == [3]
