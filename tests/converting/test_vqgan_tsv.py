"""VQGAN-f16-16384's TSV of tokens: read and written byte for byte as its page does."""

from pathlib import Path

import numpy as np
import pytest
import torch

import latentq
from latentq import Card, LatentDataset, LatentqError
from latentq.cli.main import main
from latentq.converting.pipeline import convert


def names(folder="."):
    """List the names in a folder, hidden ones too."""
    return sorted(path.name for path in Path(folder).iterdir())


def test_a_tsv_of_tokens_converts_there_and_back_byte_for_byte(tokens_tsv, token_rows, tmp_path):
    assert convert(tokens_tsv, tmp_path / "out") == 40
    assert latentq.verify(tmp_path / "out") == []
    dataset = LatentDataset(tmp_path / "out")
    np.testing.assert_array_equal(torch.stack([sample["tokens"] for sample in dataset]).flatten(1), token_rows)
    assert dataset[3]["key"] == '/data/naïve "3"\t.jpg'
    assert Card.load(tmp_path / "out").recipe == latentq.Recipe.load("vqgan-f16-16384")
    assert convert(tmp_path / "out", tmp_path / "back.tsv") == 40
    assert (tmp_path / "back.tsv").read_bytes() == tokens_tsv.read_bytes()


def test_the_number_of_tokens_gives_the_image_size(tmp_path):
    lines = [f"/{i}.jpg\t{list(range(1024))}\n" for i in range(2)]
    (tmp_path / "large.tsv").write_text("image_file\tencoding\n" + "".join(lines))
    convert(tmp_path / "large.tsv", tmp_path / "out")
    card = Card.load(tmp_path / "out")
    assert (card.recipe.columns["encoding"].size, card.tokens["encoding"].shape) == (512, (32, 32))


ROW = f"/a.jpg\t{[0] * 256}\n"


WRONG_ROWS = {
    "no header": (ROW, "line 1: the header must be image_file and encoding"),
    "nothing but a header": ("", "holds no samples"),
    "too large": (ROW.replace("[0,", "[16384,"), "line 2: token 16384 is outside the codebook of 16384"),
    "negative": (ROW + ROW.replace("0]", "-1]"), "line 3: token -1 is outside"),
    "enormous": (ROW.replace("0]", f"{10**30}]"), "line 2: token 1000"),
    "a fraction": (ROW.replace("0]", "0.5]"), "line 2: the encoding must be a list of integers"),
    "truth": (ROW.replace("0]", "true]"), "line 2: the encoding must be a list of integers"),
    "words": ("/a.jpg\tcat\n", "line 2: the encoding must be a list of tokens like [1,2,3], not 'cat'"),
    "nested": ("/a.jpg\t[[1]]\n", "line 2: the encoding must be a list of integers"),
    "none": ("/a.jpg\t[]\n", "line 2: the encoding must be a list of integers"),
    "left out by NumPy": ("/a.jpg\t[1,2,...,3]\n", "NumPy has abbreviated it"),
    "ragged": (ROW + "\n" + ROW.replace("0, ", "", 1), "line 4: has 255 tokens, and the first row has 256"),
    "no square": ("/a.jpg\t[1, 2, 3]\n", "3 tokens for an image do not form a square"),
    "one column": (ROW + "/b.jpg\n", "line 3: must have 2 columns, not 1"),
    "not UTF-8": (ROW.replace("a", "\udcff"), "line 2: the path is not UTF-8"),
    "zeros": ("\0" * 50 + "\n", "line 2: "),
}


@pytest.mark.parametrize("what", WRONG_ROWS)
def test_a_wrong_tsv_is_refused_in_one_line(what, tmp_path, capsys):
    rows, message = WRONG_ROWS[what]
    header = "" if what == "no header" else "image_file\tencoding\n"
    (tmp_path / "wrong.tsv").write_text(header + rows, errors="surrogateescape")
    assert main(["convert", str(tmp_path / "wrong.tsv"), str(tmp_path / "out")]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"latentq: {tmp_path / 'wrong.tsv'}")
    assert message in line
    assert names(tmp_path) == ["wrong.tsv"]


def test_a_dataset_without_tokens_gives_no_tsv(converted, tmp_path):
    with pytest.raises(LatentqError, match=r"holds no tokens, and a \.tsv needs them"):
        convert(converted, tmp_path / "out.tsv")
    assert names(tmp_path) == []
