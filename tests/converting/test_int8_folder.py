"""imagenet.int8's MDS folder: read and written value for value as its script does."""

from pathlib import Path

import numpy as np
import pytest
import torch

import latentq
from latentq import LatentDataset, LatentqError, mds
from latentq.cli.main import main
from latentq.converting.pipeline import convert


def names(folder="."):
    """List the names in a folder, hidden ones too."""
    return sorted(path.name for path in Path(folder).iterdir())


def test_an_imagenet_int8_folder_becomes_a_dataset_and_converts_back(int8_folder, tmp_path):
    assert convert(int8_folder, tmp_path / "out") == 10
    assert latentq.verify(tmp_path / "out") == []
    ours, theirs = LatentDataset(tmp_path / "out"), LatentDataset(int8_folder, recipe="imagenet.int8")
    for a, b in zip(ours, theirs, strict=True):
        assert torch.equal(a["latent"], b["latent"])
        assert (a["label"], a["label_text"]) == (b["label"], b["label_text"])
    assert convert(tmp_path / "out", tmp_path / "back") == 10
    assert names(tmp_path / "back") == ["index.json", "shard.00000.mds"]
    original, back = mds.Reader(int8_folder), mds.Reader(tmp_path / "back")
    assert back.columns == original.columns == {"vae_output": "raw:uint8", "label": "str", "label_as_text": "str"}
    assert list(map(repr, back)) == list(map(repr, original))


def test_a_suffix_of_no_layout_is_an_error_that_names_the_layouts(int8_folder, tmp_path, capsys):
    convert(int8_folder, tmp_path / "out")
    assert main(["convert", str(tmp_path / "out"), str(tmp_path / "x.foo")]) == 2
    assert capsys.readouterr().err.splitlines()[-1] == (
        f"latentq: {tmp_path}/x.foo: no layout has the suffix .foo: name a .pt (imagenet_3gb's torch file), a .tsv "
        "(VQGAN's tokens), or a folder without a suffix or with .int8 (imagenet.int8's shards), or choose by --to"
    )
    assert names(tmp_path) == ["out"]
    assert convert(tmp_path / "out", tmp_path / "imagenet.int8") == 10


def test_a_folder_of_other_columns_is_refused_in_one_line(tmp_path):
    with mds.Writer(tmp_path / "other", {"image": "bytes"}) as writer:
        writer.write({"image": b"x"})
    with pytest.raises(LatentqError, match=r"other has no latents\.toml, and is no folder of imagenet\.int8 either"):
        convert(tmp_path / "other", tmp_path / "out")
    (tmp_path / "empty").mkdir()
    with pytest.raises(LatentqError, match="holds no dataset"):
        convert(tmp_path / "empty", tmp_path / "out")


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"vae_output": np.zeros(4095, np.uint8)}, "4095"),
        ({"vae_output": np.zeros(16384, np.uint8)}, "16384"),
        ({"label": "guitar"}, "'guitar', which is no class number"),
    ],
)
def test_a_wrong_sample_in_an_int8_folder_is_one_error_line(changed, message, tmp_path, capsys):
    columns = {"vae_output": "raw:uint8", "label": "str", "label_as_text": "str"}
    with mds.Writer(tmp_path / "vae_mds", columns) as writer:
        writer.write({"vae_output": np.zeros(4096, np.uint8), "label": "1", "label_as_text": "one"})
        writer.write({"vae_output": np.zeros(4096, np.uint8), "label": "1", "label_as_text": "one"} | changed)
    assert main(["convert", str(tmp_path / "vae_mds"), str(tmp_path / "out")]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
    assert names(tmp_path) == ["vae_mds"]
