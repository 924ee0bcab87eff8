"""Raw, scaled and normalized latents: the normalization of the autoencoder in the card, applied and inverted."""

import json
import re

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import latentq
from latentq import Card, FormatError, LatentDataset, LatentqError, MismatchError, Recipe, RecipeError
from latentq.autoencoders import Normalization
from latentq.cli.main import main
from latentq.format.normalization import positions_bytes, positions_hash
from latentq.models.scale import ScaleChange
from latentq.streaming import LatentStreamingDataset

SIDE = 32  # pixels; latents are 8 x 8
POSITIONS = np.random.default_rng(4).uniform(0.5, 1.5, (2, 3, 8, 8)).astype(np.float32)


class Blocks:
    """A user's own autoencoder: the mean of 4 x 4 pixels, scaled for training in a way that is given."""

    name, pixel_range = "blocks", (-1.0, 1.0)

    def __init__(self, normalization, positions=None):
        self.normalization, self.positions = normalization, positions

    def latent_shape(self, size):
        return 3, size // 4, size // 4

    def encode(self, pixels):
        return torch.nn.functional.avg_pool2d(pixels, 4)

    def posterior(self, pixels):
        return self.encode(pixels), torch.full_like(self.encode(pixels), -60.0)

    def decode(self, latents):
        return torch.nn.functional.interpolate(latents, scale_factor=4.0)


def column(values):
    return np.array(values).reshape(-1, 1, 1)


