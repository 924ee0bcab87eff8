"""Compares shards with those of mosaicml-streaming, and reads each with the other."""

import errno
import json
import os
import pickle
import shutil
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from streaming import MDSWriter, StreamingDataset
from streaming.base.format.mds.encodings import Encoding, _encodings
from streaming.base.format.mds.reader import MDSReader
from streaming.base.hashing import get_hashes
from streaming.base.util import clean_stale_shared_memory, merge_index

from latentq import FormatError, mds
from support.mds_schemas import stock_without_naps

pytestmark = pytest.mark.usefixtures("streaming_alone")

COLUMNS = {"latent": "ndarray:uint8:4,8,8", "label": "int", "key": "str", "score": "float32"}


def samples(n: int, seed: int = 0) -> list[dict]:
    rng = np.random.default_rng(seed)
    return [
        {
            "latent": rng.integers(0, 256, (4, 8, 8), np.uint8),
            "label": int(rng.integers(-(2**63), 2**63)),
            "key": "é" * int(rng.integers(0, 9)) + f"n{i:04}",
            "score": float(rng.normal()),
        }
        for i in range(n)
    ]


def write_stock(path: Path, columns: dict[str, str], rows: list[dict], **options) -> None:
    with MDSWriter(out=str(path), columns=columns, **options) as writer:
        for row in rows:
            writer.write(row)


def write_ours(path: Path, columns: dict[str, str], rows: list[dict], **options) -> None:
    with mds.Writer(path, columns, sync=False, **options) as writer:
        for row in rows:
            writer.write(row)


def stock_samples(path: Path) -> list[dict]:
    index = json.loads((path / "index.json").read_text())
    shards = [MDSReader.from_json(str(path), None, entry) for entry in index["shards"]]
    return [shard[i] for shard in shards for i in range(len(shard))]


def contents(path: Path) -> dict[str, bytes]:
    return {str(file.relative_to(path)): file.read_bytes() for file in sorted(path.rglob("*")) if file.is_file()}


def assert_equal(a: dict, b: dict) -> None:
    assert a.keys() == b.keys()
    for name in a:
        assert type(a[name]) is type(b[name])
        np.testing.assert_array_equal(a[name], b[name])


@pytest.fixture(autouse=True)
def no_naps() -> Iterator[None]:
    with stock_without_naps():
        yield


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    path = tmp_path / "dataset"
    write_ours(path, COLUMNS, samples(50), size_limit=4000, hashes=["xxh3_64"])
    return path


# Writing.


@pytest.mark.parametrize("size_limit", [1 << 26, 4000, 300, 1, None])
def test_files_equal_those_of_the_stock_writer_byte_for_byte(tmp_path: Path, size_limit: int | None) -> None:
    options = {"size_limit": size_limit, "hashes": sorted(get_hashes())}
    write_stock(tmp_path / "stock", COLUMNS, samples(40), **options)
    write_ours(tmp_path / "ours", COLUMNS, samples(40), **options)
    assert contents(tmp_path / "ours") == contents(tmp_path / "stock")


@pytest.mark.parametrize("size_limit", ["1kb", "4000", "3000b", " 0.5 KB ", "1.5mb", "1gb"])
def test_size_limits_in_text_are_those_of_the_stock_writer(tmp_path: Path, size_limit: str) -> None:
    write_stock(tmp_path / "stock", COLUMNS, samples(40), size_limit=size_limit)
    write_ours(tmp_path / "ours", COLUMNS, samples(40), size_limit=size_limit)
    assert contents(tmp_path / "ours") == contents(tmp_path / "stock")


@pytest.mark.parametrize("n", [0, 1, 5])
def test_writing_a_batch_equals_writing_its_samples(tmp_path: Path, n: int) -> None:
    rows = samples(n)
    write_ours(tmp_path / "rows", COLUMNS, rows, size_limit=1000)
    with mds.Writer(tmp_path / "batch", COLUMNS, size_limit=1000, sync=False) as writer:
        writer.write_batch(
            {
                "latent": np.array([row["latent"] for row in rows], np.uint8).reshape(n, 4, 8, 8),
                "label": np.array([row["label"] for row in rows], np.int64),
                "key": [row["key"] for row in rows],
                "score": [row["score"] for row in rows],
            }
        )
    assert contents(tmp_path / "batch") == contents(tmp_path / "rows")


