"""Groups of shards with arrays of their own shape: written as the stock writer would, read by the stock reader."""

import json
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from streaming import StreamingDataset
from streaming.base.util import merge_index

from latentq import FormatError, mds
from support.mds_schemas import stock_without_naps
from support.mds_stock import assert_equal, contents, stock_samples, write_stock

Groups = list[tuple[str, tuple[int, ...], int]]  # name, shape and number of samples


def columns_of(shape: tuple[int, ...]) -> dict[str, str]:
    return {"x": f"ndarray:uint16:{','.join(map(str, shape))}", "label": "int", "key": "str", "size": "ndarray:int32:2"}


def rows_of(shape: tuple[int, ...], count: int, seed: int) -> list[dict[str, Any]]:
    rng = np.random.default_rng(seed)
    return [
        {
            "x": rng.integers(0, 1 << 16, shape, np.uint16),
            "label": int(rng.integers(1 << 40)),
            "key": "k" * int(rng.integers(9)),
            "size": rng.integers(0, 9, 2, np.int32),
        }
        for _ in range(count)
    ]


def write_groups(path: Path, groups: Groups, **options: Any) -> list[dict[str, Any]]:
    """Writes samples of several groups, and returns them."""
    rows = []
    with mds.Writer(path, columns_of(groups[0][1]), sync=False, **options) as writer:
        for seed, (name, shape, count) in enumerate(groups):
            if name:
                writer.begin_group(name, columns_of(shape))
            of_group = rows_of(shape, count, seed)
            if seed % 2 and of_group:
                writer.write_batch({key: [row[key] for row in of_group] for key in of_group[0]})
            else:
                for row in of_group:
                    writer.write(row)
            rows += of_group
    return rows


def write_stock_groups(path: Path, groups: Groups, **options: Any) -> list[dict[str, Any]]:
    """Writes the same by the stock writer: each group on its own, its shards renamed and listed in one index."""
    path.mkdir()
    shards, rows = [], []
    for seed, (name, shape, count) in enumerate(groups):
        of_group = rows_of(shape, count, seed)
        if not of_group:
            continue
        part = path.with_name(f"{path.name}.part")
        write_stock(part, columns_of(shape), of_group, **options)
        for entry in json.loads((part / "index.json").read_text())["shards"]:
            for file in filter(None, (entry["raw_data"], entry["zip_data"])):
                old = file["basename"]
                if name:
                    file["basename"] = old.replace("shard.", f"shard.{name}.")
                if (part / old).exists():
                    (part / old).rename(path / file["basename"])
            shards.append(entry)
        shutil.rmtree(part)
        rows += of_group
    (path / "index.json").write_text(json.dumps({"shards": shards, "version": 2}, sort_keys=True))
    return rows


def expected_groups(groups: Groups) -> tuple[list[str], list[int], list[int]]:
    present = [(name, count) for name, _, count in groups if count]
    starts = np.cumsum([0, *(count for _, count in present)])[:-1].tolist()
    return [name for name, _ in present], starts, list(range(len(present)))


def groups_of(path: Path) -> tuple[list[str], list[int], list[int]]:
    names, starts, which = mds.Reader(path).groups()
    assert (starts.dtype, which.dtype) == (np.int64, np.int32)
    return names, starts.tolist(), which.tolist()


@st.composite
def some_groups(draw: st.DrawFn) -> Groups:
    names = draw(st.lists(st.sampled_from(["", "0", "000", "001", "B-2", "a_b", "mds", "x"]), min_size=1, max_size=4))
    axes = draw(st.integers(1, 3))
    shape = st.tuples(*[st.integers(1, 6)] * axes)
    return [(name, draw(shape), draw(st.integers(0, 5))) for name in sorted(set(names))]


@settings(max_examples=25, deadline=None)
@given(groups=some_groups(), size_limit=st.sampled_from([1, 400, 700, 1 << 26]), packed=st.booleans())
def test_groups_equal_those_of_the_stock_writer_and_both_read_them(groups: Groups, size_limit: int, packed: bool):
    options = {"size_limit": size_limit, "hashes": ["xxh3_64"], "compression": "zstd" if packed else None}
    with tempfile.TemporaryDirectory() as folder, stock_without_naps():
        ours, stock = Path(folder, "ours"), Path(folder, "stock")
        rows = write_groups(ours, groups, **options)
        write_stock_groups(stock, groups, **options)
        if not packed:  # the stock writer's zstd may be of another version
            assert contents(ours) == contents(stock)
        for path in (ours, stock):
            reader = mds.Reader(path)
            assert len(reader) == len(rows)
            for got, row in zip(reader, rows, strict=True):
                assert_equal(got, row)
            assert groups_of(path) == expected_groups(groups)
            assert mds.verify(path) == []
        if not packed:
            for got, row in zip(stock_samples(ours), rows, strict=True):
                assert_equal(got, row)
        if rows:
            index = (ours / "index.json").read_bytes()
            (ours / "index.json").unlink()
            assert mds.repair(ours).samples == len(rows)
            assert (ours / "index.json").read_bytes() == index


