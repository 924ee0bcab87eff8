"""The description of a public collection: its files, the columns of its shards, its limits."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from latentq.collect.file import File

if TYPE_CHECKING:
    from latentq.collect.hub_files import HubFiles

Subset = Literal["small", "all"]
Columns = Mapping[str, tuple[str, str]]
"""Maps a column's name to its content (`image`, `width`, `height`, or a field of `Sample`) and its MDS encoding."""

COLUMNS: Columns = {
    "jpg": ("image", "jpeg"),
    "caption": ("caption", "str"),
    "width": ("width", "int32"),
    "height": ("height", "int32"),
}


@dataclass(frozen=True)
class Request:
    """The files of a collection that a user asks for.

    Attributes:
        subset: `small` (about 1%) or `all`.
        ids: The numbers of the archives; None takes those of the subset.
        links: The path of the list of links, for a collection whose page gives one.
        site: The address of a mirror, for a collection that has its own site.
    """

    subset: Subset = "all"
    ids: Sequence[int] | None = None
    links: str | None = None
    site: str | None = None

    def numbers(self, every: Sequence[int], small: Sequence[int]) -> Sequence[int]:
        """Returns the numbers of the requested archives.

        Args:
            every: The numbers of all archives.
            small: The numbers of the small subset.

        Raises:
            ValueError: There is no archive of a requested number.
        """
        if self.ids is None:
            return small if self.subset == "small" else every
        known = set(every)
        if unknown := [number for number in self.ids if number not in known]:
            raise ValueError(f"there is no archive {unknown[0]}: they are {every[0]} to {every[-1]}")
        return list(dict.fromkeys(self.ids))


@dataclass(frozen=True)
class Collection:
    """A public collection.

    Attributes:
        files: Returns the files of a request: archives, captions and metadata.
        takes: The options that a request may have, of `ids`, `links` and `site`; `links` is then required.
        advice: What to do if an address no longer leads to its file.
        columns: The columns of its shards.
        limits: Rejects an image if one of these columns in the file of captions is above its limit.
    """

    files: Callable[[Request, HubFiles], list[File]]
    takes: tuple[str, ...] = ("ids",)
    advice: str = ""
    columns: Columns = field(default_factory=lambda: COLUMNS)
    limits: Mapping[str, float] = field(default_factory=dict)
