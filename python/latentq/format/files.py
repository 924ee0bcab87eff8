"""Names of the files in a dataset, and the hashes of its shards."""

from __future__ import annotations

HASHES = ("xxh3_64",)


"""What the shards of a unit are hashed with."""


EMPTY_CAPTION = "empty_caption.npz"


INDEX = "index.json"


REJECTS = "rejects.tsv"


SHARDS = "shards.toml"


SAMPLES = "samples.tsv"


UNIT = "unit.toml"
