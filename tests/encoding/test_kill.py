"""A run that is killed at any moment and started again writes the same bytes as an undisturbed run."""

import random
import signal
import subprocess
import sys
import time

import pytest
import torch

import latentq
from conftest import contents, paint
from latentq import LatentDataset

pytestmark = pytest.mark.long

COMMAND = ("--autoencoder", "dct-f8c16", "--unit-size", "4", "--batch-size", "4")
SQUARES, BUCKETS = ("--size", "64"), ("--buckets", "64x64,56x80,40x96,80x56", "--conditioning")


def start(source, out, *options, sizes=SQUARES):
    command = [sys.executable, "-m", "latentq", "encode", str(source), str(out), *COMMAND, *sizes, *options]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def make_source(folder):
    for index in range(60):
        paint(folder / f"{index % 3}" / f"{index:03}.png", index, (400 - 5 * index, 300))
    (folder / "1" / "broken.jpg").write_text("no")
    return folder


@pytest.mark.parametrize(
    "sizes",
    [SQUARES, BUCKETS, (*BUCKETS, "--codec", "trellis", "--bits", "3"), (*BUCKETS, "--codec", "transform")],
    ids=["squares", "buckets", "trellis", "transform"],
)
def test_kill_9_at_ten_random_moments(tmp_path, sizes):
    """Each kill waits for a few changes in the folder, so that it hits the work and not the start."""
    source, out = make_source(tmp_path / "source"), tmp_path / "out"
    assert start(source, tmp_path / "whole", sizes=sizes).wait() == 0
    moments = random.Random(0)
    for kill in range(10):
        process = start(source, out, sizes=sizes)
        changes, before = moments.randrange(0 if kill else 1, 4), listed(out)
        while process.poll() is None and changes:
            now = listed(out)
            changes, before = changes - (now != before), now
        time.sleep(moments.uniform(0, 0.02))
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
        assert process.wait() in (0, -signal.SIGKILL)
        if process.returncode == 0:  # too late: try again
            assert contents(out) == contents(tmp_path / "whole")
            out.rename(tmp_path / f"out-{kill}")
    assert start(source, out, sizes=sizes).wait() == 0
    assert contents(out) == contents(tmp_path / "whole")


def listed(folder):
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


def test_two_processes_at_once(tmp_path):
    source = make_source(tmp_path / "source")
    assert start(source, tmp_path / "whole").wait() == 0
    ranks = [start(source, tmp_path / "out", "--rank", str(rank), "--world-size", "2") for rank in (0, 1)]
    assert [process.wait() for process in ranks] == [0, 0]
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_same_work_started_twice_at_once(tmp_path):
    source = make_source(tmp_path / "source")
    assert start(source, tmp_path / "whole").wait() == 0
    both = [start(source, tmp_path / "out") for _ in range(2)]
    assert [process.wait() for process in both] == [0, 0]
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def keys_of(out):
    return [sample["key"] for sample in LatentDataset(out)]


def change(source, number):
    """Adds, changes and removes an image."""
    files = sorted(source.rglob("*.png"))
    files[number % len(files)].unlink()
    paint(files[(number * 7 + 1) % len(files)], 1000 + number, (300 + number, 200))
    paint(source / "2" / f"new-{number}.png", number, (400, 300))


def update(source, out, *options):
    command = [sys.executable, "-m", "latentq", "encode", str(source), str(out), "--update", *options]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def assert_follows(source, out, fresh):
    latentq.encode(source, fresh, like=out)
    expected = {sample["key"]: sample["latent"] for sample in LatentDataset(fresh)}
    found = {sample["key"]: sample["latent"] for sample in LatentDataset(out)}
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[key], expected[key]) for key in found)
    assert latentq.verify(out) == []


def test_an_update_killed_at_random_moments_leaves_the_old_dataset_or_the_new(tmp_path):
    source, out = make_source(tmp_path / "source"), tmp_path / "out"
    assert start(source, out).wait() == 0
    moments = random.Random(1)
    before = keys_of(out)
    for kill in range(4):
        change(source, kill)
        process = update(source, out)
        changes, listing = moments.randrange(1, 7), listed(out)
        while process.poll() is None and changes:
            now = listed(out)
            changes, listing = changes - (now != listing), now
        time.sleep(moments.uniform(0, 0.02))
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
        process.communicate()
        found = keys_of(out)
        if found != before:
            assert_follows(source, out, tmp_path / f"fresh-{kill}")
        before = found
    process = update(source, out)
    assert process.communicate()[1] is not None
    assert process.returncode == 0
    assert_follows(source, out, tmp_path / "fresh")
    before = keys_of(out)
    assert latentq_command("prune", out, "--yes").returncode == 0
    assert latentq.verify(out) == []
    assert keys_of(out) == before


def latentq_command(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "latentq", *map(str, arguments)], capture_output=True, text=True, check=False
    )


def test_two_updates_at_once_and_two_ranks_write_what_one_process_writes(tmp_path):
    source = make_source(tmp_path / "source")
    outs = [tmp_path / name for name in ("one", "twice", "ranks")]
    assert [start(source, out).wait() for out in outs] == [0, 0, 0]
    for number in range(5):
        change(source, number)
    one = update(source, outs[0])
    one.communicate()
    assert one.returncode == 0
    both = [update(source, outs[1]) for _ in range(2)]
    errors = [process.communicate()[1] for process in both]
    for process, error in zip(both, errors, strict=True):
        assert process.returncode == 0 or "run the same command again" in error
    ranks = [update(source, outs[2], "--rank", str(rank), "--world-size", "2") for rank in (0, 1)]
    assert [process.communicate()[1] and process.returncode for process in ranks] == [0, 0]
    assert contents(outs[1]) == contents(outs[0])
    assert contents(outs[2]) == contents(outs[0])


def test_reading_and_verifying_while_updates_run_sees_one_whole_dataset(tmp_path):
    source, out = make_source(tmp_path / "source"), tmp_path / "out"
    assert start(source, out).wait() == 0
    seen = {tuple(keys_of(out))}
    for number in range(2):
        change(source, number)
        process = update(source, out)
        while process.poll() is None:
            seen.add(tuple(keys_of(out)))
            assert latentq.verify(out) == []
        process.communicate()
        assert process.returncode == 0
        allowed = tuple(keys_of(out))
        assert len(seen | {allowed}) <= number + 2
        seen.add(allowed)