GROUPS: Groups = [("000", (4, 2, 3), 5), ("001", (4, 3, 2), 3), ("002", (4, 1, 1), 0), ("003", (4, 5, 7), 4)]


@pytest.mark.usefixtures("streaming_alone", "no_naps")
def test_a_stock_dataset_iterates_merged_units_of_groups(tmp_path: Path) -> None:
    rows = write_groups(tmp_path / "00000", GROUPS, size_limit=700)
    rows += write_groups(tmp_path / "00001", [("001", (4, 3, 2), 2)])
    mds.merge(tmp_path)
    index = (tmp_path / "index.json").read_bytes()
    (tmp_path / "index.json").unlink()
    merge_index(str(tmp_path))
    assert (tmp_path / "index.json").read_bytes() == index
    for got, row in zip(StreamingDataset(local=str(tmp_path), batch_size=1), rows, strict=True):
        assert_equal(got, row)
    names, starts, which = groups_of(tmp_path)
    assert (names, starts, which) == (["000", "001", "003"], [0, 5, 8, 12], [0, 1, 2, 1])


def test_samples_of_one_group_are_gathered_into_one_array(tmp_path: Path) -> None:
    rows = write_groups(tmp_path / "out", GROUPS, size_limit=500)
    reader = mds.Reader(tmp_path / "out")
    assert reader.columns["x"] == "ndarray:uint16"
    assert reader.resolve_column("x") == (3, None)
    assert reader.resolve_column("size") == (2, (np.dtype(np.int32), (2,)))
    indices = [7, 5, 6, 5]
    out = np.empty((4, 48), np.uint8)
    assert reader.gather(indices, "x", out=out) is out
    expected = np.array([rows[index]["x"] for index in indices])
    np.testing.assert_array_equal(out.view(np.uint16).reshape(4, 4, 3, 2), expected)
    mixed = reader.gather([11, 0, 6], ["x", "label"])
    assert [value.shape for value in mixed["x"]] == [(4, 5, 7), (4, 2, 3), (4, 3, 2)]
    for index, value in zip([11, 0, 6], mixed["x"], strict=True):
        np.testing.assert_array_equal(value, rows[index]["x"])
    with pytest.raises(ValueError, match="a value has 280 bytes, the output expects 48"):
        reader.gather([5, 9], "x", out=np.empty((2, 48), np.uint8))


def test_a_group_that_does_not_fit_is_refused_and_leaves_no_trace(tmp_path: Path) -> None:
    columns = columns_of((4, 2, 3))
    with mds.Writer(tmp_path / "out", columns, sync=False) as writer:
        writer.begin_group("010", columns_of((4, 3, 2)))
        for name, changed, message in [
            ("010", columns, 'group "010" cannot follow group "010": the names of groups must ascend'),
            ("009", columns, "must ascend"),
            ("", columns, "must have 1 to 100 of the characters"),
            ("a/b", columns, "must have 1 to 100 of the characters"),
            ("a.b", columns, "must have 1 to 100 of the characters"),
            ("b", {**columns, "more": "int"}, "has the columns"),
            ("b", {"x": "ndarray:uint16:4,2,3"}, "has the columns"),
            ("b", {**columns, "x": "ndarray:uint8:4,2,3"}, 'column "x" is ndarray:uint8:4,2,3 in group "b" and'),
            ("b", {**columns, "x": "ndarray:uint16:4,6"}, "only the lengths of an array's axes may differ"),
            ("b", {**columns, "x": "ndarray:uint16"}, "only the lengths"),
            ("b", {**columns, "key": "bytes"}, "only the lengths"),
            ("b", {**columns, "x": "ndarray:uint16:4,0"}, "is unknown"),
        ]:
            with pytest.raises(ValueError, match=message):
                writer.begin_group(name, changed)
        writer.write(rows_of((4, 3, 2), 1, 0)[0])
        with pytest.raises(ValueError, match="x"):
            writer.write(rows_of((4, 2, 3), 1, 0)[0])
    assert [file.name for file in (tmp_path / "out").glob("*.mds")] == ["shard.010.00000.mds"]
    with pytest.raises(ValueError, match="closed"):
        writer.begin_group("b", columns)


