"""`latentq.encode`: from images to a finished dataset.

Over 500 lines: one test for each property of the function, on the fixture `pictures`.
"""

import dataclasses
import errno
import json
import os
import shutil
import tomllib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import latentq
from conftest import contents, paint
from latentq import Card, LatentDataset, LatentqError, MismatchError, Recipe, RecipeError, mds
from latentq.inspect.pictures import pictures as decode_pictures
from latentq.inspect.psnr import psnr
from latentq.models.noise import noise

SMALL = {"autoencoder": "dct-f8c16", "size": 64}


def test_folder_is_encoded(pictures, tmp_path):
    card = latentq.encode(pictures, tmp_path / "out", **SMALL)
    assert card.complete
    assert (card.counts.samples, card.counts.rejects) == (12, 0)
    assert card == Card.load(tmp_path / "out")
    assert {p.name for p in (tmp_path / "out").iterdir()} == {
        "latents.toml", "samples.tsv", "rejects.tsv", "index.json", "00000"
    }  # fmt: skip
    assert {p.name for p in (tmp_path / "out" / "00000").iterdir()} == {"shard.00000.mds", "index.json", "unit.toml"}
    dataset = LatentDataset(tmp_path / "out")
    assert len(dataset) == 12
    sample = dataset[5]
    assert sample["latent"].shape == (16, 8, 8)
    assert (sample["key"], sample["label"], sample["label_text"]) == ("bee/04.png", 1, "bee")


def test_latents_are_computed_from_the_pixels_of_pillow(pictures, tmp_path):
    out = tmp_path / "out"
    card = latentq.encode(pictures, out, **SMALL)
    dataset = LatentDataset(out)
    autoencoder = latentq.load_autoencoder("dct-f8c16")
    steps = (np.array(card.latents["latent"].quantizer.high) - card.latents["latent"].quantizer.low) / 255
    for sample in dataset:
        picture = Image.open(pictures / sample["key"]).convert("RGB")
        width, height = picture.size
        short = min(width, height)
        picture = picture.resize((int(64 * width / short), int(64 * height / short)), Image.Resampling.BICUBIC)
        left, top = round((picture.width - 64) / 2), round((picture.height - 64) / 2)
        pixels = np.asarray(picture.crop((left, top, left + 64, top + 64)))
        expected = autoencoder.encode(torch.from_numpy(pixels / np.float32(127.5) - 1).permute(2, 0, 1)[None])[0]
        error = (sample["latent"] - expected).abs().numpy()
        inside = error <= steps[:, None, None] * 0.501
        assert inside.mean() > 0.99  # the rest is clipped, and counted


def test_images_below_min_size_are_rejected(pictures, tmp_path):
    (pictures / "ant" / "broken.jpg").write_bytes(b"no picture")
    card = latentq.encode(pictures, tmp_path / "out", **SMALL, min_size=90)
    rows = [line.split("\t") for line in (tmp_path / "out" / "rejects.tsv").read_text().splitlines()]
    small = {str(path.relative_to(pictures)) for path in pictures.glob("*/[0-9]*") if min(Image.open(path).size) < 90}
    assert 0 < len(small) < 12
    assert {key for key, stage, _ in rows if stage == "size"} == small
    assert [key for key, stage, _ in rows if stage == "decode"] == ["ant/broken.jpg"]
    assert (card.counts.samples, card.counts.rejects) == (12 - len(small), len(small) + 1)
    assert ["ant/00.jpg", "size", "90 x 70 pixels, below 90"] in rows


