"""Finds and removes what updates of a dataset left behind: units and lists that its card no longer names."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from latentq._core import LatentqError
from latentq.run.units import UnitCard, list_folder, unit_names
from latentq.store.local import is_temporary, sync

_UNIT_OR_LIST = re.compile(r"\d{5,}(\.[1-9]\d*)?|list(\.[1-9]\d*)?")


def stale_entries(out: Path, card: UnitCard) -> list[Path]:
    """Returns the units and lists that a card does not name, and temporaries, in the order of their names.

    Args:
        out: The dataset. No process may be writing to it.
        card: Its card.

    Raises:
        LatentqError: The dataset is not finished.
    """
    if card.counts is None:
        raise LatentqError(f"{out} is not finished: nothing in it is left over")
    named = {*unit_names(out, card), list_folder(out, card.source.revision).name}
    return sorted(
        entry
        for entry in out.iterdir()
        if entry.name not in named
        and not entry.is_symlink()
        and (is_temporary(entry.name) or (_UNIT_OR_LIST.fullmatch(entry.name) and entry.is_dir()))
    )


def remove(entries: list[Path]) -> None:
    """Removes folders and files, durably.

    Raises:
        OSError: One cannot be removed; those before it are.
    """
    for entry in entries:
        if entry.is_dir():
            shutil.rmtree(entry)
        else:
            entry.unlink()
    for parent in {entry.parent for entry in entries}:
        sync(parent)
