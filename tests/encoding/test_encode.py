"""`latentq.encode`: from images to a finished dataset."""

import json
import shutil
import tomllib

import numpy as np
import pytest
import torch
from PIL import Image

import latentq
from conftest import paint
from latentq import Card, LatentDataset, Recipe, RecipeError, mds
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
        "latents.toml", "list", "rejects.tsv", "index.json", "00000"
    }  # fmt: skip
    assert {p.name for p in (tmp_path / "out" / "00000").iterdir()} == {
        "shard.00000.mds", "index.json", "unit.toml", "content.xxh3"
    }  # fmt: skip
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
    *_, unquantized, decoded = (
        picture.pixels for picture in decode_pictures(tmp_path / "out", [5], source=pictures)[0]
    )
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


class Doubling:
    """A user's own autoencoder: two channels, the mean of blocks; NaN for dark images."""

    name = "doubling"
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


def test_like_uses_recipe_quantizers_and_classes_of_a_dataset(pictures, tmp_path):
    card = latentq.encode(pictures, tmp_path / "train", **SMALL, bits=6)
    shutil.rmtree(pictures / "ant")
    validation = latentq.encode(pictures, tmp_path / "validation", like=tmp_path / "train")
    assert validation.recipe == card.recipe
    assert validation.latents["latent"].quantizer == card.latents["latent"].quantizer
    assert {sample["label"] for sample in LatentDataset(tmp_path / "validation")} == {1, 2}
    with pytest.raises(RecipeError, match="bits cannot be given as well"):
        latentq.encode(pictures, tmp_path / "x", like=tmp_path / "train", bits=4)


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
    assert findings("list/00000.tsv", lambda b: b.replace(b"cat", b"dog"))
    assert findings("rejects.tsv", lambda b: b + b"x\ty\tz\n")
    assert findings("00002/unit.toml", lambda b: b.replace(b"samples = 2", b"samples = 3"))
    assert findings("latents.toml", lambda b: b.replace(b"rejects = 0", b"rejects = 1"))
    assert findings("00000/index.json", lambda b: b.replace(b"latent", b"latant"))
    assert findings("latents.toml", lambda b: b.replace(b'key = "str"', b'key = "bytes"'))
    (out / "latents.toml").rename(out / "elsewhere")
    assert [finding.file for finding in latentq.verify(out)] == ["latents.toml"]
    (out / "elsewhere").rename(out / "latents.toml")
    assert findings("index.json", lambda b: b.replace(b'"samples": 5', b'"samples": 4', 1))
    histogram = json.loads(tomllib.loads((out / "00000/unit.toml").read_text())["latents"]["latent"]["histogram"])
    common = max(histogram[0])
    assert findings("00000/unit.toml", lambda b: b.replace(str(common).encode(), str(common + 1).encode(), 1))
    (out / "00001" / "index.json").unlink()
    assert "2 of 3 units" in latentq.verify(out)[0].message


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