def test_arrays_of_any_layout_and_byte_order_are_written_by_value(tmp_path: Path) -> None:
    array = np.arange(24, dtype=np.int16).reshape(2, 3, 4)
    columns = {"fixed": "ndarray:int16:2,3,4", "typed": "ndarray:int16", "free": "ndarray", "raw": "raw:int16"}
    write_ours(tmp_path / "plain", columns, [dict.fromkeys(columns, array)])
    fortran, swapped = np.asfortranarray(array), array.astype(">i2")
    strided = np.repeat(array, 2, axis=1)[:, ::2]
    read_only = array.copy()
    read_only.flags.writeable = False
    for number, other in enumerate([fortran, swapped, strided, read_only]):
        write_ours(tmp_path / f"{number}", columns, [dict.fromkeys(columns, other)])
        assert contents(tmp_path / f"{number}") == contents(tmp_path / "plain")
    with mds.Writer(tmp_path / "batch", columns, sync=False) as writer:
        writer.write_batch(dict.fromkeys(columns, swapped[None]))
    assert contents(tmp_path / "batch") == contents(tmp_path / "plain")
    (stock,) = stock_samples_raw(tmp_path / "plain", ["fixed", "typed", "free"])
    for name in stock:
        np.testing.assert_array_equal(stock[name], array)


def stock_samples_raw(path: Path, names: list[str]) -> list[dict]:
    return [{name: sample[name] for name in names} for sample in stock_samples(path)]


@pytest.mark.parametrize(
    ("encoding", "value"),
    [
        ("int", 1 << 63),
        ("int", 1.5),
        ("int", "1"),
        ("uint8", 256),
        ("uint8", -1),
        ("uint8", 2.5),
        ("uint64", -1),
        ("int32", 1 << 31),
        ("str", 5),
        ("str", "\ud800"),
        ("bytes", "text"),
        ("str_int", 5.0),
        ("str_float", 5),
        ("str_decimal", 0.5),
        ("float32", "x"),
        ("ndarray", 5),
        ("ndarray", np.array(5)),
        ("ndarray", np.zeros((2, 0))),
        ("ndarray", np.array(["a"])),
        ("ndarray:uint8", np.zeros(3)),
        ("ndarray:uint8:3", np.zeros(4, np.uint8)),
        ("ndarray:uint8:3", b"four"),
        ("raw:uint8", np.zeros(3)),
        ("pil", b"".join),
        ("jpeg", np.zeros((8, 8, 3), np.uint8)),
    ],
)
def test_a_value_that_does_not_fit_its_column_is_refused_and_leaves_no_trace(
    tmp_path: Path, encoding: str, value: object
) -> None:
    with mds.Writer(tmp_path / "out", {"c": encoding, "n": "int"}, sync=False) as writer:
        with pytest.raises((ValueError, TypeError), match=r"[\"']c[\"']"):
            writer.write({"c": value, "n": 1})
        with pytest.raises((ValueError, TypeError), match=r"[\"']c[\"']"):
            writer.write_batch({"c": [value], "n": [1]})
    assert len(mds.Reader(tmp_path / "out")) == 0


def test_a_missing_column_is_an_error_and_another_key_is_not(tmp_path: Path) -> None:
    with mds.Writer(tmp_path / "out", {"a": "int", "b": "int"}, sync=False) as writer:
        with pytest.raises(KeyError, match="b"):
            writer.write({"a": 1})
        with pytest.raises(KeyError, match="b"):
            writer.write_batch({"a": [1]})
        with pytest.raises(ValueError, match="lengths"):
            writer.write_batch({"a": [1], "b": [1, 2]})
        writer.write({"a": 1, "b": 2, "c": 3})
    assert mds.Reader(tmp_path / "out")[0] == {"a": 1, "b": 2}


@pytest.mark.parametrize(
    "options",
    [
        {"columns": {"c": "pkl"}},
        {"columns": {"c": "uint128"}},
        {"columns": {"c": "ndarray:uint8:0"}},
        {"columns": {"c": "ndarray:uint8:65536,65536"}},
        {"columns": {}},
        {"compression": "lz4"},
        {"compression": "zstd:23"},
        {"hashes": ["crc32"]},
        {"hashes": ["md5", "md5"]},
        {"size_limit": 1 << 32},
        {"size_limit": -1},
        {"size_limit": "4gb"},
        {"size_limit": "-1kb"},
        {"size_limit": "1 kib"},
        {"size_limit": "infkb"},
        {"size_limit": ""},
    ],
)
def test_unsupported_options_are_refused_before_anything_is_written(tmp_path: Path, options: dict) -> None:
    with pytest.raises(ValueError):
        mds.Writer(tmp_path / "out", **{"columns": {"c": "int"}, **options})
    assert list(tmp_path.iterdir()) == []


