"""Tests `verify` and `repair` on damaged datasets."""

import gzip
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from latentq import FormatError, _core, mds
from latentq.mds.folder import samples_by_folder

COLUMNS = {"code": "ndarray:uint8:4", "key": "str", "n": "int"}


def write(path: Path, n: int = 12, **options) -> None:
    with mds.Writer(path, COLUMNS, **{"hashes": ["xxh3_64"], "size_limit": 400, "sync": False, **options}) as writer:
        for i in range(n):
            writer.write({"code": np.full(4, i, np.uint8), "key": "k" * (i % 5), "n": i})


def contents(path: Path) -> dict[str, bytes]:
    return {str(file.relative_to(path)): file.read_bytes() for file in sorted(path.rglob("*")) if file.is_file()}


@pytest.mark.parametrize("compression", [None, "zstd", "br", "bz2", "gz", "snappy"])
def test_every_flipped_bit_of_a_hashed_shard_is_found(tmp_path: Path, compression: str | None) -> None:
    write(tmp_path / "out", 1, compression=compression, size_limit=None)
    assert mds.verify(tmp_path / "out") == []
    (file,) = (tmp_path / "out").glob("shard.*")
    data = file.read_bytes()
    for bit in range(8 * len(data)):
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        file.write_bytes(flipped)
        findings = mds.verify(tmp_path / "out")
        assert findings
        assert {finding.file for finding in findings} == {file.name}


def test_faults_of_a_shard_without_hash_are_found_with_their_offset(tmp_path: Path) -> None:
    write(tmp_path / "out", 3, hashes=(), size_limit=None)
    file = tmp_path / "out" / "shard.00000.mds"
    data = file.read_bytes()
    offsets = np.frombuffer(data, "<u4", 4, 4)
    bad = bytearray(data)
    bad[offsets[1]] = 9  # the length of the second sample's key
    bad[offsets[3] - 10 : offsets[3] - 8] = b"\xff\xff"  # the third sample's key, 2 bytes before 8 of n
    file.write_bytes(bad)
    first, second = mds.verify(tmp_path / "out")
    assert (first.file, first.offset) == (file.name, offsets[1])
    assert (second.file, second.offset) == (file.name, offsets[3] - 10)
    assert "key" in second.message
    reader = mds.Reader(tmp_path / "out")
    assert reader[0]["n"] == 0
    for i, offset in [(1, offsets[1]), (2, offsets[3] - 10)]:
        with pytest.raises(FormatError, match=f"at byte {offset}: "):
            reader[i]
        with pytest.raises(FormatError, match=f"at byte {offset}: "):
            reader.gather([0, i], "key")


def test_every_prefix_of_a_shard_and_of_an_index_is_found(tmp_path: Path) -> None:
    write(tmp_path / "out", 2, hashes=(), size_limit=None)
    for name in ["shard.00000.mds", "index.json"]:
        file = tmp_path / "out" / name
        data = file.read_bytes()
        for length in range(len(data)):
            file.write_bytes(data[:length])
            assert [finding.file for finding in mds.verify(tmp_path / "out")][:1] == [name]
        file.write_bytes(data)


def test_missing_stray_and_repeated_shards_are_found(tmp_path: Path) -> None:
    path = tmp_path / "out"
    write(path)
    (path / "shard.00000.mds").rename(path / "shard.00099.mds")
    index = json.loads((path / "index.json").read_text())
    index["shards"].append(index["shards"][-1])
    (path / "index.json").write_text(json.dumps(index))
    found = {(finding.file, finding.message) for finding in mds.verify(path)}
    assert found == {
        ("shard.00000.mds", "the file is not there"),
        ("shard.00099.mds", "the index does not list the shard"),
        (index["shards"][-1]["raw_data"]["basename"], "the index lists the shard twice"),
    }


def test_a_folder_without_an_index_cannot_be_verified(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"index\.json"):
        mds.verify(tmp_path)


def test_an_image_that_cannot_be_decoded_is_found(tmp_path: Path) -> None:
    with mds.Writer(tmp_path / "out", {"image": "png", "n": "int"}, sync=False) as writer:
        for n in range(3):
            writer.write({"image": Image.new("RGB", (4, 4)) if n != 1 else b"no image", "n": n})
    (finding,) = mds.verify(tmp_path / "out")
    assert finding.file == "shard.00000.mds"
    data = (tmp_path / "out" / finding.file).read_bytes()
    assert data[finding.offset : finding.offset + 8] == b"no image"
    assert "sample 1" in finding.message
    with pytest.raises(FormatError, match=f"at byte {finding.offset}: "):
        mds.Reader(tmp_path / "out")[1]


@pytest.mark.parametrize("compression", [None, "zstd:5", "gz"])
def test_a_lost_index_is_restored_byte_for_byte(tmp_path: Path, compression: str | None) -> None:
    write(tmp_path / "out", compression=compression, hashes=["md5", "xxh64"])
    before = contents(tmp_path)
    shards = len(before) - 1
    assert shards > 1
    assert mds.repair(tmp_path / "out") == mds.Repair(shards, 12, [], [])
    assert contents(tmp_path) == before
    (tmp_path / "out" / "index.json").unlink()
    assert mds.repair(tmp_path / "out") == mds.Repair(shards, 12, [], [])
    assert contents(tmp_path) == before


