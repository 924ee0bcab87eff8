"""Recipes: all that decides the numbers of a dataset, as frozen data that is written as TOML."""

from __future__ import annotations

import math
import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from importlib import resources
from pathlib import Path
from typing import Any, Literal, get_args

from latentq._core import RecipeError

Crop = Literal["center", "center-round", "adm"]


Filter = Literal["box", "bilinear", "hamming", "bicubic", "lanczos"]


Alpha = Literal["white", "black", "drop"]


Icc = Literal["srgb", "ignore"]


Dtype = Literal["float32", "float16", "bfloat16"]


Store = Literal["sample", "mean"]


Content = Literal[
    "latent", "moments", "tokens", "caption_embedding", "attention_mask", "pooled_embedding", "key", "label",
    "label_text", "caption", "captions", "image",
]  # fmt: skip


# What the autoencoder makes.
ENCODED = ("latent", "moments", "tokens")


# What the text encoder makes of captions.
TEXT = ("caption_embedding", "attention_mask", "pooled_embedding")


# The kinds of quantiser that store values as they are.
FLOATS = ("float16", "bfloat16", "float32")


_CHOICES = {"Crop": Crop, "Filter": Filter, "Alpha": Alpha, "Icc": Icc, "Dtype": Dtype, "Store": Store}


# What `override` takes for `store`.
STORES = ("sample", "mean", "moments", "tokens")


# What a column may say beside `from`, `encoding` and `optional`, by what it holds, and its quantiser if it has one.
_KEYS = {
    "latent": {"size", "store", "scaled", "flip", "shape", "quantizer"},
    "moments": {"size", "flip", "shape", "quantizer"},
    "tokens": {"size", "flip", "shape"},
    "caption_embedding": {"shape", "quantizer"},
    "pooled_embedding": {"shape", "quantizer"},
    "attention_mask": {"shape"},
}


_AFFINE = {"kind": "affine", "bits": 8, "method": "mse"}


_QUANTIZERS = {
    "latent": _AFFINE,
    "moments": _AFFINE,
    "caption_embedding": {"kind": "float16"},
    "pooled_embedding": {"kind": "float16"},
}


_QUANTIZER_KEYS = {
    "uniform": {"kind", "low", "high", "bits", "rounding"},
    "affine": {"kind", "bits", "method"},
    "codebook": {"kind", "bits", "method"},
    **{kind: {"kind"} for kind in FLOATS},
}


@dataclass(frozen=True)
class ImageOptions:
    """How a file becomes pixels.

    Attributes:
        crop: `center`, `center-round` or `adm`.
        filter: Pillow's resampling filter: `box`, `bilinear`, `hamming`, `bicubic` or `lanczos`.
        orient: Whether the EXIF orientation is applied.
        alpha: What lies behind transparent pixels: `white`, `black`, or `drop`, which ignores the alpha channel.
        icc: `srgb` converts by an embedded colour profile; `ignore` takes the numbers as they are.
        min_size: Pixels that both sides of a picture must have; a smaller one is rejected. 0 takes all.
        min_side: Inexact: JPEGs are decoded at 1/2, 1/4 or 1/8 of their size while the short side stays at least this
            many pixels; 0 decodes them whole.
    """

    crop: Crop = "center"
    filter: Filter = "bicubic"
    orient: bool = True
    alpha: Alpha = "white"
    icc: Icc = "srgb"
    min_size: int = 0
    min_side: int = 0

    def options(self) -> dict[str, Any]:
        """The keyword arguments of `latentq.image.load` and `load_batch`."""
        given = {name: value for name, value in vars(self).items() if name != "min_size"}
        return {**given, "min_side": self.min_side or None}


@dataclass(frozen=True)
class AutoencoderOptions:
    """Which autoencoder, and how it computes.

    Attributes:
        model: `dct-f8c16`, a hub name, or a folder.
        revision: The hub's branch, tag or commit; empty for the default.
        subfolder: Where the model lies inside its repository or folder.
        pixel_range: The pixel values that stand for black and white; empty for the model's own. For checkpoints that
            were trained on another range than their family, which their files do not tell.
        dtype: The type it computes in: `float32`, `float16` or `bfloat16`.
        seed: The noise of sample s is a function of (seed, s).
    """

    model: str = "dct-f8c16"
    revision: str = ""
    subfolder: str = ""
    pixel_range: tuple[float, ...] = ()
    dtype: Dtype = "float32"
    seed: int = 0


