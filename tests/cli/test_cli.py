"""The command line: what it prints, and how it ends."""

import fcntl
import json
import os
import pty
import select
import struct
import subprocess
import sys
import termios
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import latentq
from conftest import contents, heed_interrupts, paint, run
from latentq import LatentDataset
from latentq.cli.main import main
from latentq.inspect.pictures import pictures as decode_pictures
from latentq.inspect.psnr import psnr
from latentq.models.decode import decode_latents

SMALL = ("--autoencoder", "dct-f8c16", "--size", "64")


@pytest.fixture
def dataset(pictures, tmp_path):
    latentq.encode(pictures, tmp_path / "out", autoencoder="dct-f8c16", size=64)
    return tmp_path / "out"


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


def test_the_installed_command_is_the_module(tmp_path):
    for command in ([Path(sys.executable).with_name("latentq")], [sys.executable, "-m", "latentq"]):
        done = subprocess.run([*command, "--version"], capture_output=True, text=True, check=True)
        assert done.stdout == f"latentq {latentq.__version__}\n"


def test_help_shows_examples():
    for command in ((), ("encode",), ("info",), ("verify",), ("decode",)):
        done = run(*command, "--help")
        assert done.returncode == 0
        assert "example" in done.stdout


def test_without_an_autoencoder_one_line_says_which_was_taken(pictures, tmp_path, capsys):
    assert main(["encode", str(pictures), str(tmp_path / "out"), "--size", "64"]) == 0
    said = [line for line in capsys.readouterr().err.splitlines() if "dct-f8c16" in line]
    assert len(said) == 1
    assert "trying things out" in said[0]
    assert "stabilityai/sdxl-vae" in said[0]


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


def test_rejects_are_told_and_the_run_succeeds(pictures, tmp_path, capsys):
    (pictures / "ant" / "text.jpg").write_text("no")
    assert main(["encode", str(pictures), str(tmp_path / "out"), *SMALL]) == 0
    told = capsys.readouterr()
    assert "rejected: ant/text.jpg: decode: " in told.err
    assert "12 samples, 1 rejects (see " in told.out


def test_strict_exits_with_1_and_names_the_file(pictures, tmp_path, capsys):
    (pictures / "ant" / "text.jpg").write_text("no")
    assert main(["encode", str(pictures), str(tmp_path / "out"), *SMALL, "--strict"]) == 1
    assert "ant/text.jpg" in capsys.readouterr().err


def test_a_missing_row_is_told_by_name(pictures, tmp_path):
    (tmp_path / "t.tsv").write_text("pictures/ant/00.jpg\nnowhere.png\n")
    done = run("encode", "t.tsv", "out", *SMALL, cwd=tmp_path)
    assert done.returncode == 0
    assert "rejected: nowhere.png: read: No such file or directory" in done.stderr
    assert "Traceback" not in done.stderr


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


