"""`latentq info --storage`: the size of a dataset in other forms."""

import io
import json

import pytest
from PIL import Image

import latentq
from conftest import contents
from latentq import LatentqError
from latentq.cli.main import main
from latentq.converting.pipeline import convert
from latentq.inspect.originals import Originals
from latentq.inspect.storage import storage


def test_storage_counts_the_bytes_of_each_form(pictures, tmp_path, capsys):
    latentq.encode(pictures, tmp_path / "out", size=64)
    command = ["info", str(tmp_path / "out"), "--storage"]
    assert main([*command, "--json"]) == 0
    rows = {row["what"]: row for row in json.loads(capsys.readouterr().out)}
    files = [path for path in pictures.rglob("*") if path.is_file()]
    assert rows["original images"]["bytes"] == sum(path.stat().st_size for path in files)
    assert rows["JPEG 64 x 64, quality 95"]["bytes"] is None
    assert rows["latents, float32"] == {"what": "latents, float32", "bytes": 12 * 4096, "each": 4096, "note": ""}
    assert (rows["latents, float16"]["bytes"], rows["latents, as stored"]["each"]) == (12 * 2048, 1024)
    assert rows["ImageNet would take"] == {
        "what": "ImageNet would take",
        "bytes": 1_281_167 * 1024,
        "each": 1024,
        "note": "1,281,167 images of its training set: 1.31 GB, 1.22 GiB",
    }
    whole = sum(len(data) for data in contents(tmp_path / "out").values())
    assert rows["the whole dataset"]["bytes"] == whole
    assert main([*command, "--source", str(pictures)]) == 0
    table = capsys.readouterr().out
    sizes = []
    for path in files:
        file = io.BytesIO()
        Image.fromarray(latentq.image.load(path, 64)).save(file, "JPEG", quality=95)
        sizes.append(file.tell())
    assert f"{sum(sizes) / 1000:.1f} kB" in table
    assert "estimated from 12" in table


def test_originals_that_are_not_in_the_source_raise_the_question_whether_it_is_the_right_one(pictures, tmp_path):
    latentq.encode(pictures, tmp_path / "out", size=64)
    (pictures / "ant" / "00.jpg").unlink()
    with pytest.raises(LatentqError, match=r"the original ant/00\.jpg .*\(is this the source of the dataset\?\)"):
        storage(tmp_path / "out", pictures)
    card = latentq.Card.load(tmp_path / "out")
    originals = Originals(tmp_path / "out", card, "latent", pictures, latentq.load_autoencoder("dct-f8c16"))
    with pytest.raises(LatentqError, match=r"the original ant/00\.jpg .*\(is this the source of the dataset\?\)"):
        originals.pixels([0])


def test_storage_of_a_converted_dataset_says_what_is_unknown(tokens_tsv, tmp_path, capsys):
    convert(tokens_tsv, tmp_path / "out")
    assert main(["info", str(tmp_path / "out"), "--storage"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.rpartition("  ")[2] for line in lines[1:5]] == [
        "their sizes are not in its list",
        "no originals to try it with: --source names them",
        "it holds tokens",
        "it holds tokens",
    ]
    assert "512 bytes" in lines[5]