def patches(latents):
    """Makes blocks of 2 x 2 positions channels, by the definition of FLUX.2's pipeline in diffusers."""
    count, channels, height, width = latents.shape
    blocks = latents.reshape(count, channels, height // 2, 2, width // 2, 2).transpose(0, 1, 3, 5, 2, 4)
    return blocks.reshape(count, channels * 4, height // 2, width // 2)


MEAN3, STD3 = (0.25, -0.5, 0.125), (2.0, 0.5, 1.25)
MEAN12, STD12 = tuple(np.linspace(-0.5, 0.5, 12).tolist()), tuple(np.linspace(0.5, 2, 12).tolist())
# A normalization, its formula written with NumPy, and the shape of scaled latents.
NORMALIZATIONS = {
    "none": (Normalization(), lambda z: z, (3, 8, 8)),
    "factor": (Normalization(0.25), lambda z: z * 0.25, (3, 8, 8)),
    "shift and factor": (Normalization(0.25, (0.5,)), lambda z: (z - 0.5) * 0.25, (3, 8, 8)),
    "channels": (Normalization(1.0, MEAN3, STD3), lambda z: (z - column(MEAN3)) / column(STD3), (3, 8, 8)),
    "channels and factor": (
        Normalization(0.5, MEAN3, STD3), lambda z: (z - column(MEAN3)) * 0.5 / column(STD3), (3, 8, 8),
    ),
    "patches": (
        Normalization(1.0, MEAN12, STD12, patchify=2),
        lambda z: (patches(z) - column(MEAN12)) / column(STD12),
        (12, 4, 4),
    ),
    "positions": (
        Normalization(positions=positions_hash(positions_bytes(POSITIONS))),
        lambda z: (z - POSITIONS[0]) / POSITIONS[1],
        (3, 8, 8),
    ),
}  # fmt: skip
QUANTIZERS = [
    {"kind": "affine", "method": "minmax"},
    {"kind": "affine", "bits": 6, "method": "minmax"},
    {"kind": "float32"},
]


def network(name):
    normalization = NORMALIZATIONS[name][0]
    return Blocks(normalization, POSITIONS if normalization.positions else None)


def recipe_of(**changes):
    data = Recipe.load("default").to_dict()
    data["columns"]["latent"] |= changes
    if changes.get("from") == "moments":
        for key in ("store", "scaled"):
            del data["columns"]["latent"][key]
    return Recipe.from_dict(data)


def encode(pictures, out, name, **changes):
    return latentq.encode(pictures, out, recipe=recipe_of(**{"size": SIDE, **changes}), autoencoder=network(name))


@pytest.mark.parametrize("stored_scaled", [False, True])
@pytest.mark.parametrize("quantizer", QUANTIZERS, ids=["8 bits", "6 bits", "float32"])
@pytest.mark.parametrize("name", list(NORMALIZATIONS)[2:])
def test_every_scale_follows_from_every_stored_one(pictures, tmp_path, name, quantizer, stored_scaled):
    normalization, formula, shape = NORMALIZATIONS[name]
    card = encode(pictures, tmp_path / "out", name, quantizer=quantizer, scaled=stored_scaled)
    assert card.latents["latent"].shape == (shape if stored_scaled else (3, 8, 8))
    assert Card.load(tmp_path / "out").autoencoder.normalization == normalization
    raw, scaled = (LatentDataset(tmp_path / "out", scale=scale) for scale in ("raw", "scaled"))
    z, x = (dataset.batch(range(12))["latent"] for dataset in (raw, scaled))
    assert (tuple(z.shape), tuple(x.shape)) == ((12, 3, 8, 8), (12, *shape))
    np.testing.assert_allclose(x, formula(z.numpy().astype(np.float64)), atol=2e-6, rtol=1e-5)
    torch.testing.assert_close(scaled[5]["latent"], x[5], rtol=0, atol=0)
    resident = scaled.to_device("cpu").batch([7, 2])["latent"]
    torch.testing.assert_close(resident, x[[7, 2]], rtol=0, atol=0)
    loaded = {
        key: latent
        for batch in scaled.loader(5, threads=1)
        for key, latent in zip(batch["key"], batch["latent"], strict=True)
    }
    assert all(torch.equal(loaded[key], x[index]) for index, key in enumerate(raw.batch(range(12))["key"]))
    np.testing.assert_array_equal(scaled.decode(3, autoencoder=network(name)), raw.decode(3, autoencoder=network(name)))


@pytest.mark.parametrize("name", ["channels", "patches", "positions"])
def test_latents_drawn_from_moments_are_scaled(pictures, tmp_path, name):
    encode(pictures, tmp_path / "out", name, **{"from": "moments", "quantizer": {"kind": "float32"}})
    z, x = (LatentDataset(tmp_path / "out", scale=scale).batch(range(12))["latent"] for scale in ("raw", "scaled"))
    np.testing.assert_allclose(x, NORMALIZATIONS[name][1](z.numpy().astype(np.float64)), atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize("name", ["patches", "positions"])
def test_a_streaming_dataset_fetches_what_it_needs_to_scale(pictures, tmp_path, name):
    encode(pictures, tmp_path / "out", name)
    remote = LatentStreamingDataset(
        remote=str(tmp_path / "out"), local=str(tmp_path / "cache"), batch_size=4, scale="scaled"
    )
    local = LatentDataset(tmp_path / "out", scale="scaled")
    for index in range(12):
        torch.testing.assert_close(remote[index]["latent"], local[index]["latent"], rtol=0, atol=0)


def numbers(low, high):
    return st.floats(low, high, width=32).filter(lambda value: abs(value) > 1e-3)


@settings(max_examples=40)
@given(
    st.data(), st.sampled_from([1, 2]), numbers(-4, 4), st.integers(1, 4), st.integers(1, 3), st.integers(1, 3),
)  # fmt: skip
def test_the_inverse_restores_latents_of_any_normalization(data, patchify, factor, channels, height, width):
    count = data.draw(st.sampled_from([1, channels * patchify**2]))
    mean, std = (tuple(data.draw(st.lists(numbers(low, 4), min_size=count, max_size=count))) for low in (-4, 0.25))
    normalization = Normalization(factor, mean, std, patchify)
    assert Normalization.from_dict(json.loads(json.dumps(normalization.to_dict()))) == normalization
    change = ScaleChange.to_scaled(normalization, None)
    z = torch.randn(2, channels, height * patchify, width * patchify, generator=torch.Generator().manual_seed(count))
    x = change(z)
    assert tuple(x.shape[1:]) == normalization.shape(tuple(z.shape[1:])) == change.shape(tuple(z.shape[1:]))
    expected = eval(normalization.formula, {
        "z": z, "pixel_unshuffle": torch.nn.functional.pixel_unshuffle,
        "mean": torch.tensor(mean).view(-1, 1, 1), "std": torch.tensor(std).view(-1, 1, 1),
    })  # fmt: skip
    torch.testing.assert_close(x, expected, atol=1e-4, rtol=1e-4)
    restored = change.inverse()
    torch.testing.assert_close(restored(x), z, atol=1e-3, rtol=1e-4)
    assert restored.shape(tuple(x.shape[1:])) == tuple(z.shape[1:])


@pytest.mark.parametrize(
    ("name", "formula"),
    [
        ("none", "z"),
        ("factor", "z * 0.25"),
        ("shift and factor", "(z - 0.5) * 0.25"),
        ("channels", "(z - mean) / std"),
        ("channels and factor", "(z - mean) * 0.5 / std"),
        ("patches", "(pixel_unshuffle(z, 2) - mean) / std"),
        ("positions", "(z - mean) / std"),
    ],
)
def test_info_prints_the_formula_and_its_numbers(pictures, tmp_path, capsys, name, formula):
    encode(pictures, tmp_path / "out", name)
    capsys.readouterr()
    assert main(["info", str(tmp_path / "out")]) == 0
    out = capsys.readouterr().out
    assert re.search(rf"^scaled +{re.escape(formula)}$", out, re.MULTILINE)
    assert ("0.25, -0.5, 0.125" in out) == name.startswith("channels")
    assert ("normalization.npy" in out) == (name == "positions")


def test_codes_are_not_read_in_a_scale_that_is_no_other_reading_of_them(pictures, tmp_path):
    for name in ("channels", "patches"):
        encode(pictures, tmp_path / name, name)
    assert LatentDataset(tmp_path / "channels", dtype=torch.uint8, scale="scaled")[0]["latent"].dtype == torch.uint8
    with pytest.raises(ValueError, match="codes of another scale"):
        LatentDataset(tmp_path / "patches", dtype=torch.uint8, scale="scaled")


def test_the_file_of_positions_is_that_of_the_card_or_an_error(pictures, tmp_path):
    out = tmp_path / "out"
    encode(pictures, out, "positions")
    file = out / "normalization.npy"
    np.testing.assert_array_equal(np.load(file), POSITIONS)
    assert latentq.verify(out) == []
    whole = file.read_bytes()
    for data in (whole[:-1], whole[:200] + b"\x01" + whole[201:], b""):
        file.write_bytes(data)
        assert [finding.file for finding in latentq.verify(out)] == ["normalization.npy"]
        with pytest.raises(FormatError, match=r"normalization\.npy: its hash is sha256"):
            LatentDataset(out, scale="scaled")
    file.unlink()
    assert [finding.file for finding in latentq.verify(out)] == ["normalization.npy"]
    with pytest.raises(LatentqError, match=r"normalization\.npy is missing"):
        LatentDataset(out, scale="scaled")
    assert LatentDataset(out)[0]["latent"].shape == (3, 8, 8)


@pytest.mark.parametrize(
    "array",
    [
        np.ones((2, 3, 8), np.float32),
        np.ones((3, 3, 8, 8), np.float32),
        np.ones((2, 3, 8, 8)),
        np.zeros((2, 3, 8, 8), np.float32),
        np.full((2, 3, 8, 8), np.nan, np.float32),
        np.array([{}], object),
    ],
)
def test_a_file_of_positions_that_holds_something_else_is_refused(pictures, tmp_path, array):
    out = tmp_path / "out"
    encode(pictures, out, "positions")
    np.save(out / "normalization.npy", array)
    card = (out / "latents.toml").read_text()
    hashed = positions_hash((out / "normalization.npy").read_bytes())
    (out / "latents.toml").write_text(re.sub(r"sha256:[0-9a-f]{64}", hashed, card))
    with pytest.raises(FormatError, match=r"normalization\.npy"):
        LatentDataset(out, scale="scaled")


def test_a_normalization_for_latents_of_another_shape_is_refused(pictures, tmp_path):
    encode(pictures, tmp_path / "out", "positions", size=64)
    with pytest.raises(MismatchError, match=r"\(3, 8, 8\), and latents \(3, 16, 16\)"):
        LatentDataset(tmp_path / "out", scale="scaled")
    options = {"recipe": recipe_of(size=12, scaled=True), "autoencoder": network("patches")}
    with pytest.raises(RecipeError, match="size 12: latents of 3 x 3 positions have no blocks of 2 x 2"):
        latentq.encode(pictures, tmp_path / "odd", **options)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("factor = 1.0", "factor = 0.0"),
        ("factor = 1.0", "factor = nan"),
        ("factor = 1.0", 'factor = "1"'),
        ("factor = 1.0", "factor = true"),
        ("factor = 1.0", "factor = 1.0\npatchify = 3"),
        ("factor = 1.0", 'factor = 1.0\npositions = "sha256:0"'),
        ("factor = 1.0", "factor = 1.0\nscale = 2"),
        ("    2.0,", "    -2.0,"),
        ("    2.0,", '    "2",'),
        ("    2.0,", ""),
        ("    0.125,", "    inf,"),
        ("[autoencoder.normalization]", "[autoencoder.normal]"),
    ],
)
def test_a_card_with_a_normalization_that_cannot_be_is_refused(pictures, tmp_path, old, new):
    encode(pictures, tmp_path / "out", "channels")
    card = tmp_path / "out" / "latents.toml"
    text = card.read_text()
    assert old in text
    card.write_text(text.replace(old, new, 1))
    with pytest.raises(FormatError, match=r"latents\.toml"):
        LatentDataset(tmp_path / "out")


def test_a_run_with_another_normalization_does_not_continue_a_dataset(pictures, tmp_path):
    encode(pictures, tmp_path / "out", "channels")
    (tmp_path / "out" / "index.json").unlink()
    with pytest.raises(MismatchError, match="normalization"):
        encode(pictures, tmp_path / "out", "factor")