def test_statistics_are_of_dequantized_values(pictures, tmp_path):
    card = latentq.encode(pictures, tmp_path / "out", **SMALL, bits=4)
    values = torch.stack([sample["latent"] for sample in LatentDataset(tmp_path / "out")]).double()
    statistics = card.latents["latent"].statistics
    assert statistics.count == (values[:, 0].numel(),) * 16
    dims = (0, 2, 3)
    np.testing.assert_allclose(statistics.mean, values.mean(dims), rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(statistics.std, values.std(dims, correction=0), rtol=1e-9)
    np.testing.assert_array_equal(statistics.min, values.amin(dims))
    np.testing.assert_array_equal(statistics.max, values.amax(dims))


def test_clipped_values_are_counted(pictures, tmp_path):
    recipe = Recipe.load("default").to_dict()
    recipe["columns"]["latent"]["quantizer"] = {"kind": "uniform", "low": -0.5, "high": 0.5}
    card = latentq.encode(pictures, tmp_path / "out", recipe=Recipe.from_dict(recipe), size=64)
    autoencoder = latentq.load_autoencoder("dct-f8c16")
    pixels, _ = latentq.image.load_batch([pictures / s["key"] for s in LatentDataset(tmp_path / "out")], 64)
    latents = autoencoder.encode(torch.from_numpy(pixels).float() / 127.5 - 1)
    outside = ((latents < -0.5) | (latents > 0.5)).sum((0, 2, 3))
    assert card.latents["latent"].clipped == tuple(outside.tolist())


@pytest.mark.parametrize("kind", ["float32", "float16", "bfloat16"])
def test_float_columns_are_stored(pictures, tmp_path, kind):
    recipe = Recipe.load("default").to_dict()
    recipe["columns"]["latent"]["quantizer"] = {"kind": kind}
    card = latentq.encode(pictures, tmp_path / "out", recipe=Recipe.from_dict(recipe), size=64)
    dataset = LatentDataset(tmp_path / "out")
    autoencoder = latentq.load_autoencoder("dct-f8c16")
    pixels, _ = latentq.image.load_batch([pictures / sample["key"] for sample in dataset], 64)
    expected = autoencoder.encode(torch.from_numpy(pixels).float() * (2 / 255) - 1).to(getattr(torch, kind)).float()
    values = torch.stack([sample["latent"] for sample in dataset])
    assert torch.equal(values, expected)
    np.testing.assert_allclose(card.latents["latent"].statistics.mean, values.double().mean((0, 2, 3)), rtol=1e-9)


@pytest.mark.parametrize("bits", [2, 4, 6])
def test_fewer_bits_are_stored_packed_and_read_back(pictures, tmp_path, bits):
    card = latentq.encode(pictures, tmp_path / "out", **SMALL, bits=bits)
    assert card.columns["latent"] == f"ndarray:uint8:{16 * 8 * 8 * bits // 8}"
    quantizer = card.latents["latent"].quantizer
    reader = mds.Reader(tmp_path / "out")
    codes = quantizer.unpack(reader.gather(range(12), "latent"), (12, 16, 8, 8))
    assert codes.max() < 2**bits
    expected = quantizer.dequantize(codes)
    values = torch.stack([sample["latent"] for sample in LatentDataset(tmp_path / "out")])
    np.testing.assert_array_equal(values.numpy(), expected)
    assert latentq.verify(tmp_path / "out") == []
    _, unquantized, decoded = (picture.pixels for picture in decode_pictures(tmp_path / "out", [5], source=pictures)[0])
    assert psnr(decoded, unquantized) > 5 * bits


@pytest.mark.parametrize("bits", [3, 8])
def test_codebook_latents_are_stored_and_read_back(pictures, tmp_path, bits):
    out = tmp_path / "out"
    card = latentq.encode(pictures, out, **SMALL, bits=bits, calibrate="lloyd-max")
    quantizer = card.latents["latent"].quantizer
    assert (quantizer.kind, quantizer.bits) == ("codebook", bits)
    assert "calibrate" in card.recipe.changed
    values = torch.stack([sample["latent"] for sample in LatentDataset(out)]).numpy()
    for channel, levels in enumerate(quantizer.levels):
        assert set(values[:, channel].ravel().tolist()) <= set(levels)
    normalized = torch.stack([sample["latent"] for sample in LatentDataset(out, scale="normalized")])
    np.testing.assert_allclose(normalized.double().mean((0, 2, 3)), 0, atol=1e-5)
    np.testing.assert_allclose(normalized.double().std((0, 2, 3), correction=0), 1, atol=1e-5)
    assert latentq.verify(out) == []


def test_min_side_decodes_jpegs_at_reduced_scale_and_is_in_the_card(tmp_path):
    paint(tmp_path / "photos" / "large.jpg", 1, (800, 600))
    card = latentq.encode(tmp_path / "photos", tmp_path / "fast", **SMALL, min_side=64)
    assert (card.recipe.image.min_side, card.recipe.changed) == (64, ("min_side", "size"))
    latentq.encode(tmp_path / "photos", tmp_path / "exact", **SMALL)
    fast, exact = (LatentDataset(tmp_path / name)[0]["latent"] for name in ("fast", "exact"))
    assert not torch.equal(fast, exact)
    assert (fast - exact).abs().mean() < 0.1


def test_table_with_labels_and_captions_is_encoded(pictures, tmp_path):
    table = tmp_path / "table.csv"
    table.write_text(
        "path,label,caption\npictures/cat/02.png,4,a cat\npictures/ant/00.jpg,9,an ant\npictures/bee/01.png,7,\n"
    )
    latentq.encode(table, tmp_path / "out", **SMALL)
    samples = list(LatentDataset(tmp_path / "out"))
    assert [(s["key"], s["label"], s["caption"]) for s in samples] == [
        ("pictures/cat/02.png", 4, "a cat"),
        ("pictures/ant/00.jpg", 9, "an ant"),
    ]
    assert (tmp_path / "out" / "rejects.tsv").read_text() == "pictures/bee/01.png\tlist\tno caption\n"


def spoil(pictures: Path) -> None:
    (pictures / "ant" / "text.jpg").write_text("this is no picture")
    (pictures / "bee" / "empty.png").touch()
    whole = (pictures / "cat" / "05.png").with_name("half.jpg")
    paint(whole, 5, (300, 200))
    whole.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])


