"""Recipes: what is shipped, what is refused, what can be overridden."""

import os
import re
import tomllib

import pytest
import tomli_w

from latentq import Recipe, RecipeError


@pytest.mark.parametrize("name", Recipe.names())
def test_a_shipped_recipe_survives_toml(name):
    recipe = Recipe.load(name)
    assert recipe.name == name
    assert Recipe.from_dict(tomllib.loads(tomli_w.dumps(recipe.to_dict()))) == recipe


def test_the_source_systems_are_recipes():
    """Each recipe says what the page of its source system says."""

    def column(name, key, *fields):
        return tuple(getattr(Recipe.load(name).columns[key], field) for field in fields)

    quantizer = {"kind": "uniform", "low": -6.5, "high": 6.5, "bits": 8, "rounding": "nearest"}
    assert column("imagenet-3gb", "latent", "size", "shape", "quantizer") == (256, (32, 8, 8), quantizer)
    for size, side in ((256, 32), (512, 64)):
        facts = column(
            "micro-diffusion", f"latents_{size}", "size", "shape", "encoding", "scaled", "store", "quantizer"
        )
        assert facts == (size, (4, side, side), "bytes", True, "sample", {"kind": "float16"})
    vqgan = Recipe.load("vqgan-f16-16384")
    assert (vqgan.image.crop, vqgan.image.filter) == ("center-round", "lanczos")
    assert (vqgan.autoencoder.model, vqgan.autoencoder.pixel_range) == ("boris/vqgan_f16_16384", (0.0, 1.0))
    assert column("vqgan-f16-16384", "encoding", "content", "shape") == ("tokens", (16, 16))
    for name in ("sdxl", "dc-ae", "flux"):
        assert column(name, "latent", "quantizer") == ({"kind": "affine", "bits": 8, "method": "mse"},)


@pytest.mark.parametrize(
    ("name", "size", "store", "crop", "subfolder"),
    [
        ("flux2", 1024, "mean", "center", "vae"),
        ("qwen-image", 1024, "sample", "center", "vae"),
        ("wan", 512, "mean", "center", "vae"),
        ("hunyuan-image", 1024, "sample", "center", "vae"),
        ("rae", 256, "mean", "adm", ""),
        ("va-vae", 256, "sample", "adm", ""),
        ("sd3", 1024, "sample", "center", "vae"),
    ],
)
def test_a_recipe_of_a_current_model_stores_raw_latents_as_its_training_code_encodes(
    name, size, store, crop, subfolder
):
    recipe = Recipe.load(name)
    column = recipe.columns["latent"]
    assert (column.size, column.store, column.scaled) == (size, store, False)
    assert (recipe.image.crop, recipe.autoencoder.subfolder) == (crop, subfolder)


def test_a_recipe_can_be_a_file(tmp_path):
    file = tmp_path / "mine.toml"
    file.write_text(tomli_w.dumps({**Recipe.load("default").to_dict(), "name": "mine"}))
    assert Recipe.load(file).name == "mine"


def test_an_unknown_name_is_answered_with_the_known_ones():
    with pytest.raises(RecipeError, match=r"no recipe 'imagenet'.*imagenet\.int8"):
        Recipe.load("imagenet")


GOOD = Recipe.load("default").to_dict()
LATENT = GOOD["columns"]["latent"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"nmae": "x"}, "unknown field 'nmae'"),
        ({"name": 5}, "'name' is missing or is not a string"),
        ({"unit_size": 0}, "unit_size must be a whole number of at least 1, not 0"),
        ({"unit_size": True}, "unit_size must be"),
        ({"calibration": 1.5}, "calibration must be"),
        ({"image": 3}, "'image' must be a table"),
        ({"image": {"crop": "middle"}}, r"image\.crop must be one of center, center-round, adm, not 'middle'"),
        ({"image": {"orient": "yes"}}, r"image\.orient must be of type bool"),
        ({"image": {"colour": "red"}}, r"unknown field 'image\.colour'"),
        ({"autoencoder": {"pixel_range": [0, float("inf")]}}, r"autoencoder\.pixel_range must be two numbers"),
        ({"autoencoder": {"pixel_range": [1, 0]}}, r"autoencoder\.pixel_range must be two numbers"),
        ({"autoencoder": {"pixel_range": [0]}}, r"autoencoder\.pixel_range must be two numbers"),
        ({"autoencoder": {"pixel_range": "01"}}, r"autoencoder\.pixel_range must be two numbers"),
        ({"autoencoder": {"dtype": "int8"}}, r"autoencoder\.dtype must be one of"),
        ({"columns": {}}, "at least one"),
        ({"columns": {"key": {"from": "key", "encoding": "str"}}}, "no column has from = 'latent'"),
        ({"columns": {"latent": {**LATENT, "from": "nothing"}}}, r"columns\.latent\.from must be one of"),
        ({"columns": {"latent": {**LATENT, "size": -8}}}, r"columns\.latent\.size must be"),
        ({"columns": {"latent": {**LATENT, "shape": [4, "x"]}}}, r"columns\.latent\.shape must be a list"),
        ({"columns": {"latent": LATENT, "key": {"from": "key"}}}, r"columns\.key needs an encoding"),
        ({"columns": {"latent": LATENT, "key": {"from": "key", "size": 3}}}, r"columns\.key\.size is for latents"),
        ({"columns": {"latent": {**LATENT, "quantizer": {"kind": "int4"}}}}, r"quantizer\.kind must be one of"),
        ({"columns": {"latent": {**LATENT, "quantizer": {"kind": "affine", "bits": 9}}}}, "from 2 to 8, not 9"),
        ({"columns": {"latent": {**LATENT, "quantizer": {"kind": "uniform"}}}}, "needs low and high"),
        ({"columns": {"latent": {**LATENT, "quantizer": {"kind": "affine", "low": 1}}}}, r"unknown field .*\.low"),
        ({"columns": {"latent": {**LATENT, "quantizer": {"kind": "affine", "method": "guess"}}}}, "method must be one"),
        (
            {"columns": {"latent": LATENT, "mask": {"from": "attention_mask", "quantizer": {}}}},
            r"mask\.quantizer is for",
        ),
        ({"text": {"captions": 0}}, r"text\.captions at least 1"),
        ({"text": {"dtype": "int8"}}, r"text\.dtype must be one of"),
    ],
)
def test_a_bad_field_is_refused_by_name(change, message):
    with pytest.raises(RecipeError, match=message):
        Recipe.from_dict({**GOOD, **change})


