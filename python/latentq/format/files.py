"""Names of the files in a dataset, and the hashes of its shards."""

from __future__ import annotations

# The hashes that the index holds of every shard of a unit.
HASHES = ("xxh3_64",)

EMPTY_CAPTION = "empty_caption.npz"
INDEX = "index.json"
LIST = "list"
REJECTS = "rejects.tsv"
SHARDS = "shards.toml"
UNIT = "unit.toml"
