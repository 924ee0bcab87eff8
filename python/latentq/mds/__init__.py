"""MDS shards, the format of mosaicml-streaming, written byte for byte as its own writer writes them.

A plain `StreamingDataset` reads what is written here. `Reader` reads what `MDSWriter`, `merge_index` or the scripts of
imagenet.int8 wrote. Columns of pickles are neither written nor decoded. `docs/mds.md` specifies the bytes.
"""

from latentq.mds.folder import Finding, Repair, merge, merged_index, repair, verify
from latentq.mds.reader import Reader
from latentq.mds.writer import Writer

__all__ = ["Finding", "Reader", "Repair", "Writer", "merge", "merged_index", "repair", "verify"]
