"""A file of a collection."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class File:
    """A file of a collection.

    Attributes:
        id: The archive's number, or the file's name; users and `failed.tsv` name files by it.
        path: The path in the collection's folder, and in the repository if there is one.
        repository: The dataset on the Hub that has the file; empty if `address` is given.
        revision: The revision of the repository.
        address: The URL of a file that is not on the Hub.
    """

    id: str
    path: str
    repository: str = ""
    revision: str = "main"
    address: str = ""