def edit(path: Path, change: Callable[[list[dict[str, Any]]], None]) -> None:
    index = json.loads((path / "index.json").read_text())
    change(index["shards"])
    (path / "index.json").write_text(json.dumps(index))


@pytest.mark.parametrize(
    ("encoding", "size"),
    [("ndarray:uint8:4,3,2", 24), ("ndarray:uint16:24", 48), ("ndarray:uint16", None), ("str", None)],
)
def test_an_index_whose_shards_differ_in_more_than_shape_is_refused(
    tmp_path: Path, encoding: str, size: int | None
) -> None:
    write_groups(tmp_path / "out", GROUPS)

    def lie(shards: list[dict[str, Any]]) -> None:
        shards[1]["column_encodings"][3], shards[1]["column_sizes"][3] = encoding, size

    edit(tmp_path / "out", lie)
    with pytest.raises(FormatError, match="shard 1: its columns differ from those of shard 0"):
        mds.Reader(tmp_path / "out")


def test_an_index_with_the_shapes_of_another_shard_is_refused_when_that_is_read(tmp_path: Path) -> None:
    write_groups(tmp_path / "out", GROUPS)

    def swap(shards: list[dict[str, Any]]) -> None:
        encodings = [shard["column_encodings"] for shard in shards[:2]]
        shards[0]["column_encodings"], shards[1]["column_encodings"] = encodings[::-1]

    edit(tmp_path / "out", swap)  # both shapes have the same size
    reader = mds.Reader(tmp_path / "out")
    for read in (lambda: reader[0], lambda: reader.gather([6], "x", out=np.empty((1, 48), np.uint8))):
        with pytest.raises(FormatError, match="the columns of the shard differ from those in its index"):
            read()
    assert {finding.file for finding in mds.verify(tmp_path / "out")} == {"shard.000.00000.mds", "shard.001.00000.mds"}


def test_repair_skips_a_shard_that_differs_in_more_than_shape(tmp_path: Path) -> None:
    rows = write_groups(tmp_path / "out", GROUPS)
    with mds.Writer(tmp_path / "other", {**columns_of((4, 9, 9)), "x": "ndarray:uint8:4,9,9"}, sync=False) as writer:
        writer.begin_group("004", {**columns_of((4, 9, 9)), "x": "ndarray:uint8:4,9,9"})
        writer.write({**rows[0], "x": np.zeros((4, 9, 9), np.uint8)})
    (tmp_path / "other" / "shard.004.00000.mds").rename(tmp_path / "out" / "shard.004.00000.mds")
    repaired = mds.repair(tmp_path / "out")
    assert [finding.file for finding in repaired.skipped] == ["shard.004.00000.mds"]
    assert repaired.samples == len(rows)


def test_repair_orders_shards_by_group_and_then_by_number(tmp_path: Path) -> None:
    groups: Groups = [("", (4, 1, 1), 12), ("9", (4, 2, 2), 11), ("a", (4, 3, 3), 1)]
    rows = write_groups(tmp_path / "out", groups, size_limit=1)
    assert len(list((tmp_path / "out").glob("*.mds"))) > 24
    (tmp_path / "out" / "index.json").unlink()
    mds.repair(tmp_path / "out")
    for got, row in zip(mds.Reader(tmp_path / "out"), rows, strict=True):
        assert_equal(got, row)


def test_an_index_of_shards_that_all_differ_in_shape_is_read_in_linear_time(tmp_path: Path) -> None:
    write_groups(tmp_path / "out", GROUPS)
    template = json.loads((tmp_path / "out" / "index.json").read_text())["shards"][0]

    def seconds(count: int) -> float:
        shards = [
            {
                **template,
                "column_encodings": [*template["column_encodings"][:3], f"ndarray:uint16:4,{i + 1},1"],
                "column_sizes": [*template["column_sizes"][:3], 8 * (i + 1)],
            }
            for i in range(count)
        ]
        (tmp_path / "out" / "index.json").write_text(json.dumps({"shards": shards, "version": 2}))
        start = time.process_time()
        mds.Reader(tmp_path / "out")
        return time.process_time() - start

    seconds(500)
    assert seconds(16_000) < 60 * seconds(1_000)
