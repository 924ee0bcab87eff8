"""The commands show a dataset's buckets."""

import json
import re

import numpy as np
import pytest
from PIL import Image

import latentq
from latentq.cli.main import main
from latentq.inspect.measure import of_dataset
from latentq.inspect.pictures import pictures as pictures_of_dataset

OPTIONS = ("--autoencoder", "dct-f8c16", "--buckets", "64x64,48x80,64x72,32x32", "--small", "smaller", "--quiet")


@pytest.fixture
def dataset(pictures, tmp_path):
    assert main(["encode", str(pictures), str(tmp_path / "out"), *OPTIONS]) == 0
    return tmp_path / "out"


def test_info_shows_a_line_and_a_bar_for_each_bucket_with_samples(dataset, capsys):
    capsys.readouterr()
    assert main(["info", str(dataset)]) == 0
    text = capsys.readouterr().out
    assert "buckets: 4 by a list; images smaller than their bucket are put into one that they cover" in text
    lines = text[text.index("height x width") :].splitlines()[1:3]
    counts = [int(line.split()[5]) for line in lines]
    assert [line.split()[:5] for line in lines] == [
        ["2", "64", "x", "64", "1.000"], ["3", "64", "x", "72", "1.125"]
    ]  # fmt: skip
    assert counts == [4, 8]
    assert [line.count("#") for line in lines] == [round(40 * count / max(counts)) for count in counts]
    assert "2 buckets without samples" in text
    assert "latent: 16 x 4 x 4 to 16 x 8 x 9, by bucket, affine, 8 bits" in text
    assert re.search(r"^column latent +ndarray:uint8:\S+ in the first bucket$", text, re.MULTILINE)
    assert re.search(r"^column key +str$", text, re.MULTILINE)
    assert main(["info", str(dataset), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["counts"]["buckets"] == [0, 0, *counts]


def test_info_of_storage_adds_up_the_buckets(dataset, pictures, capsys):
    capsys.readouterr()
    assert main(["info", str(dataset), "--storage", "--json", "--source", str(pictures)]) == 0
    rows = {row["what"]: row["bytes"] for row in json.loads(capsys.readouterr().out)}
    assert main(["info", str(dataset), "--json"]) == 0
    card = json.loads(capsys.readouterr().out)
    shapes = card["latents"]["latent"]["shapes"]
    values = sum(count * c * h * w for count, (c, h, w) in zip(card["counts"]["buckets"], shapes, strict=True))
    assert rows["latents, as stored"] == values
    assert rows["latents, float32"] == 4 * values
    assert rows["JPEG of its bucket, quality 95"] > 12 * 200


def test_a_dry_run_names_the_buckets(pictures, tmp_path, capsys):
    assert main(["encode", str(pictures), str(tmp_path / "out"), *OPTIONS, "--dry-run"]) == 0
    text = capsys.readouterr().out
    assert "4 by a list" in text
    assert "16 x 4 x 4 to 16 x 8 x 9, by bucket" in text
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--size", "64", "--buckets", "kohya"), "size and buckets exclude each other"),
        (("--buckets", "nobody"), "name a set (kohya, nemo)"),
        (("--small", "reject"), "has no buckets: small does not apply"),
        (("--buckets", "64x60"), "size 64 x 60: dct-f8c16 encodes images whose side is a multiple of 8, not 60"),
    ],
)
def test_options_that_exclude_each_other_are_refused(pictures, tmp_path, capsys, options, message):
    assert main(["encode", str(pictures), str(tmp_path / "out"), *options]) == 2
    assert message in capsys.readouterr().err


def test_a_size_that_is_none_is_a_wrong_argument(pictures, tmp_path, capsys):
    with pytest.raises(SystemExit):
        main(["encode", str(pictures), str(tmp_path / "out"), "--size", "5x6x7"])
    assert "'5x6x7' is neither a number of pixels nor HEIGHTxWIDTH" in capsys.readouterr().err


def test_pictures_of_several_sizes_are_decoded_next_to_their_originals(dataset, pictures, tmp_path):
    sheet = tmp_path / "sheet.png"
    assert main(["decode", str(dataset), "--index", "0", "11", "--source", str(pictures), "-o", str(sheet)]) == 0
    with Image.open(sheet) as image:
        assert image.width > 3 * 72
    rows = pictures_of_dataset(dataset, [0, 11], source=pictures)
    sizes = [latentq.LatentDataset(dataset)[index]["latent"].shape[1:] for index in (0, 11)]
    assert sizes[0] != sizes[1]
    for index, row, size in zip((0, 11), rows, sizes, strict=True):
        assert [picture.pixels.shape for picture in row] == [(8 * size[0], 8 * size[1], 3)] * 5
        assert row[-1].psnr > 15
        np.testing.assert_array_equal(row[0].pixels, image_of(dataset, pictures, index))
    single = tmp_path / "single.png"
    assert main(["decode", str(dataset), "--index", "0", "-o", str(single)]) == 0
    with Image.open(single) as image:
        assert (image.height, image.width) == (8 * sizes[0][0], 8 * sizes[0][1])


def image_of(dataset, pictures, index):
    """The pixels that a stored sample was encoded from."""
    sample = latentq.LatentDataset(dataset)[index]
    return latentq.image.load(pictures / sample["key"], tuple(8 * side for side in sample["latent"].shape[1:]))


def test_measuring_takes_the_bucket_of_most_samples(dataset, pictures, capsys):
    card = latentq.Card.load(dataset)
    largest = card.counts.buckets.index(max(card.counts.buckets))
    latents, _, images = of_dataset(dataset, source=pictures)
    assert latents.shape == (max(card.counts.buckets), *card.latents["latent"].shapes[largest])
    assert images.shape == (len(latents), 3, *card.recipe.bucket_sizes()[largest])
    stored, _, _ = of_dataset(dataset)
    np.testing.assert_allclose(stored, latents, atol=0.2)
    capsys.readouterr()
    assert main(["measure", str(dataset), "--json"]) == 0
    assert {row["scheme"] for row in json.loads(capsys.readouterr().out)} >= {"float16", "uniform", "mse"}
