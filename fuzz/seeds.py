"""Write a first corpus: images, and whole shards, indexes and values, each after the byte of its schema."""

import shutil
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

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


# A mode of each image, its format and how it is written.
TIFFS = [None, "tiff_lzw", "tiff_adobe_deflate", "packbits", "zstd", "jpeg"]
IMAGES = [
    *((mode, "JPEG", {"progressive": progressive}) for mode in ("L", "RGB", "CMYK") for progressive in (False, True)),
    *((mode, "PNG", {}) for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")),
    *((mode, "WEBP", {"lossless": lossless}) for mode in ("RGB", "RGBA") for lossless in (False, True)),
    *((mode, format, {}) for mode in ("1", "P", "RGB") for format in ("GIF", "BMP")),
    *((mode, "TIFF", {"compression": name}) for mode in ("L", "RGB", "RGBA", "CMYK", "YCbCr", "LAB") for name in TIFFS),
    *((mode, "TIFF", {"big_tiff": big}) for mode in ("1", "P", "PA", "I;16", "I", "F") for big in (False, True)),
    *(("1", "TIFF", {"compression": name}) for name in ("tiff_ccitt", "group3", "group4")),
    ("1", "TIFF", {"compression": "group3", "tiffinfo": {292: 1}}),
]


def write_images(folder: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (9, 11, 3)).astype(np.uint8)
    for number, (mode, format, options) in enumerate(IMAGES):
        picture = Image.fromarray(pixels)
        if mode == "LAB":
            picture = Image.frombytes(mode, picture.size, pixels.tobytes())
        elif mode == "PA":
            picture = picture.convert("P").convert(mode)
        elif mode == "I;16":
            picture = Image.frombytes(mode, (8, 9), pixels.tobytes()[:144])
        else:
            picture = picture.convert(mode)
        picture.save(folder / str(number), format, **options)


def main(corpus: Path) -> None:
    folders = {name: corpus / f"mds_{name}" for name in ["index", "shard", "encoding", "compressed"]}
    for folder in [*folders.values(), corpus / "decode"]:
        folder.mkdir(parents=True, exist_ok=True)
    write_images(corpus / "decode")
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
