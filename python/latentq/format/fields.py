"""TOML tables of a recipe, checked field by field."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import fields
from typing import Any, TypeVar, get_args

from latentq._core import RecipeError
from latentq.choices import Alpha, Crop, Filter, Icc, Size
from latentq.format.options import (
    COLUMN_FIELDS,
    CONDITIONING,
    CONDITIONING_ENCODING,
    DEFAULT_QUANTIZERS,
    METHODS,
    QUANTIZER_FIELDS,
    TRANSFORM_SIZES,
    Column,
    Content,
    Dtype,
    Spread,
    Store,
)

_CHOICES = {
    "Crop": Crop,
    "Filter": Filter,
    "Alpha": Alpha,
    "Icc": Icc,
    "Dtype": Dtype,
    "Store": Store,
    "Spread": Spread,
}
_Options = TypeVar("_Options")


def field_names(table: type) -> set[str]:
    """Returns the names of a dataclass's fields."""
    return {entry.name for entry in fields(table)}


def options_from(data: Mapping[str, Any], name: str, options: type[_Options]) -> _Options:
    """Returns the options of the sub-table `name`, each checked against its declared type.

    Raises:
        RecipeError: A field is unknown, of the wrong type or out of range.
    """
    values = data.get(name, {})
    if not isinstance(values, dict):
        raise RecipeError(f"{name!r} must be a table")
    return options(**{key: _checked(f"{name}.{key}", key, value, options) for key, value in values.items()})


def column_from(name: str, data: object) -> Column:
    """Returns the column of the table `[columns.NAME]`.

    Raises:
        RecipeError: A field is unknown, missing, of the wrong type or out of range, or its content does not have it.
    """
    where = f"columns.{name}"
    if not isinstance(data, dict):
        raise RecipeError(f"{where!r} must be a table")
    content: Any = data.get("from")
    if content not in get_args(Content):
        raise RecipeError(f"{where}.from must be one of {', '.join(get_args(Content))}, not {content!r}")
    values = {key: value for key, value in data.items() if key not in ("from", "shape", "quantizer")}
    if "content" in values:
        raise RecipeError(f"unknown field '{where}.content'")
    if "size" in values:
        values["size"] = _checked_size(f"{where}.size", values["size"])
    values = {key: _checked(f"{where}.{key}", key, value, Column) for key, value in values.items()}
    for key in data.keys() & (set().union(*COLUMN_FIELDS.values()) - COLUMN_FIELDS.get(content, set())):
        the = "" if content in COLUMN_FIELDS else "the "
        raise RecipeError(f"{where}.{key} is for latents, and this column holds {the}{content}")
    if content not in COLUMN_FIELDS:
        if not values.get("encoding"):
            raise RecipeError(f"{where} needs an encoding")
        if content in CONDITIONING and values["encoding"] != CONDITIONING_ENCODING:
            raise RecipeError(f"{where}.encoding must be {CONDITIONING_ENCODING}, not {values['encoding']!r}")
        return Column(content=content, **values)
    shape = data.get("shape", [])
    if not isinstance(shape, list | tuple) or not all(type(side) is int and side > 0 for side in shape):
        raise RecipeError(f"{where}.shape must be a list of whole numbers, not {shape!r}")
    quantizer = data.get("quantizer", DEFAULT_QUANTIZERS.get(content, {}))
    if content in DEFAULT_QUANTIZERS:
        _check_quantizer(f"{where}.quantizer", quantizer)
        if quantizer["kind"] == "transform" and content != "latent":
            raise RecipeError(f"{where}: a transform is for latents; store {content} by a trellis or another kind")
    return Column(content=content, shape=tuple(shape), quantizer=dict(quantizer), **values)


def column_table(column: Column) -> dict[str, Any]:
    """Returns the table that `column_from` reads, without a size if the recipe has buckets, or the usual spread."""
    table: dict[str, Any] = {"from": column.content, "encoding": column.encoding, "optional": column.optional}
    for key in fields(Column):
        if key.name in COLUMN_FIELDS.get(column.content, ()):
            value = getattr(column, key.name)
            if (key.name == "size" and not value) or (key.name == "spread" and value == "logvar"):
                continue
            table[key.name] = (
                list(value) if isinstance(value, tuple) else dict(value) if key.name == "quantizer" else value
            )
    return table


def _checked_size(where: str, size: Any) -> Size:
    """Returns a size, or raises RecipeError if it is neither a side nor [height, width]."""
    sides = size if isinstance(size, list | tuple) and len(size) == 2 else [size]
    if not all(type(side) is int and side >= 1 for side in sides):
        raise RecipeError(f"{where} must be a number of pixels, at least 1, or [height, width], not {size!r}")
    return (sides[0], sides[1]) if len(sides) == 2 and sides[0] != sides[1] else int(sides[0])


def _checked(where: str, key: str, value: Any, table: type) -> Any:
    """Returns the value of the field `key` of a dataclass, checked against its declared type.

    Args:
        where: The field's full name for messages, e.g. `image.size`.
        key: The field's name.
        value: The value, as TOML gives it.
        table: The dataclass.

    Raises:
        RecipeError: The field is unknown, of the wrong type or out of range.
    """
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


def _check_quantizer(where: str, data: Any) -> None:
    if not isinstance(data, dict) or data.get("kind") not in QUANTIZER_FIELDS:
        raise RecipeError(f"{where}.kind must be one of {', '.join(QUANTIZER_FIELDS)}")
    for key in data.keys() - QUANTIZER_FIELDS[data["kind"]]:
        raise RecipeError(f"unknown field '{where}.{key}' for kind {data['kind']!r}")
    bits = data.get("bits", 8)
    if type(bits) is not int or not 2 <= bits <= 8:
        raise RecipeError(f"{where}.bits must be a whole number from 2 to 8, not {bits!r}")
    if data["kind"] == "uniform" and not {"low", "high"} <= data.keys():
        raise RecipeError(f"{where} of kind 'uniform' needs low and high")
    if data["kind"] == "transform":
        _check_transform(where, data)
    for key, choices in (("method", METHODS.get(data["kind"], ())), ("rounding", ("nearest", "truncate"))):
        if key in data and data[key] not in choices:
            raise RecipeError(f"{where}.{key} must be one of {', '.join(choices)}, not {data[key]!r}")


def _check_transform(where: str, data: Mapping[str, Any]) -> None:
    """Raises RecipeError if the options of a transform are out of range."""
    sizes = [key for key in TRANSFORM_SIZES if key in data]
    if len(sizes) != 1:
        found = " and ".join(sizes) or "none"
        raise RecipeError(f"{where} of kind 'transform' needs one of {', '.join(TRANSFORM_SIZES)}, not {found}")
    sample_bytes, rate = data.get("bytes", 1), data.get("rate", 1.0)
    if type(sample_bytes) is not int or not 1 <= sample_bytes < 2**31:
        raise RecipeError(f"{where}.bytes must be a number of bytes per sample, not {sample_bytes!r}")
    if type(rate) not in (int, float) or not 0.25 <= rate <= 16:
        raise RecipeError(f"{where}.rate must be 0.25 to 16 bits per element, not {rate!r}")
    if data.get("metric", "decoder") != "decoder":
        raise RecipeError(f"{where}.metric must be 'decoder', not {data['metric']!r}")
