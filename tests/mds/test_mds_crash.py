"""Kills a writer, or makes its system call fail, at every call that writes: it leaves nothing or everything."""

import errno
import inspect
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from latentq import mds

SYSCALLS = ["mkdir", "write", "sync_file_range", "fsync", "rename"]


def write_dataset(path: str | Path) -> None:
    """Writes two shards, an added file and the index."""
    with mds.Writer(path, {"b": "bytes", "n": "int"}, size_limit=2000, hashes=["xxh3_64"]) as writer:
        for n in range(20):
            writer.write({"b": bytes([n]) * 100, "n": n})
        writer.add_file("unit.toml", b"count = 20")


# The same in a separate process, whose exit code is the number of the error.
WRITE = f"""
import os, sys
from pathlib import Path
from latentq import mds
{inspect.getsource(write_dataset)}
try:
    write_dataset(sys.argv[1])
except OSError as error:
    os._exit(error.errno if str(error.filename).startswith(sys.argv[1].rsplit("/", 1)[0]) else 255)
"""


def contents(path: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted(path.iterdir())}


# strace counts the calls of each thread separately. A writer that is refused a thread does everything on its caller's,
# so every call has a number.
ALONE = ["-e", "inject=clone3,clone:error=EAGAIN"]


def write(path: Path, name: str, *strace: str, threads: bool = False) -> subprocess.CompletedProcess[str]:
    options = [] if threads else ALONE
    traced = ["-e", f"trace={name},clone3,clone", *options, *strace]
    command = ["strace", "-f", "-qq", *traced, sys.executable, "-c", WRITE, str(path)]
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1", "OPENBLAS_NUM_THREADS": "1"}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    path = tmp_path_factory.mktemp("whole") / "out"
    write_dataset(path)
    assert len(list(path.glob("shard.*"))) == 2
    assert mds.verify(path) == []
    return contents(path)


@pytest.fixture(scope="module")
def calls(tmp_path_factory: pytest.TempPathFactory) -> dict[str, int]:
    """Returns the number of calls of each system call in an undisturbed run."""
    if shutil.which("strace") is None:
        pytest.skip("strace is not here")
    path = tmp_path_factory.mktemp("calls") / "out"
    done = write(path, ",".join(SYSCALLS))
    assert done.returncode == 0, done.stderr
    counts = {name: len(re.findall(rf"\b{name}\(", done.stderr)) for name in SYSCALLS}
    assert all(counts.values()), done.stderr
    return counts


@pytest.mark.parametrize("name", SYSCALLS)
def test_a_writer_killed_at_any_call_leaves_nothing_or_everything(
    tmp_path: Path, whole: dict[str, bytes], calls: dict[str, int], name: str
) -> None:
    states = set()
    for number in range(1, calls[name] + 1):
        path = tmp_path / f"{number}" / "out"
        path.parent.mkdir()
        done = write(path, name, "-e", f"inject={name}:signal=KILL:when={number}")
        assert done.returncode in (-9, 137), done.stderr
        others = [file.name for file in path.parent.iterdir() if file != path]
        assert all(re.fullmatch(r"\.out\.[0-9a-f]{8}", other) for other in others)
        states.add(path.exists())
        if not path.exists():
            write_dataset(path)
        assert contents(path) == whole
    # Before the rename there is nothing; the last sync comes after it.
    assert False in states or name == "rename"


@pytest.mark.parametrize("code", ["ENOSPC", "EIO"])
@pytest.mark.parametrize("name", SYSCALLS)
def test_a_writer_whose_call_fails_raises_and_leaves_nothing_or_everything(
    tmp_path: Path, whole: dict[str, bytes], calls: dict[str, int], name: str, code: str
) -> None:
    for number in range(1, calls[name] + 1):
        path = tmp_path / f"{number}" / "out"
        path.parent.mkdir()
        done = write(path, name, "-e", f"inject={name}:error={code}:when={number}")
        assert done.returncode == getattr(errno, code), done.stderr
        # Only the fsync of the parent comes after the rename.
        last = name == "fsync" and number == calls[name]
        assert [file.name for file in path.parent.iterdir()] == (["out"] if last else [])
        if number == 1:
            write_dataset(path)
        if number == 1 or last:
            assert contents(path) == whole


@pytest.mark.parametrize("name", ["write", "sync_file_range", "fsync"])
def test_a_fault_at_a_call_of_either_thread_leaves_nothing_or_everything(
    tmp_path: Path, whole: dict[str, bytes], calls: dict[str, int], name: str
) -> None:
    for fault, code in [("signal=KILL", None), ("error=ENOSPC", errno.ENOSPC)]:
        for number in range(1, calls[name] + 1):
            path = tmp_path / f"{fault}-{number}" / "out"
            path.parent.mkdir()
            done = write(path, name, "-e", f"inject={name}:{fault}:when={number}", threads=True)
            assert re.search(r"clone3?\(", done.stderr)
            left = [file.name for file in path.parent.iterdir()]
            if done.returncode == 0:  # no thread makes as many calls
                assert contents(path) == whole
                break
            assert done.returncode == code if code else done.returncode in (-9, 137), done.stderr
            assert left == ["out"] if path.exists() else len(left) == (0 if code else 1)
            if path.exists():
                assert contents(path) == whole
