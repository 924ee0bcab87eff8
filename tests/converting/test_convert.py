"""The command `latentq convert`, and pictures from every layout."""

import io
import os
import re
import shlex
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import latentq
from latentq.cli.main import main
from latentq.converting.pipeline import convert
from latentq.models.decode import decode_latents
from latentq.system.progress import Progress
from support.foreign_making import lightningdit_writes


def names(folder="."):
    """List the names in a folder, hidden ones too."""
    return sorted(path.name for path in Path(folder).iterdir())


def test_an_existing_output_is_never_replaced(tokens_tsv, converted, tmp_path, capsys):
    (tmp_path / "there").mkdir()
    (tmp_path / "there.pt").write_text("mine")
    for source, out in ((tokens_tsv, "there"), (converted, "there.pt"), (converted, "there")):
        assert main(["convert", str(source), str(tmp_path / out)]) == 1
        assert capsys.readouterr().err == f"latentq: {tmp_path / out}: is there already; choose another name\n"
    assert (tmp_path / "there.pt").read_text() == "mine"


@pytest.mark.parametrize(
    ("source", "out", "code", "message"),
    [
        ("nowhere", "out", 2, "nowhere: no such file or folder"),
        ("tokens.tsv", "no/folder", 1, "no such folder to write to"),
        ("tokens.tsv", "out.pt", 1, "is a TSV of tokens: convert it to a latent dataset first"),
        (
            "words.txt",
            "out",
            1,
            "words.txt, line 1: the header must be image_file and encoding, not 'once'",
        ),
        ("latents.npy", "out", 1, "latents.npy: it is of no known layout. Known layouts: "),
    ],
)
def test_an_impossible_conversion_is_one_error_line(source, out, code, message, tokens_tsv, monkeypatch, capsys):
    monkeypatch.chdir(tokens_tsv.parent)
    Path("words.txt").write_text("once")
    np.save("latents.npy", np.zeros((2, 4, 8, 8), np.float32))
    assert main(["convert", source, out]) == code
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line


@pytest.mark.parametrize("at", ["finish", "write_list"])
def test_an_interrupted_conversion_continues(at, tokens_tsv, tmp_path, monkeypatch, capsys):
    def interrupted(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as context:
        context.setattr(f"latentq.converting.to_dataset.{at}", interrupted)
        assert main(["convert", str(tokens_tsv), str(tmp_path / "out")]) == 130
    assert "the same command continues from there" in capsys.readouterr().err
    assert names(tmp_path) == ([".out.converting"] if at == "finish" else [])
    assert main(["convert", str(tokens_tsv), str(tmp_path / "out")]) == 0
    assert names(tmp_path) == ["out"]


@pytest.mark.parametrize("foreign", [True, False])
@pytest.mark.parametrize("layout", ["torch file", "imagenet.int8", "tokens"])
def test_decode_gives_the_pictures_of_every_layout_and_of_its_dataset(
    layout, foreign, request, layout_models, token_rows, torch_items, tmp_path
):
    if layout == "torch file":
        path, model = request.getfixturevalue("converted").parent / "imagenet_3gb.pt", layout_models / "dc"
        stored = torch_items[7]["latent"][None].float() / 255 * 13 - 6.5
    elif layout == "imagenet.int8":
        path, model = request.getfixturevalue("int8_folder"), request.getfixturevalue("tiny_vae")
        codes = np.random.default_rng(7).integers(0, 256, 4096).astype(np.float32)
        stored = torch.from_numpy((codes / 255 - 0.5) * 28).reshape(1, 4, 32, 32)
    else:
        path, model = request.getfixturevalue("tokens_tsv"), layout_models / "vq"
        stored = torch.from_numpy(token_rows[7]).reshape(1, 16, 16)
    if not foreign:
        convert(path, tmp_path / "out")
        path = tmp_path / "out"
    picture = tmp_path / "7.png"
    assert main(["decode", str(path), "--index", "7", "--autoencoder", str(model), "-o", str(picture)]) == 0
    options = {"pixel_range": (0.0, 1.0)} if layout == "tokens" else {}
    expected = decode_latents(latentq.load_autoencoder(model, **options), stored)[0]
    assert expected.std() > 0
    assert np.abs(np.asarray(Image.open(picture)).astype(int) - expected).max() <= 1


def test_an_autoencoder_of_another_shape_is_refused(converted, tiny_vae, tmp_path, capsys):
    for source in (converted.parent / "imagenet_3gb.pt", converted):
        command = ["decode", str(source), "--autoencoder", str(tiny_vae), "-o", str(tmp_path / "x.png")]
        assert main(command) == 1
        assert "stores latent of shape (32, 8, 8), tiny-vae makes (4, 32, 32)" in capsys.readouterr().err


def test_a_sheet_of_a_foreign_file_shows_eight(converted, layout_models, tmp_path, capsys):
    source = converted.parent / "imagenet_3gb.pt"
    command = ["decode", str(source), "--autoencoder", str(layout_models / "dc"), "-o", str(tmp_path / "x.png")]
    assert main(command) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'x.png'}: 8 samples\n"
    assert main([*command, "--index", "300"]) == 2
    assert main([*command, "--source", str(tmp_path)]) == 1
    assert "convert it to a dataset" in capsys.readouterr().err


