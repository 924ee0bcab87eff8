"""`latentq decode`."""

import io
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


def test_the_sheet_has_the_forms_of_both_published_comparisons(small_dataset, pictures):
    """imagenet.int8's: original, float16, integers. imagenet_3gb's: JPEG, float32, integers."""
    row = decode_pictures(small_dataset, [7], source=pictures)[0]
    assert [picture.form for picture in row] == ["original", "jpeg", "float32", "float16", "stored"]
    key = LatentDataset(small_dataset)[7]["key"]
    original = latentq.image.load(pictures / key, 64)
    file = io.BytesIO()
    Image.fromarray(original).save(file, "JPEG", quality=95)
    autoencoder = latentq.load_autoencoder("dct-f8c16")
    latents = autoencoder.encode(torch.from_numpy(original).permute(2, 0, 1)[None] / 127.5 - 1)
    expected = [
        (original, (pictures / key).stat().st_size),
        (np.asarray(Image.open(file)), file.tell()),
        (decode_latents(autoencoder, latents)[0], 4 * 16 * 8 * 8),
        (decode_latents(autoencoder, latents.half().float())[0], 2 * 16 * 8 * 8),
        (np.asarray(LatentDataset(small_dataset).decode(7)), 16 * 8 * 8),
    ]
    for picture, (pixels, nbytes) in zip(row, expected, strict=True):
        np.testing.assert_array_equal(picture.pixels, pixels)
        assert picture.nbytes == nbytes
        if picture.psnr is not None:
            error = np.mean((pixels.astype(float) - original) ** 2)
            assert picture.psnr == pytest.approx(10 * np.log10(255**2 / error), abs=1e-3)


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
    assert abs(right[-1].psnr - right[-2].psnr) < 0.5
    assert f"PSNR as stored {right[-1].psnr:.2f} dB" in capsys.readouterr().out


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
