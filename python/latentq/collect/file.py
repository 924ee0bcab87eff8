"""A file of a collection."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    pass


@dataclass(frozen=True)
class File:
    """A file of a collection.

    Attributes:
        id: What the user calls it: an archive's number, or its name.
        path: Where it lies below the collection's folder; in a repository of the hub likewise.
        repository: The hub's data set that has it; empty where `address` says where it is.
        revision: Of the repository.
        address: Its URL, if it is not on the hub.
    """

    id: str
    path: str
    repository: str = ""
    revision: str = "main"
    address: str = ""
