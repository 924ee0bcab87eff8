"""The class numbers of a dataset, for sources that follow it: a validation split, or the changed source itself."""

from __future__ import annotations

from pathlib import Path

from latentq.format.card import Card
from latentq.run.units import sample_list
from latentq.sources.label_values import GrowingClasses


def classes_of(path: Path, card: Card) -> dict[str, tuple[int, str]]:
    """Returns label and readable name of each class of a dataset, by readable name and, of a folder, by subfolder.

    Args:
        path: The dataset.
        card: Its card.
    """
    samples = sample_list(path, card)
    texts: dict[str, tuple[int, str]] = {}
    folders: dict[str, tuple[int, str]] = {}
    for sample in samples if samples.totals.known.get("label_text") else ():
        if sample.label is not None and sample.label_text is not None:
            facts = (sample.label, sample.label_text)
            texts.setdefault(sample.label_text, facts)
            if card.source.kind == "folder":
                folders.setdefault(sample.key.partition("/")[0], facts)
    return {**texts, **folders}  # a readable name may also be the name of another class's folder


def classes_to_grow(path: Path, card: Card, like: dict[str, tuple[int, str]] | None) -> GrowingClasses:
    """Returns the classes of a dataset that an update may add to.

    Args:
        path: The dataset.
        card: Its card.
        like: Classes of another dataset that new ones take their numbers from, or None.
    """
    own = classes_of(path, card)
    classes = GrowingClasses({**(like or {}), **own})
    classes.next_label = card.source.next_label
    classes.are_numbers = not own and bool(sample_list(path, card).totals.known.get("label"))
    return classes