def test_a_folder_that_may_not_be_read_is_one_line(pictures, tmp_path, monkeypatch, capsys):
    scandir = os.scandir

    def refuse(path):  # as for a user who is not root
        if str(path).endswith("bee"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    assert main(["encode", str(pictures), str(tmp_path / "out"), *SMALL]) == 1
    assert capsys.readouterr().err.splitlines() == [f"latentq: {pictures}/bee: Permission denied"]
    assert not (tmp_path / "out").exists()


def test_a_device_that_is_not_there_is_one_line_and_leaves_nothing(pictures, tmp_path, capsys):
    for device in ("nonsense", "cuda:99"):
        assert main(["encode", str(pictures), str(tmp_path / "out"), *SMALL, "--device", device]) == 2
        assert f"device '{device}' cannot be used" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_nobody_listening_does_not_turn_failure_into_success(dataset, pictures, tmp_path):
    shell = ["bash", "-c"]
    shard = dataset / "00000" / "shard.00000.mds"
    shard.write_bytes(shard.read_bytes()[:-1])
    latentq_ = f"{sys.executable} -m latentq"
    verify = subprocess.run([*shell, f"{latentq_} verify {dataset} | true; exit ${{PIPESTATUS[0]}}"], check=False)
    assert verify.returncode in (1, 141)
    encode = f"{latentq_} encode {pictures} {tmp_path / 'piped'} {' '.join(SMALL)} 2>&1 >/dev/null | true"
    assert subprocess.run([*shell, f"{encode}; exit ${{PIPESTATUS[0]}}"], check=False).returncode == 0
    assert latentq.Card.load(tmp_path / "piped").complete


def test_several_processes_say_what_is_missing(pictures, tmp_path):
    command = ("encode", "pictures", "out", *SMALL, "--unit-size", 5, "--world-size", 2)
    ranks = [run(*command, "--rank", rank, cwd=tmp_path) for rank in (0, 1)]
    assert [done.returncode for done in ranks] == [0, 0]
    assert "2 of 3 units are done; other processes have the remaining 1" in ranks[0].stdout
    assert "12 samples, no rejects" in ranks[1].stdout


def test_info_as_json_is_the_card(dataset, capsys):
    assert main(["info", str(dataset), "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert data["counts"] == {"samples": 12, "rejects": 0, "redone": 0}
    assert data["bytes"] == sum(map(len, contents(dataset).values()))


def test_info_of_shards_without_a_card(dataset, tmp_path, capsys):
    assert main(["info", str(dataset / "00000")]) == 0
    told = capsys.readouterr().out
    assert "no card" in told
    assert "ndarray:uint8:16,8,8" in told


def test_verify_exits_with_1_where_a_bit_is_wrong(dataset, capsys):
    shard = dataset / "00000" / "shard.00000.mds"
    data = bytearray(shard.read_bytes())
    data[-5] ^= 4
    shard.write_bytes(data)
    assert main(["verify", str(dataset)]) == 1
    assert "shard.00000.mds" in capsys.readouterr().out
    assert main(["verify", str(dataset), "--json"]) == 1
    assert json.loads(capsys.readouterr().out)[0]["file"].endswith("shard.00000.mds")


def test_decode_gives_the_picture(dataset, pictures, tmp_path):
    assert main(["decode", str(dataset), "--index", "-1", "-o", str(tmp_path / "x.png")]) == 0
    decoded = np.asarray(Image.open(tmp_path / "x.png"))
    autoencoder = latentq.load_autoencoder("dct-f8c16")
    original = latentq.image.load(pictures / "cat" / "11.png", 64)
    latents = autoencoder.encode(torch.from_numpy(original).permute(2, 0, 1)[None] / 127.5 - 1)
    assert psnr(decoded, decode_latents(autoencoder, latents)[0]) > 40


def test_decode_beside_the_originals_makes_a_sheet(dataset, pictures, tmp_path, capsys):
    (pictures / "ant" / "00.txt").write_text("x")
    code = main(["decode", str(dataset), "--source", str(pictures), "-o", str(tmp_path / "x.png")])
    told = capsys.readouterr()
    assert code == 0, told.err
    assert "8 samples, mean PSNR as stored" in told.out
    assert Image.open(tmp_path / "x.png").width > 3 * 64


def test_decode_takes_the_right_originals_where_some_were_rejected(pictures, tmp_path, capsys):
    (pictures / "ant" / "01.jpg").write_text("no")
    main(["encode", str(pictures), str(tmp_path / "out"), *SMALL])
    capsys.readouterr()
    sheet = str(tmp_path / "x.png")
    assert main(["decode", str(tmp_path / "out"), "--source", str(pictures), "--index", "9", "-o", sheet]) == 0
    right = decode_pictures(tmp_path / "out", [9], source=pictures)[0]
    assert "ant" not in right[0].lines[0]
    assert right[0].lines[0] == LatentDataset(tmp_path / "out")[9]["key"].rpartition("/")[2]
    assert abs(right[2].psnr - right[1].psnr) < 0.5
    assert f"PSNR as stored {right[2].psnr:.2f} dB" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("--index", "12"), 2, "has 12 samples"),
        (("--column", "x"), 1, "no latent column 'x'"),
        (("-o", "x.nonsense"), 2, "unknown image format; name a file such as decoded.png"),
        (("--source", "nowhere"), 2, "no such file or folder"),
    ],
)
def test_decode_refuses_what_is_not_there(dataset, monkeypatch, capsys, tmp_path, arguments, code, message):
    monkeypatch.chdir(tmp_path)
    assert main(["decode", str(dataset), *arguments]) == code
    assert message in capsys.readouterr().err