@dataclass(frozen=True)
class TextOptions:
    """Which text encoder, and what it is given.

    Attributes:
        model: A hub name or a folder; of open_clip's, after `openclip:`. Empty where no column needs one.
        revision: The hub's branch, tag or commit; empty for the default.
        subfolder: Of a pipeline's several encoders, another than `text_encoder`.
        dtype: The type it computes in: `float32`, `float16` or `bfloat16`.
        length: How many tokens a caption is padded or cut to; 0 for as many as the model takes.
        captions: How many captions of an image are embedded: its first ones, again from the first where it has fewer.
    """

    model: str = ""
    revision: str = ""
    subfolder: str = ""
    dtype: Dtype = "float32"
    length: int = 0
    captions: int = 1


@dataclass(frozen=True)
class Column:
    """One column of the shards.

    Attributes:
        content: What it holds (`from` in TOML): `latent`; `moments`, the posterior's mean and log-variance, from which
            a reader draws latents; `tokens`, the indices of a code book; `caption_embedding`, the text encoder's last
            hidden state at every position, `attention_mask` and `pooled_embedding`, what else it gives; `key`, `label`,
            `label_text` or `caption`; `captions`, a list of those that are embedded; `image`, the picture's own file.
        encoding: The MDS encoding; for what an encoder makes, empty means the one that follows from its shape and
            quantiser. `bytes` stores the same without saying shape and type. An image that is stored as `jpeg` and is
            none is made one, of quality 95; as `bytes` it is the file as it is.
        optional: Left out where the source does not have it; otherwise its absence is an error.
        size: The side of the square that is encoded, in pixels; this and what follows of what the autoencoder makes.
        store: Latents: `sample` draws from the posterior where there is one; `mean` is its mean.
        scaled: Latents: (latent - shift factor) * scaling factor is stored.
        flip: Of the mirrored picture.
        shape: (C, h, w), of moments (2C, h, w), of tokens (h, w), of embeddings (captions, tokens, width), of masks
            without width, pooled without tokens; needed where the encoding does not tell it and there is no card.
        quantizer: Latents, moments and embeddings: `kind` (`uniform`, `affine`, `codebook`, `float16`, `bfloat16`,
            `float32`) with its options. An embedding's channels are its last axis.
    """

    content: Content
    encoding: str = ""
    optional: bool = False
    size: int = 256
    store: Store = "sample"
    scaled: bool = False
    flip: bool = False
    shape: tuple[int, ...] = ()
    quantizer: Mapping[str, Any] = field(default_factory=lambda: dict(_AFFINE))

    @property
    def is_encoded(self) -> bool:
        """Whether the autoencoder makes what the column holds."""
        return self.content in ENCODED

    @property
    def is_latent(self) -> bool:
        """Whether the column holds latents, or the moments that they are drawn from."""
        return self.content in ("latent", "moments")

    @property
    def is_embedding(self) -> bool:
        """Whether the column holds what a text encoder makes and a quantiser stores."""
        return self.content in ("caption_embedding", "pooled_embedding")


