"""`latentq encode list.tsv tokens.tsv`: VQGAN-f16-16384's own task, compared with its page's code."""

import json

import numpy as np
import pandas as pd
import pytest
import torch
import torchvision.transforms.functional as TF  # noqa: N812
from torchvision.datasets.folder import default_loader
from torchvision.transforms import InterpolationMode

import latentq
from conftest import contents, paint
from latentq.cli.main import main

SIZE = 64  # 16 x 16 tokens by `tiny_taming`


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """Seven pictures and their list: absolute paths, no header, and another column."""
    folder = tmp_path_factory.mktemp("work")
    files = [folder / f"{index}.jpg" for index in range(7)]
    for index, file in enumerate(files):
        paint(file, index, (90 + 13 * index, 131 - 7 * index))
    pd.DataFrame({0: files, 1: "more"}).to_csv(folder / "list.tsv", sep="\t", header=False, index=False)
    return folder


def job(work, out, model, **options):
    options = {"recipe": "vqgan-f16-16384", "autoencoder": model, "size": SIZE, "batch_size": 3, **options}
    return latentq.encode(work / "list.tsv", out, **options)


@pytest.fixture(scope="module")
def tokens(work, tmp_path_factory, tiny_taming):
    """The result of the task."""
    out = tmp_path_factory.mktemp("out") / "tokens.tsv"
    assert job(work, out, tiny_taming).counts.samples == 7
    return out


def page_pixels(path):
    """Load an image by the page's `resize_image`: floats from 0 to 1."""
    image = default_loader(path)
    r = SIZE / min(image.size)
    s = (round(r * image.size[1]), round(r * image.size[0]))
    image = TF.resize(image, s, interpolation=InterpolationMode.LANCZOS)
    return TF.to_tensor(TF.center_crop(image, output_size=2 * [SIZE]))


def test_pandas_reads_every_path_with_the_tokens_of_its_image(work, tokens, tiny_taming):
    table = pd.read_csv(tokens, sep="\t")
    paths = pd.read_csv(work / "list.tsv", sep="\t", header=None)[0]
    assert list(table.columns) == ["image_file", "encoding"]
    assert list(table["image_file"]) == list(paths)
    encoded = np.array([json.loads(encoding) for encoding in table["encoding"]])
    network = latentq.load_autoencoder(tiny_taming)
    expected = torch.cat([network.tokens(page_pixels(path)[None]) for path in paths]).flatten(1)
    assert encoded.shape == (7, 256)
    assert np.array_equal(encoded, expected.numpy())


def test_the_file_equals_the_pages_byte_for_byte(tokens, tmp_path):
    table = pd.read_csv(tokens, sep="\t")
    encoded = [np.array(json.loads(encoding)) for encoding in table["encoding"]]
    as_string = [
        np.array2string(item, separator=",", max_line_width=50000, formatter={"int": lambda x: str(x)})
        for item in encoded
    ]
    table = pd.DataFrame.from_dict({"image_file": table["image_file"], "encoding": as_string})
    table.to_csv(tmp_path / "page.tsv", sep="\t", header=True, index=None)
    assert (tmp_path / "page.tsv").read_bytes() == tokens.read_bytes()


def test_several_processes_one_after_another_write_the_same_file(work, tokens, tmp_path, tiny_taming):
    out = tmp_path / "tokens.tsv"
    for rank in (1, 0):
        assert not out.exists()
        card = job(work, out, tiny_taming, unit_size=3, rank=rank, world_size=2)
    assert card.complete
    assert out.read_bytes() == tokens.read_bytes()
    before = contents(tmp_path)
    job(work, out, tiny_taming, unit_size=3)  # everything is done
    assert contents(tmp_path) == before
    out.unlink()
    job(work, out, tiny_taming, unit_size=3)
    assert contents(tmp_path) == before


def test_the_command_reports_its_output_and_skips_rejects(work, tmp_path, tiny_taming, capsys):
    (tmp_path / "bad.jpg").write_text("no")
    (tmp_path / "list.tsv").write_text(f"{work / '3.jpg'}\nbad.jpg\n{work / '5.jpg'}\n")
    out = tmp_path / "tokens.tsv"
    options = ("--recipe", "vqgan-f16-16384", "--autoencoder", str(tiny_taming), "--size", str(SIZE))
    assert main(["encode", str(tmp_path / "list.tsv"), str(out), *options]) == 0
    assert f"{out}: 2 samples, 1 reject (see {out}.latentq/rejects.tsv)" in capsys.readouterr().out
    assert [path.rpartition("/")[2] for path in pd.read_csv(out, sep="\t")["image_file"]] == ["3.jpg", "5.jpg"]
    assert main(["info", str(out)]) == 2
    assert f"{out} is a file, not a dataset's folder; its dataset is {out}.latentq\n" in capsys.readouterr().err


def test_an_impossible_output_is_refused_before_anything_is_encoded(work, tmp_path, tiny_taming, monkeypatch):
    (tmp_path / "mine.tsv").write_text("mine")
    with pytest.raises(latentq.MismatchError, match=r"mine\.tsv is there already"):
        job(work, tmp_path / "mine.tsv", tiny_taming)
    with pytest.raises(latentq.RecipeError, match="recipe default stores no tokens"):
        job(work, tmp_path / "tokens.tsv", "dct-f8c16", recipe="default")
    network = latentq.load_autoencoder(tiny_taming)
    monkeypatch.setattr(type(network), "codebook_size", 20000)
    with pytest.raises(latentq.MismatchError, match="at most 16384 codes, tiny-taming has 20000"):
        job(work, tmp_path / "tokens.tsv", network)
    assert list(tmp_path.iterdir()) == [tmp_path / "mine.tsv"]