def test_undecodable_images_are_rejected_and_the_rest_is_stored(pictures, tmp_path):
    clean = latentq.encode(pictures, tmp_path / "clean", **SMALL, calibration=1)
    spoil(pictures)
    card = latentq.encode(pictures, tmp_path / "out", **SMALL, calibration=1)
    lines = [line.split("\t") for line in (tmp_path / "out" / "rejects.tsv").read_text().splitlines()]
    assert [line[:2] for line in lines] == [
        ["ant/text.jpg", "decode"], ["bee/empty.png", "decode"], ["cat/half.jpg", "decode"]
    ]  # fmt: skip
    assert all(line[2] for line in lines)
    assert str(tmp_path) not in (tmp_path / "out" / "rejects.tsv").read_text()
    assert (card.counts.samples, card.counts.rejects, card.source.samples) == (12, 3, 15)
    assert card.latents["latent"] == clean.latents["latent"]
    assert latentq.verify(tmp_path / "out") == []


def test_strict_run_ends_at_the_first_reject_and_names_it(pictures, tmp_path):
    spoil(pictures)
    with pytest.raises(LatentqError, match=r"pictures/ant/text\.jpg: decode: "):
        latentq.encode(pictures, tmp_path / "out", **SMALL, strict=True)


def test_missing_file_of_a_table_is_rejected(pictures, tmp_path):
    table = tmp_path / "table.tsv"
    table.write_text("pictures/ant/00.jpg\nnowhere.png\n")
    latentq.encode(table, tmp_path / "out", **SMALL)
    assert (tmp_path / "out" / "rejects.tsv").read_text() == "nowhere.png\tread\tNo such file or directory\n"


def test_reject_reasons_do_not_contain_the_path_of_the_source(tmp_path):
    folder = tmp_path / "two  spaces"
    paint(folder / "a.png", 1)
    for name in ("b  c.jpg", "n\nl.jpg", "u\u2028.jpg"):
        (folder / name).write_text("no")
    latentq.encode(folder, tmp_path / "out", **SMALL, calibration=1)
    text = (tmp_path / "out" / "rejects.tsv").read_text() + (tmp_path / "out" / "00000" / "unit.toml").read_text()
    assert "two" not in text
    right = decode_pictures(tmp_path / "out", [0], source=folder)[0]
    assert right[0].lines[0] == "a.png"


