"""The command line as a program: help, exit codes, errors on one line."""

import importlib
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import latentq
from conftest import heed_interrupts, paint, run
from latentq.cli.main import main
from support.cli_fixtures import SMALL


def test_the_installed_command_is_the_module(tmp_path):
    for command in ([Path(sys.executable).with_name("latentq")], [sys.executable, "-m", "latentq"]):
        done = subprocess.run([*command, "--version"], capture_output=True, text=True, check=True)
        assert done.stdout == f"latentq {latentq.__version__}\n"


def test_help_shows_examples():
    for command in ((), ("encode",), ("info",), ("verify",), ("decode",)):
        done = run(*command, "--help")
        assert done.returncode == 0
        assert "example" in done.stdout


def test_without_a_command_the_help_is_printed(capsys):
    assert main([]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "latentq encode photos/ out/" in captured.err


def test_help_of_encode_names_the_defaults():
    help_text = " ".join(run("encode", "--help").stdout.split())
    for option, default in (
        ("size", "256"),
        ("crop", "center"),
        ("filter", "bicubic"),
        ("bits", "8"),
        ("store", "sample"),
    ):
        assert re.search(rf"--{option} [^)]*\(default: {default}\)", help_text), option


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("paint",),
        ("encode",),
        ("encode", "nowhere", "out"),
        ("encode", "pictures", "out", "--recipe", "nosuch"),
        ("encode", "pictures", "out", "--size", "sixty"),
        ("encode", "pictures", "out", *SMALL, "--size", "60"),
        ("encode", "pictures", "out", *SMALL, "--bits", "1"),
        ("encode", "pictures", "out", *SMALL, "--crop", "middle"),
        ("encode", "pictures", "out", *SMALL, "--calibrate", "guess"),
        ("encode", "pictures", "out", *SMALL, "--rank", "3", "--world-size", "2"),
        ("encode", "pictures", "out", *SMALL, "--batch-size", "0"),
        ("encode", "pictures", "out", *SMALL, "--threads", "0"),
        ("encode", "pictures", "out", "--recipe", "default", "--like", "x"),
        ("info", "nowhere"),
        ("verify", "nowhere"),
        ("decode", "nowhere"),
    ],
)
def test_wrong_arguments_exit_with_2_and_no_traceback(pictures, tmp_path, monkeypatch, capsys, arguments):
    monkeypatch.chdir(tmp_path)
    try:
        code = main(arguments)
    except SystemExit as ended:  # as argparse does it
        code = ended.code
    assert code == 2
    assert "latentq" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_wrong_data_exits_with_1_and_one_line(pictures, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "file").touch()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "latents.toml").write_text("complete =")
    (tmp_path / "bad.tsv").write_text("path\tlabel\nx\n")
    for arguments, named in [
        (("encode", "empty", "out", *SMALL), "empty"),
        (("encode", "pictures", "other", *SMALL), "other"),
        (("encode", "pictures", "broken", *SMALL), "latents.toml"),
        (("encode", "bad.tsv", "out", *SMALL), "bad.tsv, line 2"),
        (("encode", "pictures", "out", "--autoencoder", "nosuch"), "nosuch"),
        (("info", "broken"), "latents.toml"),
        (("decode", "broken"), "latents.toml"),
        (("decode", "empty"), "empty"),
        (("info", "empty"), "index.json"),
    ]:
        assert main(arguments) == 1, arguments
        lines = capsys.readouterr().err.strip().splitlines()
        assert len(lines) == 1, lines
        assert named in lines[0]
    assert main(["verify", "broken"]) == 1
    assert "latents.toml" in capsys.readouterr().out


@pytest.mark.parametrize("size", ["8k", "16k", "32k"])
def test_a_full_disk_is_one_line_and_leaves_no_temporary(pictures, tmp_path, size):
    disk = tmp_path / f"disk{size}"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", disk], check=False).returncode:
        pytest.skip("a file system cannot be mounted here")
    try:
        done = run("encode", "pictures", disk / "out", *SMALL, cwd=tmp_path)
        left = [path.name for path in disk.rglob(".*")]
    finally:
        subprocess.run(["umount", disk], check=True)
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert "No space left on device" in last
    assert str(disk) in last
    assert "Traceback" not in done.stderr
    assert left == []


@pytest.mark.usefixtures("unreadable_bee")
def test_a_folder_that_may_not_be_read_is_one_line(pictures, tmp_path, capsys):
    assert main(["encode", str(pictures), str(tmp_path / "out"), *SMALL]) == 1
    assert capsys.readouterr().err.splitlines() == [f"latentq: {pictures}/bee: Permission denied"]
    assert not (tmp_path / "out").exists()


def test_a_missing_device_is_one_line_and_leaves_nothing(pictures, tmp_path, capsys):
    for device in ("nonsense", "cuda:99"):
        assert main(["encode", str(pictures), str(tmp_path / "out"), *SMALL, "--device", device]) == 2
        assert f"device '{device}' cannot be used" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_kind_of_device_that_torch_does_not_know_is_told_which_there_are(pictures, tmp_path, capsys):
    assert main(["encode", str(pictures), str(tmp_path / "out"), *SMALL, "--device", "gpu"]) == 2
    reason = "there is no such kind; name cpu, cuda or cuda:1"
    assert capsys.readouterr().err == f"latentq: device 'gpu' cannot be used: {reason}\n"