def test_every_line_of_the_page_runs(
    tmp_path, monkeypatch, converted, int8_folder, tokens_tsv, layout_models, tiny_vae, pictures
):
    shutil.copy(converted.parent / "imagenet_3gb.pt", tmp_path)
    shutil.copy(tokens_tsv, tmp_path / "tokens.tsv")
    shutil.copytree(int8_folder, tmp_path / "vae_mds")
    for name, model in (("dc-ae", layout_models / "dc"), ("vqgan", layout_models / "vq"), ("sdxl-vae", tiny_vae)):
        (tmp_path / name).symlink_to(model)
    pictures.rename(tmp_path / "photos")
    latents = np.random.default_rng(0).standard_normal((8, 32, 16, 16)).astype(np.float32)
    lightningdit_writes(tmp_path / "vavae_shards", latents, -latents, np.arange(8), shard=5)
    monkeypatch.chdir(tmp_path)
    latentq.encode("photos", "out", size=64)
    page = (Path(__file__).resolve().parents[2] / "docs" / "convert.md").read_text()
    blocks = re.findall(r"^```(sh|python)\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    assert len(blocks) >= 4
    for language, text in blocks:
        if language == "python":
            exec(text, {})
        else:
            for line in text.splitlines():
                assert main(shlex.split(line)[1:]) == 0, line


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self):
        return True


@pytest.mark.parametrize("layout", ["converted", "int8_folder", "tokens_tsv"])
def test_reading_and_writing_show_progress(layout, request, tmp_path, monkeypatch):
    path = request.getfixturevalue(layout)
    path = path.parent / "imagenet_3gb.pt" if layout == "converted" else path
    bars = []
    init = Progress.__init__

    def record(self, total, label, *arguments, **options):
        init(self, total, label, *arguments, **options)
        bars.append(self)

    monkeypatch.setattr(Progress, "__init__", record)
    samples = convert(path, tmp_path / "out", progress=Terminal())
    assert [bar._label for bar in bars] == ["read", "convert", "finish"]
    assert bars[1]._done == samples
    read = path.stat().st_size if layout == "tokens_tsv" else samples
    assert 0.9 * read < bars[0]._done <= bars[0]._total == read


@pytest.mark.parametrize("name", ["words.txt", "folder", "archive.zip", "list.pt"])
def test_an_unknown_layout_is_an_error_that_lists_the_known_ones(name, tmp_path, capsys):
    path = tmp_path / name
    if name == "folder":
        path.mkdir()
    elif name == "archive.zip":
        with zipfile.ZipFile(path, "w") as file:
            file.writestr("a/b.txt", "words")
    elif name == "list.pt":
        torch.save([], path)
    else:
        path.write_text("words")
    assert main(["convert", str(path), str(tmp_path / "out")]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    for word in (str(path), "imagenet_3gb's torch file", "VQGAN-f16-16384's TSV", "imagenet.int8's MDS folder"):
        assert word in line


def test_a_fifo_is_no_file_to_convert(tmp_path, capsys):
    os.mkfifo(tmp_path / "latents.pt")
    assert main(["convert", str(tmp_path / "latents.pt"), str(tmp_path / "out")]) == 1
    assert "not a regular file" in capsys.readouterr().err
