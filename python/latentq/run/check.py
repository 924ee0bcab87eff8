"""Checks that a run fits what is in its folder already."""

from __future__ import annotations

import errno
import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from latentq._core import MismatchError
from latentq.format.card import CARD, Card
from latentq.format.files import LIST
from latentq.format.recipe import Recipe
from latentq.store.local import is_temporary

_LOCATION_OF_AUTOENCODER = (
    "autoencoder.name",
    *(f"recipe.autoencoder.{key}" for key in ("model", "revision", "subfolder")),
)
_LOCATION_OF_TEXT_ENCODER = ("text.name", *(f"recipe.text.{key}" for key in ("model", "revision", "subfolder")))


def check_output_folder(out: Path, card: str = CARD) -> None:
    """Refuses an output folder that cannot be written, or that holds anything but a run with this card.

    It is checked before anything is computed.

    Args:
        out: The folder, which need not exist.
        card: The card's file name.

    Raises:
        MismatchError: The folder holds something else, or is a file.
        PermissionError: The folder, or its nearest existing parent, cannot be written.
    """
    if (out / card).exists():
        return
    existing = next(path for path in (out, *out.absolute().parents) if path.exists())
    if not existing.is_dir():
        raise MismatchError(f"{existing} is a file; a dataset is a folder")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise PermissionError(errno.EACCES, "cannot be written", str(existing))
    if existing != out:
        return
    for entry in sorted(out.iterdir()):
        if entry.name != LIST and not is_temporary(entry.name):  # a killed run may have published its list alone
            raise MismatchError(f"{out} holds something else ({entry.name}): name a folder that is absent or empty")


def check_same_recipe(out: Path, published: Recipe, given: Recipe) -> None:
    """Refuses another recipe than that of a dataset. Names of models are not compared, since their weights are.

    Args:
        out: The dataset's folder.
        published: Its recipe, with the columns that are stored.
        given: The recipe of this run. Optional columns that are not stored are not compared.

    Raises:
        MismatchError: They differ; the message names the field and both values.
    """
    tables = [published.to_dict(), given.to_dict()]
    for table in tables:
        table.pop("changed", None)
        table["columns"] = {
            name: column
            for name, column in table["columns"].items()
            if name in published.columns or not given.columns[name].optional
        }
    before, now = (dict(_flat("recipe", table)) for table in tables)
    for key in (*_LOCATION_OF_AUTOENCODER, *_LOCATION_OF_TEXT_ENCODER):
        before.pop(key, None)
        now.pop(key, None)
    _check_same(out, before, now)


def check_same_work(out: Path, published: Card, planned: Card, *, frozen: bool) -> None:
    """Refuses to continue what another recipe, other weights or another list began.

    The same weights under another name or in another folder are the same work. Other versions of libraries are warned
    of.

    Args:
        out: The dataset's folder.
        published: The card in it.
        planned: The card of this run.
        frozen: The planned quantizers come from another dataset, and the published ones must equal them.

    Raises:
        MismatchError: They differ; the message names the field and both values.
    """
    before, now = _identity(published), _identity(planned)
    if published.autoencoder.same_as(planned.autoencoder):
        for key in _LOCATION_OF_AUTOENCODER:
            del before[key], now[key]
    if published.text is not None and planned.text is not None and published.text.same_as(planned.text):
        for key in _LOCATION_OF_TEXT_ENCODER:
            del before[key], now[key]
    if frozen:
        for identity, card in ((before, published), (now, planned)):
            identity |= {f"latents.{name}.quantizer": facts.quantizer.to_dict() for name, facts in card.latents.items()}
            identity |= {f"embeddings.{name}.quantizer": e.quantizer.to_dict() for name, e in card.embeddings.items()}
    _check_same(out, before, now)
    for package in sorted(published.versions.keys() | planned.versions.keys()):
        old, new = published.versions.get(package), planned.versions.get(package)
        if old != new:
            warnings.warn(f"{out} was begun with {package} {old}; here is {new}", stacklevel=4)


def _identity(card: Card) -> dict[str, Any]:
    """Returns the fields that must be equal in every run on one folder, as a flat dictionary."""
    data = card.to_dict()
    data["recipe"].pop("changed", None)
    data["latents"] = {name: facts.shapes or facts.shape for name, facts in card.latents.items()}
    data["embeddings"] = {name: facts.shape for name, facts in card.embeddings.items()}
    kept = ("source", "recipe", "autoencoder", "columns", "latents", "tokens", "text", "embeddings")
    return dict(_flat("", {key: data[key] for key in kept if key in data}))


def _flat(prefix: str, value: Any) -> Iterator[tuple[str, Any]]:
    """Yields the values of nested tables, with the path of each."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _flat(f"{prefix}.{key}" if prefix else key, inner)
    else:
        yield prefix, value


def _check_same(out: Path, before: dict[str, Any], now: dict[str, Any]) -> None:
    """Raises MismatchError for the first field that differs."""
    # The recipe comes first: a difference that follows from it is harder to understand.
    # So do kinds that both have, since quantizers of two kinds have different fields.
    kinds = {key for key in before.keys() & now.keys() if key.endswith(".kind")}
    for key in sorted(
        before.keys() | now.keys(), key=lambda key: (not key.startswith("recipe"), key not in kinds, key)
    ):
        if before.get(key) != now.get(key):
            raise MismatchError(
                f"{out} was made with {key} = {before.get(key)!r}; this run has {now.get(key)!r}: "
                "name another output folder, or continue with what it was made with"
            )
