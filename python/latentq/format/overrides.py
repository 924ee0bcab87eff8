"""Overrides: the fields of a recipe that an option of `encode` changes, in one table.

The options of the command line and their help, the table in `docs/encoding.md` and `Recipe.override` all come from this
table. `RecipeOverrides` repeats its names and types for type checkers, which need them literally.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal, TypedDict, get_args

from latentq._core import RecipeError
from latentq.choices import Alpha, Codec, Crop, Filter, Icc, Method, Size
from latentq.format.buckets import Buckets, BucketsOption, Small, parse_buckets
from latentq.format.options import (
    CONDITIONING,
    CONDITIONING_ENCODING,
    ENCODED,
    METHODS,
    QUANTIZER_FIELDS,
    TEXT,
    TRANSFORM_SIZES,
    Dtype,
    TextOptions,
)

StoreOption = Literal["sample", "mean", "moments", "tokens"]
PixelRange = tuple[float, float]
Tables = dict[str, Any]


class RecipeOverrides(TypedDict, total=False):
    """Keyword arguments of `latentq.encode` that change fields of the recipe; None changes nothing."""

    revision: str | None
    subfolder: str | None
    pixel_range: PixelRange | None
    dtype: Dtype | None
    seed: int | None
    size: Size | None
    buckets: BucketsOption | None
    small: Small | None
    crop: Crop | None
    filter: Filter | None
    orient: bool | None
    alpha: Alpha | None
    icc: Icc | None
    min_size: int | None
    min_side: int | None
    store: StoreOption | None
    scaled: bool | None
    flip: bool | None
    codec: Codec | None
    bits: int | None
    bytes: int | None
    calibrate: Method | None
    calibration: int | None
    unit_size: int | None
    image: bool | None
    conditioning: bool | None
    text_revision: str | None
    text_subfolder: str | None
    text_dtype: Dtype | None
    text_length: int | None
    text_captions: int | None
    pooled: bool | None


@dataclass(frozen=True)
class Override:
    """One option that changes a recipe.

    Attributes:
        name: The keyword of `latentq.encode`. The option of the command line is `--name`, with dashes.
        field: The recipe's field that it sets. `columns.*` stands for every column that the autoencoder computes;
            `columns` alone means that the option adds columns.
        type: The type of its value.
        help: What it does, in one line.
        metavar: The placeholder of its value in help texts; empty where the type gives the choices.
    """

    name: str
    field: str
    type: Any
    help: str
    metavar: str = ""

    @property
    def option(self) -> str:
        """The option of the command line."""
        return f"--{self.name.replace('_', '-')}"

    @property
    def adds_columns(self) -> bool:
        """True if the option adds columns to the recipe, False if it sets a field."""
        return self.field == "columns"


OVERRIDES = (
    Override("autoencoder", "autoencoder.model", str, "a Hub name, a folder, a checkpoint, or dct-f8c16", "NAME"),
    Override("revision", "autoencoder.revision", str, "the Hub's branch, tag or commit", "REVISION"),
    Override(
        "subfolder", "autoencoder.subfolder", str, "the autoencoder's folder inside its repository or folder", "NAME"
    ),
    Override(
        "pixel_range", "autoencoder.pixel_range", PixelRange,
        "pixel values of black and white, for a checkpoint trained on another range than its family", "LOW HIGH",
    ),
    Override("dtype", "autoencoder.dtype", Dtype, "type that the autoencoder computes in"),
    Override("seed", "autoencoder.seed", int, "seed of the posterior's noise", "N"),
    Override("size", "columns.*.size", Size, "side of the square that is encoded, or HEIGHTxWIDTH", "PIXELS"),
    Override(
        "buckets", "buckets", BucketsOption,
        "encode each image at the nearest aspect ratio: kohya, nemo, an area such as 1048576, or HxW,HxW,...", "SET",
    ),
    Override(
        "small", "buckets.small", Small,
        "an image smaller than its bucket is enlarged, rejected, or put into one that it covers",
    ),
    Override("crop", "image.crop", Crop, "how the square or rectangle is cut out"),
    Override("filter", "image.filter", Filter, "Pillow's resampling filter"),
    Override("orient", "image.orient", bool, "apply the EXIF orientation"),
    Override("alpha", "image.alpha", Alpha, "background of transparent pixels; drop ignores the alpha channel"),
    Override("icc", "image.icc", Icc, "convert embedded color profiles to sRGB, or ignore them"),
    Override("min_size", "image.min_size", int, "reject images with a side below this; 0 accepts all", "PIXELS"),
    Override(
        "min_side", "image.min_side", int,
        "decode large JPEGs at reduced scale, short side at least this (faster, not bit-exact); 0: full size", "PIXELS",
    ),
    Override(
        "store", "columns.*.from", StoreOption, "store a draw from the posterior, its mean, both its moments, or tokens"
    ),
    Override("scaled", "columns.*.scaled", bool, "store latents in the scale of training"),
    Override("flip", "columns", bool, "store the mirrored images too, in columns NAME_flip"),
    Override(
        "codec", "columns.*.quantizer.kind", Codec,
        "encode each value (affine), or whole samples with far less error: trellis for codes of --bits, transform for "
        "--bytes (or --bits 4)",
    ),
    Override("bits", "columns.*.quantizer.bits", int, "bits of each stored value", "2..8"),
    Override("bytes", "columns.*.quantizer.bytes", int, "bytes of each latent, by the transform codec", "N"),
    Override(
        "calibrate", "columns.*.quantizer.method", Method,
        "how quantizers are calibrated; lloyd-max makes codebooks, trellis a trellis",
    ),
    Override("calibration", "calibration", int, "number of images that quantizers are calibrated on", "N"),
    Override("unit_size", "unit_size", int, "samples per unit, which is published as a whole; at most 65,536", "N"),
    Override("image", "columns", bool, "store the image file too, in column jpg"),
    Override(
        "conditioning", "columns", bool, "store original_size, crop_top_left and bucket, which SDXL is conditioned on"
    ),
    Override(
        "text_encoder", "text.model", str, "embed the captions with a Hub name, a folder, or openclip:NAME", "NAME"
    ),
    Override("text_revision", "text.revision", str, "the Hub's branch, tag or commit", "REVISION"),
    Override(
        "text_subfolder", "text.subfolder", str,
        "the text encoder of a pipeline that has several, e.g. text_encoder_2", "NAME",
    ),
    Override("text_dtype", "text.dtype", Dtype, "type that the text encoder computes in"),
    Override(
        "text_length", "text.length", int, "tokens that a caption is padded or cut to; 0: as many as the model takes",
        "N",
    ),
    Override("text_captions", "text.captions", int, "number of captions embedded per image", "N"),
    Override("pooled", "columns", bool, "store the pooled embedding too"),
)  # fmt: skip
_BY_NAME = {override.name: override for override in OVERRIDES}
_ORDER = {name: number for number, name in enumerate(_BY_NAME)}


def in_order(names: Iterable[str]) -> list[str]:
    """Returns names of options in the order in which they apply: `--codec` before the options of a codec.

    The text encoder comes first: other options change the columns that it adds.
    """
    return sorted(names, key=lambda name: (name != "text_encoder", _ORDER.get(name, len(_ORDER))))


_EMBEDDING_COLUMNS = {
    "caption_embedding": {"from": "caption_embedding"},
    "attention_mask": {"from": "attention_mask", "optional": True},
}
_POOLED_COLUMN = {"pooled_embedding": {"from": "pooled_embedding"}}
_CAPTIONS_COLUMN = {"captions": {"from": "captions", "encoding": "json"}}
_IMAGE_COLUMN = {"jpg": {"from": "image", "encoding": "jpeg"}}
_CONDITIONING_COLUMNS = {content: {"from": content, "encoding": CONDITIONING_ENCODING} for content in CONDITIONING}


def default_text(override: Override, tables: Tables) -> str:
    """Returns the value that a recipe has for an override, as the command line writes it; empty if it has none.

    Args:
        override: The override.
        tables: The tables of a recipe that has a column `latent`.
    """
    if override.adds_columns or override.name == "buckets":
        return ""
    if override.name == "small":
        return Buckets().small
    if override.name == "store":
        return str(tables["columns"]["latent"]["store"])
    value: Any = {"text": vars(TextOptions()), **tables}
    for key in override.field.split("."):
        value = value.get("latent" if key == "*" else key, "")
    if isinstance(value, bool):
        return override.option if value else f"--no-{override.name}"
    return "" if value == () else str(value)


def apply_override(tables: Tables, name: str, value: object) -> None:
    """Changes a recipe's tables in place, by one option.

    Args:
        tables: The tables of a valid recipe, every field in its place. The result may be invalid.
        name: The option's name.
        value: Its value, not yet checked.

    Raises:
        RecipeError: The recipe has nothing that the option could change.
        TypeError: There is no such option.
    """
    if name not in _BY_NAME:
        raise TypeError(f"{name!r} is not a field of a recipe that can be overridden")
    if name in _CHANGES:
        _CHANGES[name](tables, value)
    elif (field := _BY_NAME[name].field).startswith("text."):
        _change_text(tables, field.removeprefix("text."), value)
    else:
        *parents, key = field.split(".")
        for parent in parents:
            tables = tables[parent]
        tables[key] = value


def _change_text(tables: Tables, key: str, value: Any) -> None:
    """Sets a field of the text encoder, drops the shapes that no longer hold and adds the columns that it needs."""
    columns = tables["columns"]
    text = tables.setdefault("text", vars(TextOptions()).copy())
    embeddings = [column for column in columns.values() if column["from"] in TEXT]
    if key in ("model", "length", "captions") and value != text[key]:
        for column in embeddings:
            column["shape"] = []
    text[key] = value
    if key == "model" and not embeddings:
        columns |= _EMBEDDING_COLUMNS
    if key == "captions" and value != 1:
        _add_column(tables, _CAPTIONS_COLUMN)


def _add_column(tables: Tables, column: Tables) -> None:
    """Adds a column unless the recipe has one of the same content."""
    contents = {present["from"] for present in tables["columns"].values()}
    if not contents & {added["from"] for added in column.values()}:
        tables["columns"] |= column


def _add_pooled(tables: Tables, wanted: Any) -> None:
    if wanted:
        _add_column(tables, _POOLED_COLUMN)


def _add_image(tables: Tables, wanted: Any) -> None:
    if wanted:
        _add_column(tables, _IMAGE_COLUMN)


def _add_conditioning(tables: Tables, wanted: Any) -> None:
    for name, column in _CONDITIONING_COLUMNS.items() if wanted else ():
        _add_column(tables, {name: column})


def _add_flipped(tables: Tables, wanted: Any) -> None:
    for name, column in _encoded(tables).items() if wanted else ():
        if not column["flip"]:
            tables["columns"].setdefault(f"{name}_flip", {**column, "flip": True})


def _change_size(tables: Tables, size: Any) -> None:
    _drop_sizes(tables, "size")
    tables.pop("buckets", None)
    for column in _encoded(tables).values():
        column["size"] = size


def _change_buckets(tables: Tables, value: Any) -> None:
    _drop_sizes(tables, "buckets")
    small = {"small": tables["buckets"]["small"]} if "buckets" in tables else {}
    tables["buckets"] = small | parse_buckets(value)


def _drop_sizes(tables: Tables, option: str) -> None:
    """Drops the sizes of all columns, which must be one, and the shapes that follow from it."""
    encoded = _encoded(tables)
    if len({str(column.get("size")) for column in encoded.values()}) > 1:
        raise RecipeError(f"recipe {tables['name']} stores several sizes: --{option} cannot say which to change")
    for column in encoded.values():
        column.pop("size", None)
        column["shape"] = []


def _change_small(tables: Tables, small: Any) -> None:
    if "buckets" not in tables:
        raise RecipeError(f"recipe {tables['name']} has no buckets: small does not apply")
    tables["buckets"]["small"] = small


def _change_scaled(tables: Tables, scaled: Any) -> None:
    for name, column in _encoded(tables).items():
        if column["from"] != "latent":
            raise RecipeError(f"column {name} holds {column['from']}: scaled does not apply")
        column["scaled"] = scaled


def _change_codec(tables: Tables, codec: Any) -> None:
    if codec not in get_args(Codec):
        raise RecipeError(f"codec must be one of {', '.join(get_args(Codec))}, not {codec!r}")
    for column in _quantized(tables, "codec", "kind"):
        before = column["quantizer"]
        if before["kind"] == codec:
            continue
        if codec == "transform":
            column["quantizer"] = {"kind": "transform", "bits": 4}
        else:
            column["quantizer"] = {"kind": codec, "bits": before.get("bits", 8), "method": METHODS[codec][0]}
        if column["encoding"].startswith("ndarray:"):  # that of the kind before
            column["encoding"] = ""


def _change_bits(tables: Tables, bits: Any) -> None:
    for column in _quantized(tables, "bits", "bits"):
        column["quantizer"] = _without_size(column["quantizer"]) | {"bits": bits}


def _change_bytes(tables: Tables, sample_bytes: Any) -> None:
    if all(
        column["from"] != "tokens" and column["quantizer"]["kind"] != "trellis" for column in _encoded(tables).values()
    ):
        _change_codec(tables, "transform")  # only a transform has a number of bytes
    for column in _quantized(tables, "bytes", "bytes"):
        column["quantizer"] = _without_size(column["quantizer"]) | {"bytes": sample_bytes}


def _without_size(quantizer: Tables) -> Tables:
    """Returns a quantizer's options without those that say how large a sample of a transform is."""
    sizes = TRANSFORM_SIZES if quantizer["kind"] == "transform" else ()
    return {key: value for key, value in quantizer.items() if key not in sizes}