def test_file_that_is_not_regular_is_rejected(pictures, tmp_path):
    os.mkfifo(pictures / "ant" / "fifo.jpg")
    latentq.encode(pictures, tmp_path / "out", **SMALL)
    assert (tmp_path / "out" / "rejects.tsv").read_text() == "ant/fifo.jpg\tread\tnot a regular file\n"


def test_source_that_is_missing_on_another_machine_ends_the_run(pictures, tmp_path):
    options = {**SMALL, "unit_size": 5, "world_size": 2}
    latentq.encode(pictures, tmp_path / "out", **options, rank=0)
    pictures.rename(tmp_path / "moved")
    pictures.mkdir()
    with pytest.raises(MismatchError, match=r"is listed with \d+ bytes and is not there now"):
        latentq.encode(pictures, tmp_path / "out", **options, rank=1)
    shutil.copytree(tmp_path / "moved", pictures, dirs_exist_ok=True)
    paint(pictures / "bee" / "04.png", 99, (30, 30))
    with pytest.raises(MismatchError, match=r"bee/04\.png is listed with \d+ bytes and has \d+ bytes now"):
        latentq.encode(pictures, tmp_path / "out", **options, rank=1)


MACHINE_FAULTS = [
    OSError(errno.EIO, "Input/output error"),
    OSError(errno.EMFILE, "Too many open files"),
    MemoryError("12 bytes"),
    latentq.ImageError("x.png: there is no memory for 1300000000 bytes of pixels"),
    latentq.ImageError("x.jpg: JPEG: Insufficient memory (case 4)"),
]


@pytest.mark.parametrize("fault", MACHINE_FAULTS, ids=str)
def test_fault_of_the_machine_ends_the_run_and_is_not_a_reject(pictures, tmp_path, monkeypatch, fault):
    latentq.encode(pictures, tmp_path / "whole", **SMALL)
    load_sizes = latentq.image.load_sizes

    def failing(items, sizes, **options):
        pixels, errors = load_sizes(items, sizes, **options)
        return pixels, [fault, *errors[1:]]

    monkeypatch.setattr(latentq.image, "load_sizes", failing)
    with pytest.raises(OSError if isinstance(fault, OSError) else MemoryError) as raised:
        latentq.encode(pictures, tmp_path / "out", **SMALL)
    assert str(fault) in str(raised.value)
    monkeypatch.undo()
    latentq.encode(pictures, tmp_path / "out", **SMALL)  # the same command continues
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_file_name_that_speaks_of_memory_is_no_fault_of_the_machine(tmp_path):
    paint(tmp_path / "photos" / "a.png", 0)
    (tmp_path / "photos" / "out of memory.png").write_bytes(b"not an image")
    card = latentq.encode(tmp_path / "photos", tmp_path / "out", **SMALL)
    assert (card.counts.samples, card.counts.rejects) == (1, 1)


def test_file_name_that_is_not_utf8_is_rejected(pictures, tmp_path):
    paint(pictures / "cat" / "plain.png", 3)
    (pictures / "cat" / "plain.png").rename(os.fsdecode(os.fsencode(pictures / "cat") + b"/\xff.png"))
    latentq.encode(pictures, tmp_path / "out", **SMALL)
    assert (tmp_path / "out" / "rejects.tsv").read_text() == "cat/\\\\udcff.png\tlist\tthe file's name is not UTF-8\n"


def test_source_without_usable_images_is_an_error(tmp_path):
    for name in ("a.jpg", "b.png"):
        (tmp_path / name).write_text("no")
    with pytest.raises(LatentqError, match=r"none of 2 samples can be encoded, the first is 'a\.jpg': decode: "):
        latentq.encode(tmp_path, tmp_path / "out", **SMALL)


