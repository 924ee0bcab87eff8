"""A run is refused before any work if it does not fit what is in the folder, its arguments or its card."""

import os
import shutil
from pathlib import Path

import pytest
import torch

import latentq
from conftest import contents, paint
from latentq import Card, MismatchError, RecipeError

SMALL = {"autoencoder": "dct-f8c16", "size": 64}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"size": 72}, r"recipe\.columns\.latent\.size = 64; this run has 72: name another output folder, or "),
        ({"crop": "adm"}, r"recipe\.image\.crop = 'center'; this run has 'adm'"),
        ({"seed": 5}, r"recipe\.autoencoder\.seed = 0; this run has 5"),
        ({"unit_size": 3}, r"recipe\.unit_size = 4096; this run has 3"),
        ({"bits": 6}, r"recipe\.columns\.latent\.quantizer\.bits = 8; this run has 6"),
    ],
)
def test_another_recipe_is_refused_naming_both_values(pictures, tmp_path, change, message):
    latentq.encode(pictures, tmp_path / "out", **SMALL)
    before = contents(tmp_path / "out")
    with pytest.raises(MismatchError, match=message):
        latentq.encode(pictures, tmp_path / "out", **{**SMALL, **change})
    assert contents(tmp_path / "out") == before


def test_other_weights_are_refused_but_a_moved_model_is_not(pictures, tmp_path, tiny_vae):
    from diffusers import AutoencoderKL

    latentq.encode(pictures, tmp_path / "out", autoencoder=tiny_vae, size=64)
    shutil.copytree(tiny_vae, tmp_path / "moved")
    assert latentq.encode(pictures, tmp_path / "out", autoencoder=tmp_path / "moved", size=64).complete
    model = AutoencoderKL.from_pretrained(tiny_vae)
    with torch.no_grad():
        next(model.parameters()).add_(1)
    model.save_pretrained(tmp_path / "tiny-vae")
    with pytest.raises(MismatchError, match=r"autoencoder\.weights = 'sha256:\w+'; this run has 'sha256:\w+'"):
        latentq.encode(pictures, tmp_path / "out", autoencoder=tmp_path / "tiny-vae", size=64)


def test_changed_source_is_refused_naming_both_sides(pictures, tmp_path):
    latentq.encode(pictures, tmp_path / "out", **SMALL)
    before = contents(tmp_path / "out")
    paint(pictures / "bee" / "02.png", 5)
    with pytest.raises(MismatchError, match=r"lists 12 samples, the source has 13 now; .*'bee/04\.png'.*'bee/02\.png'"):
        latentq.encode(pictures, tmp_path / "out", **SMALL)
    (pictures / "bee" / "02.png").unlink()
    (pictures / "cat" / "11.png").unlink()
    with pytest.raises(
        MismatchError,
        match=r"lists 12 samples, the source has 11 now; 'cat/11\.png' only there: restore the source, .*--update, or ",
    ):
        latentq.encode(pictures, tmp_path / "out", **SMALL)
    paint(pictures / "cat" / "11.png", 99)
    with pytest.raises(MismatchError, match=r"'cat/11\.png' \(\d+ bytes, label 2\) there"):
        latentq.encode(pictures, tmp_path / "out", **SMALL)
    assert contents(tmp_path / "out") == before


