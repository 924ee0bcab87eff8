"""The benchmarks' own parts: contenders take turns, and RESULTS.md gets the right figures."""

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest

BENCHES = Path(__file__).resolve().parents[2] / "benches"

pytestmark = pytest.mark.skipif(not BENCHES.exists(), reason="there are no benchmarks next to the installed package")


def load(name):
    spec = importlib.util.spec_from_file_location(f"benches_{name}", BENCHES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Clock:
    """Advances by one second per reading, and by what the work adds."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        self.now += 1
        return self.now


def test_contenders_take_turns_and_warm_up_rounds_are_dropped():
    turns, clock, calls = load("turns"), Clock(), []

    def work(name, seconds):
        def run(argument):
            calls.append(name)
            clock.now += seconds * argument

        return run

    contenders = {"slow": work("slow", 10), "fast": work("fast", 2)}
    durations = turns.take_turns(contenders, 2, rounds=3, warmup=1, clock=clock)
    assert calls == ["slow", "fast"] * 4
    assert durations == {"slow": [21.0] * 3, "fast": [5.0] * 3}


def test_untimed_call_and_setup_are_not_timed():
    turns, clock, calls = load("turns"), Clock(), []

    def setup(argument):
        calls.append("setup")
        clock.now += 100

    def work(argument):
        calls.append("work")
        clock.now += 5

    durations = turns.take_turns({"a": work}, None, rounds=1, warmup=0, untimed_call=True, setup=setup, clock=clock)
    assert calls == ["setup", "work", "work"]
    assert durations == {"a": [6.0]}


def test_duration_that_the_work_measured_itself_counts():
    turns = load("turns")
    durations = turns.take_turns({"a": lambda _: turns.Measured(0.25), "b": lambda _: 0.25}, None, rounds=2)
    assert durations["a"] == [0.25, 0.25]
    assert durations["b"] != [0.25, 0.25]


def test_replay_timer_gives_the_durations_back():
    timer = load("turns").ReplayTimer()
    timer.load([0.1, 0.7])
    readings = [timer() for _ in range(4)]
    assert [readings[1] - readings[0], readings[3] - readings[2]] == [0.1, 0.7]


def benchmark(contender, durations, **info):
    extra = {"contender": contender, "reference": "rival", "items": 10, "unit": "samples", **info}
    stats = {"data": durations, "iterations": 1}
    return {"fullname": "benches/bench_mds.py::x", "group": "g", "extra_info": extra, "stats": stats}


def test_ratio_is_the_median_of_the_rounds():
    # A round in which the machine was busy slows both; by the medians of the times the ratio would be 2.
    rows = load("write_results").table([benchmark("rival", [3.0, 30.0, 4.0]), benchmark("latentq", [1.0, 10.0, 2.0])])
    assert rows.splitlines()[2:] == [
        "| rival | 4.00 s | 3.00 s | 2.50 | 1.00 | 3.00 |",
        "| latentq | 2.00 s | 1.00 s | 5.00 | 3.00 | 1.00 |",
    ]


def test_tables_replace_what_is_between_the_comments():
    results = load("write_results")
    text = "`<!-- bench_mds -->` in prose\n<!-- bench_mds -->\n{}\n<!-- /bench_mds -->\nafter"
    assert results.replace_tables(text.format("old\nold"), "bench_mds", "new") == text.format("new")
    with pytest.raises(SystemExit, match="bench_image"):
        results.replace_tables(text, "bench_image", "new")


def test_results_have_a_place_for_every_benchmark():
    text = (BENCHES / "RESULTS.md").read_text()
    for file in BENCHES.glob("bench_*.py"):
        assert text.count(f"\n<!-- {file.stem} -->\n") == text.count(f"\n<!-- /{file.stem} -->\n") == 1


def test_test_suite_does_not_collect_benchmarks(pytestconfig):
    assert pytestconfig.getini("testpaths") == ["tests"]
    assert "bench_quantizer" not in sys.modules


def test_block_codec_counts_every_bit_and_keeps_values_within_their_block():
    rivals = load("quantizer_rivals")
    latents = np.random.default_rng(0).normal(size=(2, 32, 16, 8)).astype(np.float16)
    latents[1] = 0.25  # of a block without width
    values, bits = rivals.block_ranges(latents, 4)
    # 4 for the code; for each sample 32 extremes twice in float32, 64 ranges of two times 4 bits, 16 levels in float16
    assert bits == 4 + (32 * 2 * 32 + 64 * 2 * 4 + 16 * 16) / latents[0].size
    assert np.abs(values[1] - 0.25).max() < 1e-6
    error = np.abs(values[0] - latents[0])
    assert 0 < error.max() < np.ptp(latents[0]) / 16