class Doubling:
    """A user's own autoencoder: two channels, the mean of blocks; NaN for dark images."""

    name = "doubling"
    scaling_factor = 2.0
    pixel_range = (0.0, 1.0)

    def encode(self, pixels):
        small = torch.nn.functional.avg_pool2d(pixels, 4)[:, :2]
        small[small.mean((1, 2, 3)) < 0.3] = torch.nan
        return small

    def decode(self, latents):
        big = torch.nn.functional.interpolate(latents, scale_factor=4)
        return torch.cat([big, big[:, :1]], 1)

    def latent_shape(self, size):
        return (2, size // 4, size // 4)


def test_autoencoder_may_be_an_object(pictures, tmp_path):
    card = latentq.encode(pictures, tmp_path / "out", autoencoder=Doubling(), size=32)
    assert card.autoencoder.name == "doubling"
    assert card.latents["latent"].shape == (2, 8, 8)


def test_latent_that_is_not_finite_is_rejected(pictures, tmp_path):
    Image.new("RGB", (40, 40)).save(pictures / "bee" / "dark.png")
    card = latentq.encode(pictures, tmp_path / "out", autoencoder=Doubling(), size=32)
    assert card.counts.rejects == 1
    assert (tmp_path / "out" / "rejects.tsv").read_text().startswith("bee/dark.png\tencode\t")
    assert "bee/dark.png" not in {sample["key"] for sample in LatentDataset(tmp_path / "out")}


def test_flip_columns_encode_the_mirrored_image(pictures, tmp_path):
    latentq.encode(pictures, tmp_path / "out", autoencoder=Doubling(), size=32, flip=True)
    mirrored = tmp_path / "mirrored"
    for file in sorted(pictures.rglob("*.*")):
        target = (mirrored / file.relative_to(pictures)).with_suffix(".png")
        target.parent.mkdir(parents=True, exist_ok=True)
        pixels = latentq.image.load(file, 32)
        Image.fromarray(np.ascontiguousarray(pixels[:, ::-1])).save(target)
    twin = Card.load(tmp_path / "out").latents["latent_flip"].quantizer
    latentq.encode(mirrored, tmp_path / "other", autoencoder=Doubling(), size=32)
    other = Card.load(tmp_path / "other").latents["latent"].quantizer
    assert twin == other
    ours = mds.Reader(tmp_path / "out").gather(range(12), "latent_flip")
    np.testing.assert_array_equal(ours, mds.Reader(tmp_path / "other").gather(range(12), "latent"))


def test_posterior_is_sampled_with_noise_of_seed_and_sample(pictures, tmp_path, tiny_vae):
    recipe = Recipe.load("default").to_dict()
    recipe["columns"]["latent"]["quantizer"] = {"kind": "float32"}
    recipe["columns"]["latent"]["scaled"] = True
    out = tmp_path / "out"
    card = latentq.encode(pictures, out, recipe=Recipe.from_dict(recipe), autoencoder=tiny_vae, size=64, seed=3)
    assert card.autoencoder.name == "tiny-vae"
    assert str(tiny_vae) not in (out / "latents.toml").read_text()
    stored = mds.Reader(out).gather(range(12), "latent")
    network = latentq.load_autoencoder(tiny_vae)
    pixels, _ = latentq.image.load_batch([pictures / s["key"] for s in LatentDataset(out)], 64)
    mean, logvar = network.posterior(torch.from_numpy(pixels).float() * (2 / 255) - 1)
    expected = (mean.numpy() + logvar.div(2).exp().numpy() * noise(3, range(12), 0, (4, 8, 8))) * np.float32(0.13025)
    np.testing.assert_allclose(stored, expected, atol=1e-5)


def test_noise_is_normal_and_depends_on_seed_sample_and_stream():
    drawn = noise(1, range(200), 0, (4, 16, 16))
    assert abs(drawn.mean()) < 0.01
    assert abs(drawn.std() - 1) < 0.01
    np.testing.assert_array_equal(noise(1, [7], 0, (4, 16, 16))[0], drawn[7])
    for other in (noise(2, [7], 0, (4, 16, 16)), noise(1, [8], 0, (4, 16, 16)), noise(1, [7], 1, (4, 16, 16))):
        assert not np.array_equal(other[0], drawn[7])


def test_bytes_do_not_depend_on_threads_batch_size_or_ranks(pictures, tmp_path):
    """One process or several, in either order, write the same bytes with the built-in transform."""
    latentq.encode(pictures, tmp_path / "one", **SMALL, unit_size=5)
    expected = contents(tmp_path / "one")
    for name, ranks, batch, threads in [("a", [0, 1], 7, 1), ("b", [1, 0], 64, 3), ("c", [2, 0, 1], 1, 2)]:
        cards = [
            latentq.encode(
                pictures, tmp_path / name, **SMALL, unit_size=5,
                rank=rank, world_size=len(ranks), batch_size=batch, threads=threads,
            )
            for rank in ranks
        ]  # fmt: skip
        assert [card.complete for card in cards] == [False] * (len(ranks) - 1) + [True]
        assert contents(tmp_path / name) == expected


@pytest.mark.parametrize("kind", ["float32", "float16", "bfloat16"])
def test_float_columns_do_not_depend_on_the_batch_size(pictures, tmp_path, kind):
    recipe = Recipe.load("default").to_dict()
    recipe["columns"]["latent"]["quantizer"] = {"kind": kind}
    for batch in (1, 5, 64):
        latentq.encode(pictures, tmp_path / str(batch), recipe=Recipe.from_dict(recipe), size=64, batch_size=batch)
    assert contents(tmp_path / "1") == contents(tmp_path / "5") == contents(tmp_path / "64")


def test_rank_and_world_size_come_from_the_environment(pictures, tmp_path, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    card = latentq.encode(pictures, tmp_path / "out", **SMALL, unit_size=5)
    assert not card.complete
    assert sorted(p.name for p in (tmp_path / "out").iterdir() if p.is_dir()) == ["00001"]


def test_kl_latents_do_not_depend_on_ranks_or_threads(pictures, tmp_path, tiny_vae):
    options = {"autoencoder": tiny_vae, "size": 64, "unit_size": 5, "batch_size": 4}
    latentq.encode(pictures, tmp_path / "one", **options, threads=1)
    for rank in (1, 0):
        latentq.encode(pictures, tmp_path / "two", **options, threads=2, rank=rank, world_size=2)
    assert contents(tmp_path / "two") == contents(tmp_path / "one")


def test_finished_dataset_is_not_changed(pictures, tmp_path):
    latentq.encode(pictures, tmp_path / "out", **SMALL)
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "out").rglob("*")}
    assert latentq.encode(pictures, tmp_path / "out", **SMALL).complete
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "out").rglob("*")} == before