def test_a_broken_shard_is_skipped_and_a_broken_index_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "out"
    write(path)
    counts = [shard["samples"] for shard in json.loads((path / "index.json").read_text())["shards"]]
    lost = range(counts[0], counts[0] + counts[1])
    file = path / "shard.00001.mds"
    file.write_bytes(file.read_bytes()[:-1])
    (path / "index.json").write_bytes(b"{")
    before = contents(path)
    done = mds.repair(path)
    assert (done.shards, done.samples) == (len(counts) - 1, 12 - len(lost))
    assert [finding.file for finding in done.skipped] == ["shard.00001.mds"]
    assert done.kept == ["index.json.before-repair.0"]
    after = contents(path)
    assert after.pop(done.kept[0]) == b"{"
    assert {**after, "index.json": b"{"} == before
    found = mds.Reader(path).gather(range(done.samples), "n").tolist()
    assert found == [n for n in range(12) if n not in lost]


def test_the_indexes_of_a_merged_dataset_are_restored(tmp_path: Path) -> None:
    for name in ["00000", "00001", "00002"]:
        write(tmp_path / name)
    mds.merge(tmp_path)
    before = contents(tmp_path)
    (tmp_path / "index.json").unlink()
    (tmp_path / "00001" / "index.json").unlink()
    assert mds.repair(tmp_path) == mds.Repair(len(before) - 4, 36, [], [])
    assert contents(tmp_path) == before


def test_named_folders_are_merged_in_their_order_and_the_others_left_alone(tmp_path: Path) -> None:
    for name, count in [("00000", 2), ("00001", 3), ("00001.1", 4), ("100000", 5)]:
        write(tmp_path / name, count)
    names = ["100000", "00000", "00007", "00001.1"]
    assert mds.repair(tmp_path, folders=names).samples == 11
    assert samples_by_folder(tmp_path) == [("100000", 5), ("00000", 2), ("00001.1", 4)]
    index = (tmp_path / "index.json").read_bytes()
    assert index == b"".join(mds.merged_index(tmp_path, ["100000", "00000", "00001.1"]))


def test_a_lost_index_of_a_merged_cache_keeps_the_entries_of_its_remote(tmp_path: Path) -> None:
    _, cache = stock_cache(tmp_path)
    merged = tmp_path / "merged"
    merged.mkdir()
    for name in ("00000", "00001"):
        (merged / name).mkdir()
        for file in cache.iterdir():
            (merged / name / file.name).write_bytes(file.read_bytes())
    mds.merge(merged)
    before = contents(merged)
    (merged / "00001" / "index.json").unlink()
    assert mds.repair(merged).samples == 24
    assert contents(merged) == before


def test_the_progress_of_a_repair_counts_shards_or_folders_and_lost_indexes(tmp_path: Path) -> None:
    for name in ["00000", "00001"]:
        write(tmp_path / name)
    (tmp_path / "00001" / "index.json").unlink()
    steps = []
    _core.mds_repair(str(tmp_path), None, False, lambda *step: steps.append(step))
    assert steps == [("folders", 1, 2), ("folders", 2, 2), ("lost indexes", 1, 1)]
    steps.clear()
    shards = len(list((tmp_path / "00000").glob("shard.*")))
    _core.mds_repair(str(tmp_path / "00000"), None, False, lambda *step: steps.append(step))
    assert steps == [("shards", number, shards) for number in range(shards + 1)]


def test_an_interrupted_repair_writes_nothing(tmp_path: Path) -> None:
    write(tmp_path / "00000")
    (tmp_path / "00000" / "index.json").unlink()
    before = contents(tmp_path)

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        _core.mds_repair(str(tmp_path), None, False, interrupted)
    assert contents(tmp_path) == before


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda index: index.pop("version"), "version"),
        (lambda index: index.pop("shards"), "shards"),
        (lambda index: index.update(version=3), "version 3 is not 2"),
        (lambda index: index["shards"].append(1), "1"),
        (lambda index: index["shards"][1].update(samples=1000), "shard 1: 1000 samples do not fit"),
        (lambda index: index["shards"][1]["column_names"].reverse(), "shard 1: its columns differ"),
        (lambda index: index.update(shards={}), "a list of shards"),
    ],
)
def test_a_broken_index_is_refused_when_it_is_read_piece_by_piece(tmp_path: Path, edit, message: str) -> None:
    write(tmp_path)
    index = json.loads((tmp_path / "index.json").read_text())
    samples = samples_by_folder(tmp_path)
    index["unknown"] = [{}]
    (tmp_path / "index.json").write_text(json.dumps(index))
    assert samples_by_folder(tmp_path) == samples == [("", 12)]
    edit(index)
    (tmp_path / "index.json").write_text(json.dumps(index))
    with pytest.raises(FormatError, match=rf"index\.json: .*{message}"):
        samples_by_folder(tmp_path)