@dataclass(frozen=True)
class Recipe:
    """All that decides the numbers of a dataset.

    Attributes:
        name: The recipe's name.
        unit_size: Samples in a unit, the slice of a source that is encoded and published as one.
        calibration: How many samples, spread evenly over the source, quantisers are calibrated on.
        image: How a file becomes pixels.
        autoencoder: Which autoencoder, and how it computes.
        text: Which text encoder, where there is one.
        columns: The columns of the shards, by name.
        changed: Which fields `override` has changed.
    """

    name: str
    columns: Mapping[str, Column]
    unit_size: int = 4096
    calibration: int = 1024
    image: ImageOptions = ImageOptions()
    autoencoder: AutoencoderOptions = AutoencoderOptions()
    text: TextOptions = TextOptions()
    changed: tuple[str, ...] = ()

    @staticmethod
    def names() -> list[str]:
        """The names of the recipes that come with latentq."""
        return sorted(
            entry.name.removesuffix(".toml")
            for entry in (resources.files("latentq") / "recipes").iterdir()
            if entry.name.endswith(".toml")
        )

    @staticmethod
    def toml(name: str | os.PathLike[str]) -> str:
        """The TOML of a recipe, comments and all; its first line says what it is. Raises RecipeError as `load` does."""
        return _read(name)[0]

    @classmethod
    def load(cls, name: str | os.PathLike[str]) -> Recipe:
        """A recipe that comes with latentq, by name, or one in a TOML file, by path.

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
        """The recipe that TOML's tables spell.

        Raises:
            RecipeError: A field is unknown, missing, of the wrong type or out of range.
        """
        for key in data.keys() - _names(cls):
            raise RecipeError(f"unknown field {key!r}")
        if not isinstance(data.get("name"), str):
            raise RecipeError("'name' is missing or is not a string")
        if not isinstance(data.get("changed", []), list | tuple) or not all(
            isinstance(field, str) for field in data.get("changed", [])
        ):
            raise RecipeError("'changed' must be a list of names")
        columns = data.get("columns")
        if not isinstance(columns, dict) or not columns:
            raise RecipeError("a recipe needs at least one [columns.NAME]")
        recipe = cls(
            name=data["name"],
            unit_size=data.get("unit_size", cls.unit_size),
            calibration=data.get("calibration", cls.calibration),
            changed=tuple(data.get("changed", ())),
            image=ImageOptions(**_table(data, "image", ImageOptions)),
            autoencoder=AutoencoderOptions(**_table(data, "autoencoder", AutoencoderOptions)),
            text=TextOptions(**_table(data, "text", TextOptions)),
            columns={name: _column(name, column) for name, column in columns.items()},
        )
        for name in ("unit_size", "calibration"):
            value = getattr(recipe, name)
            if type(value) is not int or value < 1:
                raise RecipeError(f"{name} must be a whole number of at least 1, not {value!r}")
        if recipe.text.length < 0 or recipe.text.captions < 1:
            raise RecipeError("text.length must be at least 0, and text.captions at least 1")
        if recipe.image.min_size < 0 or recipe.image.min_side < 0:
            raise RecipeError("image.min_size and image.min_side must be at least 0")
        if recipe.texts() and not recipe.text.model:
            raise RecipeError(f"columns.{next(iter(recipe.texts()))} needs a text encoder: text.model names it")
        if not recipe.encoded():
            raise RecipeError(f"no column has from = {', '.join(map(repr, ENCODED[:-1]))} or {ENCODED[-1]!r}")
        return recipe

    def to_dict(self) -> dict[str, Any]:
        """The tables that `from_dict` reads, with every field in its place."""
        data: dict[str, Any] = {"name": self.name, "unit_size": self.unit_size, "calibration": self.calibration}
        if self.changed:
            data["changed"] = list(self.changed)
        data["image"] = vars(self.image).copy()
        data["autoencoder"] = vars(self.autoencoder).copy()
        if self.text != TextOptions():
            data["text"] = vars(self.text).copy()
        data["columns"] = {name: _column_to_dict(column) for name, column in self.columns.items()}
        return data

    def encoded(self) -> dict[str, Column]:
        """The columns that the autoencoder makes, by name."""
        return {name: column for name, column in self.columns.items() if column.is_encoded}

    def latents(self) -> dict[str, Column]:
        """The columns that hold latents or moments, by name."""
        return {name: column for name, column in self.columns.items() if column.is_latent}

    def tokens(self) -> dict[str, Column]:
        """The columns that hold tokens, by name."""
        return {name: column for name, column in self.columns.items() if column.content == "tokens"}

    def texts(self) -> dict[str, Column]:
        """The columns that the text encoder makes, by name."""
        return {name: column for name, column in self.columns.items() if column.content in TEXT}

    def embeddings(self) -> dict[str, Column]:
        """Those of them that have a quantiser, by name."""
        return {name: column for name, column in self.columns.items() if column.is_embedding}

    def override(self, **options: Any) -> Recipe:
        """This recipe with some fields changed; `changed` then names them. An option of None changes nothing.

        Args:
            options: `autoencoder` (the model), `revision`, `subfolder`, `pixel_range`, `dtype`, `seed`, `size`, `crop`,
                `filter`, `orient`, `alpha`, `icc`, `min_size`, `min_side`, `store` (`sample`, `mean`, `moments` or
                `tokens`), `scaled`, `flip`, `bits`, `calibrate` (the method; `lloyd-max` makes code books),
                `calibration` and `unit_size`. Those of encoded columns change every one of them; `flip` adds, for each
                that is not mirrored, a twin that is. `text_encoder` (the model), `text_revision`, `text_subfolder`,
                `text_dtype`, `text_length` and `text_captions` are those of the text encoder. Its model adds columns of
                embedding and mask to a recipe that has none; `pooled` adds the pooled embedding, `image` the picture.

        Raises:
            RecipeError: A value is out of range, or cannot be changed in this recipe.
        """
        data = self.to_dict()
        changed = list(self.changed)
        # What the text encoder makes can be asked for once there is one.
        for option, value in sorted(options.items(), key=lambda item: item[0] != "text_encoder"):
            if value is None:
                continue
            before = Recipe.from_dict(data)
            data = before.to_dict()
            encoded = {name: column for name, column in data["columns"].items() if column["from"] in ENCODED}
            if option in ("unit_size", "calibration"):
                data[option] = value
            elif option in _names(ImageOptions):
                data["image"][option] = value
            elif option == "autoencoder":
                data["autoencoder"]["model"] = str(value)
            elif option in _names(AutoencoderOptions):
                data["autoencoder"][option] = value
            elif option in _TEXT_FIELDS:
                text, key = data.setdefault("text", {}), _TEXT_FIELDS[option]
                if key in ("model", "length", "captions") and value != getattr(before.text, key):
                    for name in before.texts():
                        data["columns"][name]["shape"] = []
                text[key] = value
                if option == "text_encoder" and not before.texts():
                    data["columns"] |= _TEXT_COLUMNS
                several = option == "text_captions" and value != 1
                if several and all(column.content != "captions" for column in before.columns.values()):
                    data["columns"] |= _SEVERAL
            elif option in ("pooled", "image"):
                column = {"pooled": _POOLED, "image": _IMAGE}[option]
                have = {column.content for column in before.columns.values()}
                if value and not have & {column["from"] for column in column.values()}:
                    data["columns"] |= column
            elif option == "store":
                data["columns"] = _stored_as(data["columns"], value)
            elif option == "scaled":
                for name, column in encoded.items():
                    if column["from"] != "latent":
                        raise RecipeError(f"column {name} holds {column['from']}: {option} does not apply")
                    column[option] = value
            elif option == "size":
                if len({column["size"] for column in encoded.values()}) > 1:
                    raise RecipeError(f"recipe {self.name} stores several sizes: --size cannot say which to change")
                for column in encoded.values():
                    column.update(size=value, shape=[])
            elif option == "flip":
                for name, column in encoded.items() if value else ():
                    if not column["flip"]:
                        data["columns"].setdefault(f"{name}_flip", {**column, "flip": True})
            elif option in ("bits", "calibrate"):
                key = {"bits": "bits", "calibrate": "method"}[option]
                for name, column in encoded.items():
                    if column["from"] == "tokens":
                        raise RecipeError(f"column {name} holds tokens: {option} does not apply")
                    if key not in _QUANTIZER_KEYS[column["quantizer"]["kind"]]:
                        kind = column["quantizer"]["kind"]
                        raise RecipeError(f"recipe {self.name} stores {kind} latents: {option} does not apply")
                    column["quantizer"] = {**column["quantizer"], key: value}
                    if key == "method" and column["quantizer"]["kind"] in ("affine", "codebook"):
                        column["quantizer"]["kind"] = "codebook" if value == "lloyd-max" else "affine"
            else:
                raise TypeError(f"{option!r} is not a field of a recipe that can be overridden")
            after = Recipe.from_dict(data)
            if replace(after, changed=()) != replace(before, changed=()) and option not in changed:
                changed.append(option)
        recipe = replace(Recipe.from_dict(data), changed=tuple(sorted(changed)))
        if recipe.text != self.text and not recipe.texts():
            raise RecipeError(f"recipe {self.name} embeds no captions: a text encoder must be named")
        return recipe


_TEXT_FIELDS = {
    "text_encoder": "model", "text_revision": "revision", "text_subfolder": "subfolder", "text_dtype": "dtype",
    "text_length": "length", "text_captions": "captions",
}  # fmt: skip


# What `override` adds to a recipe.
_TEXT_COLUMNS = {
    "caption_embedding": {"from": "caption_embedding"},
    "attention_mask": {"from": "attention_mask", "optional": True},
}


_POOLED = {"pooled_embedding": {"from": "pooled_embedding"}}


_SEVERAL = {"captions": {"from": "captions", "encoding": "json"}}


_IMAGE = {"jpg": {"from": "image", "encoding": "jpeg"}}


def _stored_as(columns: Mapping[str, Any], store: Any) -> dict[str, Any]:
    """Columns that hold samples, means, moments or tokens; those named after what they held are renamed with it."""
    if store not in STORES:
        raise RecipeError(f"store must be one of {', '.join(STORES)}, not {store!r}")
    content = store if store in ENCODED else "latent"
    result = {}
    for name, column in columns.items():
        before = column["from"]
        if before in ENCODED:
            if name in (before, f"{before}_flip"):
                name = content + name.removeprefix(before)
            if before != content:
                # What went with the old content, its type and shape say, does not go with the new.
                column = {key: value for key, value in column.items() if key in {"size", "flip", "optional"}}
            column = {**column, "from": content}
            if content == "latent":
                column["store"] = store
        result[name] = column
    return result


def _read(name: str | os.PathLike[str]) -> tuple[str, str]:
    """The text of a recipe, and what to call it in messages."""
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


def _names(table: type) -> set[str]:
    return {entry.name for entry in fields(table)}


def _table(data: Mapping[str, Any], name: str, table: type) -> dict[str, Any]:
    """The fields of a sub-table, each checked against its declared type."""
    values = data.get(name, {})
    if not isinstance(values, dict):
        raise RecipeError(f"{name!r} must be a table")
    return {key: _checked(f"{name}.{key}", key, value, table) for key, value in values.items()}


def _checked(where: str, key: str, value: Any, table: type) -> Any:
    types = {entry.name: str(entry.type) for entry in fields(table)}
    if key not in types:
        raise RecipeError(f"unknown field {where!r}")
    declared = types[key]
    if declared in _CHOICES:
        choices = get_args(_CHOICES[declared])
        if value not in choices:
            raise RecipeError(f"{where} must be one of {', '.join(choices)}, not {value!r}")
    elif key == "pixel_range":
        numbers = isinstance(value, list | tuple) and all(
            type(side) in (int, float) and math.isfinite(side) for side in value
        )
        if not numbers or (value and not (len(value) == 2 and value[0] < value[1])):
            raise RecipeError(f"{where} must be two numbers, black's and white's, not {value!r}")
        return tuple(map(float, value))
    elif (expected := {"str": str, "int": int, "bool": bool}.get(declared)) and type(value) is not expected:
        raise RecipeError(f"{where} must be of type {declared}, not {value!r}")
    return value


def _column(name: str, data: Any) -> Column:
    where = f"columns.{name}"
    if not isinstance(data, dict):
        raise RecipeError(f"{where!r} must be a table")
    if data.get("from") not in get_args(Content):
        raise RecipeError(f"{where}.from must be one of {', '.join(get_args(Content))}, not {data.get('from')!r}")
    values = {key: value for key, value in data.items() if key not in ("from", "shape", "quantizer")}
    if "content" in values:
        raise RecipeError(f"unknown field '{where}.content'")
    values = {key: _checked(f"{where}.{key}", key, value, Column) for key, value in values.items()}
    content = data["from"]
    for key in data.keys() & (set().union(*_KEYS.values()) - _KEYS.get(content, set())):
        the = "" if content in _KEYS else "the "
        raise RecipeError(f"{where}.{key} is for latents, and this column holds {the}{content}")
    if content not in _KEYS:
        if not values.get("encoding"):
            raise RecipeError(f"{where} needs an encoding")
        return Column(content=content, **values)
    shape = data.get("shape", [])
    if not isinstance(shape, list | tuple) or not all(type(side) is int and side > 0 for side in shape):
        raise RecipeError(f"{where}.shape must be a list of whole numbers, not {shape!r}")
    if values.get("size", 1) < 1:
        raise RecipeError(f"{where}.size must be at least 1, not {values['size']!r}")
    quantizer = data.get("quantizer", _QUANTIZERS.get(content, {}))
    if content in _QUANTIZERS:
        _check_quantizer(f"{where}.quantizer", quantizer)
    return Column(content=content, shape=tuple(shape), quantizer=dict(quantizer), **values)


def _check_quantizer(where: str, data: Any) -> None:
    if not isinstance(data, dict) or data.get("kind") not in _QUANTIZER_KEYS:
        raise RecipeError(f"{where}.kind must be one of {', '.join(_QUANTIZER_KEYS)}")
    for key in data.keys() - _QUANTIZER_KEYS[data["kind"]]:
        raise RecipeError(f"unknown field '{where}.{key}' for kind {data['kind']!r}")
    bits = data.get("bits", 8)
    if type(bits) is not int or not 2 <= bits <= 8:
        raise RecipeError(f"{where}.bits must be a whole number from 2 to 8, not {bits!r}")
    if data["kind"] == "uniform" and not {"low", "high"} <= data.keys():
        raise RecipeError(f"{where} of kind 'uniform' needs low and high")
    methods = ("lloyd-max",) if data["kind"] == "codebook" else ("mse", "minmax", "percentile")
    for key, choices in (("method", methods), ("rounding", ("nearest", "truncate"))):
        if key in data and data[key] not in choices:
            raise RecipeError(f"{where}.{key} must be one of {', '.join(choices)}, not {data[key]!r}")


def _column_to_dict(column: Column) -> dict[str, Any]:
    data: dict[str, Any] = {"from": column.content, "encoding": column.encoding, "optional": column.optional}
    for key in fields(Column):
        if key.name in _KEYS.get(column.content, ()):
            value = getattr(column, key.name)
            data[key.name] = list(value) if key.name == "shape" else dict(value) if key.name == "quantizer" else value
    return data
