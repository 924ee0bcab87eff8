"""LatentDataset opens folders without a card, by a recipe or by a quantizer alone."""

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from latentq import FormatError, LatentDataset, LatentMixture, LatentqError, MismatchError, Recipe, RecipeError, mds
from latentq.quantizer import Quantizer

# Folders without a card, as other tools write them.


def _latent(**fields):
    quantizer = {"kind": "uniform", "low": -1.0, "high": 1.0, "bits": 8, "rounding": "nearest"}
    return {"from": "latent", "quantizer": quantizer, "encoding": "ndarray:uint8:1,2,2"} | fields


def _recipe(columns):
    return Recipe.from_dict({"name": "test", "columns": columns})


@pytest.fixture(scope="module")
def imagenet_int8(tmp_path_factory):
    """A folder like the published imagenet.int8: a raw `uint8` column, labels as text, no card."""
    path = tmp_path_factory.mktemp("int8") / "out"
    codes = np.random.default_rng(0).integers(0, 256, (6, 4, 32, 32), np.uint8)
    columns = {"vae_output": "raw:uint8", "label": "str", "label_as_text": "str"}
    with mds.Writer(path, columns, hashes=("sha1",)) as writer:
        for i in range(6):
            writer.write({"vae_output": codes[i], "label": str(100 + i), "label_as_text": f"class {i}"})
    return path, codes


def test_imagenet_int8_opens_with_its_recipe(imagenet_int8):
    path, codes = imagenet_int8
    dataset = LatentDataset(path, recipe="imagenet.int8")
    assert dataset.card is None
    batch = dataset.batch(range(6))
    assert batch["label"].tolist() == [100, 101, 102, 103, 104, 105]
    assert batch["label_text"] == [f"class {i}" for i in range(6)]
    np.testing.assert_allclose(batch["latent"], codes / 255.0 * 28 - 14, atol=2e-6)


def test_imagenet_int8_opens_with_the_range_of_its_page(imagenet_int8):
    path, codes = imagenet_int8
    page = Quantizer.uniform(-12.0, 12.0, channels=4)
    latents = LatentDataset(path, recipe="imagenet.int8", quantizer=page).batch(range(6))["latent"]
    np.testing.assert_allclose(latents, (codes / 255.0 - 0.5) * 24, atol=2e-6)


def _plain_folder(path, columns, count=6):
    """Writes a folder as `streaming.MDSWriter` does: no card, `columns` of random values next to `name` and `size`."""
    rng = np.random.default_rng(0)
    rows = {name: rng.integers(0, 256, (count, *shape), np.uint8) for name, shape in columns.items()}
    encodings = {name: f"ndarray:uint8:{','.join(map(str, shape))}" for name, shape in columns.items()}
    with mds.Writer(path, encodings | {"label": "int64", "name": "str", "size": "ndarray:float32:2"}) as writer:
        for i in range(count):
            sample = {"label": np.int64(7 * i), "name": f"picture {i}", "size": np.array([i, 0.5], np.float32)}
            writer.write({name: values[i] for name, values in rows.items()} | sample)
    return rows


def test_a_plain_folder_opens_with_a_quantizer_alone(tmp_path):
    rows = _plain_folder(tmp_path / "out", {"vae": (4, 3, 5), "mask": (1, 3, 5)})
    quantizer = Quantizer.uniform(-12.0, 12.0, channels=4)
    dataset = LatentDataset(tmp_path / "out", quantizer=quantizer)
    assert list(dataset[0]) == ["label", "mask", "name", "size", "latent"]
    assert type(dataset[2]["label"]) is int
    for batch in (
        dataset.batch(range(6)),
        *dataset.loader(6),
        *DataLoader(dataset, batch_size=6),
        *DataLoader(dataset, batch_size=6, num_workers=1, collate_fn=dataset.collate),
        LatentMixture([dataset]).batch(range(6)),
    ):
        np.testing.assert_allclose(batch["latent"], rows["vae"] / 255 * 24 - 12, atol=2e-6)
        np.testing.assert_array_equal(batch["mask"], rows["mask"])
        assert batch["label"].tolist() == [0, 7, 14, 21, 28, 35]
        assert batch["name"] == [f"picture {i}" for i in range(6)]
        assert torch.equal(batch["size"], torch.tensor([[i, 0.5] for i in range(6)]))
    assert list(LatentDataset(tmp_path / "out", quantizer=quantizer, columns=["vae", "label"])[0]) == [
        "latent",
        "label",
    ]
    assert torch.equal(dataset.to_device("cpu")[1]["latent"], dataset[1]["latent"])


