"""Public collections: where their files are, and how they are downloaded. One module per collection."""

from latentq.collect.base import COLUMNS, Collection, Columns, Subset
from latentq.collect.collections import COLLECTIONS
from latentq.collect.pipeline import FAILED, Collected, Failure, collect

__all__ = ["COLLECTIONS", "COLUMNS", "FAILED", "Collected", "Collection", "Columns", "Failure", "Subset", "collect"]
