"""Write random samples of random schemas with two writers, and compare the files.

As a script, `python tests/support/mds_schemas.py COUNT [SEED]` compares COUNT schemas; the test suite compares 10,000.
"""

import json
import random
import shutil
import string
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import streaming.base.format.base.writer as stock_writer
from PIL import Image
from streaming import MDSWriter
from streaming.base.compression import decompress
from streaming.base.format.mds.reader import MDSReader
from streaming.base.util import merge_index

from latentq import mds

Value = Callable[[random.Random], Any]

INTEGERS = ["uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "int64"]
DTYPES = [*INTEGERS, "float16", "float32", "float64"]
HASHES = ["blake2b", "blake2s", "md5", "sha1", "sha224", "sha256", "sha384", "sha3_224", "sha3_256", "sha3_384"]
HASHES += ["sha3_512", "sha512", "xxh128", "xxh32", "xxh3_128", "xxh3_64", "xxh64"]
COMPRESSIONS = ["br:0", "br:5", "bz2", "bz2:1", "gz", "gz:0", "snappy", "zstd", "zstd:1", "zstd:7"]
CHARACTERS = string.ascii_letters + string.digits + ' "\\/\n\t\x00\x7f.:é中\U0001f600\uffff'


@contextmanager
def stock_without_naps() -> Iterator[None]:
    """Make the stock writer poll its threads every 0.1 ms instead of once per second."""
    nap, stock_writer.sleep = stock_writer.sleep, lambda _: time.sleep(1e-4)
    try:
        yield
    finally:
        stock_writer.sleep = nap


def text(rng: random.Random, longest: int = 12) -> str:
    return "".join(rng.choices(CHARACTERS, k=rng.randrange(longest + 1)))


def array(rng: random.Random, dtype: str, shape: tuple[int, ...]) -> np.ndarray:
    count = int(np.prod(shape)) * np.dtype(dtype).itemsize
    values = np.frombuffer(rng.randbytes(count), dtype).reshape(shape)
    layout = rng.randrange(4)
    if layout == 1:
        return np.asfortranarray(values)
    if layout == 2:
        return np.repeat(values, 2, axis=-1)[..., ::2]
    return values


def shape(rng: random.Random) -> tuple[int, ...]:
    if rng.random() < 0.05:
        return (rng.choice([255, 256, 300, 65535, 65536]),)
    return tuple(rng.randrange(1, 5) for _ in range(rng.randrange(1, 5)))


def image(rng: random.Random, modes: list[str]) -> Image.Image:
    mode = rng.choice(modes)
    size = (rng.randrange(1, 9), rng.randrange(1, 5))
    return Image.frombytes(mode, size, rng.randbytes(len(Image.new(mode, size).tobytes())))


def jpeg(rng: random.Random) -> Image.Image:
    return image(rng, ["L", "RGB"])


def png(rng: random.Random) -> Image.Image:
    return image(rng, ["1", "L", "RGB", "RGBA"])


def pil(rng: random.Random) -> Image.Image:
    return image(rng, ["1", "L", "RGB", "RGBA", "CMYK", "I", "F", "I;16"])


def integer(rng: random.Random, low: int, high: int) -> int:
    return rng.choice([low, high, 0, rng.randint(low, high)])


def floating(rng: random.Random) -> float:
    return rng.choice([0.0, -0.0, 1e22, 1e-7, 0.1, float("inf"), float("nan"), rng.uniform(-6e4, 6e4)])


def data(rng: random.Random, depth: int = 2) -> Any:
    kind = rng.randrange(7 if depth else 5)
    if kind == 5:
        return [data(rng, depth - 1) for _ in range(rng.randrange(4))]
    if kind == 6:
        return {text(rng, 4): data(rng, depth - 1) for _ in range(rng.randrange(4))}
    return [None, True, rng.randrange(-(10**20), 10**20), floating(rng), text(rng)][kind]


def list_of(value: Value) -> Value:
    return lambda rng: [value(rng) for _ in range(rng.randrange(4))]


def encodings(rng: random.Random) -> tuple[str, Value]:
    """Draw an encoding and a function that draws values: objects if both writers accept them, else bytes."""
    dtype = rng.choice(DTYPES)
    dims = shape(rng)
    integral = rng.choice(INTEGERS)
    limits = np.iinfo(integral)
    plain: list[tuple[str, Value]] = [
        ("bytes", lambda rng: rng.randbytes(rng.randrange(40))),
        ("str", text),
        ("int", lambda rng: integer(rng, -(2**63), 2**63 - 1)),
        (integral, lambda rng: integer(rng, int(limits.min), int(limits.max))),
        (rng.choice(["float16", "float32", "float64"]), floating),
        ("str_int", lambda rng: rng.randrange(-(10**30), 10**30)),
        ("str_float", floating),
        ("str_decimal", lambda rng: Decimal(rng.randrange(-(10**9), 10**9)).scaleb(rng.randrange(-20, 20))),
        ("json", data),
        ("ndarray", lambda rng: array(rng, rng.choice(DTYPES), shape(rng))),
        (f"ndarray:{dtype}", lambda rng: array(rng, dtype, shape(rng))),
        (f"ndarray:{dtype}:{','.join(map(str, dims))}", lambda rng: array(rng, dtype, dims)),
    ]
    images: list[tuple[str, Value]] = [
        ("pil", pil),
        ("jpeg", jpeg),
        ("png", png),
        (rng.choice(["jpeg_array", "jpegarray"]), list_of(lambda rng: bytearray(rng.randbytes(rng.randrange(9))))),
        ("list[pil]", list_of(pil)),
        ("list[jpeg]", list_of(jpeg)),
        ("list[png]", list_of(png)),
    ]
    return rng.choice(images if rng.random() < 0.1 else plain)


def draw(rng: random.Random) -> tuple[dict[str, str], list[dict[str, Any]], dict[str, Any]]:
    """Draw columns, samples and a writer's options."""
    drawn = {text(rng, 6): encodings(rng) for _ in range(rng.randrange(1, 6))}
    columns = {name: encoding for name, (encoding, _) in drawn.items()}
    samples = [{name: value(rng) for name, (_, value) in drawn.items()} for _ in range(rng.randrange(5))]
    options = {
        "size_limit": rng.choice([None, 0, 1, 200, 400, 1000, 1 << 26, (1 << 32) - 1]),
        "hashes": sorted(rng.sample(HASHES, rng.choice([0, 0, 1, 3]))),
        "compression": rng.choice(COMPRESSIONS) if rng.random() < 0.2 else None,
    }
    return columns, samples, options


def unpacked(folder: Path) -> tuple[dict[str, bytes], dict[str, Any]]:
    """Return the uncompressed shards by name, and the index without the fields that depend on the compressor."""
    index = json.loads((folder / "index.json").read_bytes())
    shards = {}
    for shard in index["shards"]:
        stored = shard["zip_data"] or shard["raw_data"]
        content = (folder / stored["basename"]).read_bytes()
        assert len(content) == stored["bytes"]
        shards[shard["raw_data"]["basename"]] = decompress(shard["compression"], content)
        if shard["zip_data"]:
            shard["zip_data"] = {"basename": stored["basename"], "hashes": sorted(stored["hashes"])}
    assert {file.name for file in folder.iterdir()} == {
        "index.json",
        *(s["zip_data"]["basename"] if s["zip_data"] else s["raw_data"]["basename"] for s in index["shards"]),
    }
    return shards, index


def equal(a: Any, b: Any) -> bool:
    if isinstance(a, Image.Image):
        return a.mode == b.mode and a.size == b.size and a.tobytes() == b.tobytes()
    if isinstance(a, list):
        return len(a) == len(b) and all(map(equal, a, b))
    if isinstance(a, np.ndarray | np.generic):
        return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
    return type(a) is type(b) and repr(a) == repr(b)


def compare(rng: random.Random, stock: Path, ours: Path) -> None:
    """Write one random dataset with both writers, and read it with both readers."""
    columns, samples, options = draw(rng)
    with MDSWriter(out=str(stock), columns=columns, **options) as writer:
        for sample in samples:
            writer.write(sample)
    with mds.Writer(ours, columns, sync=False, **options) as writer:
        if rng.random() < 0.5:
            for sample in samples:
                writer.write(sample)
        else:
            writer.write_batch({name: [sample[name] for sample in samples] for name in columns})
    if options["compression"] is None:
        files = [{file.name: file.read_bytes() for file in path.iterdir()} for path in (stock, ours)]
        assert files[0] == files[1], (columns, samples, options)
    else:
        (shards, index), (our_shards, our_index) = unpacked(stock), unpacked(ours)
        assert shards == our_shards, (columns, samples, options)
        assert index == our_index, (columns, samples, options)
    read(stock, ours)


def read(stock: Path, ours: Path) -> None:
    """Compare our reader's samples of the stock shards with the stock reader's samples of our uncompressed shards."""
    index = json.loads((ours / "index.json").read_bytes())
    expected = []
    for shard in index["shards"]:
        if shard["compression"]:
            content = (ours / shard["zip_data"]["basename"]).read_bytes()
            (ours / shard["raw_data"]["basename"]).write_bytes(decompress(shard["compression"], content))
        reader = MDSReader.from_json(str(ours), None, shard)
        for i in range(len(reader)):
            # The stock reader fails for empty samples, an empty jpeg_array, and bytes in one that are not a JPEG.
            try:
                expected.append(reader[i])
            except (IndexError, ValueError, OSError):
                expected.append(None)
    reader = mds.Reader(stock)
    assert len(reader) == len(expected)
    for i, sample in enumerate(expected):
        if sample is not None:
            got = reader[i]
            assert list(got) == list(sample)
            for name in sample:
                assert equal(got[name], sample[name]), (name, reader.columns[name], got[name], sample[name])


def compare_many(seed: int, count: int, root: Path) -> None:
    """Compare `count` datasets, and a merged index of some. Folders are reused, since removing one is slow."""
    rng = random.Random(seed)
    stock, merged = root / "stock", root / "merged"
    folders = [merged / f"{number:05}" for number in range(count)]
    for folder in [stock, *folders]:
        folder.mkdir(parents=True, exist_ok=True)
    for ours in folders:
        compare(rng, stock, ours)
        clear(stock)
    chosen = rng.sample(folders, min(4, count))
    merge_index([str(folder / "index.json") for folder in chosen], str(merged))
    expected = (merged / "index.json").read_bytes()
    assert b"".join(mds.merged_index(merged, [folder.name for folder in chosen])) == expected
    for folder in [merged, *folders]:
        clear(folder)


def clear(folder: Path) -> None:
    for file in folder.iterdir():
        if file.is_file():
            file.unlink()


@contextmanager
def workplace() -> Iterator[Path]:
    """Yield a temporary folder, in memory if possible."""
    memory = Path("/dev/shm")
    root = Path(tempfile.mkdtemp(prefix="latentq-mds-", dir=memory if memory.is_dir() else None))
    try:
        with stock_without_naps():
            yield root
    finally:
        shutil.rmtree(root)


if __name__ == "__main__":
    total, first = int(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 0
    start = time.monotonic()
    with workplace() as root:
        for number in range(1, total // 20 + 1):
            compare_many(first + number, 20, root)
            if number % 250 == 0:
                print(f"{20 * number} schemas alike after {time.monotonic() - start:.0f} s", flush=True)