def test_plain_columns_keep_their_names_if_one_name_is_taken(tmp_path):
    quantizer = Quantizer.uniform(-1.0, 1.0, channels=2)
    _plain_folder(tmp_path / "taken", {"vae": (2, 3, 5), "latent": (4, 3, 5)})
    taken = LatentDataset(tmp_path / "taken", quantizer=quantizer)
    assert list(taken[0]) == ["label", "latent", "name", "size", "vae"]
    assert list(taken.layout.latents) == ["vae"]
    _plain_folder(tmp_path / "two", {"low": (2, 3, 5), "high": (2, 6, 10)})
    assert list(LatentDataset(tmp_path / "two", quantizer=quantizer).layout.latents) == ["high", "low"]


def test_a_plain_folder_that_the_quantizer_does_not_fit_is_refused_with_its_columns(tmp_path):
    _plain_folder(tmp_path / "out", {"vae": (4, 3, 5)})
    with pytest.raises(
        RecipeError, match=r"no column ndarray:uint8:3,h,w that the quantizer fits, but .*, vae ndarray:uint8:4,3,5"
    ):
        LatentDataset(tmp_path / "out", quantizer=Quantizer.uniform(-1.0, 1.0, channels=3))


def test_a_quantizer_with_other_channels_is_refused(imagenet_int8):
    wrong = Quantizer.uniform(-12.0, 12.0, channels=3)
    with pytest.raises(MismatchError, match="4 channels, and its quantizer 3"):
        LatentDataset(imagenet_int8[0], recipe="imagenet.int8", quantizer=wrong)


@pytest.mark.parametrize("scale", ["scaled", "normalized"])
def test_other_scales_need_a_card(imagenet_int8, scale):
    with pytest.raises(LatentqError, match=r"needs the .* of a card"):
        LatentDataset(imagenet_int8[0], recipe="imagenet.int8", scale=scale)


def test_a_recipe_for_other_columns_is_refused(imagenet_int8):
    with pytest.raises(MismatchError, match=r"has a column 'latent', and the shards have .*vae_output"):
        LatentDataset(imagenet_int8[0], recipe=_recipe({"latent": _latent()}))


def test_a_recipe_without_shape_or_range_is_refused(imagenet_int8):
    for column, text in (
        (_latent(encoding="raw:uint8"), "does not say the shape"),
        (_latent(quantizer={"kind": "affine"}), "give a quantizer"),
    ):
        with pytest.raises(RecipeError, match=text):
            LatentDataset(imagenet_int8[0], recipe=_recipe({"vae_output": column}))


def test_values_of_another_length_than_the_recipes_are_an_error(imagenet_int8):
    recipe = _recipe({"vae_output": _latent(encoding="raw:uint8", shape=[4, 32, 31])})
    with pytest.raises((LatentqError, ValueError), match="4096"):
        LatentDataset(imagenet_int8[0], recipe=recipe)[0]


def test_without_a_card_decoding_needs_an_autoencoder(imagenet_int8):
    dataset = LatentDataset(imagenet_int8[0], recipe="imagenet.int8")
    with pytest.raises(LatentqError, match="to name an autoencoder: give one"):
        dataset.decode(0)


def test_a_label_that_is_not_a_number_is_named_in_the_error(tmp_path):
    with mds.Writer(tmp_path / "out", {"latent": "ndarray:uint8:1,2,2", "label": "str"}) as writer:
        writer.write({"latent": np.zeros((1, 2, 2), np.uint8), "label": "cat"})
    recipe = _recipe({"latent": _latent(), "label": {"from": "label", "encoding": "str"}})
    with pytest.raises(FormatError, match="'cat'"):
        LatentDataset(tmp_path / "out", recipe=recipe)[0]


def test_a_dataset_without_samples_is_refused(tmp_path):
    with mds.Writer(tmp_path / "out", {"latent": "ndarray:uint8:1,2,2"}):
        pass
    with pytest.raises(LatentqError, match="has no samples"):
        LatentDataset(tmp_path / "out", recipe=_recipe({"latent": _latent()}))
