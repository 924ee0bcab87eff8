"""Killed at any moment and started again, a run leaves what an undisturbed one leaves."""

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
    source = make_source(tmp_path / "source")
    began = time.monotonic()
    assert start(source, tmp_path / "whole").wait() == 0
    duration = time.monotonic() - began
    moments = random.Random(0)
    killed = 0
    for _ in range(200):
        process = start(source, tmp_path / "out")
        # From the first file on: what comes before is the start of the interpreter.
        while process.poll() is None and not (tmp_path / "out" / "samples.tsv").exists():
            time.sleep(0.001)
        try:
            process.wait(moments.uniform(0, duration if killed % 2 else 0.3 * duration))
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
            killed += 1
        if killed == 10:
            break
        if process.returncode == 0:  # finished before the kill: begin anew
            assert contents(tmp_path / "out") == contents(tmp_path / "whole")
            (tmp_path / "out").rename(tmp_path / f"out-{time.monotonic_ns()}")
    assert killed == 10
    assert start(source, tmp_path / "out").wait() == 0
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_two_processes_at_once(tmp_path):
    source = make_source(tmp_path / "source")
    assert start(source, tmp_path / "whole").wait() == 0
    ranks = [start(source, tmp_path / "out", "--rank", str(rank), "--world-size", "2") for rank in (0, 1)]
    assert [process.wait() for process in ranks] == [0, 0]
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_the_same_work_started_twice(tmp_path):
    source = make_source(tmp_path / "source")
    assert start(source, tmp_path / "whole").wait() == 0
    both = [start(source, tmp_path / "out") for _ in range(2)]
    assert [process.wait() for process in both] == [0, 0]
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")
