"""Output of commands: JSON for programs, nothing but the result with --quiet, a summary, completion, charts."""

import io
import json
import re
import shutil
import subprocess

import pytest

import latentq
from conftest import contents
from latentq.cli.info import _range_chart
from latentq.cli.main import COMMANDS, build_parser, main
from support.cli_fixtures import SMALL


def run(capsys, *arguments):
    """Returns exit code, stdout and stderr of a command."""
    code = main([str(argument) for argument in arguments])
    return code, *capsys.readouterr()


def result(capsys, *arguments):
    """Returns the JSON that a command prints; with --quiet, it prints nothing else."""
    code, out, err = run(capsys, *arguments, "--json", "--quiet")
    assert (code, err) == (0, "")
    return json.loads(out)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_quiet_and_json(command):
    parser = build_parser([command])._subparsers._group_actions[0].choices[command]
    assert {"--quiet", "--json"} <= set(parser._option_string_actions)


def test_encode_as_json_has_counts_bytes_and_times(pictures, tmp_path, capsys):
    (pictures / "bad.jpg").write_text("no image")
    out = tmp_path / "out"
    data = result(capsys, "encode", pictures, out, *SMALL)
    seconds, stages = data.pop("seconds"), data.pop("stage_seconds")
    assert data == {
        "dataset": str(out), "complete": True, "units": 1, "units_done": 1, "samples": 12, "rejects": 1,
        "bytes": sum(map(len, contents(out).values())), "rejects_by_stage": {"decode": 1}, "images": 13,
    }  # fmt: skip
    assert 0 < seconds < 600
    assert {"network", "write"} <= set(stages)
    assert all(worked > 0 for worked in stages.values())


def test_a_rank_that_waits_for_others_says_so_as_json(pictures, tmp_path, capsys):
    ranks = ["--unit-size", "6", "--rank", "0", "--world-size", "2"]
    data = result(capsys, "encode", pictures, tmp_path / "out", *SMALL, *ranks)
    assert (data["complete"], data["units"], data["units_done"], data["images"]) == (False, 2, 1, 6)
    assert "samples" not in data


def test_a_dry_run_as_json(pictures, tmp_path, capsys):
    data = result(capsys, "encode", pictures, tmp_path / "out", *SMALL, "--dry-run")
    assert (data["dry_run"], data["samples"], data["missing_units"], data["tried"]["rejects"]) == (True, 12, 1, 0)
    data = result(capsys, "shards", pictures, tmp_path / "mds", "--min-size", "8", "--dry-run")
    assert (data["samples"], data["own_samples"], data["tried"]["samples"]) == (12, 12, 12)
    assert not list(tmp_path.glob("out*")) + list(tmp_path.glob("mds*"))


def test_the_other_commands_as_json(small_dataset, pictures, tmp_path, capsys):
    data = result(capsys, "shards", pictures, tmp_path / "mds", "--min-size", "8")
    assert (data["samples"], data["rejects"], data["complete"]) == (12, 0, True)
    assert result(capsys, "verify", small_dataset) == []
    picture = tmp_path / "1.png"
    decoded = result(capsys, "decode", small_dataset, "--index", 1, 2, "--source", pictures, "-o", picture)
    assert (decoded["output"], decoded["samples"]) == (str(picture), 2)
    assert all(10 < psnr < 60 for psnr in decoded["psnr"])
    page = tmp_path / "1.html"
    assert result(capsys, "report", small_dataset, "-o", page) == {"output": str(page), "bytes": page.stat().st_size}
    assert [row["scheme"] for row in result(capsys, "measure", small_dataset, "--source", pictures, "--bits", 8)]
    assert result(capsys, "repair", small_dataset / "00000")["samples"] == 12
    assert result(capsys, "recipes", "sdxl") == json.loads(json.dumps(latentq.Recipe.load("sdxl").to_dict()))
    assert {"name", "summary"} == set(result(capsys, "recipes")[0])
    converted = result(capsys, "convert", small_dataset, tmp_path / "other", "--to", "fast-dit")
    assert (converted["output"], converted["samples"]) == (str(tmp_path / "other"), 12)
    assert converted["bytes"] == sum(map(len, contents(tmp_path / "other").values()))
    assert 0 < converted["seconds"] < 600
    note = "not converted, as the layout of fast-dit has no place for it: label_text"
    assert (converted["errors"], converted["notes"]) == ({}, [note])
    quantized = result(capsys, "convert", tmp_path / "other", tmp_path / "quantized", "--bits", "8")
    error, note = quantized["errors"]["latent"], quantized["notes"][-1]
    assert error["sqnr_db"] > 30
    assert f"signal-to-noise ratio {error['sqnr_db']:.1f} dB, largest error {error['largest_error']:.3g}" in note
    assert 0 <= error["clip_rate"] < 0.01
    assert result(capsys, "prune", small_dataset) == {"dataset": str(small_dataset), "removed": [], "bytes": 0}


