"""`latentq bench`: a table of this machine's speed, as text and as JSON."""

import io
import json
import signal
import subprocess
import sys
import time

import pytest
from PIL import Image

from latentq.benchmark import run as benchmark
from latentq.benchmark.quantizing import TITLES
from latentq.cli.main import main

# The benchmark registers the encoding of imagenet.int8 for the whole process.
pytestmark = pytest.mark.usefixtures("kept_encodings")


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Makes the files that are written and read small."""
    monkeypatch.setattr(benchmark, "_SAMPLES", 300)
    monkeypatch.setattr(benchmark, "_READS", 20)
    monkeypatch.setattr(benchmark, "_BATCHES", 2)


def titles(plan):
    return [title for title, _ in benchmark.groups(plan)]


def test_a_table_has_latentq_rivals_and_limits(tmp_path, capsys):
    assert main(["bench", "warm", "single", "epochs", "--quick", "--folder", str(tmp_path)]) == 0
    out, err = capsys.readouterr()
    assert out.startswith("latentq ")
    assert "numpy" in out.splitlines()[1]
    for row in ("latentq Reader[i]", "MDSReader[i]", "NumPy memmap, DataLoader", "read + kernel, 1 thread (limit)"):
        assert f"\n  {row} " in out
    assert out.rstrip().endswith("torch.compile is not measured: --quick")
    assert "bench: " in err
    assert not any(tmp_path.iterdir())  # nothing is left


def test_json_has_machine_groups_and_notes(capsys):
    assert main(["bench", "single", "--quick", "--json", "--quiet"]) == 0
    out, err = capsys.readouterr()
    data = json.loads(out)
    assert not err
    assert set(data) == {"date", "machine", "groups", "notes"}
    assert data["machine"]["cores"] >= 1
    assert "numpy" in data["machine"]["packages"]
    (group,) = data["groups"]
    assert (group["title"], group["unit"]) == ("read random single samples", "samples")
    assert [row["name"] for row in group["rows"] if row["latentq_is"] is None] == [
        "latentq Reader[i]", "latentq Reader[i], cache_bytes=0",
    ]  # fmt: skip
    for row in group["rows"]:
        assert row["rate"] == pytest.approx(20 / row["seconds"])
        assert 0 < row["fastest"] <= row["seconds"]


def test_pictures_of_a_folder_are_decoded(tmp_path, capsys):
    buffer = io.BytesIO()
    Image.new("RGB", (400, 300), "red").save(buffer, "JPEG")
    (tmp_path / "a.jpg").write_bytes(buffer.getvalue())
    assert main(["bench", "jpegs", "--quick", "--json", "--quiet", "--images", str(tmp_path)]) == 0
    groups = json.loads(capsys.readouterr().out)["groups"]
    assert [group["title"] for group in groups] == ["JPEGs to pixels, 1 thread", "JPEGs to 256 crops, 1 thread"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nonsense"], "no group has the word nonsense: float32 to uint8"),
        (["warm", "gather", "epochs", "decode"], "no group has the word gather or decode: float32 to uint8"),
        (["--folder", "/none"], "--folder: /none: no such folder"),
        (["--images", "/none"], "--images: /none: no such folder"),
    ],
)
def test_wrong_arguments_are_told(capsys, arguments, message):
    assert main(["bench", *arguments]) == 2
    assert message in capsys.readouterr().err


def test_a_folder_without_jpegs_is_told_before_anything_is_measured(tmp_path, capsys):
    (tmp_path / "folder.jpg").mkdir()
    assert main(["bench", "warm", "jpegs", "--quick", "--quiet", "--images", str(tmp_path)]) == 1
    out, err = capsys.readouterr()
    assert not out
    assert f"{tmp_path}: no JPEGs below this folder" in err


def test_a_damaged_jpeg_is_named_before_anything_is_measured(tmp_path, capsys):
    buffer = io.BytesIO()
    Image.new("RGB", (400, 300), "red").save(buffer, "JPEG")
    (tmp_path / "a.jpg").write_bytes(buffer.getvalue())
    (tmp_path / "b.jpg").write_bytes(buffer.getvalue()[:-100])
    assert main(["bench", "warm", "jpegs", "--quick", "--quiet", "--images", str(tmp_path)]) == 1
    out, err = capsys.readouterr()
    assert not out
    assert err == f"latentq: {tmp_path / 'b.jpg'}: JPEG: the file is truncated\n"


def test_what_is_not_installed_is_left_out_and_told(monkeypatch, tmp_path):
    plan = benchmark.Plan(tmp_path)
    for module in ("latentq.benchmark.run", "latentq.benchmark.installed"):
        monkeypatch.setattr(f"{module}.is_installed", lambda _name: False)
    assert not any("epochs" in title or "2 threads" in title for title in titles(plan))
    assert set(benchmark.installed.quantizers(TITLES[0])) == {"latentq", "plain read", "NumPy"}
    assert not any("MDS" in name for name in {**benchmark.installed.writers(), **benchmark.installed.single_readers()})
    assert benchmark.skipped(plan) == [
        "the loader and the device are not measured: torch is not installed",
        "mosaicml-streaming is not measured: it is not installed",
    ]


def test_sigterm_leaves_no_folder_behind(tmp_path):
    command = [sys.executable, "-m", "latentq", "bench", "single", "--quick", "--folder", str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        deadline = time.monotonic() + 60
        while not any(tmp_path.iterdir()) and time.monotonic() < deadline:
            time.sleep(0.01)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 143
        assert process.stderr is not None
        assert "Traceback" not in process.stderr.read()
    assert not any(tmp_path.iterdir())