def test_without_shards_there_is_nothing_to_repair(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="no shard"):
        mds.repair(tmp_path)
    assert list(tmp_path.iterdir()) == []


def stock_cache(path: Path) -> tuple[Path, Path]:
    """Returns a compressed remote, and the folder that a StreamingDataset keeps of it: plain shards and its index."""
    remote, cache = path / "remote", path / "cache"
    write(remote, compression="gz", hashes=["md5"])
    cache.mkdir()
    for shard in json.loads((remote / "index.json").read_text())["shards"]:
        packed = (remote / shard["zip_data"]["basename"]).read_bytes()
        (cache / shard["raw_data"]["basename"]).write_bytes(gzip.decompress(packed))
    (cache / "index.json").write_bytes((remote / "index.json").read_bytes())
    return remote, cache


def test_the_index_of_a_cache_of_a_compressed_remote_is_kept(tmp_path: Path) -> None:
    _, cache = stock_cache(tmp_path)
    before = contents(cache)
    shards = len(before) - 1
    assert mds.repair(cache) == mds.Repair(shards, 12, [], [])
    assert contents(cache) == before


def test_a_cache_of_a_compressed_remote_without_its_index_gets_one_of_plain_shards(tmp_path: Path) -> None:
    _, cache = stock_cache(tmp_path)
    (cache / "index.json").write_bytes(b"{")
    done = mds.repair(cache)
    assert (done.samples, done.skipped, done.kept) == (12, [], ["index.json.before-repair.0"])
    entries = json.loads((cache / "index.json").read_text())["shards"]
    assert {(entry["compression"], entry["zip_data"]) for entry in entries} == {(None, None)}
    assert mds.verify(cache) == []
    assert mds.Reader(cache).gather(range(12), "n").tolist() == list(range(12))


def test_a_cached_shard_that_differs_from_its_remote_gets_its_own_entry(tmp_path: Path) -> None:
    _, cache = stock_cache(tmp_path)
    file = cache / "shard.00000.mds"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1  # a byte of n
    file.write_bytes(data)
    done = mds.repair(cache)
    assert done.samples == 12
    entries = json.loads((cache / "index.json").read_text())["shards"]
    assert [entry["compression"] for entry in entries] == [None, *["gz"] * (len(entries) - 1)]
    assert mds.verify(cache) == []


def test_an_index_is_not_replaced_by_one_with_fewer_samples_unasked(tmp_path: Path) -> None:
    path = tmp_path / "out"
    write(path, size_limit=350)
    (path / "shard.00001.mds").unlink()
    file = path / "shard.00002.mds"
    file.write_bytes(file.read_bytes()[:-1])
    before = contents(path)
    with pytest.raises(
        FormatError, match=r"lists 12 samples, but the shards here hold \d.*shard\.00002\.mds: "
    ) as raised:
        mds.repair(path)
    assert "--allow-fewer-samples" in str(raised.value)
    assert contents(path) == before
    done = mds.repair(path, allow_fewer_samples=True)
    assert done.kept == ["index.json.before-repair.0"]
    assert (path / done.kept[0]).read_bytes() == before["index.json"]
    assert 0 < done.samples == len(mds.Reader(path)) < 12


def test_a_merged_index_is_not_replaced_by_one_with_fewer_samples_unasked(tmp_path: Path) -> None:
    for name in ["00000", "00001"]:
        write(tmp_path / name)
    mds.merge(tmp_path)
    (tmp_path / "00001" / "index.json").unlink()
    (tmp_path / "00001" / "shard.00000.mds").unlink()
    before = contents(tmp_path)
    with pytest.raises(FormatError, match="lists 24 samples"):
        mds.repair(tmp_path)
    assert contents(tmp_path) == before
    assert mds.repair(tmp_path, allow_fewer_samples=True).samples == len(mds.Reader(tmp_path)) < 24


def test_an_index_without_shards_is_never_written(tmp_path: Path) -> None:
    path = tmp_path / "out"
    write(path)
    for file in path.glob("shard.*"):
        file.write_bytes(b"broken")
    (path / "index.json").write_bytes(b"{")
    before = contents(path)
    with pytest.raises(FormatError, match=r"none of \d shards can be listed; the first is shard\.00000\.mds"):
        mds.repair(path, allow_fewer_samples=True)
    assert contents(path) == before


def test_a_broken_compressed_shard_is_replaced_by_its_plain_copy(tmp_path: Path) -> None:
    remote, cache = stock_cache(tmp_path)
    (remote / "shard.00000.mds.gz").write_bytes(b"broken")
    (remote / "shard.00000.mds").write_bytes((cache / "shard.00000.mds").read_bytes())
    done = mds.repair(remote)
    assert done.samples == 12
    assert [finding.file for finding in done.skipped] == ["shard.00000.mds.gz"]
    assert mds.Reader(remote).gather(range(12), "n").tolist() == list(range(12))
