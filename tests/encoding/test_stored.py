"""Samples, means, moments and tokens of one or several sizes are stored and read back."""

import json
import re
import tomllib
from pathlib import Path

import numpy as np
import pytest
import torch

import latentq
from conftest import contents, paint
from latentq import Card, LatentDataset, LatentMixture, MismatchError, Recipe, RecipeError, mds
from latentq.autoencoders import Normalization
from latentq.inspect.pictures import pictures as decode_pictures
from latentq.models.noise import noise


class Tokens:
    """A user's own autoencoder with a codebook: the mean of 8x8 pixels, as one of `codebook_size` grays."""

    name = "greys"
    pixel_range = (0.0, 1.0)

    def __init__(self, codebook_size=1000):
        self.codebook_size = codebook_size

    def latent_shape(self, size):
        return (1, size // 8, size // 8)

    def encode(self, pixels):
        return torch.nn.functional.avg_pool2d(pixels, 8).mean(1, keepdim=True)

    def decode(self, latents):
        return torch.nn.functional.interpolate(latents, scale_factor=8).repeat(1, 3, 1, 1)

    def tokens(self, pixels):
        return (self.encode(pixels)[:, 0] * (self.codebook_size - 1)).round().long()

    def decode_tokens(self, tokens):
        return self.decode(tokens[:, None] / (self.codebook_size - 1))


def pixels_of(dataset, folder, size):
    return latentq.image.load_batch([folder / sample["key"] for sample in dataset], size)[0]


def as_floats(pixels):
    return torch.from_numpy(pixels).float() * (2 / 255) - 1


def default(**changes):
    """Returns the default recipe with these fields in its latent column."""
    data = Recipe.load("default").to_dict()
    data["columns"]["latent"] |= changes
    return Recipe.from_dict(data)


@pytest.fixture(scope="module")
def twelve(tmp_path_factory):
    folder = tmp_path_factory.mktemp("twelve") / "pictures"
    for index in range(12):
        paint(folder / f"{index:02}.{'png' if index % 3 else 'jpg'}", index, (90 + index, 70 + 3 * index))
    return folder


@pytest.fixture(scope="module")
def moments(twelve, tiny_vae, tmp_path_factory):
    """Encodes moments of 32 pixels, with flipped columns."""
    out = tmp_path_factory.mktemp("moments") / "out"
    latentq.encode(twelve, out, autoencoder=tiny_vae, size=32, store="moments", flip=True, unit_size=5, batch_size=4)
    return out


def stored_moments(path, column="moments"):
    """Returns mean and variance of every sample's latent, dequantized."""
    facts = Card.load(path).latents[column]
    codes = mds.Reader(path).gather(range(12), column)
    mean, logvar = np.split(facts.quantizer.dequantize(codes).astype(np.float64), 2, axis=1)
    return mean, np.exp(logvar)


def test_moments_are_quantized_mean_and_log_variance(moments, twelve, tiny_vae):
    card = Card.load(moments)
    assert list(card.latents) == ["moments", "moments_flip"]
    facts = card.latents["moments"]
    assert (facts.shape, card.columns["moments"]) == ((8, 4, 4), "ndarray:uint8:8,4,4")
    network = latentq.load_autoencoder(tiny_vae)
    keys = LatentDataset(moments)
    mean, logvar = network.posterior(as_floats(pixels_of(keys, twelve, 32)))
    expected = torch.cat([mean, logvar], 1).numpy()
    steps = (np.array(facts.quantizer.high) - facts.quantizer.low) / 255
    values = facts.quantizer.dequantize(mds.Reader(moments).gather(range(12), "moments"))
    inside = np.abs(values - expected) <= steps[:, None, None] * 0.51
    assert inside.mean() > 0.99  # the rest is clipped
    assert latentq.verify(moments) == []


def test_every_read_draws_new_latents_from_moments(moments):
    dataset = LatentDataset(moments, columns=["moments"])
    assert dataset[0]["moments"].shape == (4, 4, 4)
    mean, variance = stored_moments(moments)
    torch.manual_seed(0)
    draws = torch.stack([dataset.batch(range(12))["moments"] for _ in range(2000)]).double()
    deviation = np.sqrt(variance)
    assert (np.abs(draws.mean(0).numpy() - mean) / deviation).max() < 6 / np.sqrt(2000)
    assert np.abs(draws.var(0).numpy() / variance - 1).max() < 6 * np.sqrt(2 / 2000)


def test_scale_is_applied_after_drawing(moments):
    for scale, factor in (("raw", 1.0), ("scaled", 0.13025)):
        torch.manual_seed(3)
        values = LatentDataset(moments, columns=["moments"], scale=scale)[4]
        torch.manual_seed(3)
        mean, variance = stored_moments(moments)
        expected = (mean[4] + np.sqrt(variance[4]) * torch.randn(1, 4, 4, 4)[0].numpy()) * factor
        np.testing.assert_allclose(values["moments"], expected, rtol=1e-4, atol=1e-5)
    with pytest.raises(latentq.LatentqError, match="holds moments"):
        LatentDataset(moments, scale="normalized")
    with pytest.raises(ValueError, match="have no codes"):
        LatentDataset(moments, dtype=torch.uint8)


@pytest.mark.parametrize("kind", ["dataset", "resident", "mixture", "transform"])
def test_noise_of_a_loader_depends_on_seed_epoch_and_sample(moments, kind):
    def loader(batch_size, seed):
        if kind == "mixture":
            return LatentMixture([LatentDataset(moments)]).loader(batch_size, seed=seed)
        if kind == "transform":
            return LatentDataset(moments, transform=dict).loader(batch_size, seed=seed)
        dataset = LatentDataset(moments)
        return (dataset.to_device("cpu") if kind == "resident" else dataset).loader(batch_size, seed=seed)

    def epochs(batch_size, seed):
        batches = loader(batch_size, seed)
        return [torch.cat([batch["moments"] for batch in batches]) for _ in range(2)]

    first, second = epochs(5, 7)
    mean, variance = stored_moments(moments)
    for epoch, values in enumerate((first, second)):
        expected = mean + np.sqrt(variance) * noise(7, range(12), 0, (4, 4, 4), epoch=epoch)
        np.testing.assert_allclose(values, expected, rtol=1e-5, atol=1e-5)
    again, _ = epochs(12, 7)
    assert torch.equal(again, first)
    assert not torch.equal(epochs(5, 8)[0], first)


def test_moments_decode_to_the_image_of_their_mean(moments, tiny_vae, twelve):
    network = latentq.load_autoencoder(tiny_vae)
    mean = torch.from_numpy(stored_moments(moments)[0]).float()
    expected = network.decode(mean[3:4])[0].add(1).mul(127.5).round().clamp(0, 255).permute(1, 2, 0)
    picture = LatentDataset(moments).decode(3, autoencoder=network)
    np.testing.assert_allclose(np.asarray(picture).astype(float), expected, atol=1)
    *_, floats, stored = decode_pictures(moments, [3], source=twelve, autoencoder=tiny_vae)[0]
    assert floats.psnr == pytest.approx(stored.psnr, abs=0.5)


def test_flip_columns_of_moments_and_tokens_encode_the_mirrored_image(moments, twelve, tiny_vae, tmp_path):
    network = latentq.load_autoencoder(tiny_vae)
    pixels = pixels_of(LatentDataset(moments), twelve, 32)[..., ::-1].copy()
    mean, _ = network.posterior(as_floats(pixels))
    facts = Card.load(moments).latents["moments_flip"]
    steps = (np.array(facts.quantizer.high) - facts.quantizer.low)[:4] / 255
    assert (
        np.abs(stored_moments(moments, "moments_flip")[0] - mean.numpy()) <= steps[:, None, None] * 0.51
    ).mean() > 0.98
    latentq.encode(twelve, tmp_path / "out", autoencoder=Tokens(), size=32, store="tokens", flip=True)
    batch = LatentDataset(tmp_path / "out").batch(range(12))
    assert torch.equal(batch["tokens_flip"], batch["tokens"].flip(-1))


@pytest.mark.parametrize(("codebook_size", "dtype"), [(1000, "uint16"), (65536, "uint16"), (70000, "int32")])
def test_tokens_are_stored_in_the_smallest_dtype_and_read_as_int64(twelve, tmp_path, codebook_size, dtype):
    out = tmp_path / "out"
    network = Tokens(codebook_size)
    card = latentq.encode(twelve, out, autoencoder=network, size=32, store="tokens", batch_size=5)
    assert card.columns["tokens"] == f"ndarray:{dtype}:4,4"
    assert (card.tokens["tokens"].shape, card.tokens["tokens"].codebook_size) == ((4, 4), codebook_size)
    assert Card.load(out) == card
    dataset = LatentDataset(out, dtype=torch.bfloat16, scale="scaled")
    expected = network.tokens(torch.from_numpy(pixels_of(dataset, twelve, 32)).float() / 255)
    batch = dataset.batch(range(12))["tokens"]
    assert batch.dtype == torch.int64
    assert torch.equal(batch, expected)
    assert torch.equal(torch.cat([b["tokens"] for b in dataset.loader(5)]), expected)
    resident = dataset.to_device("cpu")
    assert (
        resident.columns["tokens"].element_size() * resident.columns["tokens"][0].numel()
        == 16 * np.dtype(dtype).itemsize
    )
    assert torch.equal(resident.batch(range(12))["tokens"], expected)
    assert latentq.verify(out) == []


def test_tokens_decode_to_images(twelve, tmp_path):
    latentq.encode(twelve, tmp_path / "out", autoencoder=Tokens(256), size=32, store="tokens")
    picture = np.asarray(LatentDataset(tmp_path / "out").decode(2, autoencoder=Tokens(256)))
    tokens = LatentDataset(tmp_path / "out")[2]["tokens"].numpy()
    np.testing.assert_array_equal(picture, np.kron(tokens, np.ones((8, 8)))[..., None].repeat(3, -1))


def test_token_outside_the_codebook_is_found(twelve, tmp_path):
    out = tmp_path / "out"
    latentq.encode(twelve, out, autoencoder=Tokens(), size=32, store="tokens")
    text = (out / "latents.toml").read_text().replace("codebook_size = 1000", "codebook_size = 10")
    (out / "latents.toml").write_text(text)
    assert any("outside its codebook of 10" in finding.message for finding in latentq.verify(out))


def test_autoencoder_without_moments_or_tokens_is_refused(twelve, tmp_path):
    with pytest.raises(RecipeError, match=r"dct-f8c16 has no posterior"):
        latentq.encode(twelve, tmp_path / "out", size=32, store="moments")
    with pytest.raises(RecipeError, match=r"dct-f8c16 has no codebook"):
        latentq.encode(twelve, tmp_path / "out", size=32, store="tokens")
    recipe = Recipe.load("default").override(store="tokens").to_dict()
    recipe["columns"]["tokens"]["encoding"] = "ndarray:uint16:4,4"
    with pytest.raises(RecipeError, match="does not hold a codebook of 70000"):
        latentq.encode(twelve, tmp_path / "out", recipe=Recipe.from_dict(recipe), autoencoder=Tokens(70000), size=32)


def test_mixture_of_different_contents_is_refused(moments, twelve, tmp_path, tiny_vae):
    latentq.encode(twelve, tmp_path / "out", autoencoder=tiny_vae, size=32)
    with pytest.raises(MismatchError):
        LatentMixture([LatentDataset(moments, columns=["moments", "key"]), LatentDataset(tmp_path / "out")])


class Shifted:
    """A user's own autoencoder with a mean and a factor, as Flux has."""

    name = "shifted"
    normalization = Normalization(0.25, (0.5,))
    pixel_range = (0.0, 1.0)

    def latent_shape(self, size):
        return (3, size // 4, size // 4)

    def encode(self, pixels):
        return torch.nn.functional.avg_pool2d(pixels, 4)

    def decode(self, latents):
        return torch.nn.functional.interpolate(latents, scale_factor=4)


@pytest.mark.parametrize("quantizer", [{"kind": "float32"}, {"kind": "affine", "method": "minmax"}])
@pytest.mark.parametrize("stored_scaled", [False, True])
def test_scaled_latents_are_shifted_and_then_scaled(twelve, tmp_path, quantizer, stored_scaled):
    recipe = default(scaled=stored_scaled, quantizer=quantizer)
    card = latentq.encode(twelve, tmp_path / "out", recipe=recipe, autoencoder=Shifted(), size=32)
    assert card.autoencoder.normalization == Normalization(0.25, (0.5,))
    raw, scaled = (
        LatentDataset(tmp_path / "out", scale=scale).batch(range(12))["latent"] for scale in ("raw", "scaled")
    )
    expected = Shifted().encode(torch.from_numpy(pixels_of(LatentDataset(tmp_path / "out"), twelve, 32)).float() / 255)
    torch.testing.assert_close(raw, expected, atol=1e-6 if quantizer["kind"] == "float32" else 5e-3, rtol=0)
    torch.testing.assert_close(scaled, (raw - 0.5) * 0.25, atol=1e-6, rtol=1e-5)


def test_several_sizes_are_stored_in_one_dataset(twelve, tmp_path):
    data = Recipe.load("default").to_dict()
    latent = data["columns"].pop("latent") | {"quantizer": {"kind": "float16"}, "scaled": True, "encoding": "bytes"}
    data["columns"] = {"latents_32": {**latent, "size": 32}, "latents_64": {**latent, "size": 64}} | data["columns"]
    out = tmp_path / "out"
    card = latentq.encode(twelve, out, recipe=Recipe.from_dict(data))
    assert (card.columns["latents_32"], card.latents["latents_64"].shape) == ("bytes", (16, 8, 8))
    reader, dataset, network = (
        mds.Reader(out),
        LatentDataset(out, scale="scaled"),
        latentq.load_autoencoder("dct-f8c16"),
    )
    for size, side in ((32, 4), (64, 8)):
        expected = (network.encode(as_floats(pixels_of(dataset, twelve, size))) * 0.5).half()
        raw = np.frombuffer(b"".join(reader.gather(range(12), f"latents_{size}")), np.float16)
        np.testing.assert_array_equal(raw.reshape(12, 16, side, side), expected.numpy())
        assert torch.equal(dataset.batch(range(12))[f"latents_{size}"], expected.float())
    assert latentq.verify(out) == []


def test_recipe_in_the_docs_stores_what_micro_diffusion_reads():
    page = (Path(__file__).resolve().parents[2] / "docs" / "encoding.md").read_text()
    (block,) = re.findall(r"^```toml\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    recipe = Recipe.from_dict(tomllib.loads(block))
    assert {name: (c.size, c.scaled, c.encoding) for name, c in recipe.latents().items()} == {
        "latents_256": (256, True, "bytes"),
        "latents_512": (512, True, "bytes"),
    }


def test_one_decode_gives_the_pixels_of_every_size(twelve, photographs):
    files = sorted(twelve.iterdir()) + sorted(photographs.rglob("*.JPEG"))[:6] + [twelve / "none.png"]
    for options in ({"crop": "center"}, {"crop": "adm"}, {"crop": "center-round", "filter": "lanczos"}):
        together, errors = latentq.image.load_sizes(files, [64, 24, 100], threads=2, **options)
        for size, pixels in zip((64, 24, 100), together, strict=True):
            expected, alone = latentq.image.load_batch(files, size, **options)
            np.testing.assert_array_equal(pixels, expected)
            assert [type(error) for error in errors] == [type(error) for error in alone]
    with pytest.raises(ValueError, match="size must be at least 1"):
        latentq.image.load_sizes(files, [32, 0])


def test_command_line_stores_moments_and_shows_them(twelve, tiny_vae, tmp_path, capsys):
    from latentq.cli.main import main

    arguments = ["encode", str(twelve), str(tmp_path / "out"), "--autoencoder", str(tiny_vae), "--size", "32"]
    assert main([*arguments, "--store", "moments", "--bits", "6"]) == 0
    assert main(["info", str(tmp_path / "out"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["latents"]["moments"]["quantizer"]["bits"] == 6
    recipe = Card.load(tmp_path / "out").recipe
    assert recipe.changed == ("autoencoder", "bits", "size", "store")
    with pytest.raises(RecipeError, match="scaled does not apply"):
        recipe.override(scaled=True)
    assert recipe.override(store="mean").columns["latent"].store == "mean"


def test_bytes_do_not_depend_on_the_number_of_processes(twelve, tiny_vae, tmp_path, moments):
    options = {"autoencoder": tiny_vae, "size": 32, "store": "moments", "flip": True, "unit_size": 5, "batch_size": 4}
    for rank in (2, 0, 1):
        latentq.encode(twelve, tmp_path / "out", **options, rank=rank, world_size=3, threads=2)
    assert contents(tmp_path / "out") == contents(moments)
    for rank in (1, 0):
        latentq.encode(
            twelve,
            tmp_path / "tokens",
            autoencoder=Tokens(),
            size=32,
            store="tokens",
            rank=rank,
            world_size=2,
            unit_size=5,
        )
    latentq.encode(twelve, tmp_path / "alone", autoencoder=Tokens(), size=32, store="tokens", unit_size=5)
    assert contents(tmp_path / "tokens") == contents(tmp_path / "alone")
