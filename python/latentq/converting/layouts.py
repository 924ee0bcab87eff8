"""The layouts by name, and the recognition of a file or folder by its content."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol, cast

from latentq._core import MismatchError
from latentq.converting import (
    cosmos_imagenet,
    edm2,
    energon,
    fast_dit,
    kohya,
    lightningdit,
    llamagen,
    mar,
    micro_diffusion,
    musubi,
    nemo,
    prx,
    rar,
    repa_e,
    simpletuner,
)
from latentq.converting.incoming import Incoming
from latentq.converting.options import ReadOptions
from latentq.converting.outgoing import Outgoing
from latentq.converting.work import Work
from latentq.system.progress import Progress


class Layout(Protocol):
    """A module or object that reads one layout."""

    NAME: str
    TITLE: str

    def recognizes(self, path: Path) -> bool:
        """True if a file or folder looks like one of this layout. It raises no error about a file's content."""

    def read(self, path: Path, options: ReadOptions) -> Incoming:
        """Opens a file or folder."""


class WrittenLayout(Layout, Protocol):
    """A module or object that reads and writes one layout."""

    def write(self, outgoing: Outgoing, work: Work, bar: Progress) -> None:
        """Writes a dataset, and continues where an earlier run stopped."""


_ALL = cast(
    "tuple[Layout, ...]",
    (
        lightningdit,
        edm2.repa,
        edm2.edm2,
        repa_e,
        mar,
        fast_dit,
        llamagen,
        rar,
        cosmos_imagenet,
        kohya,
        musubi,
        nemo,
        energon,
        prx,
        micro_diffusion,
        simpletuner,
    ),
)
LAYOUTS: Mapping[str, Layout] = {layout.NAME: layout for layout in _ALL}
"""Every layout that arrays are read from, by name."""


def recognized(path: Path) -> Layout | None:
    """Returns the layout of a file or folder, or None if it is of none.

    Raises:
        MismatchError: It fits several layouts.
        OSError: It cannot be read.
    """
    found = [layout for layout in _ALL if layout.recognizes(path)]
    if len(found) > 1:
        titles = ", ".join(f"{layout.NAME} ({layout.TITLE})" for layout in found)
        raise MismatchError(f"{path} fits several layouts: {titles}; --from NAME chooses one")
    return found[0] if found else None


def writer(name: str) -> WrittenLayout:
    """Returns the layout of a name in `names.WRITTEN`."""
    return cast("WrittenLayout", LAYOUTS[name])
