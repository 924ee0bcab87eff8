"""Public collections: where their files are, and how they are fetched. One file each says what is its own."""

from latentq.collect import cc12m, coco, diffdb, jdb, sa1b, textcaps
from latentq.collect.base import COLUMNS, Collection, Columns, Subset
from latentq.collect.fetching import FAILED, Collected, Failure, collect

__all__ = ["COLLECTIONS", "COLUMNS", "FAILED", "Collected", "Collection", "Columns", "Failure", "Subset", "collect"]

COLLECTIONS = {
    "jdb": jdb.COLLECTION,
    "cc12m": cc12m.COLLECTION,
    "diffdb": diffdb.COLLECTION,
    "sa1b": sa1b.COLLECTION,
    "textcaps": textcaps.COLLECTION,
    "coco": coco.COLLECTION,
}