def test_temporary_of_a_killed_run_is_removed(pictures, tmp_path):
    latentq.encode(pictures, tmp_path / "out", **SMALL)
    expected = contents(tmp_path / "out")
    (tmp_path / "out" / ".00000.0123abcd").mkdir()
    (tmp_path / "out" / ".00000.0123abcd" / "shard.00000.mds").write_bytes(b"x")
    (tmp_path / "out" / ".index.json.0123abcd").write_bytes(b"x")
    latentq.encode(pictures, tmp_path / "out", **SMALL)
    assert contents(tmp_path / "out") == expected


def test_unit_that_another_process_publishes_counts_as_done(pictures, tmp_path, monkeypatch):
    latentq.encode(pictures, tmp_path / "other", **SMALL, unit_size=5)
    out = tmp_path / "out"
    expected = contents(tmp_path / "other")
    add_file = mds.Writer.add_file

    def late(writer, name, data):
        for number in ("00000", "00001"):
            shutil.copytree(tmp_path / "other" / number, out / number, dirs_exist_ok=True)
        add_file(writer, name, data)

    monkeypatch.setattr(mds.Writer, "add_file", late)
    assert latentq.encode(pictures, out, **SMALL, unit_size=5).complete
    assert contents(out) == expected


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"size": 72}, r"recipe\.columns\.latent\.size = 64; this run has 72"),
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
    with pytest.raises(MismatchError, match=r"lists 12 samples, the source has 11 now; 'cat/11\.png' only there"):
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


