"""Labels of any source as class numbers: one rule for all kinds of values."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import SupportsInt

from latentq._core import MismatchError
from latentq.sources.listing import Sample
from latentq.system.text import counted

Classes = Mapping[str, tuple[int, str]]
"""Label and readable name of each class name."""

MAX_LABEL = (1 << 63) - 1  # an int64
_WHOLE = re.compile(r"[+-]?\d+(\.0*)?")
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?|nan", re.IGNORECASE)
_LONGEST_SHOWN = 30


@dataclass(frozen=True)
class _Value:
    """A label as a number, or a class name; neither if the sample has no label."""

    number: int | None = None
    name: str | None = None


def with_labels(
    source: object, samples: Sequence[Sample], values: Sequence[object], classes: Classes | None = None
) -> tuple[list[Sample], tuple[str, ...]]:
    """Adds labels to samples.

    Whole numbers from 0 are labels; so are floats and texts of such numbers, and booleans (0 and 1). If any text is not
    a number, every value is a class name: names are numbered in sorted order, and are the `label_text`. Missing and
    negative values, NaN, fractions and values of other types are no label. A number above int64 is recorded as the
    sample's `fault`.

    Args:
        source: The source, for messages.
        samples: The samples.
        values: The label of each sample, as the source has it.
        classes: Label and readable name of each class name; None numbers the names.

    Returns:
        The samples, and the fields of the listing: `label` and `label_text`, if any sample has them.

    Raises:
        MismatchError: `classes` does not have a class name.
    """
    if all(value is None for value in values):
        return list(samples), ()
    parsed = [_parsed(value) for value in values]
    if any(value.name is not None for value in parsed):
        return _with_names(source, samples, values, classes)
    labeled = []
    for sample, value in zip(samples, parsed, strict=True):
        if value.number is not None and value.number > MAX_LABEL:
            shown = str(value.number)[:_LONGEST_SHOWN]
            labeled.append(replace(sample, label=None, fault=sample.fault or f"the label {shown} is above int64"))
        else:
            labeled.append(replace(sample, label=value.number))
    return labeled, ("label",) if any(sample.label is not None for sample in labeled) else ()


def _with_names(
    source: object, samples: Sequence[Sample], values: Sequence[object], classes: Classes | None
) -> tuple[list[Sample], tuple[str, ...]]:
    names = [_class_name(value) for value in values]
    present = sorted({name for name in names if name is not None})
    if classes is None:
        classes = {name: (number, name) for number, name in enumerate(present)}
    elif unknown := [name for name in present if name not in classes]:
        raise MismatchError(f"{source} has a class {unknown[0]!r} that the dataset of --like does not have")
    labeled = []
    for sample, name in zip(samples, names, strict=True):
        label, text = classes[name] if name is not None else (None, None)
        labeled.append(replace(sample, label=label, label_text=sample.label_text or text))
    return labeled, ("label", "label_text")


def _class_name(value: object) -> str | None:
    """Returns a value as a class name; None if it is missing."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    text = str(value).strip()
    return text if text and text.lower() != "nan" and isinstance(value, str | int | float) else None


def _parsed(value: object) -> _Value:
    if hasattr(value, "item"):  # a NumPy scalar or a tensor of one value
        try:
            value = value.item()
        except (ValueError, RuntimeError):  # of several values
            return _Value()
    if isinstance(value, bool | int):
        return _whole_number(value)
    if isinstance(value, Decimal):
        return _parsed(f"{value:f}") if value.is_finite() else _Value()
    if isinstance(value, float):
        return _whole_number(value) if math.isfinite(value) and value.is_integer() else _Value()
    if isinstance(value, str) and (text := value.strip()):
        if _WHOLE.fullmatch(text) and text.isascii():
            return _digits(text.partition(".")[0])
        return _Value() if _NUMBER.fullmatch(text) else _Value(name=text)
    return _Value()


def _whole_number(value: SupportsInt) -> _Value:
    number = int(value)
    return _Value(number if number >= 0 else None)


def _digits(text: str) -> _Value:
    """Parses a whole number.

    Python refuses thousands of digits, so only the first ones are parsed, enough to exceed int64.
    """
    digits = text.lstrip("+-").lstrip("0") or "0"
    if text.startswith("-"):
        return _Value(0 if digits == "0" else None)
    return _Value(int(digits[:_LONGEST_SHOWN]))


def labels_note(samples: Sequence[Sample], values: Sequence[object]) -> tuple[str, ...]:
    """Returns the note that samples have no label, if the source has labels.

    Args:
        samples: The samples from `with_labels`.
        values: The label of each sample, as the source has it.
    """
    usable = [sample for sample in samples if not sample.fault]
    missing = [sample for sample in usable if sample.label is None]
    if not missing:
        return ()
    if len(missing) == len(usable):
        given = [value for value in values if value not in (None, "")]
        return (f"no labels: {given[0]!r:.30} is neither a class number nor a name",) if given else ()
    return (f"no label for {len(missing)} of {counted(len(usable), 'sample')}, {missing[0].text} first",)
