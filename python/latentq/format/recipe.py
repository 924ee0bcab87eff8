"""Recipes: all settings that determine the stored values of a dataset, as frozen data that is written as TOML."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from importlib import resources
from pathlib import Path
from typing import Any, Unpack

from latentq._core import RecipeError
from latentq.format.buckets import Bucket, Buckets
from latentq.format.fields import column_from, column_table, field_names, options_from
from latentq.format.options import (
    CALIBRATED,
    CONDITIONING,
    ENCODED,
    MAX_UNIT,
    METHODS,
    TEXT,
    AutoencoderOptions,
    Column,
    ImageOptions,
    TextOptions,
)
from latentq.format.overrides import RecipeOverrides, apply_override, in_order


@dataclass(frozen=True)
class Recipe:
    """All settings that determine the stored values of a dataset.

    Attributes:
        name: The recipe's name.
        unit_size: Samples in a unit, the slice of a source that is encoded and published as a whole.
        calibration: Number of samples, spread evenly over the source, that quantizers are calibrated on.
        image: How an image file becomes pixels.
        autoencoder: The autoencoder, and how it computes.
        text: The text encoder, if a column needs one.
        columns: The columns of the shards, by name.
        buckets: The sizes that images are encoded at, each at the one of nearest aspect ratio; None if the columns
            have sizes.
        changed: The names of the options by which `override` changed a field.
    """

    name: str
    columns: Mapping[str, Column]
    unit_size: int = 4096
    calibration: int = 1024
    image: ImageOptions = field(default_factory=ImageOptions)
    autoencoder: AutoencoderOptions = field(default_factory=AutoencoderOptions)
    text: TextOptions = field(default_factory=TextOptions)
    buckets: Buckets | None = None
    changed: tuple[str, ...] = ()

    @staticmethod
    def names() -> list[str]:
        """Returns the names of the recipes that come with latentq, sorted."""
        return sorted(
            entry.name.removesuffix(".toml")
            for entry in (resources.files("latentq") / "recipes").iterdir()
            if entry.name.endswith(".toml")
        )

    @staticmethod
    def toml(name: str | os.PathLike[str]) -> str:
        """Returns the TOML text of a recipe with its comments; the first line says what the recipe is.

        Args:
            name: The name of a recipe that comes with latentq, or the path of a TOML file.

        Raises:
            RecipeError: There is no such recipe, or the file is not text.
        """
        return _read(name)[0]

    @classmethod
    def load(cls, name: str | os.PathLike[str]) -> Recipe:
        """Loads a recipe.

        Args:
            name: The name of a recipe that comes with latentq, or the path of a TOML file.

        Raises:
            RecipeError: There is no such recipe, or it is not valid; the message names the file and the field.
        """
        text, where = _read(name)
        try:
            return cls.from_dict(tomllib.loads(text))
        except tomllib.TOMLDecodeError as error:
            raise RecipeError(f"{where}: not TOML: {error}") from None
        except RecipeError as error:
            raise RecipeError(f"{where}: {error}") from None

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Recipe:
        """Returns the recipe of TOML's tables.

        Args:
            data: The tables of the recipe's TOML.

        Raises:
            RecipeError: A field is unknown, missing, of the wrong type or out of range.
        """
        for key in data.keys() - field_names(cls):
            raise RecipeError(f"unknown field {key!r}")
        if not isinstance(data.get("name"), str):
            raise RecipeError("'name' is missing or is not a string")
        changed = data.get("changed", [])
        if not isinstance(changed, list | tuple) or not all(isinstance(name, str) for name in changed):
            raise RecipeError("'changed' must be a list of names")
        columns = data.get("columns")
        if not isinstance(columns, dict) or not columns:
            raise RecipeError("a recipe needs at least one [columns.NAME]")
        columns = {name: column_from(name, column) for name, column in columns.items()}
        buckets = Buckets.from_dict(data["buckets"]) if "buckets" in data else None
        if buckets is not None:
            for name, column in columns.items():
                if "size" in data["columns"][name]:
                    raise RecipeError(
                        f"columns.{name}.size and buckets exclude each other: an image has its bucket's size"
                    )
                columns[name] = replace(column, size=0)
        recipe = cls(
            name=data["name"],
            unit_size=data.get("unit_size", cls.unit_size),
            calibration=data.get("calibration", cls.calibration),
            changed=tuple(changed),
            image=options_from(data, "image", ImageOptions),
            autoencoder=options_from(data, "autoencoder", AutoencoderOptions),
            text=options_from(data, "text", TextOptions),
            columns=columns,
            buckets=buckets,
        )
        _check(recipe)
        return recipe

    def to_dict(self) -> dict[str, Any]:
        """Returns the tables that `from_dict` reads, with every field in its place."""
        data: dict[str, Any] = {"name": self.name, "unit_size": self.unit_size, "calibration": self.calibration}
        if self.changed:
            data["changed"] = list(self.changed)
        if self.buckets is not None:
            data["buckets"] = self.buckets.to_dict()
        data["image"] = vars(self.image).copy()
        data["autoencoder"] = vars(self.autoencoder).copy()
        if self.text != TextOptions():
            data["text"] = vars(self.text).copy()
        data["columns"] = {name: column_table(column) for name, column in self.columns.items()}
        return data

    def bucket_sizes(self) -> tuple[Bucket, ...]:
        """Returns (height, width) of every bucket, by its number; nothing if the columns have sizes."""
        return () if self.buckets is None else self.buckets.all

    def sized(self, bucket: int | None) -> dict[str, Column]:
        """Returns the columns that the autoencoder computes, each with the size that is encoded.

        Args:
            bucket: The number of a bucket, if the recipe has buckets.
        """
        if self.buckets is None or bucket is None:
            return self.encoded()
        size = self.buckets.all[bucket]
        return {name: replace(column, size=size) for name, column in self.encoded().items()}

    def encoded(self) -> dict[str, Column]:
        """Returns the columns that the autoencoder computes, by name."""
        return {name: column for name, column in self.columns.items() if column.is_encoded}

    def latents(self) -> dict[str, Column]:
        """Returns the columns that hold latents or moments, by name."""
        return {name: column for name, column in self.columns.items() if column.is_latent}

    def tokens(self) -> dict[str, Column]:
        """Returns the columns that hold tokens, by name."""
        return {name: column for name, column in self.columns.items() if column.content == "tokens"}

    def texts(self) -> dict[str, Column]:
        """Returns the columns that the text encoder computes, by name."""
        return {name: column for name, column in self.columns.items() if column.content in TEXT}

    def embeddings(self) -> dict[str, Column]:
        """Returns the columns of the text encoder that have a quantizer, by name."""
        return {name: column for name, column in self.columns.items() if column.is_embedding}

    def override(
        self,
        *,
        autoencoder: str | os.PathLike[str] | None = None,
        text_encoder: str | os.PathLike[str] | None = None,
        **overrides: Unpack[RecipeOverrides],
    ) -> Recipe:
        """Returns this recipe with some fields changed, and `changed` naming the options that changed one.

        Args:
            autoencoder: The autoencoder's model.
            text_encoder: The text encoder's model; adds columns of embedding and mask to a recipe without embeddings.
            overrides: The other options of `latentq.format.overrides.OVERRIDES`, which says what each one sets.

        Raises:
            RecipeError: A value is out of range, or the recipe has nothing that an option could change.
            TypeError: There is no such option.
        """
        models = {"text_encoder": text_encoder, "autoencoder": autoencoder}
        if overrides.get("size") is not None and overrides.get("buckets") is not None:
            raise RecipeError("size and buckets exclude each other: an image has its bucket's size")
        if overrides.get("bits") is not None and overrides.get("bytes") is not None:
            raise RecipeError("bits and bytes exclude each other: both say how large a latent is")
        codec, method = overrides.get("codec"), overrides.get("calibrate")
        if codec in CALIBRATED and method is not None and method not in METHODS.get(codec, ()):
            raise RecipeError(
                f"codec {codec} and calibrate {method} exclude each other: a codec has its own calibration"
            )
        if codec in METHODS and overrides.get("bytes") is not None:
            raise RecipeError(f"codec {codec}: bytes does not apply, since only a transform has a number of bytes")
        options = {name: os.fspath(model) for name, model in models.items() if model is not None} | dict(overrides)
        recipe = self
        changed = set(self.changed)
        for name in in_order(options):
            value = options[name]
            if value is None:
                continue
            tables = recipe.to_dict()
            apply_override(tables, name, value)
            before, recipe = recipe, Recipe.from_dict(tables)
            if recipe != before:
                changed.add(name)
        if any(options.get(name) is not None for name in ("codec", "bits", "buckets")):
            _check_bits_of_buckets(recipe)
        if recipe.text != self.text and not recipe.texts():
            raise RecipeError(f"recipe {self.name} embeds no captions: a text encoder must be named")
        if recipe.texts() and not recipe.text.model:  # not sooner: a recipe may leave it to an option
            raise RecipeError(
                f"columns.{next(iter(recipe.texts()))} needs a text encoder: name it (--text-encoder, text.model)"
            )
        return replace(recipe, changed=tuple(sorted(changed)))


def _check_bits_of_buckets(recipe: Recipe) -> None:
    """Raises RecipeError if the bytes of a transform would follow from the first of several buckets of other areas.

    Only options are refused: a recipe may say so.
    """
    if recipe.buckets is None or len({height * width for height, width in recipe.buckets.all}) == 1:
        return
    for name, column in recipe.columns.items():
        if column.quantizer["kind"] == "transform" and "bits" in column.quantizer:
            raise RecipeError(
                f"columns.{name}: {column.quantizer['bits']} bits per element are another number of bytes in each "
                "bucket, and a transform has one number for all samples: give it, --bytes N"
            )


def _check(recipe: Recipe) -> None:
    """Raises RecipeError if a number is out of range, or a table is missing that another one needs."""
    for name in ("unit_size", "calibration"):
        value = getattr(recipe, name)
        if type(value) is not int or value < 1:
            raise RecipeError(f"{name} must be a whole number of at least 1, not {value!r}")
    if recipe.unit_size > MAX_UNIT:
        raise RecipeError(f"unit_size must be at most {MAX_UNIT}, not {recipe.unit_size}")
    if recipe.text.length < 0 or recipe.text.captions < 1:
        raise RecipeError("text.length must be at least 0, and text.captions at least 1")
    if recipe.image.min_size < 0 or recipe.image.min_side < 0:
        raise RecipeError("image.min_size and image.min_side must be at least 0")
    sizes = {column.pixels for column in recipe.encoded().values()}
    for name, column in recipe.columns.items():
        if column.content in CONDITIONING and len(sizes) > 1:
            raise RecipeError(f"columns.{name} is of one size, and the recipe stores {len(sizes)}")
        if recipe.buckets is not None and column.is_encoded and (column.shape or column.encoding not in ("", "bytes")):
            raise RecipeError(f"columns.{name} gives a shape: with buckets, an image has that of its bucket")
    if not recipe.encoded():
        raise RecipeError(f"no column has from = {', '.join(map(repr, ENCODED[:-1]))} or {ENCODED[-1]!r}")


def _read(name: str | os.PathLike[str]) -> tuple[str, str]:
    """Returns the text of a recipe, and its name for messages."""
    shipped = resources.files("latentq") / "recipes" / f"{name}.toml"
    if isinstance(name, str) and os.sep not in name and shipped.is_file():
        return shipped.read_text(encoding="utf-8"), f"recipe {name}"
    path = Path(name)
    if not path.is_file():
        known = ", ".join(Recipe.names())
        raise RecipeError(f"there is no recipe {str(name)!r}: name a TOML file or one of {known}")
    try:
        return path.read_text(encoding="utf-8"), str(path)
    except UnicodeDecodeError:
        raise RecipeError(f"{path}: not TOML: it is not UTF-8 text") from None