@pytest.mark.parametrize("text", ["name = ", "\x00", "[columns]\n[columns]"])
def test_a_file_that_is_not_toml_is_refused_by_name(tmp_path, text):
    file = tmp_path / "bad.toml"
    file.write_text(text)
    with pytest.raises(RecipeError, match=r"bad\.toml"):
        Recipe.load(file)


def test_bytes_that_are_not_text_are_refused_by_name(tmp_path):
    file = tmp_path / "bad.toml"
    file.write_bytes(b"\xff\xfe")
    with pytest.raises(RecipeError, match=r"bad\.toml: not TOML"):
        Recipe.load(file)


def test_overrides_change_their_fields_and_are_named():
    recipe = Recipe.load("default").override(
        autoencoder="stabilityai/sdxl-vae",
        pixel_range=[0, 1],
        size=512,
        crop="adm",
        bits=6,
        calibrate="minmax",
        store="mean",
        seed=7,
    )
    latent = recipe.columns["latent"]
    assert (recipe.autoencoder.model, recipe.autoencoder.pixel_range) == ("stabilityai/sdxl-vae", (0.0, 1.0))
    assert (latent.size, latent.store, recipe.image.crop, recipe.autoencoder.seed) == (512, "mean", "adm", 7)
    assert latent.quantizer == {"kind": "affine", "bits": 6, "method": "minmax"}
    assert recipe.changed == ("autoencoder", "bits", "calibrate", "crop", "pixel_range", "seed", "size", "store")


def test_an_override_that_changes_nothing_is_not_named():
    assert Recipe.load("default").override(size=256, crop=None, flip=False).changed == ()


def test_a_text_encoder_brings_its_columns_where_there_are_none():
    recipe = Recipe.load("default").override(pooled=True, image=True, text_captions=5, text_encoder="owner/name")
    added = {
        name: column.content for name, column in recipe.columns.items() if name not in Recipe.load("default").columns
    }
    assert added == {
        "caption_embedding": "caption_embedding", "attention_mask": "attention_mask", "jpg": "image",
        "pooled_embedding": "pooled_embedding", "captions": "captions",
    }  # fmt: skip
    assert recipe.changed == ("image", "pooled", "text_captions", "text_encoder")
    assert Recipe.from_dict(tomllib.loads(tomli_w.dumps(recipe.to_dict()))) == recipe
    other = Recipe.load("micro-diffusion").override(text_encoder="owner/name", text_dtype="float32")
    assert other.columns.keys() == Recipe.load("micro-diffusion").columns.keys()
    assert other.columns["caption_latents"].shape == ()  # that of another encoder may be another
    assert Recipe.load("default").text == Recipe.load("sdxl").text


def test_flip_adds_a_mirrored_twin():
    columns = Recipe.load("default").override(flip=True).columns
    assert columns["latent_flip"].flip
    assert not columns["latent"].flip


def test_overrides_that_do_not_apply_are_refused():
    with pytest.raises(RecipeError, match="calibrate does not apply"):
        Recipe.load("imagenet.int8").override(calibrate="mse")
    with pytest.raises(RecipeError, match="from 2 to 8"):
        Recipe.load("default").override(bits=1)
    with pytest.raises(RecipeError, match=r"min_size and image\.min_side must be at least 0"):
        Recipe.load("default").override(min_size=-1)
    with pytest.raises(RecipeError, match="recipe default embeds no captions: a text encoder must be named"):
        Recipe.load("default").override(text_length=5)
    with pytest.raises(TypeError, match="batch"):
        Recipe.load("default").override(batch=1)


def test_an_unknown_recipe_is_an_error_that_names_the_known_ones():
    known = ", ".join(Recipe.names())
    with pytest.raises(RecipeError, match=re.escape(f"there is no recipe 'x': name a TOML file or one of {known}")):
        Recipe.load("x")


def test_a_fifo_is_no_recipe(tmp_path):
    os.mkfifo(tmp_path / "recipe.toml")
    with pytest.raises(RecipeError, match="there is no recipe"):
        Recipe.load(tmp_path / "recipe.toml")


def test_a_recipe_may_leave_the_text_encoder_to_an_option(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text('name = "mine"\n[columns.latent]\nfrom = "latent"\n[columns.text]\nfrom = "caption_embedding"\n')
    recipe = Recipe.load(path)
    named = recipe.override(text_encoder="owner/text", text_length=9)
    assert (named.text.model, named.text.length, list(named.columns)) == ("owner/text", 9, ["latent", "text"])
    assert named.changed == ("text_encoder", "text_length")
    for options in ({}, {"size": 64}, {"text_length": 9}):
        with pytest.raises(
            RecipeError, match=r"columns\.text needs a text encoder: name it \(--text-encoder, text\.model\)"
        ):
            recipe.override(**options)