def test_unwritable_output_folder_is_refused_before_any_work(pictures, tmp_path, monkeypatch):
    """Replaces os.access, because the tests may run as root, who can write everywhere."""
    monkeypatch.setattr(os, "access", lambda path, _mode: Path(path) != tmp_path)
    with pytest.raises(PermissionError, match="cannot be written"):
        latentq.encode(pictures, tmp_path / "deep" / "out", **SMALL)
    assert not (tmp_path / "deep").exists()


def test_finished_dataset_is_opened_again_without_writing(pictures, tmp_path, monkeypatch):
    card = latentq.encode(pictures, tmp_path / "out", **SMALL)

    def refuse(path, data):
        raise OSError(errno.EROFS, "read-only file system", str(path))

    monkeypatch.setattr(latentq.store.local, "_write", refuse)
    assert latentq.encode(pictures, tmp_path / "out", **SMALL) == card


def test_like_uses_recipe_quantizers_and_classes_of_a_dataset(pictures, tmp_path):
    card = latentq.encode(pictures, tmp_path / "train", **SMALL, bits=6)
    shutil.rmtree(pictures / "ant")
    validation = latentq.encode(pictures, tmp_path / "validation", like=tmp_path / "train")
    assert validation.recipe == card.recipe
    assert validation.latents["latent"].quantizer == card.latents["latent"].quantizer
    assert {sample["label"] for sample in LatentDataset(tmp_path / "validation")} == {1, 2}
    with pytest.raises(RecipeError, match="bits cannot be given as well"):
        latentq.encode(pictures, tmp_path / "x", like=tmp_path / "train", bits=4)


def test_dataset_begun_without_like_is_not_continued_with_it(pictures, tmp_path):
    for index, name in enumerate(("ant", "bee", "cat")):
        paint(tmp_path / "others" / name / "x.png", 50 + index)
    latentq.encode(tmp_path / "others", tmp_path / "train", **SMALL)
    latentq.encode(pictures, tmp_path / "alone", **SMALL)
    with pytest.raises(MismatchError, match=r"latents\.latent\.quantizer = {.*}; this run has {"):
        latentq.encode(pictures, tmp_path / "alone", like=tmp_path / "train")


def test_like_uses_class_numbers_across_tables_and_folders(pictures, tmp_path):
    rows = [f"pictures/{name}\t{label}\n" for name, label in [("ant/00.jpg", "dog"), ("bee/01.png", "emu")]]
    (tmp_path / "train.tsv").write_text("path\tlabel\npictures/cat/02.png\tcow\n" + "".join(rows))
    (tmp_path / "validation.tsv").write_text("path\tlabel\n" + "".join(rows))
    latentq.encode(tmp_path / "train.tsv", tmp_path / "train", **SMALL)
    latentq.encode(tmp_path / "validation.tsv", tmp_path / "validation", like=tmp_path / "train")
    samples = list(LatentDataset(tmp_path / "validation"))
    assert [(s["label"], s["label_text"]) for s in samples] == [(1, "dog"), (2, "emu")]
    paint(tmp_path / "folder" / "emu" / "x.png", 1)
    latentq.encode(tmp_path / "folder", tmp_path / "third", like=tmp_path / "train")
    assert LatentDataset(tmp_path / "third")[0]["label"] == 2


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


