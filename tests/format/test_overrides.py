"""The table of overrides, and everything that must agree with it."""

from typing import get_args, get_type_hints

import pytest

from latentq import Recipe
from latentq.choices import Size
from latentq.cli.main import build_parser
from latentq.format.buckets import BucketsOption
from latentq.format.overrides import OVERRIDES, RecipeOverrides

MODELS = {"autoencoder", "text_encoder"}  # parameters of their own: they may be objects


def test_the_typed_dict_has_the_names_and_types_of_the_table():
    hints = get_type_hints(RecipeOverrides)
    assert hints == {override.name: override.type | None for override in OVERRIDES if override.name not in MODELS}
    assert not RecipeOverrides.__required_keys__


def test_every_override_is_an_option_of_encode():
    parser = build_parser(["encode"])
    for override in OVERRIDES:
        value = example(override.type)
        arguments = ["encode", "SRC", "OUT", override.option]
        if override.type is not bool:
            arguments += [str(part) for part in value] if isinstance(value, tuple) else [str(value)]
        parsed = getattr(parser.parse_args(arguments), override.name)
        assert (tuple(parsed) if isinstance(value, tuple) else parsed) == value
        assert getattr(parser.parse_args(["encode", "SRC", "OUT"]), override.name) is None


def example(kind):
    if kind is bool:
        return True
    if kind in (int, str, Size):
        return "5" if kind is str else 5
    if kind is BucketsOption:
        return "nemo"
    values = get_args(kind)
    return (0.0, 1.0) if values == (float, float) else values[-1]


@pytest.mark.parametrize("override", OVERRIDES, ids=lambda override: override.name)
def test_an_override_sets_the_field_that_the_table_names(override):
    """Checks the field that changes in the recipe when nothing else is changed."""
    needs_text = override.name.startswith("text_") or override.name == "pooled"
    recipe = Recipe.load("default").override(
        text_encoder="owner/text" if needs_text else None, buckets="kohya" if override.name == "small" else None
    )
    value = {"text_encoder": "owner/other", "store": "mean", "bits": 5, "alpha": "black"}.get(override.name)
    value = example(override.type) if value is None else value
    if override.name in ("orient",):
        value = False
    changed = recipe.override(**{override.name: value})
    assert override.name in changed.changed
    if override.adds_columns:
        assert len(changed.columns) == len(recipe.columns) + (3 if override.name == "conditioning" else 1)
        assert changed.columns.items() >= recipe.columns.items()
        return
    before, after = flat(recipe.to_dict()), flat(changed.to_dict())
    if override.name == "buckets":
        assert before["columns.latent.size"] == 256
        assert "columns.latent.size" not in after
        assert {key: after[key] for key in after.keys() - before.keys() - {"changed"}} == {
            "buckets.set": "nemo", "buckets.multiple": 64, "buckets.small": "enlarge"
        }  # fmt: skip
        return
    differing = {key for key in before.keys() | after.keys() if before.get(key) != after.get(key)}
    field = override.field.replace("*", "latent")
    expected = {"columns.latent.store"} if override.name == "store" else {field}
    if value in ("lloyd-max", "trellis"):
        expected.add("columns.latent.quantizer.kind")
    if override.name in ("codec", "bytes"):
        expected |= {f"columns.latent.quantizer.{key}" for key in ("kind", "bits", "method")}
    if override.name == "text_captions":
        expected |= {key for key in after if key.startswith("columns.captions.")}
    assert {key for key in differing if not key.startswith("changed")} == expected
    if override.name != "store":
        assert after[field] == value


def flat(table, prefix=""):
    result = {}
    for key, value in table.items():
        result |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return result
