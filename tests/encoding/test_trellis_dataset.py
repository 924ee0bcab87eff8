"""A dataset quantized by a trellis, from `latentq encode` to every reader."""

import random
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

import latentq
from conftest import contents, paint
from latentq import Card, LatentDataset, LatentMixture, MismatchError, Quantizer, Recipe, RecipeError, mds
from latentq.inspect.pictures import pictures as decode_pictures
from latentq.inspect.psnr import psnr

OPTIONS = {"autoencoder": "dct-f8c16", "size": 32, "unit_size": 4, "calibrate": "trellis"}
COMMAND = [sys.executable, "-m", "latentq", "encode", "--autoencoder", "dct-f8c16", "--size", "32", "--unit-size", "4",
           "--batch-size", "4", "--calibrate", "trellis", "--bits", "4"]  # fmt: skip


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    folder = tmp_path_factory.mktemp("source")
    for number in range(14):
        paint(folder / f"{number:02}.png", number, (70, 50))
    return folder


@pytest.fixture(scope="module", params=[3, 8])
def out(request, source, tmp_path_factory):
    out = tmp_path_factory.mktemp("made") / "out"
    latentq.encode(source, out, **OPTIONS, bits=request.param)
    return out


def floats(source, out):
    """The latents of the same images, stored as floats."""
    recipe = Recipe.load("default").to_dict()
    recipe["columns"]["latent"]["quantizer"] = {"kind": "float32"}
    options = {"autoencoder": "dct-f8c16", "size": 32}
    latentq.encode(source, out, recipe=Recipe.from_dict(recipe), **options)
    return torch.stack([sample["latent"] for sample in LatentDataset(out)])


def test_stored_codes_are_those_of_the_cards_quantizer(out, source, tmp_path):
    facts = Card.load(out).latents["latent"]
    quantizer = facts.quantizer
    assert (quantizer.kind, quantizer.level_count) == ("trellis", 2 ** (quantizer.bits + 1))
    exact = floats(source, tmp_path / "floats")
    expected = quantizer.dequantize(quantizer.quantize(exact))
    values = LatentDataset(out).batch(range(14))["latent"]
    assert torch.equal(values, expected)
    assert Quantizer.calibrate(exact, bits=quantizer.bits, method="trellis") == quantizer
    np.testing.assert_allclose(facts.statistics.mean, expected.double().mean((0, 2, 3)), atol=1e-12)
    normalized = LatentDataset(out, scale="normalized").batch(range(14))["latent"].double()
    np.testing.assert_allclose(normalized.mean((0, 2, 3)), 0, atol=1e-5)
    np.testing.assert_allclose(normalized.std((0, 2, 3), correction=0), 1, atol=1e-5)


def test_every_reader_gives_the_same_values(out, streaming_alone):
    expected = LatentDataset(out).batch(range(14))["latent"]
    loaded = torch.cat([batch["latent"] for batch in LatentDataset(out).loader(4, drop_last=False)])
    assert torch.equal(loaded, expected)
    resident = LatentDataset(out).to_device("cpu")
    assert torch.equal(resident.batch(range(14))["latent"], expected)
    workers = torch.cat([batch["latent"] for batch in DataLoader(LatentDataset(out), batch_size=5, num_workers=2)])
    assert torch.equal(workers, expected)
    mixture = LatentMixture([LatentDataset(out), LatentDataset(out)])
    assert all(torch.isin(batch["latent"], expected).all() for batch in mixture.loader(4))
    half = LatentDataset(out, dtype=torch.bfloat16).batch([9, 3])["latent"]
    assert torch.equal(half, expected[[9, 3]].bfloat16())


def test_a_stock_reader_reads_the_codes(out, streaming_alone):
    streaming = pytest.importorskip("streaming")
    streaming.base.util.clean_stale_shared_memory()
    quantizer, shape = Card.load(out).latents["latent"].quantizer, Card.load(out).latents["latent"].shape
    stock = streaming.StreamingDataset(local=str(out), batch_size=1)
    expected = LatentDataset(out).batch(range(14))["latent"].numpy()
    stored = np.stack([stock[index]["latent"].reshape(-1) for index in range(14)])
    np.testing.assert_array_equal(quantizer.dequantize_packed(stored, (14, *shape)), expected)


def test_verify_recounts_the_levels(out):
    assert latentq.verify(out) == []
    unit = next(out.glob("*/unit.toml"))
    text = unit.read_text()
    try:
        unit.write_text(text.replace("[[", "[[1", 1))
        assert any("histogram" in finding.message for finding in latentq.verify(out))
    finally:
        unit.write_text(text)


def test_pictures_are_decoded(out, source):
    *_, unquantized, decoded = (picture.pixels for picture in decode_pictures(out, [5], source=source)[0])
    assert psnr(decoded, unquantized) > 5 * Card.load(out).latents["latent"].quantizer.bits