def test_output_folder_with_other_files_is_refused(pictures, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("precious")
    with pytest.raises(MismatchError, match=r"holds something else \(thesis\.tex\)"):
        latentq.encode(pictures, tmp_path / "out", **SMALL)
    assert contents(tmp_path / "out") == {"thesis.tex": b"precious"}
    for inside in (".", "deeper/still"):
        with pytest.raises(MismatchError, match=r"thesis\.tex is a file"):
            latentq.encode(pictures, tmp_path / "out" / "thesis.tex" / inside, **SMALL)


def test_class_folder_of_the_source_is_no_output_folder(pictures):
    before = contents(pictures)
    for out in (pictures, pictures / "bee"):
        with pytest.raises(MismatchError, match=r"holds something else \((ant|01\.png)\)"):
            latentq.encode(pictures, out, **SMALL)
    assert contents(pictures) == before


def test_unwritable_output_folder_is_refused_before_any_work(pictures, tmp_path, monkeypatch):
    """Replaces os.access, because the tests may run as root, who can write everywhere."""
    monkeypatch.setattr(os, "access", lambda path, _mode: Path(path) != tmp_path)
    with pytest.raises(PermissionError, match="cannot be written"):
        latentq.encode(pictures, tmp_path / "deep" / "out", **SMALL)
    assert not (tmp_path / "deep").exists()


def test_dataset_begun_without_like_is_not_continued_with_it(pictures, tmp_path):
    for index, name in enumerate(("ant", "bee", "cat")):
        paint(tmp_path / "others" / name / "x.png", 50 + index)
    latentq.encode(tmp_path / "others", tmp_path / "train", **SMALL)
    latentq.encode(pictures, tmp_path / "alone", **SMALL)
    with pytest.raises(MismatchError, match=r"latents\.latent\.quantizer = {.*}; this run has {"):
        latentq.encode(pictures, tmp_path / "alone", like=tmp_path / "train")


def test_like_needs_the_same_weights(pictures, tmp_path, tiny_vae):
    latentq.encode(pictures, tmp_path / "train", autoencoder=tiny_vae, size=64)
    with pytest.raises(
        MismatchError,
        match=r"made by .* with family = 'AutoencoderKL'; this run's dct-f8c16 has family = 'DctAutoencoder'",
    ):
        latentq.encode(pictures, tmp_path / "x", like=tmp_path / "train", autoencoder="dct-f8c16")


def test_recipe_that_stores_what_the_source_lacks_is_refused(pictures, tmp_path, tiny_vae):
    shutil.move(pictures / "ant" / "00.jpg", pictures / "00.jpg")
    with pytest.raises(RecipeError, match=r"imagenet\.int8 stores label as label, which the source does not have"):
        latentq.encode(pictures, tmp_path / "out", recipe="imagenet.int8", autoencoder=tiny_vae)
    with pytest.raises(RecipeError, match="multiple of 8, not 60"):
        latentq.encode(pictures, tmp_path / "out2", autoencoder="dct-f8c16", size=60)


@pytest.mark.parametrize("size", [{"size": 1 << 20}, {"buckets": "65536x65536"}])
def test_pixels_beyond_the_free_memory_are_refused(pictures, tmp_path, monkeypatch, size):
    monkeypatch.setattr("latentq.encoding.run.available_bytes", lambda: 1 << 30)
    with pytest.raises(RecipeError, match=r"a batch \(1 x \d+ x \d+\) take [\d.]+ GB, but only 1\.1 GB of memory"):
        latentq.encode(pictures, tmp_path / "out", autoencoder="dct-f8c16", **size)
    assert not (tmp_path / "out").exists()
    assert latentq.encode(pictures, tmp_path / "out", **SMALL).complete


@pytest.mark.parametrize(
    ("options", "message"),
    [({"batch_size": 0}, "batch_size"), ({"rank": 2, "world_size": 2}, "rank"), ({"rank": -1}, "rank")],
)
def test_bad_arguments_are_value_errors(pictures, tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        latentq.encode(pictures, tmp_path / "out", **options)


@pytest.mark.parametrize("text", ["", "format = 1", "format = 9", "complete =", "\x00", 'format = 1\nsource = "x"'])
def test_broken_card_is_an_error_that_names_the_file(pictures, tmp_path, text):
    latentq.encode(pictures, tmp_path / "out", **SMALL)
    (tmp_path / "out" / "latents.toml").write_text(text)
    with pytest.raises(latentq.FormatError, match=r"latents\.toml: "):
        latentq.encode(pictures, tmp_path / "out", **SMALL)
    assert [finding.file for finding in latentq.verify(tmp_path / "out")] == ["latents.toml"]


def test_card_with_a_missing_or_mistyped_field_is_an_error(pictures, tmp_path):
    card = latentq.encode(pictures, tmp_path / "out", **SMALL).to_dict()
    for key in card:
        for changed in ({k: v for k, v in card.items() if k != key}, {**card, key: 3.5}, {**card, key: [1]}):
            if key == "complete" and changed.get(key):
                continue
            with pytest.raises((latentq.FormatError, RecipeError)):
                Card.from_dict(changed)


@pytest.mark.parametrize(
    ("table", "field", "value"),
    [
        ("source", "samples", "x"),
        ("source", "samples", 10**30),
        ("counts", "samples", -1),
        ("recipe", "changed", 3),
        ("columns", "latent", 7),
        ("latents", "latent", {}),
        ("latent", "shape", "x"),
        ("latent", "shape", [16, 8]),
        ("latent", "clipped", [1, 2]),
        ("latent", "clipped", ["x"] * 16),
        ("latent", "statistics", {"mean": []}),
        ("latent", "quantizer", {"kind": "affine", "bits": -1, "low": [0.0], "high": [1.0]}),
        ("latent", "quantizer", {"kind": "affine", "bits": 8, "low": [0.0], "high": [1.0]}),
    ],
)
def test_card_with_an_invalid_value_is_an_error(pictures, tmp_path, table, field, value):
    data = latentq.encode(pictures, tmp_path / "out", **SMALL).to_dict()
    (data["latents"]["latent"] if table == "latent" else data[table])[field] = value
    with pytest.raises((latentq.FormatError, RecipeError)):
        Card.from_dict(data)
