"""Labels of any source as class numbers: one rule for all kinds of values."""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from decimal import Decimal
from typing import NamedTuple, SupportsInt

from latentq._core import MismatchError
from latentq.sources.listing import Sample
from latentq.sources.spool import spooled
from latentq.system.text import counted

Classes = Mapping[str, tuple[int, str]]
"""Label and readable name of each class name."""


class GrowingClasses(dict[str, tuple[int, str]]):
    """Classes to which a source may add: other names are numbered after the known ones, in sorted order.

    Attributes:
        next_label: The smallest number of a new class.
        are_numbers: The labels so far are numbers without names, which names cannot be added to.
    """

    next_label: int = 0
    are_numbers: bool = False


MAX_LABEL = (1 << 63) - 1  # an int64
_WHOLE = re.compile(r"[+-]?\d+(\.0*)?")
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?|nan", re.IGNORECASE)
_LONGEST_SHOWN = 30
_CACHED_VALUES = 1 << 16


class _Value(NamedTuple):
    """A label as a number and as a class name, either of them if it can be one.

    Attributes:
        number: The number, at least 0.
        name: The class name, if any label of the source is one.
        is_name: True if the label can only be a class name.
    """

    number: int | None = None
    name: str | None = None
    is_name: bool = False


def with_labels(
    source: object,
    rows: Iterable[tuple[Sample, object]],
    classes: Classes | None,
    notes: list[str],
    *,
    finish: Callable[[Sample], Sample | None] | None = None,
) -> Iterator[Sample]:
    """Yields samples with their labels, once all rows are taken.

    Whole numbers from 0 are labels; so are floats and texts of such numbers, and booleans (0 and 1). If any text is not
    a number, every value is a class name: names are numbered in sorted order, and are the `label_text`. Missing and
    negative values, NaN, fractions and values of other types are no label. A number above int64 is recorded as the
    sample's `fault`.

    Args:
        source: The source, for messages.
        rows: Samples, each with its label as the source has it.
        classes: Label and readable name of each class name; None numbers the names.
        notes: Gets the note that samples have no label, if the source has labels.
        finish: Changes each labeled sample, or drops it by returning None; called once all rows are taken.

    Raises:
        MismatchError: `classes` does not have a class name.
    """
    names: set[str] = set()
    has_names = False
    first_value = ""

    def parsed(value: object) -> tuple[int | None, str | None]:
        nonlocal has_names, first_value
        number, name, is_name = _parsed(value)
        has_names = has_names or is_name
        if name is not None:
            names.add(name)
        if not first_value and not is_empty(value):
            first_value = f"{value!r:.{_LONGEST_SHOWN}}"
        return number, name

    parsed_text = functools.lru_cache(_CACHED_VALUES)(parsed)  # a table repeats its classes
    taken = (sample + (parsed_text if type(value) is str else parsed)(value) for sample, value in rows)

    numbers: Classes | None = None
    usable = missing = 0
    first_missing = ""
    # Every field by name, because anything shorter is slower, and there may be many millions.
    for (
        key, size, _, text, caption, captions, identifier, archive, archive_bytes, offset, packed, fault, number, name
    ) in spooled(taken):  # fmt: skip
        if numbers is None:
            numbers = numbered_classes(source, sorted(names), classes) if has_names else {}
        label = number
        if has_names:
            label, class_text = (None, None) if name is None else numbers[name]
            text = text or class_text
        elif number is not None and number > MAX_LABEL:
            label, fault = None, fault or f"the label {str(number)[:_LONGEST_SHOWN]} is above int64"
        sample = Sample(
            key, size, label, text, caption, captions, identifier, archive, archive_bytes, offset, packed, fault
        )
        if finish is not None:
            finished = finish(sample)
            if finished is None:
                continue
            sample = finished
        if not sample.fault:
            usable += 1
            if label is None:
                missing += 1
                first_missing = first_missing or sample.text
        yield sample
    if 0 < missing < usable:
        notes.append(f"no label for {missing} of {counted(usable, 'sample')}, {first_missing} first")
    elif missing and first_value:
        notes.append(f"no labels: {first_value} is neither a class number nor a name")


def is_empty(value: object) -> bool:
    """True if a cell is missing: None or an empty text."""
    return value is None or (isinstance(value, str) and not value)


def numbered_classes(source: object, names: list[str], classes: Classes | None) -> Classes:
    """Returns the label and readable name of each class name.

    Args:
        source: The source, for messages.
        names: The class names that it has, in the order of their numbers.
        classes: The classes that are known; None knows none, and numbers the names.

    Raises:
        MismatchError: `classes` does not have a class name, and is not a `GrowingClasses`.
    """
    if classes is None:
        classes = GrowingClasses()
    if names and getattr(classes, "are_numbers", False):
        raise MismatchError(
            f"{source} has the class name {names[0]!r}, the dataset numbers: encode it to another folder"
        )
    unknown = [name for name in names if name not in classes]
    if unknown and not isinstance(classes, GrowingClasses):
        raise MismatchError(f"{source} has a class {unknown[0]!r} that the dataset of --like does not have")
    first = max(getattr(classes, "next_label", 0), 1 + max((number for number, _ in classes.values()), default=-1))
    return {**classes, **{name: (first + position, name) for position, name in enumerate(unknown)}}


def _parsed(value: object) -> _Value:
    number, is_name = _parsed_number(value)
    return _Value(number, _class_name(value), is_name)


def _class_name(value: object) -> str | None:
    """Returns a value as a class name; None if it is missing."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    text = str(value).strip()
    return text if text and text.lower() != "nan" and isinstance(value, str | int | float) else None


def _parsed_number(value: object) -> tuple[int | None, bool]:
    """Returns a value as a number of at least 0, or None; and True if it can only be a class name."""
    if hasattr(value, "item"):  # a NumPy scalar or a tensor of one value
        try:
            value = value.item()
        except (ValueError, RuntimeError):  # of several values
            return None, False
    if isinstance(value, bool | int):
        return _whole_number(value), False
    if isinstance(value, Decimal):
        return _parsed_number(f"{value:f}") if value.is_finite() else (None, False)
    if isinstance(value, float):
        return (_whole_number(value) if math.isfinite(value) and value.is_integer() else None), False
    if isinstance(value, str) and (text := value.strip()):
        if _WHOLE.fullmatch(text) and text.isascii():
            return _digits(text.partition(".")[0]), False
        return None, _NUMBER.fullmatch(text) is None
    return None, False


def _whole_number(value: SupportsInt) -> int | None:
    number = int(value)
    return number if number >= 0 else None


def _digits(text: str) -> int | None:
    """Parses a whole number of at least 0.

    Python refuses thousands of digits, so only the first ones are parsed, enough to exceed int64.
    """
    digits = text.lstrip("+-").lstrip("0") or "0"
    if text.startswith("-"):
        return 0 if digits == "0" else None
    return int(digits[:_LONGEST_SHOWN])