def _change_method(tables: Tables, method: Any) -> None:
    for column in _quantized(tables, "calibrate", "method"):
        kind = next((kind for kind, methods in METHODS.items() if method in methods), "affine")
        column["quantizer"] = {**column["quantizer"], "method": method, "kind": kind}


def _quantized(tables: Tables, option: str, key: str) -> list[Tables]:
    """Returns the columns that the autoencoder computes, whose quantizers must all have the field `key`.

    Args:
        tables: The recipe, as TOML gives it.
        option: The option's name, for messages.
        key: The field that the option sets.
    """
    encoded = _encoded(tables)
    for name, column in encoded.items():
        if column["from"] == "tokens":
            raise RecipeError(f"column {name} holds tokens: {option} does not apply")
        kind = column["quantizer"]["kind"]
        if key not in QUANTIZER_FIELDS[kind]:
            raise RecipeError(f"recipe {tables['name']} stores {kind} latents: {option} does not apply")
    return list(encoded.values())


def _encoded(tables: Tables) -> dict[str, Tables]:
    return {name: column for name, column in tables["columns"].items() if column["from"] in ENCODED}


def _change_store(tables: Tables, store: Any) -> None:
    """Makes columns hold samples, means, moments or tokens; a column named by its content is renamed with it."""
    if store not in get_args(StoreOption):
        raise RecipeError(f"store must be one of {', '.join(get_args(StoreOption))}, not {store!r}")
    content = store if store in ENCODED else "latent"
    columns = {}
    for name, column in tables["columns"].items():
        before = column["from"]
        if before in ENCODED:
            if name in (before, f"{before}_flip"):
                name = content + name.removeprefix(before)
            if before != content:
                # Type, shape and the like belong to the old content.
                column = {key: value for key, value in column.items() if key in {"size", "flip", "optional"}}
            column = {**column, "from": content}
            if content == "latent":
                column["store"] = store
        columns[name] = column
    tables["columns"] = columns


_CHANGES: dict[str, Callable[[Tables, Any], None]] = {
    "size": _change_size,
    "buckets": _change_buckets,
    "small": _change_small,
    "store": _change_store,
    "scaled": _change_scaled,
    "flip": _add_flipped,
    "codec": _change_codec,
    "bits": _change_bits,
    "bytes": _change_bytes,
    "calibrate": _change_method,
    "pooled": _add_pooled,
    "image": _add_image,
    "conditioning": _add_conditioning,
}
