"""benches/gpu.py: its harness survives stages that fail, hang or die; its rehearsal runs where only torch is."""

import json
import os
import signal
import subprocess
import sys
import textwrap
import tomllib
from pathlib import Path

import numpy as np
import pytest
import tomli_w
import torch

BENCHES = Path(__file__).resolve().parents[2] / "benches"
MISSING = ("diffusers", "streaming", "tomli_w", "transformers", "open_clip", "yaml", "pytest_timeout")

pytestmark = pytest.mark.skipif(not BENCHES.exists(), reason="there are no benchmarks next to the installed package")


@pytest.fixture
def gpu(monkeypatch):
    """The package of the script can be imported."""
    monkeypatch.syspath_prepend(str(BENCHES))


@pytest.fixture
def script(tmp_path):
    """Runs a script of given stages, and returns its process and results."""

    def run(stages, *arguments, wait=True, **options):
        body = f"""
            import json, os, signal, sys, time
            sys.path.insert(0, {str(BENCHES)!r})
            from gpu import harness
            from gpu.harness import Stage, main

            def fine(run):
                run.check("fine", True, 1, 1)
            """
        file, found = tmp_path / "script.py", tmp_path / "found" / "result.json"
        file.write_text(textwrap.dedent(body) + textwrap.dedent(stages) + "\nif __name__ == '__main__':\n"
                        "    sys.exit(main(STAGES))\n")  # fmt: skip
        command = [sys.executable, str(file), "--json", str(found), *arguments]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        if not wait:
            return subprocess.Popen(command, **pipes), found
        process = subprocess.run(command, check=False, timeout=120, **pipes, **options)
        return process, json.loads(found.read_text()) if found.exists() else None

    return run


def stages_of(results):
    return {stage["name"]: stage["error"] for stage in results["stages"]}


def checks_of(results):
    return {(check["stage"], check["name"]): check["ok"] for check in results["checks"]}


def test_failed_checks_are_first_in_the_table_and_the_exit_code_is_0(script):
    process, results = script(
        """
        def judging(run):
            run.check("good", 2 < 3, 2, "< 3")
            run.check("bad", 3 < 3, 3, "< 3", "why")
            run.number("rate", 2.0, "img/s", [1.0, 2.0, 4.0])

        STAGES = [Stage("fine", 1, True, fine), Stage("judging", 1, True, judging)]
        """
    )
    assert process.returncode == 0
    assert checks_of(results) == {("fine", "fine"): True, ("judging", "good"): True, ("judging", "bad"): False}
    assert results["numbers"] == [
        {"stage": "judging", "name": "rate", "value": 2.0, "unit": "img/s", "min": 1.0, "max": 4.0, "n": 3}
    ]
    rows = [line for line in process.stdout.splitlines() if line.startswith("|")]
    assert rows[2] == "| judging: bad | 3 why | < 3 | NO |"
    assert "| judging: rate | 2 img/s | 1 to 4, 3 times |" in rows
    assert "2 checks passed, 1 failed, 0 not judged" in process.stdout


@pytest.mark.parametrize("apart", [False, True])
@pytest.mark.parametrize("error", ["ValueError('enough')", "SystemExit(3)", "MemoryError()"])
def test_stage_that_raises_costs_no_other(script, error, apart):
    process, results = script(
        f"""
        def failing(run):
            run.check("before", True, 1, 1)
            raise {error}

        STAGES = [Stage("failing", 1, True, failing, apart={apart}), Stage("fine", 1, True, fine)]
        """
    )
    assert process.returncode == 0
    assert error.split("(")[0] in stages_of(results)["failing"]
    assert "in failing" in stages_of(results)["failing"]
    assert stages_of(results)["fine"] is None
    assert checks_of(results) == {("failing", "before"): True, ("fine", "fine"): True}


def test_part_of_a_stage_that_raises_is_a_failed_check_and_the_stage_goes_on(script):
    _, results = script(
        """
        def parts(run):
            with run.attempt("first"):
                raise RuntimeError("broken")
            with run.attempt("second", passes=True):
                pass

        STAGES = [Stage("parts", 1, True, parts)]
        """
    )
    assert checks_of(results) == {("parts", "first"): False, ("parts", "second"): True}
    assert results["checks"][0]["got"] == "RuntimeError: broken"
    assert stages_of(results) == {"parts": None}


@pytest.mark.parametrize("apart", [False, True])
def test_stage_that_hangs_says_where_and_ends(script, apart):
    process, results = script(
        f"""
        def hanging(run):
            with run.attempt("part"):
                time.sleep(60)

        STAGES = [Stage("hanging", 0.2, True, hanging, apart={apart}), Stage("fine", 1, True, fine)]
        """
    )
    assert process.returncode == 0
    assert "it hangs: more than 0.6 s" in stages_of(results)["hanging"]
    assert "in hanging" in (stages_of(results)["hanging"] if apart else process.stderr)
    assert checks_of(results) == {("fine", "fine"): True}


