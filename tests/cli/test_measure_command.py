"""`latentq measure`."""

import json

import numpy as np
import pytest
import torch

from latentq import LatentDataset
from latentq.cli.main import main


def test_measure_compares_schemes_and_bits(small_dataset, pictures, tmp_path, capsys):
    latents = torch.stack([sample["latent"] for sample in LatentDataset(small_dataset)]).numpy()
    np.save(tmp_path / "latents.npy", latents)
    assert main(["measure", str(tmp_path / "latents.npy"), "--bits", "8", "4"]) == 0
    table = capsys.readouterr().out
    assert "PSNR" not in table
    assert len(table.splitlines()) == 2 + 2 * 7  # a header, float16, and seven schemes at each number of bits
    assert main(["measure", str(small_dataset), "--source", str(pictures), "--json"]) == 0
    rows = {(row["scheme"], row["bits"]): row for row in json.loads(capsys.readouterr().out)}
    assert rows["mse", 8]["psnr_images_db"] > rows["mse", 4]["psnr_images_db"]
    assert rows["float16", 16]["sqnr_db"] > rows["lloyd-max", 8]["sqnr_db"] > rows["lloyd-max", 4]["sqnr_db"] > 10


def test_measure_without_a_source_says_that_latents_are_quantized_already(small_dataset, capsys):
    assert main(["measure", str(small_dataset)]) == 0
    captured = capsys.readouterr()
    assert "already quantized once" in captured.err
    assert "lloyd-max" in captured.out


def test_stored_floats_are_not_said_to_be_quantized(small_dataset, tmp_path, capsys):
    assert main(["convert", str(small_dataset), str(tmp_path / "other"), "--to", "fast-dit", "--quiet"]) == 0
    assert main(["convert", str(tmp_path / "other"), str(tmp_path / "floats"), "--quiet"]) == 0
    assert main(["measure", str(tmp_path / "floats"), "--bits", "8"]) == 0
    assert "quantized" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("nowhere",), 2, "no such file or dataset"),
        (("x.npy",), 2, "x.npy"),
        (("out", "--bits", "9"), 2, "from 2 to 8"),
        (("out", "--source", "nowhere"), 2, "no such file or folder"),
        (("out", "--column", "x"), 1, "no latent column 'x'"),
        (("pictures",), 1, "no card"),
    ],
)
def test_measure_refuses_wrong_arguments(small_dataset, tmp_path, monkeypatch, capsys, arguments, code, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x.npy").write_text("no array")
    assert main(["measure", *arguments]) == code
    assert message in capsys.readouterr().err


def test_a_single_sample_is_told_to_be_measured_on_its_calibration(tmp_path, capsys):
    latents = np.random.default_rng(0).normal(size=(2, 4, 16, 16)).cumsum(-1).astype(np.float32)
    for count, told in ((1, True), (2, False)):
        np.save(tmp_path / "latents.npy", latents[:count])
        assert main(["measure", str(tmp_path / "latents.npy"), "--bits", "8"]) == 0
        assert ("measured on what they were calibrated on" in capsys.readouterr().err) == told
