"""Opens datasets that are made to harm: files that never end, sizes that lie, and more data than memory."""

import json
import os
import subprocess
import sys
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from latentq import FormatError, mds

COLUMNS = {"a": "bytes", "n": "int"}


def write(path: Path, n: int = 5, **options: Any) -> Path:
    """Writes a dataset and returns the file of its only shard."""
    with mds.Writer(path, COLUMNS, sync=False, **options) as writer:
        for i in range(n):
            writer.write({"a": b"hello", "n": i})
    (file,) = path.glob("shard.*")
    return file


def edit_index(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Changes the entry of the first shard."""
    index = json.loads((path / "index.json").read_text())
    change(index["shards"][0])
    (path / "index.json").write_text(json.dumps(index))


def limited(code: str, path: Path, gibibytes: float) -> str:
    """Runs code with `path` in a process with a limit on its memory, and returns what it prints."""
    prelude = f"""
import resource, sys
import numpy as np
from latentq import mds
path = sys.argv[1]
resource.setrlimit(resource.RLIMIT_AS, ({int(gibibytes * 2**30)},) * 2)
"""
    command = [sys.executable, "-c", prelude + code, str(path)]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


REFUSED = """
def attempt(call):
    try:
        print(type(call()).__name__)
    except MemoryError:  # NumPy raises its own subclass
        print("MemoryError")
    except Exception as error:
        print(type(error).__name__)
"""


@pytest.mark.parametrize("compression", [None, "zstd"])
@pytest.mark.parametrize("kind", ["fifo", "device", "folder"])
def test_a_shard_that_is_not_a_regular_file_is_an_error_at_once(
    tmp_path: Path, compression: str | None, kind: str
) -> None:
    file = write(tmp_path / "out", compression=compression)
    file.unlink()
    if kind == "fifo":
        os.mkfifo(file)
    elif kind == "device":
        file.symlink_to("/dev/zero")
    else:
        file.mkdir()
    reader = mds.Reader(tmp_path / "out")
    for read in [lambda: reader[0], lambda: reader.gather([0], "a")]:
        with pytest.raises(FormatError, match=r"shard\.00000.*not a regular file"):
            read()
    (finding,) = mds.verify(tmp_path / "out")
    assert (finding.file, finding.message) == (file.name, "this is not a regular file")
    with pytest.raises(FormatError, match="none of 1 shard can be listed"):
        mds.repair(tmp_path / "out", allow_fewer_samples=True)


def test_an_index_that_is_a_fifo_is_an_error_at_once(tmp_path: Path) -> None:
    write(tmp_path / "out")
    (tmp_path / "out" / "index.json").unlink()
    os.mkfifo(tmp_path / "out" / "index.json")
    for read in [mds.Reader, mds.verify]:
        with pytest.raises(FormatError, match=r"index\.json.*not a regular file"):
            read(tmp_path / "out")


@pytest.mark.parametrize("compression", [None, "gz"])
def test_a_file_larger_than_its_index_says_is_not_read(tmp_path: Path, compression: str | None) -> None:
    file = write(tmp_path / "out", compression=compression)
    size = file.stat().st_size
    os.truncate(file, 1 << 40)  # sparse: more than any memory
    with pytest.raises(FormatError, match=rf"{file.name}.* the file has {1 << 40} bytes, its index says {size}"):
        mds.Reader(tmp_path / "out")[0]
    (finding,) = mds.verify(tmp_path / "out")
    assert finding.offset == size
    assert str(1 << 40) in finding.message
    with pytest.raises(FormatError, match=f"the file has {1 << 40} bytes, and a shard has less than 4 GiB"):
        mds.repair(tmp_path / "out")


def test_a_decompression_bomb_stops_at_the_size_in_the_index(tmp_path: Path) -> None:
    file = write(tmp_path / "out", compression="gz")
    packer = zlib.compressobj(9, zlib.DEFLATED, 31)
    packed = b"".join([packer.compress(bytes(1 << 24)) for _ in range(64)]) + packer.flush()  # 1 GiB
    file.write_bytes(packed)

    def lie(entry: dict[str, Any]) -> None:
        entry["zip_data"].update(bytes=len(packed), hashes={})

    edit_index(tmp_path / "out", lie)
    code = f"""
{REFUSED}
attempt(lambda: mds.Reader(path)[0])
print(mds.verify(path)[0].message)
print(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1])
"""
    error, message, peak = limited(code, tmp_path / "out", 2).splitlines()
    raw = json.loads((tmp_path / "out" / "index.json").read_text())["shards"][0]["raw_data"]["bytes"]
    assert error == "FormatError"
    assert message == f"cannot be decompressed: decompresses to more than {raw} bytes"
    assert int(peak) < 100 << 10  # KiB
    edit_index(tmp_path / "out", lambda entry: entry["raw_data"].update(bytes=2**32 - 1))
    code = f"{REFUSED}\nattempt(lambda: mds.Reader(path)[0])\nattempt(lambda: mds.verify(path))"
    assert limited(code, tmp_path / "out", 0.6).split() == ["MemoryError", "MemoryError"]


def test_a_sample_larger_than_memory_is_a_memory_error(tmp_path: Path) -> None:
    file = write(tmp_path / "out", 1)
    start = int(np.frombuffer(file.read_bytes(), "<u4", 1, 4)[0])
    size = 2**32 - 1
    with file.open("r+b") as shard:
        shard.seek(8)
        shard.write(np.uint32(size).tobytes())
        shard.seek(start)
        shard.write(np.uint32(size - start - 12).tobytes())
        shard.truncate(size)  # sparse
    edit_index(tmp_path / "out", lambda entry: entry["raw_data"].update(bytes=size, hashes={}))
    code = f"""
{REFUSED}
reader = mds.Reader(path)
attempt(lambda: reader[0])
attempt(lambda: reader.gather([0], "a"))
attempt(lambda: reader.stored(0, "a"))
attempt(lambda: mds.verify(path))
attempt(lambda: mds.repair(path))
print(reader.gather([0], "n").tolist())
"""
    assert limited(code, tmp_path / "out", 2).split() == ["MemoryError"] * 5 + ["[0]"]


@pytest.mark.parametrize("encoding", ["bytes", "str", "ndarray:uint8", "list[jpeg]"])
def test_a_batch_larger_than_memory_is_a_memory_error(tmp_path: Path, encoding: str) -> None:
    value = {
        "bytes": bytes(1 << 20),
        "str": "a" * (1 << 20),
        "ndarray:uint8": np.zeros(1 << 20, np.uint8),
        "list[jpeg]": [bytes(1 << 20)],
    }[encoding]
    with mds.Writer(tmp_path / "out", {"a": encoding}, sync=False) as writer:
        writer.write({"a": value})
    # At several limits, so that the core's memory and Python's run out first in turn.
    for count in [300, 500, 700, 900, 2000]:
        code = f"""
{REFUSED}
attempt(lambda: mds.Reader(path)._core.sample(0))
from latentq import _core
core = mds.Reader(path)._core
attempt(lambda: _core.gather(core, np.zeros({count}, np.int64), [0], [None], [None], None).result())
"""
        sample, batch = limited(code, tmp_path / "out", 1).split()
        assert sample == "dict"
        assert batch == "MemoryError" or (batch == "list" and count == 300)


def test_a_writer_without_memory_raises_and_publishes_nothing(tmp_path: Path) -> None:
    code = f"""
{REFUSED}
value = bytes(64 << 20)
writer = mds.Writer(path + "/out", {{"a": "bytes"}}, size_limit=None)
def fill():
    for _ in range(60):
        writer.write({{"a": value}})
