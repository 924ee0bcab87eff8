"""The public collections, by name."""

from latentq.collect import cc12m, coco, diffdb, jdb, sa1b, textcaps

COLLECTIONS = {
    "jdb": jdb.COLLECTION,
    "cc12m": cc12m.COLLECTION,
    "diffdb": diffdb.COLLECTION,
    "sa1b": sa1b.COLLECTION,
    "textcaps": textcaps.COLLECTION,
    "coco": coco.COLLECTION,
}
