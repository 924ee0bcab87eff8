"""Make a dataset for each thing that latentq writes, with the samples that a stock reader is to read from it."""

import json
from decimal import Decimal
from io import BytesIO

import numpy as np
from PIL import Image

import latentq
from latentq import mds
from latentq.format.recipe import Recipe
from readers.read import EXPECTED, facts
from support.bucket_making import make_buckets
from support.making import make_dataset

COUNT = 7


def _picture(seed):
    pixels = np.random.default_rng(seed).integers(0, 256, (3, 4, 3), np.uint8)
    return Image.fromarray(pixels).resize((24, 16), Image.Resampling.BICUBIC)


def _decoded(picture):
    file = BytesIO()
    picture.save(file, "JPEG")
    file.seek(0)
    return Image.open(file)


def _values(encoding):
    """Return a function that makes a value of an encoding from its number."""
    rng = np.random.default_rng(len(encoding))
    kind, _, rest = encoding.partition(":")
    dtype, _, shape = rest.partition(":")
    if kind == "ndarray":
        # A row of 1 to 5 without a given shape: its length differs from sample to sample.
        sizes = [int(n) for n in shape.split(",")] if shape else None
        bits = np.dtype(dtype or "int32").itemsize
        return lambda i: np.frombuffer(rng.bytes(bits * int(np.prod(sizes or i % 5 + 1))), dtype or "int32").reshape(
            sizes or (i % 5 + 1,)
        )
    if encoding.startswith(("uint", "int")) and encoding != "int":
        limits = np.iinfo(encoding)
        return lambda i: np.array([limits.min, limits.max, 0, 1, 2, 3, 4], encoding)[i]
    return {
        "int": lambda i: [-(2**63), 2**63 - 1, 0, 1, -1, 2, 3][i],
        "str": lambda i: f"é中\U0001f600 {i}\n",
        "bytes": lambda i: bytes(range(i)),
        "json": lambda i: [f"picture {i}", {"é": [i, None, 0.5]}],
        "str_int": lambda i: 10**30 + i,
        "str_float": lambda i: 0.1 * i,
        "str_decimal": lambda i: Decimal(i).scaleb(-20),
        "float16": lambda i: np.float16(0.1 * i),
        "float32": lambda i: np.float32(0.1 * i),
        "float64": lambda i: np.float64(0.1 * i),
        "pil": _picture,
        "png": _picture,
        "jpeg": _picture,
        "jpeg_array": lambda i: [_jpeg(i), _jpeg(i + 1)],
        "list[pil]": lambda i: [_picture(i), _picture(i + 1)],
        "list[png]": lambda i: [_picture(i), _picture(i + 1)],
        "list[jpeg]": lambda i: [_picture(i), _picture(i + 1)],
    }[encoding]


def _jpeg(seed):
    file = BytesIO()
    _picture(seed).save(file, "JPEG")
    return file.getvalue()


def _read(encoding, value):
    """Return what a reader gives for a value."""
    if encoding in ("jpeg", "list[jpeg]", "jpeg_array"):
        if isinstance(value, list):
            return [Image.open(BytesIO(item)) if isinstance(item, bytes) else _decoded(item) for item in value]
        return _decoded(value)
    return value


INTEGERS = [f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)]
FLOATS = ["float16", "float32", "float64"]
ENCODINGS = ["int", "str", "bytes", "json", *INTEGERS, *FLOATS, "str_int", "str_float", "str_decimal", "ndarray"]
IMAGES = ["pil", "jpeg", "png", "jpeg_array", "list[pil]", "list[jpeg]", "list[png]"]
COMPRESSIONS = ["br", "bz2", "gz", "snappy", "zstd"]


def _write(folder, columns, size_limit=800, **options):
    """Write COUNT samples in several shards, and what a reader is to give."""
    makers = {name: _values(encoding) for name, encoding in columns.items()}
    rows = [{name: make(i) for name, make in makers.items()} for i in range(COUNT)]
    with mds.Writer(folder, columns, hashes=["xxh3_64"], size_limit=size_limit, sync=False, **options) as writer:
        for row in rows:
            writer.write(row)
    expected = [{name: _read(columns[name], value) for name, value in row.items()} for row in rows]
    _expect(folder, expected)


def _expect(folder, samples):
    (folder / EXPECTED).write_text(json.dumps([facts(sample) for sample in samples]))


