"""A run that is killed at any moment and started again writes the same bytes as an undisturbed run."""

import random
import signal
import subprocess
import sys
import time

from conftest import contents, paint

COMMAND = ("--autoencoder", "dct-f8c16", "--size", "64", "--unit-size", "4", "--batch-size", "4")


def start(source, out, *options):
    command = [sys.executable, "-m", "latentq", "encode", str(source), str(out), *COMMAND, *options]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def make_source(folder):
    for index in range(60):
        paint(folder / f"{index % 3}" / f"{index:03}.png", index, (400, 300))
    (folder / "1" / "broken.jpg").write_text("no")
    return folder


def test_kill_9_at_ten_random_moments(tmp_path):
    """Each kill waits for a few changes in the folder, so that it hits the work and not the start."""
    source, out = make_source(tmp_path / "source"), tmp_path / "out"
    assert start(source, tmp_path / "whole").wait() == 0
    moments = random.Random(0)
    for kill in range(10):
        process = start(source, out)
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
    assert start(source, out).wait() == 0
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