attempt(fill)
attempt(writer.close)
"""
    assert limited(code, tmp_path, 1).split() == ["MemoryError", "ValueError"]
    assert not list(tmp_path.iterdir())


def test_an_index_with_relative_names_and_without_hashes_is_read(tmp_path: Path) -> None:
    streaming = pytest.importorskip("streaming.base.format.mds.reader")
    write(tmp_path / "out", hashes=["md5"])

    def change(entry: dict[str, Any]) -> None:
        entry["raw_data"].update(basename="./shard.00000.mds", hashes=None)
        entry["hashes"] = None

    edit_index(tmp_path / "out", change)
    entry = json.loads((tmp_path / "out" / "index.json").read_text())["shards"][0]
    stock = streaming.MDSReader.from_json(str(tmp_path / "out"), None, entry)
    assert mds.Reader(tmp_path / "out")[3] == stock[3]
    assert mds.verify(tmp_path / "out") == []
    edit_index(tmp_path / "out", lambda entry: entry["raw_data"].pop("hashes"))
    assert mds.Reader(tmp_path / "out")[3]["n"] == 3
    for name in ["./../out/shard.00000.mds", "./", "."]:
        edit_index(tmp_path / "out", lambda entry, name=name: entry["raw_data"].update(basename=name))
        with pytest.raises(FormatError, match="not inside the folder"):
            mds.Reader(tmp_path / "out")


def test_shards_with_many_columns_in_another_order_compare_in_linear_time(tmp_path: Path) -> None:
    write(tmp_path / "out")
    index = json.loads((tmp_path / "out" / "index.json").read_text())

    def seconds(columns: int) -> float:
        names = [f"c{i:06}" for i in range(columns)]
        shards = [
            {
                **index["shards"][0],
                "column_names": order,
                "column_encodings": ["bytes"] * columns,
                "column_sizes": [None] * columns,
                "samples": 0,
            }
            for order in (names, names[::-1])
        ]
        (tmp_path / "out" / "index.json").write_text(json.dumps({"shards": shards, "version": 2}))
        start = time.process_time()
        mds.Reader(tmp_path / "out")
        return time.process_time() - start

    seconds(1000)
    # 16 times the columns took 256 times as long when every column was looked for among all.
    assert seconds(64_000) < 60 * seconds(4_000)
