"""Reads shards of mosaicml-streaming and ours, whole and damaged."""

import json
import multiprocessing
import os
import pickle
import shutil
import sys
import threading
import time
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path

import numpy as np
import pytest
from streaming import StreamingDataset
from streaming.base.format.mds.encodings import Encoding, _encodings
from streaming.base.util import clean_stale_shared_memory

from latentq import FormatError, mds
from support.mds_stock import COLUMNS, assert_equal, contents, samples, stock_samples, write_ours, write_stock

pytestmark = pytest.mark.usefixtures("streaming_alone", "no_naps")


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


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def falls_to(limit: int) -> bool:
    """True once no more files are open: a background thread has one more while it loads a shard."""
    deadline = time.monotonic() + 20
    while open_files() > limit:
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


def test_more_shards_than_open_files_are_read(tmp_path: Path) -> None:
    write_ours(tmp_path / "out", {"n": "int"}, [{"n": n} for n in range(600)], size_limit=1)
    reader = mds.Reader(tmp_path / "out")
    before = open_files()
    order = np.random.default_rng(0).permutation(600)
    np.testing.assert_array_equal([reader[i]["n"] for i in order], order)
    np.testing.assert_array_equal(reader.gather(order, "n"), order)
    assert falls_to(before + 256)
    # Readers share what a process may have open.
    readers = [reader, *(mds.Reader(tmp_path / "out") for _ in range(7))]
    for _ in range(2):
        for each in readers:
            np.testing.assert_array_equal(each.gather(order, "n"), order)
    assert falls_to(before + 512)


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


@pytest.mark.parametrize("compression", [None, "zstd"])
@pytest.mark.parametrize("name", [None, "key", "zebra"])  # a column of text, or none, before or after the arrays
@pytest.mark.parametrize("shape", [(1,), (3, 7), (4, 32, 33)])
def test_gathered_arrays_are_those_that_numpy_indexes(
    tmp_path: Path, shape: tuple[int, ...], name: str | None, compression: str | None
) -> None:
    rng = np.random.default_rng(3)
    values, numbers = rng.integers(0, 99, (41, *shape)).astype(np.float16), np.arange(41, dtype=np.int64)
    columns = {"latent": f"ndarray:float16:{','.join(map(str, shape))}", "n": "int", **({name: "str"} if name else {})}
    rows = [
        {"latent": value, "n": n, **({name: "x" * (n % 5)} if name else {})}
        for n, value in zip(numbers.tolist(), values, strict=True)
    ]
    write_ours(tmp_path / "out", columns, rows, size_limit=450 + 10 * values[0].nbytes, compression=compression)
    assert len(list((tmp_path / "out").glob("shard*"))) > 2
    cached, files = mds.Reader(tmp_path / "out"), mds.Reader(tmp_path / "out", cache_bytes=0)
    assert is_cached(cached)
    for indices in [[], [40], [-1, 0, 40, 12, 12], rng.permutation(41), rng.integers(-41, 41, 500), numbers[::3]]:
        places = np.asarray(indices, np.int64)
        for reader in (cached, files):
            found = reader.gather(indices, "latent")
            assert found.dtype == np.float16
            assert found.flags.c_contiguous
            assert found.flags.writeable
            assert found.flags.owndata
            np.testing.assert_array_equal(found, values[places])
            np.testing.assert_array_equal(reader.gather(indices, "n"), numbers[places])
            both = reader.gather(indices, ["n", "latent"])
            np.testing.assert_array_equal(both["n"], numbers[places])
            np.testing.assert_array_equal(both["latent"], values[places])


@pytest.mark.parametrize("size", [1 << 20, (1 << 20) + 13])
def test_arrays_that_are_larger_than_the_processors_caches_are_gathered(tmp_path: Path, size: int) -> None:
    values = np.random.default_rng(4).integers(0, 256, (5, size), np.uint8)
    write_ours(tmp_path / "out", {"latent": f"ndarray:uint8:{size}"}, [{"latent": value} for value in values])
    reader = mds.Reader(tmp_path / "out")
    assert is_cached(reader)
    indices = np.random.default_rng(5).integers(0, 5, 40)
    np.testing.assert_array_equal(reader.gather(indices, "latent"), values[indices])
    out = np.zeros((41, size), np.uint8)[1:]  # not aligned to cache lines
    np.testing.assert_array_equal(reader.gather(indices, "latent", out=out), values[indices])


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