def test_a_closed_pipe_does_not_turn_failure_into_success(small_dataset, pictures, tmp_path):
    shell = ["bash", "-c"]
    shard = small_dataset / "00000" / "shard.00000.mds"
    shard.write_bytes(shard.read_bytes()[:-1])
    latentq_ = f"{sys.executable} -m latentq"
    verify = subprocess.run([*shell, f"{latentq_} verify {small_dataset} | true; exit ${{PIPESTATUS[0]}}"], check=False)
    assert verify.returncode in (1, 141)
    encode = f"{latentq_} encode {pictures} {tmp_path / 'piped'} {' '.join(SMALL)} 2>&1 >/dev/null | true"
    assert subprocess.run([*shell, f"{encode}; exit ${{PIPESTATUS[0]}}"], check=False).returncode == 0
    assert latentq.Card.load(tmp_path / "piped").complete


@pytest.mark.parametrize("encoding", ["ascii", "latin1"])
def test_names_that_the_output_cannot_encode_are_escaped(pictures, tmp_path, encoding):
    environment = os.environ | {"PYTHONIOENCODING": encoding}
    out = tmp_path / "Käse \u0142"
    for command in (("encode", pictures, out, *SMALL), ("info", out), ("verify", out), ("verify", f"{out}x")):
        done = subprocess.run(
            [sys.executable, "-m", "latentq", *map(str, command)], capture_output=True, env=environment, check=False
        )
        assert done.returncode == (2 if command[-1] == f"{out}x" else 0), done.stderr
        assert out.name.encode(encoding, "backslashreplace") in (done.stdout or done.stderr)


@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&- >&- 2>&-"])
def test_closed_standard_streams_change_nothing(pictures, tmp_path, closed):
    """Without care a shard gets the number of a closed stream, and what is printed to it."""
    command = f"{sys.executable} -m latentq encode {pictures} {tmp_path / 'out'} {' '.join(SMALL)} {closed}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert latentq.verify(tmp_path / "out") == []


def test_a_locale_other_than_utf_8_is_an_error_if_names_need_it(pictures, tmp_path):
    environment = os.environ | {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    done = run("encode", pictures, tmp_path / "out", *SMALL, env=environment)
    assert done.returncode == 0, done.stderr
    (pictures / "ant" / "00.jpg").rename(pictures / "ant" / "Käse.jpg")
    done = run("encode", pictures, tmp_path / "other", *SMALL, env=environment)
    assert done.returncode == 1
    assert done.stderr == ("latentq: file names are read as ascii here, and not as UTF-8: set PYTHONUTF8=1\n")
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--rank", "2", "--world-size", "2"], "--rank must be at least 0 and below --world-size, not 2 of 2"),
        (["--batch-size", "0"], "--batch-size must be at least 1, not 0"),
        (["--unit-size", "0"], "--unit-size must be a whole number of at least 1, not 0"),
        (["--delete-archives"], "--delete-archives: a source of kind folder has no archives to delete"),
    ],
)
def test_messages_name_options_as_the_command_line_writes_them(pictures, tmp_path, capsys, arguments, message):
    assert main(["encode", str(pictures), str(tmp_path / "out"), *SMALL, *arguments]) in (1, 2)
    assert capsys.readouterr().err.splitlines()[-1] == f"latentq: {message}"


def test_names_of_arguments_in_paths_stay_as_they_are(pictures, tmp_path, capsys):
    out = tmp_path / "unit_size, rank"
    out.mkdir()
    (out / "x").touch()
    options = ["--unit-size", "9", "--rank", "0", "--world-size", "1"]
    assert main(["encode", str(pictures), str(out), *SMALL, *options]) == 1
    assert f"latentq: {out} holds something else (x)" in capsys.readouterr().err


def test_ctrl_c_while_the_command_line_is_imported_is_one_line():
    code = """
import runpy, sys
class Interrupt:
    def find_spec(self, name, path, target=None):
        if name == "latentq.cli.main":
            raise KeyboardInterrupt
sys.meta_path.insert(0, Interrupt())
runpy.run_module("latentq", run_name="__main__")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (130, "latentq: interrupted\n")


def test_ctrl_c_while_a_command_is_imported_is_one_line(monkeypatch, capsys):
    def interrupt(name):
        raise KeyboardInterrupt

    monkeypatch.setattr(importlib, "import_module", interrupt)
    assert main(["verify", "out"]) == 130
    assert capsys.readouterr() == ("", "latentq: interrupted\n")


def test_ctrl_c_ends_with_one_line(tmp_path):
    folder = tmp_path / "many"
    paint(folder / "0.png", 0, (900, 900))
    for index in range(1, 400):
        (folder / f"{index}.png").symlink_to(folder / "0.png")
    command = [
        sys.executable,
        "-m",
        "latentq",
        "encode",
        str(folder),
        str(tmp_path / "out"),
        *SMALL,
        "--unit-size",
        "8",
    ]
    options = {"stderr": subprocess.PIPE, "stdout": subprocess.DEVNULL, "text": True, "preexec_fn": heed_interrupts}
    with subprocess.Popen(command, **options) as process:
        while not (tmp_path / "out" / "00001").exists():
            assert process.poll() is None
        process.send_signal(2)
        error = process.communicate()[1]
    assert process.returncode == 130
    assert "the same command continues from there" in error.strip().splitlines()[-1]
    assert "Traceback" not in error
    assert not list((tmp_path / "out").glob(".0*"))
