"""The benchmarks' own parts: RESULTS.md gets the right figures."""

import importlib.util
import json
import sys
from datetime import date
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


def rivals():
    """Returns the module, whose parts lie in a package next to it."""
    sys.path.insert(0, str(BENCHES))
    try:
        return load("rivals")
    finally:
        sys.path.remove(str(BENCHES))


RUN = {
    "date": "2026-01-02", "processor": "CPU", "isa": "avx512", "cores": 2, "load": 0.5, "system": "Linux",
    "versions": {"ours": {"numpy": "2"}, "slow": {"slow": "1.0"}},
}  # fmt: skip
RACED = {
    "races": {
        "warm": {
            "run": RUN, "unit": "samples", "items": 100, "notes": {"broken": "ValueError: no"},
            "seconds": {"latentq": [1.0, 10.0, 2.0], "slow": [3.0, 30.0, 4.0]},
        },
        "first batch": {
            "run": RUN, "unit": "openings", "items": 1, "notes": {},
            "seconds": {"latentq": [0.01] * 3, "slow": [0.5] * 3},
        },
        "pixels": {
            "run": RUN, "unit": "images", "items": 8, "seconds": {"latentq": [1.0], "slow": [2.0]},
            "notes": {"latentq": "pixels are Pillow's", "slow": "pixels differ by up to 3"},
        },
    },
}  # fmt: skip


def test_table_of_the_race_has_rates_and_ratios_within_a_round():
    assert rivals().table(RACED).splitlines()[2:] == [
        r"| latentq | 50.0/s | 10.0 ms | 8.00/s \* |",
        "| slow | 25.0/s (3.0 x) | 500 ms (50.0 x) | 4.00/s (2.0 x) |",
        "| broken | failed |  |  |",
    ]


def test_race_is_written_between_the_comments_of_the_readme(monkeypatch, tmp_path):
    module, readme = rivals(), tmp_path / "README.md"
    monkeypatch.setattr(module, "README", readme)
    readme.write_text(f"before\n{module.START}\nold\n{module.END}\nafter")
    module.write_readme(RACED)
    text = readme.read_text()
    assert text.startswith(f"before\n{module.START}\n|  | warm |")
    assert "\n2026-01-02, CPU (avx512), 2 cores, load 0.5 at the start, Linux; numpy 2, slow 1.0.\n" in text
    assert "broken failed: ValueError: no." in text
    assert text.endswith(f"{module.END}\nafter")
    assert "old" not in text
    readme.write_text("no comments")
    with pytest.raises(SystemExit, match="comments"):
        module.write_readme(RACED)


def test_races_of_several_runs_have_their_own_dates_and_versions():
    later = RUN | {"date": "2026-02-03", "versions": {"ours": {"numpy": "3"}}}
    races = RACED["races"]
    texts = rivals().facts_of_runs({"races": races | {"first batch": races["first batch"] | {"run": later}}})
    assert [text.partition(", CPU")[0] for text in texts] == ["warm, JPEG to crop: 2026-01-02", "open: 2026-02-03"]
    assert [text.partition("; ")[2] for text in texts] == ["numpy 2, slow 1.0.", "numpy 3."]


def test_a_single_race_keeps_the_dates_of_the_others(monkeypatch, tmp_path):
    module = rivals()
    monkeypatch.setattr(module, "TARGET", tmp_path)
    monkeypatch.setattr(module, "RESULT", tmp_path / "rivals.json")
    monkeypatch.setattr(module, "ENVIRONMENTS", {"ours": ()})
    monkeypatch.setattr(module, "SAMPLES", 600)
    monkeypatch.setattr(module, "FILLED", 0)
    module.RESULT.write_text(json.dumps(RACED))
    entries = (module.Entry("latentq"),)
    one = {name: module.Race("first batch", entries, 1, "openings", 1) for name in ("first batch", "warm")}
    monkeypatch.setattr(module, "races", lambda _samples, _images: one)
    monkeypatch.setattr(sys, "argv", ["rivals.py", "--only", "first batch", "--samples", "600"])
    module.main()
    races = json.loads(module.RESULT.read_text())["races"]
    assert races["first batch"]["run"]["date"] == f"{date.today()}"
    assert len(races["first batch"]["seconds"]["latentq"]) == 1
    assert {name: race["run"] for name, race in races.items() if name != "first batch"} == {"warm": RUN, "pixels": RUN}


@pytest.mark.parametrize(
    ("kind", "name"),
    [("load", "latentq"), ("load", "plain reads, 8 threads"), ("first batch", "NumPy memmap"), ("write", "latentq"),
     ("pixels", "latentq")],
)  # fmt: skip
def test_contenders_of_the_race_that_need_no_environment(tmp_path, kind, name):
    module = rivals()
    module.write_data(tmp_path, 600, None)
    worker = module.Worker(module.Entry(name), kind, sys.executable, tmp_path, tmp_path / "log")
    try:
        answer = worker.tell("prepare")
        assert answer.get("note", "pixels are Pillow's") == "pixels are Pillow's"
        assert worker.tell("close")["seconds"] >= 0
        assert worker.tell("run")["seconds"] > 0
        with pytest.raises(module.RivalError, match="nonsense"):
            worker.tell("nonsense")
    finally:
        worker.end()


def test_loader_of_the_race_that_drops_samples_is_refused(tmp_path):
    sys.path.insert(0, str(BENCHES))
    from race import loaders

    rivals().write_numpy(tmp_path, 600)
    good = loaders.numpy_memmap(tmp_path)
    with pytest.raises(AssertionError, match="has 512 of 600 samples"):
        loaders.Contender(lambda _folder: lambda: list(good())[:2], tmp_path, first=False).prepare()