def is_cached(reader: mds.Reader) -> bool:
    """True if epochs of a reader soon read nothing from files: a background thread loads the shards."""
    deadline = time.monotonic() + 20
    while epochs(reader, 1) != [0]:
        if time.monotonic() > deadline:
            return False
    return True


def test_shards_read_again_are_cached_if_the_dataset_fits(dataset: Path) -> None:
    total = sum(file.stat().st_size for file in dataset.glob("*.mds"))
    reader = mds.Reader(dataset, cache_bytes=total)
    (first,) = epochs(reader, 1)
    assert 50 * 256 - 500 <= first < total
    assert is_cached(reader)
    np.testing.assert_array_equal(reader.gather([3, 49], "latent"), mds.Reader(dataset).gather([3, 49], "latent"))
    for cache_bytes in [0, total - 1]:
        assert all(read >= 50 * 256 - 500 for read in epochs(mds.Reader(dataset, cache_bytes=cache_bytes), 3))
    # Reading every sample once, or a few samples often, does not load whole shards.
    reader = mds.Reader(dataset)
    assert bytes_read(lambda: list(reader)) < 2 * total
    reader = mds.Reader(dataset)
    assert bytes_read(lambda: [reader[0] for _ in range(5)]) < 3500


def share_an_eighth_of_the_memory(dataset: Path) -> None:
    """Checks readers in a process without other readers: those of tests before, if not yet collected, have a share."""
    total = sum(file.stat().st_size for file in dataset.glob("*.mds"))
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr("latentq.mds.reader.available_bytes", lambda: 8 * total + 7)
        holds = mds.Reader(dataset)
        assert epochs(mds.Reader(dataset), 3)[2] > 0
        assert is_cached(holds)
        del holds
        assert is_cached(mds.Reader(dataset))
        monkeypatch.setattr("latentq.mds.reader.available_bytes", lambda: 8 * total - 1)
        assert epochs(mds.Reader(dataset), 3)[2] > 0
        monkeypatch.setattr("latentq.mds.reader.available_bytes", lambda: None)
        assert is_cached(mds.Reader(dataset))


def test_all_readers_together_cache_an_eighth_of_the_memory(dataset: Path) -> None:
    process = multiprocessing.get_context("spawn").Process(target=share_an_eighth_of_the_memory, args=(dataset,))
    process.start()
    process.join()
    assert process.exitcode == 0


def test_no_negative_number_of_bytes_is_cached_and_any_other(dataset: Path) -> None:
    with pytest.raises(ValueError, match="negative"):
        mds.Reader(dataset, cache_bytes=-1)
    assert len(pickle.loads(pickle.dumps(mds.Reader(dataset, cache_bytes=1 << 70)))) == 50


def test_a_forked_or_unpickled_reader_caches_nothing_more(dataset: Path) -> None:
    reader = mds.Reader(dataset)
    assert epochs(pickle.loads(pickle.dumps(reader)), 3)[2] > 0
    first = range(5)
    deadline = time.monotonic() + 20
    while bytes_read(lambda: reader.gather(first, "latent")) and time.monotonic() < deadline:
        pass
    pid = os.fork()
    if pid == 0:
        shares = bytes_read(lambda: reader.gather(first, "latent")) == 0
        os._exit(0 if shares and epochs(reader, 3)[2] > 0 else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def test_a_cached_shard_whose_file_is_truncated_is_an_error(dataset: Path) -> None:
    reader = mds.Reader(dataset)
    assert is_cached(reader)
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


def test_room_for_reading_ahead_is_measured_again_after_a_while(dataset: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now, measured = [100.0], []
    monkeypatch.setattr("latentq.mds.reader.time.monotonic", lambda: now[0])
    monkeypatch.setattr("latentq.mds.reader._page_cache", lambda: measured.append(now[0]) or 0)
    reader = mds.Reader(dataset)
    for step in (1, 8, 2, 5, 5):
        now[0] += step
        reader.read_ahead(begin=True)
        reader.read_ahead(begin=False)
    assert measured == [100, 111, 121]
