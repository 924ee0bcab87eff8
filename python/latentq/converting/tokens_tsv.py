"""`latentq encode list.tsv tokens.tsv`: the job of VQGAN-f16-16384's page, a TSV of image paths to one of their tokens.

The tokens are encoded as a dataset in `tokens.tsv.latentq/`, which is what can be stopped and shared among processes;
whoever finishes it writes the file, a pure function of it.
"""

from __future__ import annotations

import contextlib
from pathlib import Path

from latentq._core import MismatchError, RecipeError
from latentq.format.card import Card

_SUFFIX = ".tsv"


def dataset_of(out: Path) -> Path:
    """The dataset's folder for what was named as output: itself, but for a `.tsv` the folder beside it."""
    return out.with_name(f"{out.name}.latentq") if out.suffix == _SUFFIX else out


def check_table(out: Path, card: Card) -> None:
    """Refuses a `.tsv` that could not be written in the end, before anything is encoded."""
    if dataset_of(out) == out:
        return
    from latentq.converting.vqgan import CODEBOOK

    if out.exists() and not dataset_of(out).exists():
        raise MismatchError(f"{out} is there already, and no {dataset_of(out).name} beside it: name another file")
    lacking = {"tokens", "key"} - {column.content for column in card.recipe.columns.values()}
    if lacking:
        raise RecipeError(f"{out}: a {_SUFFIX} is of tokens, and recipe {card.recipe.name} stores no {max(lacking)}")
    for facts in card.tokens.values():
        if facts.codebook_size > CODEBOOK:
            have = f"{card.autoencoder.name} has {facts.codebook_size}"
            raise MismatchError(f"{out}: its layout is of {CODEBOOK} codes, {have}")


def write_table(out: Path) -> None:
    """Writes the `.tsv` of a dataset that is complete, unless it is there."""
    if dataset_of(out) == out or out.exists():
        return
    from latentq.converting import convert

    with contextlib.suppress(FileExistsError):  # another process was faster, and wrote the same
        convert(dataset_of(out), out)
