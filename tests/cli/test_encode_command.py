"""`latentq encode`: what it prints."""

import fcntl
import io
import os
import pty
import re
import select
import struct
import subprocess
import sys
import termios

import pytest
from PIL import Image

import latentq
from conftest import paint, run
from latentq.cli.main import main
from support.cli_fixtures import SMALL


def test_encode_info_verify_decode_work_as_processes(pictures, tmp_path):
    done = run("encode", "pictures", "out", *SMALL, cwd=tmp_path)
    assert (done.returncode, done.stdout.split(",")[0]) == (0, "out: 12 samples")
    assert "encode: 12 of 12 images" in done.stderr
    info = run("info", "out", cwd=tmp_path)
    assert info.returncode == 0
    assert "dct-f8c16" in info.stdout
    assert run("verify", "out", cwd=tmp_path).stdout == "out: good\n"
    assert run("decode", "out", "--index", "3", "-o", "3.png", cwd=tmp_path).returncode == 0
    assert Image.open(tmp_path / "3.png").size == (64, 64)


def test_without_an_autoencoder_one_line_names_the_default(pictures, tmp_path, capsys):
    assert main(["encode", str(pictures), str(tmp_path / "out"), "--size", "64"]) == 0
    said = [line for line in capsys.readouterr().err.splitlines() if "dct-f8c16" in line]
    assert len(said) == 1
    assert "trying things out" in said[0]
    assert "stabilityai/sdxl-vae" in said[0]


def test_rejects_are_printed_and_the_run_succeeds(pictures, tmp_path, capsys):
    (pictures / "ant" / "text.jpg").write_text("no")
    assert main(["encode", str(pictures), str(tmp_path / "out"), *SMALL]) == 0
    captured = capsys.readouterr()
    assert "rejected: ant/text.jpg: decode: " in captured.err
    assert "12 samples, 1 reject (see " in captured.out


def test_strict_exits_with_1_and_names_the_file(pictures, tmp_path, capsys):
    (pictures / "ant" / "text.jpg").write_text("no")
    assert main(["encode", str(pictures), str(tmp_path / "out"), *SMALL, "--strict"]) == 1
    assert "ant/text.jpg" in capsys.readouterr().err


def test_a_missing_file_of_a_table_is_a_reject_with_its_name(pictures, tmp_path):
    (tmp_path / "t.tsv").write_text("pictures/ant/00.jpg\nnowhere.png\n")
    done = run("encode", "t.tsv", "out", *SMALL, cwd=tmp_path)
    assert done.returncode == 0
    assert "rejected: nowhere.png: read: No such file or directory" in done.stderr
    assert "Traceback" not in done.stderr


def test_several_processes_say_what_is_missing(pictures, tmp_path):
    command = ("encode", "pictures", "out", *SMALL, "--unit-size", 5, "--world-size", 2)
    ranks = [run(*command, "--rank", rank, cwd=tmp_path) for rank in (0, 1)]
    assert [done.returncode for done in ranks] == [0, 0]
    assert "2 of 3 units done; other processes have the remaining 1" in ranks[0].stdout
    assert "12 samples, no rejects" in ranks[1].stdout


def test_a_terminal_sees_a_bar_with_rate_and_rejects(pictures, tmp_path):
    (pictures / "ant" / "text.jpg").write_text("no")
    leader, follower = pty.openpty()
    fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 100, 0, 0))
    command = [sys.executable, "-m", "latentq", "encode", str(pictures), str(tmp_path / "out"), *SMALL]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=follower) as process:
        os.close(follower)
        shown = b""
        waiting = select.poll()  # select takes no descriptor above 1023, and a stock StreamingDataset leaves many open
        waiting.register(leader, select.POLLIN)
        while waiting.poll(60_000):
            try:
                shown += os.read(leader, 4096)
            except OSError:
                break
    os.close(leader)
    assert process.returncode == 0
    assert b"img/s" in shown
    assert b"13/13" in shown
    assert b"1 reject" in shown


def test_the_last_line_has_time_and_rate_of_what_this_run_did(pictures, tmp_path, capsys):
    command = ["encode", str(pictures), str(tmp_path / "out"), *SMALL]
    assert main(command) == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r".*/out: 12 samples, no rejects, .* kB; 12 images in 0:\d\d, \d+\.\d images/s", line)
    assert main(command) == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r".*/out: 12 samples, no rejects, .* kB", line)


def test_quiet_prints_the_last_line_only(pictures, tmp_path, capsys):
    (pictures / "ant" / "text.jpg").write_text("no")
    for command in (["encode", *SMALL[2:]], ["shards", "--min-size", "8"]):
        out = str(tmp_path / command[0])
        assert main([command[0], str(pictures), out, *command[1:], "--quiet"]) == 0
        printed = capsys.readouterr()
        assert printed.err == ""
        assert printed.out.startswith(f"{out}: 12 samples, 1 reject (see ")
        assert len(printed.out.splitlines()) == 1


def test_many_rejects_are_counted_and_listed_in_a_file(pictures, tmp_path, capsys):
    for index in range(20):
        (pictures / "ant" / f"text{index}.jpg").write_text("no")
    assert main(["encode", str(pictures), str(tmp_path / "out"), *SMALL]) == 0
    lines = [
        line for line in capsys.readouterr().err.splitlines() if line.startswith(("rejected: ", "further rejects "))
    ]
    assert [line.partition(" ")[0] for line in lines] == ["rejected:"] * 5 + ["further", "rejected:"]
    assert lines[-1].startswith("rejected: 20 images: decode: ")
    assert len((tmp_path / "out" / "rejects.tsv").read_text().splitlines()) == 20


@pytest.mark.parametrize(("terminal", "shown"), [(True, True), (False, False)])
def test_in_python_a_terminal_sees_progress_without_asking(pictures, tmp_path, monkeypatch, terminal, shown):
    stream = io.StringIO()
    monkeypatch.setattr(stream, "isatty", lambda: terminal)
    monkeypatch.setattr(sys, "stderr", stream)
    latentq.encode(pictures, tmp_path / "out", autoencoder="dct-f8c16", size=64)
    assert ("12/12" in stream.getvalue()) == shown
    stream.truncate(0)
    latentq.encode(pictures, tmp_path / "silent", autoencoder="dct-f8c16", size=64, progress=None)
    assert stream.getvalue().strip("\0") == ""


def test_control_characters_of_names_do_not_reach_the_terminal(tmp_path):
    folder = tmp_path / "pictures"
    paint(folder / "good.png", 1)
    (folder / "\x1b]0;owned\x07\x9b31m.png").write_text("no")
    for arguments in (
        ("encode", folder, tmp_path / "\x1b[2Jout", *SMALL),
        ("info", tmp_path / "\x1b[2Jout"),
        ("verify", tmp_path / "\x1b[2Jout"),
        ("encode", tmp_path / "\x1b[2Jnowhere", tmp_path / "x"),
    ):
        done = run(*arguments)
        assert not {"\x1b", "\x07", "\x9b"} & set(done.stdout + done.stderr), arguments
        assert "\\x1b" in done.stdout + done.stderr


def test_like_a_folder_without_a_card_is_no_dataset(pictures, tmp_path, capsys):
    for like in (tmp_path / "nowhere", pictures):
        assert main(["encode", str(pictures), str(tmp_path / "out"), "--like", str(like)]) == 2
        error = f"latentq: --like {like}: no dataset, because it has no latents.toml\n"
        assert capsys.readouterr().err == error
    assert not (tmp_path / "out").exists()
