"""`latentq decode`."""

import resource

import numpy as np
import pytest
import torch
from PIL import Image

import latentq
from conftest import run
from latentq import LatentDataset
from latentq.cli.main import main
from latentq.inspect.pictures import pictures as decode_pictures
from latentq.inspect.psnr import psnr
from latentq.models.decode import decode_latents
from support.cli_fixtures import SMALL


def test_decode_gives_the_picture(small_dataset, pictures, tmp_path):
    assert main(["decode", str(small_dataset), "--index", "-1", "-o", str(tmp_path / "x.png")]) == 0
    decoded = np.asarray(Image.open(tmp_path / "x.png"))
    autoencoder = latentq.load_autoencoder("dct-f8c16")
    original = latentq.image.load(pictures / "cat" / "11.png", 64)
    latents = autoencoder.encode(torch.from_numpy(original).permute(2, 0, 1)[None] / 127.5 - 1)
    assert psnr(decoded, decode_latents(autoencoder, latents)[0]) > 40


def test_a_missing_folder_for_the_picture_is_found_before_decoding(small_dataset, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("latentq.inspect.pictures.pictures", None)  # calling it would be a TypeError
    output = tmp_path / "nowhere" / "x.png"
    assert main(["decode", str(small_dataset), "-o", str(output)]) == 2
    assert capsys.readouterr().err == f"latentq: -o {output}: there is no folder {output.parent}\n"


def test_decode_with_a_source_makes_a_sheet_with_the_originals(small_dataset, pictures, tmp_path, capsys):
    (pictures / "ant" / "00.txt").write_text("x")
    code = main(["decode", str(small_dataset), "--source", str(pictures), "-o", str(tmp_path / "x.png")])
    captured = capsys.readouterr()
    assert code == 0, captured.err
    assert "8 samples, mean PSNR as stored" in captured.out
    assert Image.open(tmp_path / "x.png").width > 3 * 64


def test_decode_takes_the_right_originals_if_some_were_rejected(pictures, tmp_path, capsys):
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
        (("-o", "x"), 2, "unknown image format; name a file such as decoded.png"),
        (("-o", "x.psd"), 2, "unknown image format; name a file such as decoded.png"),  # Pillow reads it only
        (("--source", "nowhere"), 2, "no such file or folder"),
    ],
)
def test_decode_refuses_wrong_arguments(small_dataset, monkeypatch, capsys, tmp_path, arguments, code, message):
    monkeypatch.chdir(tmp_path)
    assert main(["decode", str(small_dataset), *arguments]) == code
    assert message in capsys.readouterr().err


def test_a_picture_that_cannot_be_written_leaves_the_previous_file(small_dataset, tmp_path):
    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))

    before = tmp_path / "x.png"
    before.write_bytes(b"before")
    done = run("decode", small_dataset, "-o", before, preexec_fn=limit)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == f"latentq: {before}: File too large"
    assert [path.name for path in tmp_path.glob("*x.png*")] == ["x.png"]
    assert before.read_bytes() == b"before"


def test_decode_of_a_local_model_asks_where_it_is(pictures, tmp_path, tiny_vae, capsys):
    latentq.encode(pictures, tmp_path / "out", autoencoder=tiny_vae, size=64)
    command = ["decode", str(tmp_path / "out"), "--index", "0", "-o", str(tmp_path / "x.png")]
    assert main(command) == 1
    assert "--autoencoder" in capsys.readouterr().err
    assert main([*command, "--autoencoder", str(tiny_vae)]) == 0
    assert main([*command, "--autoencoder", "dct-f8c16"]) == 1
    assert "weights sha256:" in capsys.readouterr().err
