"""Writes a corpus to begin from: whole shards, indexes and values, each behind the byte that picks its schema."""

import shutil
import sys
import tempfile
from pathlib import Path

import numpy as np

from latentq import mds

# The schemas of mds_shard.rs, in its order, each with a sample.
SHARDS = [
    {"a": ("int", 5)},
    {"a": ("bytes", b"abc")},
    {"a": ("bytes", b"abc"), "b": ("str", "é"), "c": ("int", -1)},
    {
        "a": ("uint8", 1),
        "b": ("ndarray:uint8:2,2", np.ones((2, 2), np.uint8)),
        "c": ("raw:uint16", np.arange(3, dtype=np.uint16)),
        "d": ("json", [1.5, None]),
    },
    {
        "a": ("ndarray", np.arange(6, dtype=np.int16).reshape(2, 3)),
        "b": ("float32", 0.5),
        "c": ("ndarray:float16", np.ones(2, np.float16)),
        "d": ("jpeg_array", [b"\xff\xd8", b""]),
    },
]
# In the order of mds_encoding.rs.
VALUES = {
    2: b'{"a": [1, "x"]}',
    3: bytes(8),
    15: b"-12",
    16: b"1e+22",
    17: b"-1.5E+9",
    18: b"\x11\x08\x02\x03" + bytes(12),
}
VALUES |= {23: b"\2\0\0\0\1\0\0\0\3\0\0\0RGB" + bytes(6), 26: b"\2\0\0\0\1\0\0\0\0\0\0\0x", 28: bytes(8)}


def main(corpus: Path) -> None:
    folders = {name: corpus / f"mds_{name}" for name in ["index", "shard", "encoding", "compressed"]}
    for folder in folders.values():
        folder.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp())
    for number, columns in enumerate(SHARDS):
        encodings = {name: encoding for name, (encoding, _) in columns.items()}
        for compression in [None, "br", "bz2", "gz", "snappy", "zstd"]:
            path = work / f"{number}{compression}"
            with mds.Writer(path, encodings, compression=compression, hashes=["xxh3_64"], sync=False) as writer:
                for _ in range(3):
                    writer.write({name: value for name, (_, value) in columns.items()})
            (shard,) = path.glob("shard*")
            (folders["index"] / path.name).write_bytes((path / "index.json").read_bytes())
            if compression is None:
                (folders["shard"] / path.name).write_bytes(bytes([number]) + shard.read_bytes())
            else:
                first = ["br", "bz2", "gz", "snappy", "zstd"].index(compression)
                (folders["compressed"] / path.name).write_bytes(bytes([first]) + shard.read_bytes())
    for first, value in VALUES.items():
        (folders["encoding"] / str(first)).write_bytes(bytes([first]) + value)
    shutil.rmtree(work)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