def test_verify_finds_every_change(pictures, tmp_path):
    out = tmp_path / "out"
    latentq.encode(pictures, out, **SMALL, unit_size=5)
    assert latentq.verify(out) == []

    def findings(name, change):
        path = out / name
        whole = path.read_bytes()
        path.write_bytes(change(whole))
        found = latentq.verify(out)
        path.write_bytes(whole)
        return found

    assert findings("00001/shard.00000.mds", lambda b: b[:-1] + bytes([b[-1] ^ 1]))
    assert findings("00001/shard.00000.mds", lambda b: b[:-1])
    assert findings("samples.tsv", lambda b: b.replace(b"cat", b"dog"))
    assert findings("rejects.tsv", lambda b: b + b"x\ty\tz\n")
    assert findings("00002/unit.toml", lambda b: b.replace(b"samples = 2", b"samples = 3"))
    assert findings("latents.toml", lambda b: b.replace(b"rejects = 0", b"rejects = 1"))
    assert findings("00000/index.json", lambda b: b.replace(b"latent", b"latant"))
    assert findings("latents.toml", lambda b: b.replace(b'key = "str"', b'key = "bytes"'))
    (out / "latents.toml").rename(out / "elsewhere")
    assert [finding.file for finding in latentq.verify(out)] == ["latents.toml"]
    (out / "elsewhere").rename(out / "latents.toml")
    assert findings("index.json", lambda b: b.replace(b'"samples": 5', b'"samples": 4', 1))
    first = tomllib.loads((out / "00000/unit.toml").read_text())["latents"]["latent"]["histogram"][0]
    common = max(first)
    assert findings("00000/unit.toml", lambda b: b.replace(str(common).encode(), str(common + 1).encode(), 1))
    (out / "00001" / "index.json").unlink()
    assert "2 of 3 units" in latentq.verify(out)[0].message


def test_unfinished_dataset_is_not_complete(pictures, tmp_path):
    latentq.encode(pictures, tmp_path / "out", **SMALL, unit_size=5, rank=0, world_size=2)
    with pytest.raises(LatentqError, match="2 of 3 units"):
        LatentDataset(tmp_path / "out")
    assert "2 of 3 units" in latentq.verify(tmp_path / "out")[0].message


def test_another_version_of_a_library_is_a_warning(pictures, tmp_path):
    out = tmp_path / "out"
    card = latentq.encode(pictures, out, **SMALL)
    changed = dataclasses.replace(card, versions={**card.versions, "torch": "1.0"})
    (out / "latents.toml").write_bytes(changed.to_toml())
    with pytest.warns(UserWarning, match=r"begun with torch 1\.0"):
        latentq.encode(pictures, out, **SMALL)


def test_dataset_contains_no_time_or_path(pictures, tmp_path):
    latentq.encode(pictures, tmp_path / "a", **SMALL)
    shutil.copytree(pictures, tmp_path / "elsewhere" / "photos")
    latentq.encode(tmp_path / "elsewhere" / "photos", tmp_path / "b", **SMALL)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


def test_stock_reader_reads_the_dataset(streaming_alone, pictures, tmp_path):
    from streaming import StreamingDataset

    out = tmp_path / "out"
    latentq.encode(pictures, out, **SMALL, unit_size=5)
    stock = StreamingDataset(local=str(out), batch_size=1)
    codes = mds.Reader(out).gather(range(12), "latent")
    assert len(stock) == 12
    for index, sample in enumerate(LatentDataset(out, dtype=torch.uint8)):
        np.testing.assert_array_equal(stock[index]["latent"], codes[index])
        np.testing.assert_array_equal(sample["latent"].numpy(), codes[index])
        assert (stock[index]["label"], stock[index]["key"]) == (sample["label"], sample["key"])
    assert json.loads((out / "index.json").read_bytes())["version"] == 2


def test_shared_photographs_are_encoded_without_rejects(photographs, tmp_path):
    card = latentq.encode(photographs, tmp_path / "out", autoencoder="dct-f8c16", size=256)
    assert (card.counts.samples, card.counts.rejects) == (64, 0)
    labels = [sample["label"] for sample in LatentDataset(tmp_path / "out")]
    assert labels == list(range(64))
    table = latentq.encode(photographs / "labels.tsv", tmp_path / "table", autoencoder="dct-f8c16", size=256)
    assert table.counts.samples == 64
    first = LatentDataset(tmp_path / "table")[0]
    assert (first["label"], first["label_text"]) == (52, "thunder snake")