def test_prune_as_json_removes_only_with_yes(small_dataset, pictures, capsys):
    (pictures / "ant" / "00.jpg").unlink()
    latentq.encode(pictures, small_dataset, autoencoder="dct-f8c16", size=64, update=True)
    code, out, err = run(capsys, "prune", small_dataset, "--json")
    assert (code, out) == (2, "")
    assert "--json needs --yes" in err
    removed = result(capsys, "prune", small_dataset, "--yes")
    assert removed["bytes"] > 0
    assert str(small_dataset / "00000") in removed["removed"]
    assert not (small_dataset / "00000").exists()


def test_quiet_prints_the_result_alone(pictures, tmp_path, capsys):
    (pictures / "bad.jpg").write_text("no image")
    code, out, err = run(capsys, "encode", pictures, tmp_path / "out", *SMALL, "--quiet")
    assert (code, err) == (0, "")
    assert out.count("\n") == 1
    for command in (["info", tmp_path / "out"], ["verify", tmp_path / "out"], ["measure", tmp_path / "out"]):
        code, out, err = run(capsys, *command, "--quiet")
        assert (code, err) == (0, "")
        assert out


def test_a_run_ends_with_a_summary(pictures, tmp_path, capsys):
    (pictures / "bad.jpg").write_text("no image")
    _, out, err = run(capsys, "encode", pictures, tmp_path / "out", *SMALL)
    progress, rejects, sample, time = err.splitlines()[-4:]
    assert progress.startswith("encode: 13 of 13 images, ")
    assert "1 reject, " in progress
    assert " kB, network " in progress
    assert rejects == "rejects: decode 1"
    assert sample.startswith("a sample: ")
    assert time.startswith("time: ")
    assert all(f"{stage} " in time for stage in ("network", "read, decode", "write"))
    assert out.startswith(f"{tmp_path / 'out'}: 12 samples, 1 reject")


def test_a_conversion_ends_with_its_bytes_and_rate(small_dataset, tmp_path, capsys):
    out = tmp_path / "other"
    code, text, _ = run(capsys, "convert", small_dataset, out, "--to", "fast-dit")
    assert code == 0
    assert re.fullmatch(rf"{out}: 12 samples, [\d.]+ kB; in \d:\d\d, [\d.]+ samples/s\n", text)


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_bash_completes_commands_and_options(capsys):
    code, script, _ = run(capsys, "completion", "bash")
    assert code == 0
    ask = 'COMP_WORDS=(latentq {}); COMP_CWORD={}; _shtab_latentq; echo "${{COMPREPLY[*]}}"'
    for words, place, expected in (
        ("me", 1, "measure"),
        ("encode a b --fused", 4, "--fused-norm"),
        ("encode a b --recipe imagenet", 5, "imagenet-1gb"),
        ("convert a b --from ko", 5, "kohya"),
        ("convert a b --to light", 5, "lightningdit"),
    ):
        asked = subprocess.run(["bash", "-c", script + ask.format(words, place)], capture_output=True, text=True)
        assert expected in asked.stdout.split(), asked


@pytest.mark.parametrize("shell", ["zsh", "tcsh"])
def test_other_shells_get_a_script_with_every_command(shell, capsys):
    script = result(capsys, "completion", shell)["script"]
    assert all(command in script for command in COMMANDS)


def test_a_range_is_drawn_to_scale():
    # 40 characters from -2 to 2: ten a unit.
    drawn = _range_chart((-2.0, 2.0), (-1.0, 1.95), (-0.5, 0.5), 0.0)
    assert drawn == " " * 10 + "-" * 5 + "=" * 5 + "|" + "=" * 5 + "-" * 14
    assert _range_chart((0.0, 0.0), (0.0, 0.0), (0.0, 0.0), 0.0) == "|"
    assert _range_chart((-2.0, 2.0), (-2.0, 2.0), (-9.0, 9.0), 0.0) == "=" * 20 + "|" + "=" * 19


def test_a_closed_stderr_does_not_end_a_run(pictures, tmp_path, monkeypatch, capsys):
    closed = io.StringIO()
    closed.close = lambda: None
    monkeypatch.setattr(closed, "write", lambda _: (_ for _ in ()).throw(BrokenPipeError()))
    monkeypatch.setattr("sys.stderr", closed)
    assert main(["encode", str(pictures), str(tmp_path / "out"), *SMALL]) == 0
    assert "12 samples" in capsys.readouterr().out