def test_decode_of_a_local_model_asks_where_it_is(pictures, tmp_path, tiny_vae, capsys):
    latentq.encode(pictures, tmp_path / "out", autoencoder=tiny_vae, size=64)
    command = ["decode", str(tmp_path / "out"), "--index", "0", "-o", str(tmp_path / "x.png")]
    assert main(command) == 1
    assert "--autoencoder" in capsys.readouterr().err
    assert main([*command, "--autoencoder", str(tiny_vae)]) == 0
    assert main([*command, "--autoencoder", "dct-f8c16"]) == 1
    assert "weights sha256:" in capsys.readouterr().err


def test_a_terminal_sees_a_bar_with_rate_and_rejects(pictures, tmp_path):
    (pictures / "ant" / "text.jpg").write_text("no")
    leader, follower = pty.openpty()
    fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 100, 0, 0))
    command = [sys.executable, "-m", "latentq", "encode", str(pictures), str(tmp_path / "out"), *SMALL]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=follower) as process:
        os.close(follower)
        shown = b""
        while select.select([leader], [], [], 60)[0]:
            try:
                shown += os.read(leader, 4096)
            except OSError:
                break
    os.close(leader)
    assert process.returncode == 0
    assert b"img/s" in shown
    assert b"13/13" in shown
    assert b"1 rejects" in shown


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


def test_measure_tells_what_schemes_and_bits_would_cost(dataset, pictures, tmp_path, capsys):
    latents = torch.stack([sample["latent"] for sample in LatentDataset(dataset)]).numpy()
    np.save(tmp_path / "latents.npy", latents)
    assert main(["measure", str(tmp_path / "latents.npy"), "--bits", "8", "4"]) == 0
    table = capsys.readouterr().out
    assert "PSNR" not in table
    assert len(table.splitlines()) == 2 + 2 * 5  # a header, float16, and five schemes at each number of bits
    assert main(["measure", str(dataset), "--source", str(pictures), "--json"]) == 0
    rows = {(row["scheme"], row["bits"]): row for row in json.loads(capsys.readouterr().out)}
    assert rows["mse", 8]["psnr_images_db"] > rows["mse", 4]["psnr_images_db"]
    assert rows["float16", 16]["sqnr_db"] > rows["lloyd-max", 8]["sqnr_db"] > rows["lloyd-max", 4]["sqnr_db"] > 10


def test_measure_of_a_dataset_alone_says_what_it_measures(dataset, capsys):
    assert main(["measure", str(dataset)]) == 0
    told = capsys.readouterr()
    assert "already quantized once" in told.err
    assert "lloyd-max" in told.out


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("nowhere",), 2, "no such file or dataset"),
        (("x.npy",), 2, "x.npy"),
        (("out", "--bits", "9"), 2, "from 2 to 8"),
        (("out", "--source", "nowhere"), 2, "no such file or folder"),
        (("out", "--column", "x"), 1, "no latent column 'x'"),
        (("pictures",), 1, "no card"),
    ],
)
def test_measure_refuses_what_it_cannot_measure(dataset, tmp_path, monkeypatch, capsys, arguments, code, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x.npy").write_text("no array")
    assert main(["measure", *arguments]) == code
    assert message in capsys.readouterr().err


def test_recipes_are_listed_and_shown_to_be_copied(tmp_path, capsys):
    assert main(["recipes"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == latentq.Recipe.names()
    assert all(len(line.split()) > 5 for line in lines)
    for name in latentq.Recipe.names():
        assert main(["recipes", name]) == 0
        (tmp_path / "copy.toml").write_text(capsys.readouterr().out)
        assert latentq.Recipe.load(tmp_path / "copy.toml") == latentq.Recipe.load(name)
    assert main(["recipes", "nosuch"]) == 2
    assert "no recipe 'nosuch'" in capsys.readouterr().err


def test_repair_makes_a_lost_index_anew(dataset, capsys):
    unit = dataset / "00000"
    index = (unit / "index.json").read_bytes()
    (unit / "index.json").unlink()
    assert main(["repair", str(unit)]) == 0
    assert "1 shards, 12 samples" in capsys.readouterr().out
    assert (unit / "index.json").read_bytes() == index
    assert latentq.verify(dataset) == []
