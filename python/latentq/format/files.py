"""Names of the files in a dataset, and the hashes of its shards."""

from __future__ import annotations

# The hashes that the index holds of every shard of a unit.
HASHES = ("xxh3_64",)

# For each listed sample of a unit a little-endian number: the xxh3_64 of its image file, or 0 if it was not read.
CONTENT_HASHES = "content.xxh3"
CONTENT_HASH_BYTES = 8

# With buckets, for each listed sample of a unit a little-endian number: its bucket, also if it was rejected.
PLACES = "buckets.u16"
PLACE_BYTES = 2

EMPTY_CAPTION = "empty_caption.npz"
INDEX = "index.json"
LIST = "list"
NORMALIZATION = "normalization.npy"
PICTURES = "pictures.jpg"
README = "README.md"
REJECTS = "rejects.tsv"
SHARDS = "shards.toml"
UNIT = "unit.toml"


def bucket_group(bucket: int) -> str:
    """Returns the name of a bucket's group of shards, which are called `shard.NAME.00000.mds` and so on."""
    return f"{bucket:03}"
