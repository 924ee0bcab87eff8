"""Public collections: where their files are, and how they are fetched. One file each says what is its own."""

from latentq.collect.base import COLUMNS, Collection, Columns, Subset
from latentq.collect.collections import COLLECTIONS
from latentq.collect.run import FAILED, Collected, Failure, collect

__all__ = ["COLLECTIONS", "COLUMNS", "FAILED", "Collected", "Collection", "Columns", "Failure", "Subset", "collect"]
