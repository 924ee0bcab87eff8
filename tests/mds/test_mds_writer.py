"""Compares written shards and merged indexes with those of mosaicml-streaming, and tests publishing."""

import errno
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from streaming.base.hashing import get_hashes
from streaming.base.util import merge_index

from latentq import mds
from latentq.mds.folder import samples_by_folder
from support.mds_stock import COLUMNS, contents, samples, stock_samples, write_ours, write_stock

pytestmark = pytest.mark.usefixtures("streaming_alone", "no_naps")


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


def test_a_missing_column_is_an_error_and_an_unknown_key_is_ignored(tmp_path: Path) -> None:
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


def test_a_merged_index_equals_that_of_merge_index_byte_for_byte(tmp_path: Path) -> None:
    for number in range(3):
        write_stock(tmp_path / f"{number:05}", COLUMNS, samples(20, number), size_limit=3000, hashes=["sha1"])
    merge_index(str(tmp_path))
    expected = (tmp_path / "index.json").read_bytes()
    (tmp_path / "index.json").unlink()
    (tmp_path / ".00003.abc").mkdir()
    (tmp_path / "empty").mkdir()
    names = ["00000", "00001", "00002"]
    pieces = list(mds.merged_index(tmp_path, iter(names)))
    assert b"".join(pieces) == expected
    assert len(pieces) == 5  # one for each dataset, and both ends
    assert samples_by_folder(tmp_path / "00000") == [("", 20)]
    for folders in [None, names]:
        mds.merge(tmp_path, folders)
        assert (tmp_path / "index.json").read_bytes() == expected
    assert samples_by_folder(tmp_path) == [(name, 20) for name in names]
    assert len([file for file in tmp_path.iterdir() if file.is_file()]) == 1
    reader = mds.Reader(tmp_path)
    for i, sample in enumerate(s for number in range(3) for s in samples(20, number)):
        assert reader[i]["key"] == sample["key"]
    with pytest.raises(FileNotFoundError, match="00007"):
        mds.merge(tmp_path, ["00000", "00007"])
    with pytest.raises(ValueError):
        list(mds.merged_index(tmp_path, ["../00000"]))
    with pytest.raises(FileNotFoundError, match="no subfolder holds an index"):
        mds.merge(tmp_path / "empty")
    assert not list((tmp_path / "empty").iterdir())
