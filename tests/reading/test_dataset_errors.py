"""LatentDataset refuses folders and arguments that it cannot use, with a typed error that names them."""

import shutil
from dataclasses import replace

import pytest
import torch
from torch.utils.data import DataLoader

from latentq import FormatError, LatentDataset, LatentqError, RecipeError
from support.making import make_dataset


@pytest.mark.parametrize("opened", [True, False])
def test_a_truncated_shard_is_an_error_that_names_it(tmp_path, opened):
    reference = make_dataset(tmp_path / "out", 40, size_limit=1 << 11)
    dataset = LatentDataset(reference.path)
    shard = sorted(reference.path.glob("*.mds"))[-1]
    if opened:
        _ = dataset[39]
    with shard.open("r+b") as file:
        file.truncate(shard.stat().st_size - 100)
    with pytest.raises((FormatError, OSError), match=shard.name):
        dataset.batch(range(40))
    with pytest.raises((FormatError, OSError), match=shard.name):
        list(dataset.loader(8))
    with pytest.raises((FormatError, OSError), match=shard.name):
        list(DataLoader(dataset, batch_size=8, num_workers=1))


def test_an_unfinished_dataset_is_refused_with_its_progress(tmp_path, reference):
    unfinished = replace(
        reference.card,
        counts=None,
        source=replace(reference.card.source, samples=41),
        recipe=replace(reference.card.recipe, unit_size=4),
    )
    (tmp_path / "latents.toml").write_bytes(unfinished.to_toml())
    for unit in range(3):
        (tmp_path / f"{unit:05d}").mkdir()
        (tmp_path / f"{unit:05d}" / "index.json").touch()
    (tmp_path / ".00003.abc").mkdir()
    (tmp_path / "00004").mkdir()
    with pytest.raises(LatentqError) as caught:
        LatentDataset(tmp_path)
    assert str(caught.value) == f"{tmp_path} is not finished: 3 of 11 units"


def test_a_complete_card_without_an_index_is_not_finished(tmp_path, reference):
    (tmp_path / "latents.toml").write_bytes(reference.card.to_toml())
    with pytest.raises(LatentqError, match="is not finished: 0 of 1 unit"):
        LatentDataset(tmp_path)


def test_a_card_that_counts_other_samples_than_the_index_is_refused(tmp_path, reference):
    shutil.copytree(reference.path, tmp_path / "out")
    wrong = replace(reference.card, counts=replace(reference.card.counts, samples=39))
    (tmp_path / "out" / "latents.toml").write_bytes(wrong.to_toml())
    with pytest.raises(FormatError, match="39 samples, the index 40"):
        LatentDataset(tmp_path / "out")


def test_a_folder_that_is_no_dataset_is_a_typed_error_of_one_line(tmp_path, reference):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    shutil.copytree(reference.path, tmp_path / "broken")
    (tmp_path / "broken" / "latents.toml").write_text("format = ")
    shutil.copytree(reference.path, tmp_path / "bare")
    (tmp_path / "bare" / "latents.toml").unlink()
    for name, error, text in (
        ("missing", FileNotFoundError, "missing"),
        ("file", NotADirectoryError, "file"),
        ("empty", LatentqError, "holds no dataset"),
        ("broken", FormatError, "latents.toml: not a card"),
        ("bare", RecipeError, "say what made it"),
    ):
        with pytest.raises(error, match=text) as caught:
            LatentDataset(tmp_path / name)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"columns": ["latents"]}, ValueError, "no column 'latents': there are latent, key, label, caption"),
        ({"columns": "latent"}, TypeError, "list of names"),
        ({"columns": []}, ValueError, "at least one of latent, key, label, caption"),
        ({"dtype": torch.float64}, ValueError, "dtype must be one of"),
        ({"scale": "unit"}, ValueError, "scale must be one of"),
        ({"recipe": "imagenet.int8"}, ValueError, "has a card"),
    ],
)
def test_bad_arguments_are_refused_with_the_valid_choices(reference, options, error, text):
    with pytest.raises(error, match=text):
        LatentDataset(reference.path, **options)