def _expect_as_stored(folder):
    reader = mds.Reader(folder)
    _expect(folder, [reader[i] for i in range(len(reader))])


def _known(folder, made, latents, name="latent"):
    """Expect a dataset's stored arrays, as they were made, and our reader's other columns."""
    reader = mds.Reader(folder)
    _expect(folder, [reader[i] | {name: latents[i]} for i in range(len(made.labels))])


def _encode(folder, source, quantizer=None, **options):
    tables = Recipe.load("default").to_dict()
    if quantizer is not None:
        tables["columns"]["latent"]["quantizer"] = quantizer
    recipe = Recipe.from_dict(tables)
    options = options if "buckets" in options else {"size": 32, **options}
    latentq.encode(source, folder, recipe=recipe, autoencoder="dct-f8c16", unit_size=4, **options)
    _expect_as_stored(folder)


def make_all(out):
    """Make every dataset in a folder."""
    make_encodings(out)
    make_datasets(out)


def make_encodings(out):
    """Make a dataset for each encoding, and for each compression, from values that are known."""
    for encoding in [*ENCODINGS, *IMAGES]:
        _write(out / encoding, {"value": encoding, "key": "str"})
    # Each shard begins with a list of its columns, and the first must hold a sample: see "empty shard" in docs/mds.md.
    _write(out / "ndarray:DTYPE", {dtype: f"ndarray:{dtype}" for dtype in INTEGERS + FLOATS}, 1500)
    _write(out / "ndarray:DTYPE:SHAPE", {dtype: f"ndarray:{dtype}:2,3" for dtype in INTEGERS + FLOATS}, 1500)
    for compression in COMPRESSIONS:
        _write(out / compression, {"value": "ndarray:uint8:2,3", "key": "str"}, compression=compression)


def make_datasets(out):
    """Make datasets with each quantizer and codec, with buckets, units, updates and every kind of column."""
    for bits in (4, 5, 6, 8):
        made = make_dataset(out / f"{bits} bits", COUNT, bits=bits, size_limit=800)
        stored = made.codes if bits == 8 else made.card.latents["latent"].quantizer.pack(made.codes)
        _known(made.path, made, stored)
    for kind in ("float32", "float16", "bfloat16", "codebook"):
        made = make_dataset(out / f"{kind} latents", COUNT, kind=kind, size_limit=800)
        _known(made.path, made, made.codes)
    made = make_dataset(out / "trellis", COUNT, kind="trellis", bits=4, size_limit=800)
    _known(made.path, made, made.card.latents["latent"].quantizer.pack(made.codes))
    made = make_buckets(out / "buckets", tokens=True)
    _known(made.path, made, made.codes)
    made = make_buckets(out / "buckets of moments", moments=True, shapes=((4, 1, 9), (4, 3, 3)), units=((3, 4), (0, 5)))
    _known(made.path, made, made.codes, "moments")
    made = make_buckets(out / "buckets, 5 bits", bits=5)
    _known(made.path, made, [made.card.latents["latent"].quantizer.pack(codes[None])[0] for codes in made.codes])

    source = out / "source"
    for number in range(10):
        picture = source / ("ant" if number % 2 else "bee") / f"{number}.jpg"
        picture.parent.mkdir(parents=True, exist_ok=True)
        _picture(number).resize((48 + 8 * (number % 3), 48)).save(picture)
    _encode(out / "transform of fixed size", source, {"kind": "transform", "bytes": 100})
    _encode(out / "transform of variable size", source, {"kind": "transform", "rate": 2.0})
    _encode(out / "units of labels", source)
    buckets = [[32, 32], [32, 48]]
    _encode(out / "buckets of a transform", source, {"kind": "transform", "rate": 2.0}, buckets=buckets)
    updated = out / "after an update"
    _encode(updated, source)
    _picture(50).resize((48, 48)).save(source / "ant" / "2.png")
    (source / "bee" / "4.jpg").unlink()
    _encode(updated, source, update=True)
    embeddings = {"caption_embedding": "ndarray:float16:2,5,4", "attention_mask": "ndarray:uint8:2,5"}
    embeddings |= {"pooled": "ndarray:uint8:8", "captions": "json"}
    _write(out / "embeddings", embeddings)
    numeric = {"tokens": "ndarray:int32:4,4", "original_size": "ndarray:int32:2", "label": "int"}
    _write(out / "tokens", numeric)
    _write(out / "with images", {"latent": "ndarray:uint8:4,4,4", "image": "jpeg"})
