"""The benchmarks' own parts: RESULTS.md gets the right figures."""

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


def test_replay_timer_gives_the_durations_back():
    timer = load("conftest").ReplayTimer()
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