def test_process_that_hears_no_alarm_is_killed_with_its_children(script, tmp_path):
    process, results = script(
        f"""
        harness.GRACE = 9.1

        def deaf(run):
            run.check("before", True, 1, 1)
            signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGALRM])
            child = os.fork()
            if child:
                with open({str(tmp_path / "child")!r}, "w") as file:
                    file.write(str(child))
            time.sleep(60)

        STAGES = [Stage("deaf", 0.3, True, deaf, apart=True), Stage("fine", 1, True, fine)]
        """
    )
    assert process.returncode == 0
    assert "its process was killed after 10 s" in stages_of(results)["deaf"]
    assert "in deaf" in stages_of(results)["deaf"]
    assert checks_of(results) == {("deaf", "before"): True, ("fine", "fine"): True}
    child = Path("/proc", (tmp_path / "child").read_text(), "stat")
    assert not child.exists() or child.read_text().rpartition(")")[2].split()[0] == "Z"


@pytest.mark.parametrize(
    ("end", "said"),
    [
        ("os.kill(os.getpid(), signal.SIGKILL)", "killed by SIGKILL"),
        ("os.abort()", "SIGABRT"),
        ("os._exit(7)", "exit code 7"),
    ],
)
def test_process_that_dies_leaves_what_it_had_found(script, end, said):
    process, results = script(
        f"""
        def dying(run):
            run.check("before", True, 1, 1)
            run.number("n", 1.5, "s")
            {end}

        STAGES = [Stage("dying", 1, True, dying, apart=True), Stage("fine", 1, True, fine)]
        """
    )
    assert process.returncode == 0
    assert said in stages_of(results)["dying"]
    assert checks_of(results) == {("dying", "before"): True, ("fine", "fine"): True}
    assert [number["name"] for number in results["numbers"]] == ["n"]


def test_results_are_whole_after_every_step_and_name_the_stage_that_was_cut_short(script):
    process, found = script(
        """
        def reading(run):
            run.check("so far", True, [s["name"] for s in json.loads(run.results.file.read_text())["stages"]], "")

        def waiting(run):
            print("waits", flush=True)
            time.sleep(60)

        STAGES = [Stage("fine", 1, True, fine), Stage("reading", 1, True, reading), Stage("waiting", 30, True, waiting)]
        """,
        wait=False,
    )
    assert process.stdout.readline() == "waits\n"
    process.send_signal(signal.SIGKILL)
    process.communicate()
    results = json.loads(found.read_text())
    assert results["checks"][1]["got"] == ["fine", "reading"]
    assert stages_of(results)["reading"] is None
    assert "did not end" in stages_of(results)["waiting"]


def test_budget_skips_what_is_too_long_and_stages_that_must_run_are_first(script):
    _, results = script(
        """
        def slow(run):
            time.sleep(1.2)

        STAGES = [
            Stage("extra", 0.5, False, fine), Stage("long", 9, True, fine), Stage("slow", 1, True, slow),
            Stage("last", 0.1, False, fine),
        ]
        """,
        "--budget",
        "1.6",
    )
    found = stages_of(results)
    assert list(found) == ["long", "slow", "extra", "last"]
    assert found["long"].startswith("skipped: it takes 9 s, and 2 s of the budget are left")
    assert found["slow"] is None
    assert found["extra"].startswith("skipped: it takes 0.5 s")
    assert found["last"] is None


def test_one_stage_alone_and_command_lines_that_are_wrong(script):
    stages = 'STAGES = [Stage("a", 1, True, fine, apart=True), Stage("b", 1, True, fine)]'
    process, results = script(stages, "--stage", "a")
    assert (process.returncode, list(stages_of(results))) == (0, ["a"])
    process, _ = script(stages, "--stage", "c")
    assert process.returncode == 2
    assert "invalid choice: 'c'" in process.stderr


def test_interrupt_ends_the_run_with_what_it_had(script):
    process, results = script(
        """
        def interrupted(run):
            raise KeyboardInterrupt

        STAGES = [Stage("fine", 1, True, fine), Stage("interrupted", 1, True, interrupted),
            Stage("never", 1, True, fine)]
        """
    )
    assert process.returncode == 130
    assert stages_of(results) == {"fine": None, "interrupted": "KeyboardInterrupt"}
    assert "| stage interrupted | KeyboardInterrupt |" in process.stdout


