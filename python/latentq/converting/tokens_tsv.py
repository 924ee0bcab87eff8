"""`latentq encode list.tsv tokens.tsv`: image paths to their tokens, as on VQGAN-f16-16384's page.

The tokens are encoded as a dataset in `tokens.tsv.latentq/`, which can be stopped, resumed and shared among processes;
the process that completes it writes the TSV, a pure function of the dataset.
"""

from __future__ import annotations

import contextlib
from pathlib import Path

from latentq._core import MismatchError, RecipeError
from latentq.format.card import CARD, Card

_SUFFIX = ".tsv"


def dataset_of(out: Path) -> Path:
    """Returns the dataset's folder for an output path: the path itself, or for a `.tsv` the folder next to it."""
    return out.with_name(f"{out.name}.latentq") if out.suffix == _SUFFIX else out


def check_table(out: Path, card: Card) -> None:
    """Refuses a `.tsv` that could not be written at the end, before anything is encoded.

    Raises:
        MismatchError: The file exists without its dataset, or the codebook is too large for the layout.
        RecipeError: The recipe stores no tokens or no keys, or has buckets.
    """
    if dataset_of(out) == out:
        return
    from latentq.converting.vqgan import CODEBOOK_SIZE

    if out.exists() and not (dataset_of(out) / CARD).exists():
        raise MismatchError(f"{out} is there already, and no {dataset_of(out).name} next to it: name another file")
    missing = {"tokens", "key"} - {column.content for column in card.recipe.columns.values()}
    if missing:
        raise RecipeError(f"{out}: a {_SUFFIX} holds tokens, and recipe {card.recipe.name} stores no {max(missing)}")
    if card.buckets:
        raise RecipeError(f"{out}: a {_SUFFIX} holds tokens of one shape, and recipe {card.recipe.name} has buckets")
    for facts in card.tokens.values():
        if facts.codebook_size > CODEBOOK_SIZE:
            have = f"{card.autoencoder.name} has {facts.codebook_size}"
            raise MismatchError(f"{out}: its layout has at most {CODEBOOK_SIZE} codes, {have}")


def write_table(out: Path) -> None:
    """Writes the `.tsv` of a complete dataset, unless it exists."""
    if dataset_of(out) == out or out.exists():
        return
    from latentq.converting.pipeline import convert

    with contextlib.suppress(FileExistsError):  # another process was first, and wrote the same
        convert(dataset_of(out), out)