def test_a_killed_run_goes_on_and_ranks_write_the_same_bytes(source, tmp_path):
    assert subprocess.run([*COMMAND, source, tmp_path / "whole"], capture_output=True).returncode == 0
    process = subprocess.Popen(
        [*COMMAND, source, tmp_path / "out"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    while process.poll() is None and not list(tmp_path.glob("out/*/index.json")):
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.wait()
    options = {**OPTIONS, "bits": 4, "batch_size": 4}
    latentq.encode(source, tmp_path / "out", **options)
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")
    for rank in (1, 0):
        latentq.encode(source, tmp_path / "ranks", **options, rank=rank, world_size=2)
    assert contents(tmp_path / "ranks") == contents(tmp_path / "whole")


def test_an_update_keeps_the_levels(tmp_path):
    source, out = tmp_path / "source", tmp_path / "out"
    for number in range(6):
        paint(source / f"{number}.png", number, (70, 50))
    card = latentq.encode(source, out, **OPTIONS, bits=4)
    paint(source / "9.png", 9, (70, 50))
    (source / "2.png").unlink()
    updated = latentq.encode(source, out, update=True)
    assert updated.latents["latent"].quantizer == card.latents["latent"].quantizer
    assert latentq.verify(out) == []
    fresh = tmp_path / f"fresh-{random.getrandbits(30)}"
    latentq.encode(source, fresh, like=out)
    by_key = {sample["key"]: sample["latent"] for sample in LatentDataset(fresh)}
    assert {sample["key"] for sample in LatentDataset(out)} == by_key.keys()
    assert all(torch.equal(sample["latent"], by_key[sample["key"]]) for sample in LatentDataset(out))


def test_another_size_is_packed_without_gaps(source, tmp_path):
    card = latentq.encode(source, tmp_path / "out", **{**OPTIONS, "size": 40}, bits=5)
    assert card.latents["latent"].shape == (16, 5, 5)
    assert card.columns["latent"] == f"ndarray:uint8:{16 * 25 * 5 // 8}"
    assert latentq.verify(tmp_path / "out") == []


def test_moments_are_one_sample_of_means_and_log_variances(source, tiny_vae, tmp_path, capsys):
    options = {"autoencoder": tiny_vae, "store": "moments", "size": 32, "calibrate": "trellis", "bits": 8}
    facts = latentq.encode(source, tmp_path / "out", **options).latents["moments"]
    assert facts.shape == (8, 4, 4)
    stored = mds.Reader(tmp_path / "out").gather(range(14), "moments")
    moments = facts.quantizer.dequantize(np.stack(stored))
    mean, logvar = (torch.from_numpy(half) for half in np.split(moments, 2, axis=1))
    noise = torch.randn(mean.shape, generator=torch.Generator().manual_seed(3))
    (column,) = LatentDataset(tmp_path / "out").layout.encoded.values()
    packed = torch.from_numpy(facts.quantizer.pack(np.stack(stored)))
    drawn = column.decode(packed, torch.float32, noise=noise)
    assert torch.equal(drawn, mean + (logvar / 2).exp() * noise)
    assert latentq.verify(tmp_path / "out") == []
    from latentq.cli.main import main

    assert main(["measure", str(tmp_path / "out"), "--bits", "4"]) == 0
    assert "'moments' holds moments, which no transform can store" in capsys.readouterr().err


def test_codes_of_a_trellis_are_not_converted_to_other_layouts(source, tmp_path):
    latentq.encode(source, tmp_path / "out", **OPTIONS, bits=8)
    with pytest.raises(MismatchError, match="trellis"):
        latentq.convert(tmp_path / "out", tmp_path / "out.pt")


def test_a_recipe_names_the_kind(source, tmp_path):
    recipe = Recipe.load("default").to_dict()
    recipe["columns"]["latent"]["quantizer"] = {"kind": "trellis", "bits": 4}
    by_recipe = latentq.encode(
        source, tmp_path / "recipe", recipe=Recipe.from_dict(recipe), autoencoder="dct-f8c16", size=32
    )
    by_option = latentq.encode(source, tmp_path / "option", **{**OPTIONS, "bits": 4})
    assert by_recipe.latents["latent"].quantizer == by_option.latents["latent"].quantizer
    recipe["columns"]["latent"]["quantizer"]["method"] = "mse"
    with pytest.raises(RecipeError, match="must be one of trellis"):
        Recipe.from_dict(recipe)
    back = Recipe.load("default").override(calibrate="trellis").override(calibrate="mse")
    assert back.columns["latent"].quantizer["kind"] == "affine"
    assert mds.Reader(tmp_path / "recipe").columns["latent"] == f"ndarray:uint8:{16 * 16 // 2}"