def test_rehearsal_does_not_judge_what_needs_a_card(script):
    stages = """
        def judging(run):
            run.check("rate", False, run.size(1000, 3), run.size(1, 3), card_only=True)
            run.not_run("other", "it is missing")

        STAGES = [Stage("judging", 1, True, judging, apart=True)]
        """
    _, results = script(stages, "--dry")
    assert checks_of(results) == {("judging", "rate"): None, ("judging", "other"): None}
    assert (results["checks"][0]["got"], results["checks"][0]["wanted"]) == (10, 3)
    _, results = script(stages)
    assert checks_of(results) == {("judging", "rate"): False, ("judging", "other"): None}
    assert (results["checks"][0]["got"], results["checks"][0]["wanted"]) == (1000, 1)


def test_tables_keep_their_limit_and_every_failed_check(gpu):
    from gpu.results import markdown

    def check(number, ok):
        return {"stage": "codes", "name": f"check {number} | {'x' * 40}", "ok": ok, "got": 1, "wanted": 0, "note": ""}

    number = {"stage": "s", "name": "n" * 60, "value": 1.0, "unit": "s", "min": None, "max": None, "n": 1}
    data = {"env": {}, "checks": [check(i, i % 20 != 0) for i in range(400)], "numbers": [number] * 150, "stages": []}
    text = markdown(data)
    assert len(text) <= 12_000
    assert text.count(" | NO |") == 20
    assert "more that did not fail" in text
    assert "90 more in the JSON file" in text
    assert len(markdown(data | {"checks": [check(i, False) for i in range(2000)]})) <= 12_000


def test_values_that_json_lacks_become_text(gpu, tmp_path):
    from gpu.results import Results

    results = Results(tmp_path / "r.json")
    results.add("checks", got=[float("nan"), np.float32(0.5), np.int64(3), torch.tensor(2), Path("x"), np.bool_(True)])
    assert json.loads((tmp_path / "r.json").read_text())["checks"] == [{"got": ["nan", 0.5, 3, 2, "x", True]}]


def test_toml_of_the_stand_in_is_read_as_it_was_written(gpu):
    from gpu.standins import dumps

    data = {
        "a": 1, "b": 1e-30, "c": 5e300, "text": 'q"\\\n\t\x7f ü', "yes": True, "list": [[1.5, -0.0], []],
        "infinite": float("inf"), "table": {"x.y": {"inner": "z"}, "last": [1, 2]}, "inline": [{"k": "v"}],
    }  # fmt: skip
    assert tomllib.loads(dumps(data)) == tomllib.loads(tomli_w.dumps(data)) == data


def test_stage_of_codes_finds_one_wrong_code(gpu, tmp_path, monkeypatch):
    from gpu.harness import Run
    from gpu.results import Results
    from gpu.stages import codes

    from latentq import Quantizer

    real = codes.tensors.quantize_counted

    def wrong(*arguments):
        found, *counts = real(*arguments)
        found.view(-1)[77] ^= 1
        return found, *counts

    results = Results(tmp_path / "r.json")
    run = Run(results, "codes", tmp_path, dry=True)
    q, x = Quantizer.uniform(-5, 6, channels=4), torch.linspace(-6, 7, 2 * 4 * 64).reshape(2, 4, 64)
    codes._compare(run, codes.Device(run), "right", q, x)
    monkeypatch.setattr(codes.tensors, "quantize_counted", wrong)
    codes._compare(run, codes.Device(run), "wrong", q, x)
    bits = x.view(-1)[77:78].numpy().view(np.uint32)[0]
    right = int(q.quantize(x).view(-1)[77])
    found = results.data["checks"]
    assert [check["ok"] for check in found] == [True, False]
    assert (found[1]["got"], found[1]["note"]) == (1, f"first: x 0x{bits:x}, CPU {right}, CUDA {right ^ 1}")