# Publishing.


def test_an_exception_publishes_nothing(tmp_path: Path) -> None:
    def fail() -> None:
        with mds.Writer(tmp_path / "out", {"n": "int"}, size_limit=100) as writer:
            for n in range(100):
                writer.write({"n": n})
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert list(tmp_path.iterdir()) == []


def test_an_open_dataset_is_a_hidden_temporary_next_to_its_path(tmp_path: Path) -> None:
    writer = mds.Writer(tmp_path / "out", {"n": "int"})
    (temporary,) = tmp_path.iterdir()
    start, name, digits = temporary.name.split(".")
    assert (start, name, len(digits)) == ("", "out", 8)
    int(digits, 16)
    writer.write({"n": 1})
    writer.close()
    writer.close()
    assert [file.name for file in tmp_path.iterdir()] == ["out"]
    with pytest.raises(ValueError, match="closed"):
        writer.write({"n": 1})


def test_an_empty_folder_is_filled_and_another_is_refused(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    write_ours(tmp_path / "out", {"n": "int"}, [{"n": 1}])
    before = contents(tmp_path)
    for path in [tmp_path / "out", tmp_path / "out" / "index.json"]:
        with pytest.raises(FileExistsError, match="out"):
            mds.Writer(path, {"n": "int"})
    with pytest.raises(FileNotFoundError):
        mds.Writer(tmp_path / "no" / "out", {"n": "int"})
    assert contents(tmp_path) == before


def test_the_second_of_two_writers_to_close_gets_an_error(tmp_path: Path) -> None:
    first = mds.Writer(tmp_path / "out", {"n": "int"})
    second = mds.Writer(tmp_path / "out", {"n": "int"})
    second.write({"n": 2})
    second.close()
    with pytest.raises(FileExistsError, match="out"):
        first.close()
    assert [file.name for file in tmp_path.iterdir()] == ["out"]
    assert mds.Reader(tmp_path / "out")[0] == {"n": 2}


def test_added_files_are_published_with_the_shards(tmp_path: Path) -> None:
    with mds.Writer(tmp_path / "out", {"n": "int"}) as writer:
        writer.add_file("unit.toml", b"count = 0\n")
        for name in ["unit.toml", "index.json", "shard.00000.mds", "shard.00000.mds.gz", "a/b", "..", ""]:
            with pytest.raises(ValueError):
                writer.add_file(name, b"")
    assert (tmp_path / "out" / "unit.toml").read_bytes() == b"count = 0\n"


def test_a_forked_child_does_not_remove_its_parents_temporary(tmp_path: Path) -> None:
    writer = mds.Writer(tmp_path / "out", {"n": "int"})
    pid = os.fork()
    if pid == 0:
        del writer
        os._exit(0)
    os.waitpid(pid, 0)
    writer.write({"n": 1})
    writer.close()
    assert len(mds.Reader(tmp_path / "out")) == 1


def test_a_forked_child_neither_waits_for_nor_disturbs_its_parents_shard(tmp_path: Path) -> None:
    writer = mds.Writer(tmp_path / "out", {"b": "bytes"}, size_limit=1 << 23)
    for n in range(2):
        writer.write({"b": bytes([n]) * (6 << 20)})
    pid = os.fork()
    if pid == 0:
        try:
            writer.close()
        except ValueError as error:
            os._exit(0 if "another process" in str(error) else 2)
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    writer.write({"b": b""})
    writer.close()
    assert [len(sample["b"]) for sample in mds.Reader(tmp_path / "out")] == [6 << 20, 6 << 20, 0]


def test_a_forked_child_neither_fills_nor_publishes_its_parents_dataset(tmp_path: Path) -> None:
    writer = mds.Writer(tmp_path / "out", {"b": "bytes"}, size_limit=1 << 12)
    writer.write({"b": b"parent"})

    def more() -> None:
        for _ in range(9):
            writer.write({"b": bytes(1 << 10)})

    for act in [more, lambda: writer.add_file("note", b""), writer.close]:
        pid = os.fork()
        if pid == 0:
            try:
                act()
            except ValueError as error:
                os._exit(0 if "another process" in str(error) else 2)
            os._exit(1)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    more()
    writer.close()
    assert [len(sample["b"]) for sample in mds.Reader(tmp_path / "out")] == [6, *[1 << 10] * 9]
    assert not (tmp_path / "out" / "note").exists()


def test_a_subclass_can_override_write(tmp_path: Path) -> None:
    class Doubled(mds.Writer):
        def write(self, sample: Mapping[str, Any]) -> None:
            super().write({"n": 2 * sample["n"]})

    with Doubled(tmp_path / "out", {"n": "int"}) as writer:
        writer.write({"n": 4})
    assert mds.Reader(tmp_path / "out")[0] == {"n": 8}


def test_a_full_disk_is_an_oserror_that_names_the_file_and_nothing_is_published(tmp_path: Path) -> None:
    import resource
    import signal

    # A limit on the size of a file stands in for the disk: EFBIG is reported on the same path as ENOSPC.
    old = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (2000, limits[1]))
        with pytest.raises(OSError, match="shard") as info, mds.Writer(tmp_path / "out", {"b": "bytes"}) as writer:
            writer.write({"b": bytes(5000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, old)
    assert info.value.errno == errno.EFBIG
    assert info.value.filename == str(tmp_path / "out" / "shard.00000.mds")
    assert list(tmp_path.iterdir()) == []


# Merging.


def test_a_merged_index_equals_that_of_merge_index_byte_for_byte(tmp_path: Path) -> None:
    for number in range(3):
        write_stock(tmp_path / f"{number:05}", COLUMNS, samples(20, number), size_limit=3000, hashes=["sha1"])
    merge_index(str(tmp_path))
    expected = (tmp_path / "index.json").read_bytes()
    (tmp_path / "index.json").unlink()
    (tmp_path / ".00003.abc").mkdir()
    (tmp_path / "empty").mkdir()
    names = ["00000", "00001", "00002"]
    assert mds.merged_index(tmp_path, names) == expected
    for folders in [None, names]:
        mds.merge(tmp_path, folders)
        assert (tmp_path / "index.json").read_bytes() == expected
    assert len([file for file in tmp_path.iterdir() if file.is_file()]) == 1
    reader = mds.Reader(tmp_path)
    for i, sample in enumerate(s for number in range(3) for s in samples(20, number)):
        assert reader[i]["key"] == sample["key"]
    with pytest.raises(FileNotFoundError, match="00007"):
        mds.merge(tmp_path, ["00000", "00007"])
    with pytest.raises(ValueError):
        mds.merged_index(tmp_path, ["../00000"])
    with pytest.raises(FileNotFoundError, match="no sub-folder holds an index"):
        mds.merge(tmp_path / "empty")
    assert not list((tmp_path / "empty").iterdir())


# Reading.


@pytest.mark.parametrize("size_limit", [1 << 26, 3000, 1])
def test_stock_datasets_are_read_as_the_stock_reader_reads_them(tmp_path: Path, size_limit: int) -> None:
    write_stock(tmp_path / "stock", COLUMNS, samples(30), size_limit=size_limit)
    reader = mds.Reader(tmp_path / "stock")
    assert reader.columns == dict(sorted(COLUMNS.items()))
    expected = stock_samples(tmp_path / "stock")
    assert len(reader) == len(expected)
    for i, sample in enumerate(expected):
        assert_equal(reader[i], sample)
        assert_equal(reader[i - len(reader)], sample)


def test_a_streaming_dataset_reads_our_files(dataset: Path) -> None:
    clean_stale_shared_memory()
    for ours, stock, row in zip(
        mds.Reader(dataset), StreamingDataset(local=str(dataset), batch_size=1), samples(50), strict=True
    ):
        assert_equal(ours, stock)
        assert ours["key"] == row["key"]


@pytest.mark.parametrize("compression", ["br", "bz2", "gz", "snappy", "zstd", "br:0", "bz2:1", "gz:0", "zstd:22"])
def test_compressed_datasets_are_read_both_ways(tmp_path: Path, compression: str) -> None:
    options = {"size_limit": 4000, "compression": compression, "hashes": ["sha1", "xxh64"]}
    write_stock(tmp_path / "stock", COLUMNS, samples(40), **options)
    write_ours(tmp_path / "ours", COLUMNS, samples(40), **options)
    write_ours(tmp_path / "again", COLUMNS, samples(40), **options)
    assert contents(tmp_path / "ours") == contents(tmp_path / "again")
    assert mds.verify(tmp_path / "stock") == mds.verify(tmp_path / "ours") == []
    # A cache for less than one shard: what is read does not depend on it.
    reader, small = mds.Reader(tmp_path / "stock"), mds.Reader(tmp_path / "stock", cache_bytes=1)
    order = np.random.default_rng(0).permutation(40)
    np.testing.assert_array_equal(reader.gather(order, "latent"), small.gather(order, "latent"))
    clean_stale_shared_memory()
    local = StreamingDataset(local=str(tmp_path / "ours"), batch_size=1, validate_hash="xxh64")
    for got, stock, row in zip(reader, local, samples(40), strict=True):
        assert_equal(got, stock)
        assert got["key"] == row["key"]
    # The stock reader has put uncompressed shards there: these are read where the others are gone.
    for file in (tmp_path / "ours").glob("*.mds.*"):
        file.unlink()
    np.testing.assert_array_equal(mds.Reader(tmp_path / "ours").gather(order, "latent"), reader.gather(order, "latent"))
    assert mds.verify(tmp_path / "ours") == []


def test_more_shards_than_open_files_are_read(tmp_path: Path) -> None:
    write_ours(tmp_path / "out", {"n": "int"}, [{"n": n} for n in range(600)], size_limit=1)
    reader = mds.Reader(tmp_path / "out")
    before = len(list(Path("/proc/self/fd").iterdir()))
    order = np.random.default_rng(0).permutation(600)
    np.testing.assert_array_equal([reader[i]["n"] for i in order], order)
    np.testing.assert_array_equal(reader.gather(order, "n"), order)
    assert len(list(Path("/proc/self/fd").iterdir())) - before <= 256
    # Readers share what a process may have open.
    readers = [reader, *(mds.Reader(tmp_path / "out") for _ in range(7))]
    for _ in range(2):
        for each in readers:
            np.testing.assert_array_equal(each.gather(order, "n"), order)
    assert len(list(Path("/proc/self/fd").iterdir())) - before <= 512


def test_folders_of_imagenet_int8_with_four_digit_names_are_read(tmp_path: Path) -> None:
    class Raw(Encoding):
        def encode(self, obj: np.ndarray) -> bytes:
            return obj.tobytes()

        def decode(self, data: bytes) -> np.ndarray:
            return np.frombuffer(data, np.uint8)

    columns = {"vae_output": "uint8", "label": "str", "label_as_text": "str"}
    rng = np.random.default_rng(0)
    rows = [
        {"vae_output": rng.integers(0, 256, 4096, np.uint8), "label": str(i), "label_as_text": f"class {i}"}
        for i in range(10)
    ]
    scalar, _encodings["uint8"] = _encodings["uint8"], Raw
    try:
        write_stock(tmp_path / "stock", columns, rows, size_limit=20000)
    finally:
        _encodings["uint8"] = scalar
    write_ours(tmp_path / "ours", {**columns, "vae_output": "raw:uint8"}, rows, size_limit=20000)
    assert contents(tmp_path / "ours") == contents(tmp_path / "stock")
    index = json.loads((tmp_path / "stock" / "index.json").read_text())
    for number, shard in enumerate(index["shards"]):
        old, shard["raw_data"]["basename"] = shard["raw_data"]["basename"], f"shard.{number:04}.mds"
        (tmp_path / "stock" / old).rename(tmp_path / "stock" / shard["raw_data"]["basename"])
    (tmp_path / "stock" / "index.json").write_text(json.dumps(index))
    reader = mds.Reader(tmp_path / "stock")
    assert reader.columns["vae_output"] == "raw:uint8"
    for got, row in zip(reader, rows, strict=True):
        assert_equal(got, row)
    codes = np.empty((3, 4096), np.uint8)
    assert reader.gather([7, 1, 7], "vae_output", out=codes) is codes
    np.testing.assert_array_equal(codes, [rows[i]["vae_output"] for i in [7, 1, 7]])
    with pytest.raises(ValueError, match="4096"):
        reader.gather([7], "vae_output", out=np.empty((1, 4095), np.uint8))


@pytest.mark.parametrize("cache_bytes", [0, 1 << 20])
def test_gather_takes_indices_as_numpy_does(dataset: Path, cache_bytes: int) -> None:
    reader = mds.Reader(dataset, cache_bytes=cache_bytes)
    rows = list(reader)
    for got, row in zip(reader, rows, strict=True):
        assert_equal(got, row)
    latents = np.array([row["latent"] for row in rows])
    labels = np.array([row["label"] for row in rows])
    rng = np.random.default_rng(1)
    for indices in [[], [0], [-1, 49, 0, -50], [3, 3, 3], rng.permutation(50), rng.integers(-50, 50, 200), range(50)]:
        places = np.asarray(indices, np.int64)
        found = reader.gather(indices, "latent")
        assert found.dtype == np.uint8
        np.testing.assert_array_equal(found, latents[places])
        np.testing.assert_array_equal(reader.gather(indices, "label"), labels[places])
        assert reader.gather(indices, "key") == [rows[i]["key"] for i in places]
        several = reader.gather(indices, ["score", "key", "latent"])
        assert list(several) == ["score", "key", "latent"]
        assert several["key"] == [rows[i]["key"] for i in places]
        np.testing.assert_array_equal(several["latent"], latents[places])
        np.testing.assert_array_equal(several["score"], np.array([rows[i]["score"] for i in places], np.float32))
    for bad in [[50], [-51], [0, 1 << 62], np.array([2**64 - 1], np.uint64)]:
        with pytest.raises(IndexError, match="out of bounds"):
            reader.gather(bad, "latent")
    for bad in [[0.5], [True], ["0"]]:
        with pytest.raises(TypeError):
            reader.gather(bad, "latent")
    for index in [50, -51, 2**70, -(2**70)]:
        with pytest.raises(IndexError, match="out of bounds"):
            reader[index]
        with pytest.raises(IndexError, match="out of bounds"):
            reader.stored(index, "key")
    with pytest.raises(TypeError):
        reader.stored(1.5, "key")
    frozen = np.zeros((1, 8), np.uint8)
    frozen.flags.writeable = False
    for out in [frozen, [1], np.zeros((1, 8), np.int8), np.zeros((2, 8), np.uint8)]:
        with pytest.raises(ValueError, match="out must be"):
            reader.gather([0], "label", out=out)
    both = np.zeros((2, 8), np.uint8)
    with pytest.raises(ValueError, match="overlap"):
        reader.gather([0], ["label", "score"], out={"label": both[:1], "score": both[:1, :4].reshape(1, 4)})
    with pytest.raises(ValueError, match="overlap"):
        reader.gather([0], ["label", "label"], out={"label": both[:1]})
    with pytest.raises(ValueError, match=r"\['lable'\], which are not among"):
        reader.gather([0], ["label", "key"], out={"lable": both[:1]})
    with pytest.raises(ValueError, match="dict of arrays"):
        reader.gather([0], ["label"], out=both[:1])
    with pytest.raises(KeyError, match="nothing"):
        reader.gather([0], "nothing")


def test_arrays_are_writable_and_own_their_memory(dataset: Path) -> None:
    reader = mds.Reader(dataset)
    for array in [reader[3]["latent"], reader.gather([3], "latent")]:
        assert array.flags.writeable
        assert array.flags.owndata
        array[...] = 0
    assert reader[3]["latent"].any()


def test_a_pickled_reader_is_small(dataset: Path) -> None:
    reader = mds.Reader(dataset)
    first = reader[0]
    data = pickle.dumps(reader)
    assert len(data) < 300
    assert_equal(pickle.loads(data)[0], first)


def test_threads_share_a_reader(dataset: Path) -> None:
    reader = mds.Reader(dataset)
    expected = mds.Reader(dataset).gather(range(50), "latent")
    results: list[np.ndarray] = []
    threads = [threading.Thread(target=lambda: results.append(reader.gather(range(50), "latent"))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 8
    for result in results:
        np.testing.assert_array_equal(result, expected)


def test_a_folder_without_an_index_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"index\.json"):
        mds.Reader(tmp_path)


def test_every_prefix_of_an_index_or_a_shard_is_a_format_error(tmp_path: Path) -> None:
    dataset = tmp_path / "dataset"
    write_ours(dataset, {"label": "int", "key": "str"}, samples(3), hashes=["xxh3_64"])
    index = (dataset / "index.json").read_bytes()
    for length in range(len(index)):
        (dataset / "index.json").write_bytes(index[:length])
        with pytest.raises(FormatError, match=r"index\.json: at byte \d+: "):
            mds.Reader(dataset)
    (dataset / "index.json").write_bytes(index)
    file = dataset / "shard.00000.mds"
    shard = file.read_bytes()
    for length in range(len(shard)):
        file.write_bytes(shard[:length])
        with pytest.raises(FormatError, match=r"shard\.00000\.mds: at byte \d+: "):
            mds.Reader(dataset)[0]


def test_a_shard_truncated_while_it_is_open_is_an_error(dataset: Path) -> None:
    reader = mds.Reader(dataset)
    assert reader[0]
    os.truncate(dataset / "shard.00000.mds", 1000)
    with pytest.raises(FormatError, match=r"shard\.00000\.mds"):
        reader.gather(range(5), "latent")


def bytes_read(call: Callable[[], object]) -> int:
    """Returns the bytes that this process read from files during a call (500 fewer, for reading the counter itself)."""

    def read() -> int:
        return int(Path("/proc/self/io").read_text().split()[1])

    start = read()
    call()
    return max(read() - start - 500, 0)


def epochs(reader: mds.Reader, number: int) -> list[int]:
    """Returns the bytes read from files in each of `number` epochs."""
    order = np.random.default_rng(0).permutation(len(reader))
    return [bytes_read(lambda: reader.gather(order, "latent")) for _ in range(number)]


def test_shards_read_again_are_cached_if_the_dataset_fits(dataset: Path) -> None:
    total = sum(file.stat().st_size for file in dataset.glob("*.mds"))
    first, second, third = epochs(mds.Reader(dataset, cache_bytes=total), 3)
    assert 50 * 256 - 500 <= first < total
    assert total - 500 <= second <= total
    assert third == 0
    for cache_bytes in [0, total - 1]:
        assert all(read >= 50 * 256 - 500 for read in epochs(mds.Reader(dataset, cache_bytes=cache_bytes), 3))
    # Reading every sample once, or a few samples often, does not load whole shards.
    reader = mds.Reader(dataset)
    assert bytes_read(lambda: list(reader)) < 2 * total
    reader = mds.Reader(dataset)
    assert bytes_read(lambda: [reader[0] for _ in range(5)]) < 3500


def test_all_readers_together_cache_an_eighth_of_the_memory(dataset: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    total = sum(file.stat().st_size for file in dataset.glob("*.mds"))
    monkeypatch.setattr("latentq.mds.reader.available_bytes", lambda: 8 * total + 7)
    holds = mds.Reader(dataset)
    assert epochs(mds.Reader(dataset), 3)[2] > 0
    assert epochs(holds, 3)[2] == 0
    del holds
    assert epochs(mds.Reader(dataset), 3)[2] == 0
    monkeypatch.setattr("latentq.mds.reader.available_bytes", lambda: 8 * total - 1)
    assert epochs(mds.Reader(dataset), 3)[2] > 0
    monkeypatch.setattr("latentq.mds.reader.available_bytes", lambda: None)
    assert epochs(mds.Reader(dataset), 3)[2] == 0
    with pytest.raises(ValueError, match="negative"):
        mds.Reader(dataset, cache_bytes=-1)
    assert len(pickle.loads(pickle.dumps(mds.Reader(dataset, cache_bytes=1 << 70)))) == 50


def test_a_forked_or_unpickled_reader_caches_nothing_more(dataset: Path) -> None:
    reader = mds.Reader(dataset)
    assert epochs(pickle.loads(pickle.dumps(reader)), 3)[2] > 0
    first = range(5)
    for _ in range(9):
        reader.gather(first, "latent")
    pid = os.fork()
    if pid == 0:
        shares = bytes_read(lambda: reader.gather(first, "latent")) == 0
        os._exit(0 if shares and epochs(reader, 3)[2] > 0 else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def test_a_cached_shard_whose_file_is_truncated_is_an_error(dataset: Path) -> None:
    reader = mds.Reader(dataset)
    epochs(reader, 2)
    os.truncate(dataset / "shard.00000.mds", 3000)
    for read in [lambda: reader.gather([49, 0], "latent"), lambda: reader[0], lambda: reader.gather([0], "key")]:
        with pytest.raises(FormatError, match=r"shard\.00000\.mds: at byte 3000: the file has 3000 bytes"):
            read()
    assert reader[49]["key"].endswith("n0049")


def test_a_shard_that_differs_from_its_index_is_an_error(dataset: Path) -> None:
    other = dataset.with_name("other")
    write_ours(other, {**COLUMNS, "score": "int32"}, [{**row, "score": 1} for row in samples(50)], size_limit=4000)
    shutil.copy(other / "shard.00000.mds", dataset / "shard.00000.mds")
    index = json.loads((dataset / "index.json").read_text())
    index["shards"][0]["raw_data"]["bytes"] = (dataset / "shard.00000.mds").stat().st_size
    (dataset / "index.json").write_text(json.dumps(index))
    reader = mds.Reader(dataset)
    for _ in range(2):  # a bad shard is bad the second time too
        with pytest.raises(FormatError, match=r"shard\.00000\.mds: at byte \d+: "):
            reader[0]


def test_shards_may_have_their_columns_in_different_orders(tmp_path: Path) -> None:
    # No writer does that, but an index has the order of each shard, so the shards are made by hand.
    shards = []
    for number, names in enumerate([["a", "b", "n"], ["n", "b", "a"]]):
        config = {
            "column_encodings": ["int" if name == "n" else "str" for name in names],
            "column_names": names,
            "column_sizes": [8 if name == "n" else None for name in names],
            "compression": None,
            "format": "mds",
            "hashes": [],
            "size_limit": None,
            "version": 2,
        }
        values = {"a": b"one", "b": b"", "n": np.int64(number).tobytes()}
        lengths = np.array([len(values[name]) for name in names if name != "n"], np.uint32)
        sample = lengths.tobytes() + b"".join(values[name] for name in names)
        text = json.dumps(config).encode()
        start = 12 + len(text)
        data = np.array([1, start, start + len(sample)], np.uint32).tobytes() + text + sample
        (tmp_path / f"{number}.mds").write_bytes(data)
        raw = {"basename": f"{number}.mds", "bytes": len(data), "hashes": {}}
        shards.append({**config, "raw_data": raw, "samples": 1, "zip_data": None})
    (tmp_path / "index.json").write_text(json.dumps({"version": 2, "shards": shards}))
    assert mds.verify(tmp_path) == []
    assert stock_samples(tmp_path) == [{"a": "one", "b": "", "n": n} for n in range(2)]
    reader = mds.Reader(tmp_path)
    assert list(reader) == stock_samples(tmp_path)
    assert reader.gather([1, 0], ["n", "a", "b"])["a"] == ["one", "one"]
    assert reader.gather([1, 0], "n").tolist() == [1, 0]


@pytest.mark.parametrize("name", ["../dataset/shard.00000.mds", "/etc/passwd", "", "."])
def test_an_index_cannot_name_files_outside_its_folder(dataset: Path, name: str) -> None:
    index = json.loads((dataset / "index.json").read_text())
    index["shards"][0]["raw_data"]["basename"] = name
    (dataset / "index.json").write_text(json.dumps(index))
    with pytest.raises(FormatError, match="basename"):
        mds.Reader(dataset)


def test_images_without_pillow_are_an_import_error_not_a_format_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_ours(tmp_path / "out", {"image": "png"}, [{"image": b"whatever"}])
    monkeypatch.setitem(sys.modules, "PIL", None)
    reader = mds.Reader(tmp_path / "out")
    for read in [lambda: reader[0], lambda: reader.gather([0], "image"), lambda: mds.verify(tmp_path / "out")]:
        with pytest.raises(ImportError):
            read()


def test_a_pickle_is_never_decoded(tmp_path: Path) -> None:
    write_stock(tmp_path / "stock", {"p": "pkl", "n": "int"}, [{"p": {"a": 1}, "n": 1}])
    assert mds.Reader(tmp_path / "stock")[0] == {"p": pickle.dumps({"a": 1}), "n": 1}


def test_a_bool_in_a_column_of_integers_as_text_is_readable(tmp_path: Path) -> None:
    write_ours(tmp_path / "out", {"i": "str_int"}, [{"i": True}])
    assert mds.Reader(tmp_path / "out")[0] == {"i": 1}


def test_text_columns_equal_those_of_the_stock_writer(tmp_path: Path) -> None:
    rows = [
        {"i": 10**40, "f": 1e22, "d": Decimal("-1.50E+9"), "j": {"a": [1, None, float("inf")]}},
        {"i": -5, "f": float("-inf"), "d": Decimal("NaN"), "j": "é"},
    ]
    columns = {"i": "str_int", "f": "str_float", "d": "str_decimal", "j": "json"}
    write_stock(tmp_path / "stock", columns, rows)
    write_ours(tmp_path / "ours", columns, rows)
    assert contents(tmp_path / "ours") == contents(tmp_path / "stock")
    for got, row in zip(mds.Reader(tmp_path / "ours"), rows, strict=True):
        assert str(got) == str({name: row[name] for name in sorted(row)})
