"""What a public collection is: its files, and how its shards differ from others'."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from latentq.collect.hub import Hub
from latentq.collect.file import File

Subset = Literal["small", "all"]


Columns = Mapping[str, tuple[str, str]]


"""By the name of a column: what it holds (`image`, `width`, `height`, or a field of `Sample`) and its MDS encoding."""


COLUMNS: Columns = {
    "jpg": ("image", "jpeg"),
    "caption": ("caption", "str"),
    "width": ("width", "int32"),
    "height": ("height", "int32"),
}


@dataclass(frozen=True)
class Request:
    """What a user wants of a collection.

    Attributes:
        subset: About 1% of it, or all.
        ids: The numbers of the archives instead; None for the subset's.
        links: The list of links, for a collection whose page gives one.
        site: Another address than its own, for a collection that has a site.
    """

    subset: Subset = "all"
    ids: Sequence[int] | None = None
    links: str | None = None
    site: str | None = None

    def numbers(self, every: Sequence[int], small: Sequence[int]) -> Sequence[int]:
        """The archives that are wanted, of those that there are and those of the small subset.

        Raises:
            ValueError: There is none of a number.
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
        files: The files of a request: archives, and what goes with them.
        takes: Which of `ids`, `links` and `site` a request may say; `links` is then needed.
        advice: What to do where its addresses no longer lead to files.
        columns: The columns of its shards.
        limits: An image is rejected where one of these columns of its captions' file is above its limit.
    """

    files: Callable[[Request, Hub], list[File]]
    takes: tuple[str, ...] = ("ids",)
    advice: str = ""
    columns: Columns = field(default_factory=lambda: COLUMNS)
    limits: Mapping[str, float] = field(default_factory=dict)