@pytest.fixture
def one_thread():
    """Torch works on one thread, as in a rehearsal: sizes are so small that threads would only wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("one_thread")
def test_stage_of_codecs_holds_on_the_cpu_and_finds_one_wrong_value(gpu, tmp_path, monkeypatch):
    from gpu.harness import Run
    from gpu.results import Results
    from gpu.stages import codecs

    (tmp_path / "run").mkdir()
    results = Results(tmp_path / "r.json")
    codecs.work(Run(results, "codecs", tmp_path / "run", dry=True))
    checks = {check["name"]: check["ok"] for check in results.data["checks"]}
    assert {name for name, ok in checks.items() if ok is False} == set()
    assert sum(ok is True for ok in checks.values()) == 21 + 18 + 6, checks
    numbers = {number["name"] for number in results.data["numbers"]}
    assert {"encode, transform, 4 bits: the device waits", "read, trellis, 8 bits, resident"} <= numbers

    real = codecs.Device.dequantize

    def wrong(*arguments):
        values = real(*arguments)
        values.reshape(-1)[77] ^= 1
        return values

    monkeypatch.setattr(codecs.Device, "dequantize", wrong)
    run = Run(results, "codecs", tmp_path, dry=True)
    codecs._trellis(run, codecs.Device(run), 4, (4, 8, 8))
    assert (results.data["checks"][-1]["ok"], results.data["checks"][-1]["got"]) == (False, 3)


def test_datasets_that_differ_are_named(gpu, tmp_path):
    from gpu.pictures import differing

    for name, data in (("one", b"1"), ("two", b"2")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "same").write_bytes(b"")
        (tmp_path / name / "other").write_bytes(data)
        (tmp_path / name / f"only {name}").write_bytes(b"")
    assert differing(tmp_path / "one", tmp_path / "one") == []
    assert differing(tmp_path / "one", tmp_path / "two") == ["only one", "only two", "other"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a card")
def test_without_a_card_nothing_is_measured(tmp_path):
    command = [sys.executable, str(BENCHES / "gpu.py"), "--json", str(tmp_path / "r.json")]
    process = subprocess.run(command, capture_output=True, text=True, check=False)
    assert process.returncode == 2
    assert process.stderr.startswith("gpu.py: there is no CUDA device")
    assert not (tmp_path / "r.json").exists()


@pytest.fixture(scope="module")
def rehearsal(tmp_path_factory):
    """The whole script with --dry, where no package can be imported that a bare torch machine lacks."""
    folder = tmp_path_factory.mktemp("rehearsal")
    (folder / "sitecustomize.py").write_text(
        textwrap.dedent(f"""
        import sys

        class Missing:
            def find_spec(self, name, path=None, target=None):
                if name.partition(".")[0] in {MISSING!r}:
                    raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

        sys.meta_path.insert(0, Missing())
        """)
    )
    paths = os.pathsep.join(filter(None, [str(folder), os.environ.get("PYTHONPATH")]))
    command = [sys.executable, str(BENCHES / "gpu.py"), "--dry", "--json", str(folder / "result.json")]
    process = subprocess.run(
        command, capture_output=True, text=True, check=False, env={**os.environ, "PYTHONPATH": paths}, cwd=folder
    )
    return process, json.loads((folder / "result.json").read_text()), (folder / "result.md").read_text()


def test_rehearsal_runs_every_stage(rehearsal):
    process, results, _ = rehearsal
    assert process.returncode == 0, process.stderr
    assert stages_of(results) == dict.fromkeys(
        (
            "env",
            "codes",
            "sync",
            "bytes",
            "nan",
            "oom",
            "tests",
            "forward",
            "loop",
            "reading",
            "codecs",
            "rank",
            "ideas",
            "big",
        )
    )
    assert results["env"]["stand-ins"] == ["tomli_w"]
    assert "diffusers is missing" in results["env"]["network"]


def test_every_check_of_the_rehearsal_holds(rehearsal):
    checks = checks_of(rehearsal[1])
    assert {name for name, ok in checks.items() if ok is False} == set()
    judged = {stage: sum(ok is True for (owner, _), ok in checks.items() if owner == stage) for stage, _ in checks}
    least = {
        "codes": 170,
        "sync": 50,
        "bytes": 15,
        "nan": 14,
        "oom": 10,
        "tests": 2,
        "reading": 17,
        "codecs": 45,
        "rank": 5,
        "big": 4,
    }
    assert {stage: count for stage, count in least.items() if judged[stage] < count} == {}


def test_rehearsal_measures_what_the_card_will_measure(rehearsal):
    _, results, text = rehearsal
    assert len(text) <= 12_000
    names = {number["stage"]: [] for number in results["numbers"]}
    for number in results["numbers"]:
        names[number["stage"]].append(number["name"])
        assert isinstance(number["value"], int | float), number
    letters = {name[0] for name in names["forward"]}
    assert letters >= set("abcdefgh")
    for stage, words in {
        "env": ["bf16 product", "device copy", "pinned"],
        "loop": ["images alone", "encode, bf16 compiled", "encode, float32", "plain loop", "tar", "min_size"],
        "reading": ["affine8, loader", "codebook8, resident", "host in next", "steps next to"],
        "codecs": ["the device waits", "decode trellis", "decode transform", "resident"],
        "ideas": ["convolution", "GroupNorm", "0.2 megapixels, nvJPEG"],
        "big": ["batch"],
    }.items():
        assert [word for word in words if not any(word in name for name in names[stage])] == [], stage
