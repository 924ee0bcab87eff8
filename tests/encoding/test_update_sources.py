"""Updates of every kind of source: what counts as changed, how classes are numbered, and what is refused."""

import io
import shutil

import numpy as np
import pytest
import torch

import latentq
from conftest import paint
from latentq import Card, LatentDataset, LatentqError, MismatchError, verify
from latentq.cli.main import main
from latentq.run.units import unit_names
from latentq.sources import Listing, Sample
from support.archive_making import make_tar
from support.images import failing_batch

SMALL = {"autoencoder": "dct-f8c16", "size": 16, "unit_size": 3}


def encode(source, out, **options):
    return latentq.encode(source, out, **SMALL, **options)


def update(source, out, **options):
    return latentq.encode(source, out, update=True, **options)


def names(out):
    return list(unit_names(out, Card.load(out)))


def keys(out):
    return [sample["key"] for sample in LatentDataset(out)]


def labels(out):
    return {sample["key"]: (sample["label"], sample.get("label_text")) for sample in LatentDataset(out)}


def pictures_in(folder, *names):
    for number, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        paint(folder / name, number, (20, 18))
    return folder


def members(folder, *names):
    pictures_in(folder, *names)
    return [(name, (folder / name).read_bytes()) for name in names]


def test_a_tar_that_has_grown_is_encoded_again_and_a_new_one_added(tmp_path):
    tars = tmp_path / "tars"
    tars.mkdir()
    first, second = members(tmp_path / "a", "1.png", "2.png", "3.png"), members(tmp_path / "b", "4.png", "5.png")
    make_tar(tars / "a.tar", first)
    make_tar(tars / "b.tar", second)
    encode(tars, tmp_path / "out")
    paint(tmp_path / "6.png", 6, (200, 150))
    large = (tmp_path / "6.png").read_bytes()
    assert len(large) > 10240  # tars are padded to that
    make_tar(tars / "b.tar", [*second, ("6.png", large)])
    make_tar(tars / "c.tar", members(tmp_path / "c", "7.png"))
    update(tars, tmp_path / "out")
    assert names(tmp_path / "out") == ["00000", "00001.1", "00002.1"]
    assert keys(tmp_path / "out") == [
        *(f"a.tar/{n}.png" for n in (1, 2, 3)), "b.tar/4.png", "b.tar/5.png", "b.tar/6.png", "c.tar/7.png"
    ]  # fmt: skip
    assert verify(tmp_path / "out") == []


def test_members_that_are_gone_from_an_archive_are_dropped_but_not_those_of_a_deleted_archive(tmp_path):
    tars = tmp_path / "tars"
    tars.mkdir()
    paint(tmp_path / "0.png", 0, (200, 150))
    first = [("0.png", (tmp_path / "0.png").read_bytes()), *members(tmp_path / "a", "1.png", "2.png")]
    make_tar(tars / "a.tar", first)
    make_tar(tars / "b.tar", members(tmp_path / "b", "3.png", "4.png"))
    encode(tars, tmp_path / "out")
    make_tar(tars / "a.tar", first[1:])
    update(tars, tmp_path / "out")
    assert keys(tmp_path / "out") == ["a.tar/1.png", "a.tar/2.png", "b.tar/3.png", "b.tar/4.png"]
    (tars / "a.tar").unlink()
    with pytest.raises(MismatchError, match=r"a\.tar, whose samples are in .*out, is gone"):
        update(tars, tmp_path / "out")
    assert len(keys(tmp_path / "out")) == 4


def test_a_changed_caption_is_a_change(tmp_path):
    source = pictures_in(tmp_path / "source", *(f"{n}.png" for n in range(5)))
    captions = tmp_path / "captions.csv"
    recipe = latentq.Recipe.load("default")
    captions.write_text("file,caption\n" + "".join(f"{n}.png,picture {n}\n" for n in range(5)))
    encode(source, tmp_path / "out", captions=str(captions), recipe=recipe)
    captions.write_text(captions.read_text().replace("picture 4", "another"))
    update(source, tmp_path / "out", captions=str(captions))
    assert names(tmp_path / "out") == ["00000", "00001.1"]
    with pytest.raises(LatentqError, match=r"as in the first run|which the source does not have"):
        update(source, tmp_path / "out")


def test_a_table_keeps_its_classes_whatever_the_folders_are_called(tmp_path):
    pictures_in(tmp_path, "cat/1.png", "cat/2.png", "x/3.png", "x/4.png")
    table = tmp_path / "table.csv"
    table.write_text("path,label\ncat/1.png,cat\ncat/2.png,dog\n")
    encode(table, tmp_path / "out")
    table.write_text(table.read_text() + "x/3.png,ant\nx/4.png,cat\n")
    update(table, tmp_path / "out")
    assert labels(tmp_path / "out") == {
        "cat/1.png": (0, "cat"), "cat/2.png": (1, "dog"), "x/3.png": (2, "ant"), "x/4.png": (0, "cat")
    }  # fmt: skip
    assert names(tmp_path / "out") == ["00000", "00001.1"]


def test_a_folder_may_have_the_readable_name_of_another(tmp_path):
    source = pictures_in(tmp_path / "source", "crane/1.png", "n02/2.png")
    (tmp_path / "names.csv").write_text("n02,crane\ncrane,crane (bird)\n")
    encode(source, tmp_path / "out", class_names=tmp_path / "names.csv")
    before = labels(tmp_path / "out")
    pictures_in(source, "crane/3.png")
    update(source, tmp_path / "out", class_names=tmp_path / "names.csv")
    assert labels(tmp_path / "out") == before | {"crane/3.png": (0, "crane (bird)")}


def test_a_split_takes_new_classes_from_the_dataset_that_it_is_like(tmp_path):
    train = pictures_in(tmp_path / "train", "a/1.png", "b/1.png", "c/1.png")
    validation = pictures_in(tmp_path / "validation", "a/2.png", "c/2.png")
    encode(train, tmp_path / "out")
    latentq.encode(validation, tmp_path / "split", like=tmp_path / "out")
    pictures_in(validation, "b/2.png")
    update(validation, tmp_path / "split", like=tmp_path / "out")
    assert labels(tmp_path / "split") == {"a/2.png": (0, "a"), "b/2.png": (1, "b"), "c/2.png": (2, "c")}
    encode(validation, tmp_path / "other", bits=6)
    with pytest.raises(MismatchError, match="was not made with --like"):
        update(validation, tmp_path / "split", like=tmp_path / "other")


def test_labels_that_were_numbers_do_not_become_names(tmp_path):
    pictures_in(tmp_path, "1.png", "2.png", "3.png")
    table = tmp_path / "table.csv"
    table.write_text("path,label\n1.png,5\n2.png,7\n")
    encode(table, tmp_path / "out")
    table.write_text(table.read_text() + "3.png,dog\n")
    with pytest.raises(MismatchError, match="has the class name '5', the dataset numbers"):
        update(table, tmp_path / "out")
    table.write_text(table.read_text().replace("dog", "6"))
    update(table, tmp_path / "out")
    assert labels(tmp_path / "out") == {"1.png": (5, None), "2.png": (7, None), "3.png": (6, None)}


class Own:
    """A user's own source with class names."""

    kind = "own"

    def __init__(self, folder, rows):
        self.rows = rows
        paint(folder / "a.png", 0, (20, 18))
        self.image = (folder / "a.png").read_bytes()

    def listing(self):
        return Listing([Sample(key, None, label=label) for key, label in self.rows])

    def data(self, _):
        return self.image


def test_a_users_source_keeps_its_classes(tmp_path):
    rows = [("1", "cat"), ("2", "dog")]
    encode(Own(tmp_path, rows), tmp_path / "out")
    update(Own(tmp_path, [*rows, ("3", "cow")]), tmp_path / "out")
    assert labels(tmp_path / "out") == {"1": (0, "cat"), "2": (1, "dog"), "3": (2, "cow")}


def test_keys_that_are_there_twice_are_compared_in_order(tmp_path):
    pictures_in(tmp_path, "1.png", "2.png")
    table = tmp_path / "table.csv"
    table.write_text("path,label\n1.png,0\n1.png,1\n2.png,2\n1.png,3\n")
    encode(table, tmp_path / "out")
    table.write_text("path,label\n1.png,0\n1.png,1\n2.png,2\n1.png,4\n2.png,5\n")
    update(table, tmp_path / "out")
    rows = [(sample["key"], sample["label"]) for sample in LatentDataset(tmp_path / "out")]
    assert rows == [("1.png", 0), ("1.png", 1), ("2.png", 2), ("1.png", 4), ("2.png", 5)]
    assert names(tmp_path / "out") == ["00000", "00001.1", "00002.1"]


def test_a_source_of_another_kind_is_refused(tmp_path):
    source = pictures_in(tmp_path / "source", "1.png")
    encode(source, tmp_path / "out")
    (tmp_path / "table.csv").write_text("path\nsource/1.png\n")
    with pytest.raises(MismatchError, match="made from a source of kind folder; this one is a table"):
        update(tmp_path / "table.csv", tmp_path / "out")


def test_images_of_another_column_are_refused(tmp_path):
    pictures_in(tmp_path, "1.png", "2.png")
    table = tmp_path / "table.csv"
    table.write_text("before,after\n1.png,2.png\n")
    encode(table, tmp_path / "out", image_column="before")
    with pytest.raises(MismatchError, match="image_column = 'before'; this run has 'after'"):
        update(table, tmp_path / "out", image_column="after")
    assert update(table, tmp_path / "out") == Card.load(tmp_path / "out")


def test_after_deleting_archives_an_update_is_refused(tmp_path):
    tars = tmp_path / "tars"
    tars.mkdir()
    make_tar(tars / "a.tar", members(tmp_path / "a", "1.png", "2.png"))
    encode(tars, tmp_path / "out", delete_archives=True)
    assert verify(tmp_path / "out") == []
    make_tar(tars / "b.tar", members(tmp_path / "b", "3.png"))
    with pytest.raises(MismatchError, match="--delete-archives"):
        update(tars, tmp_path / "out")
    assert keys(tmp_path / "out") == ["a.tar/1.png", "a.tar/2.png"]


def test_a_table_of_tokens_follows_its_dataset(tmp_path, tiny_taming):
    source = pictures_in(tmp_path / "source", "1.png", "2.png")
    recipe = latentq.Recipe.load("vqgan-f16-16384").override(size=32)
    out = tmp_path / "tokens.tsv"
    latentq.encode(source, out, recipe=recipe, autoencoder=tiny_taming)
    assert len(out.read_text().splitlines()) == 3
    pictures_in(source, "3.png")
    latentq.encode(source, out, autoencoder=tiny_taming, update=True)
    assert len(out.read_text().splitlines()) == 4


def test_new_values_outside_the_calibrated_range_are_pointed_out(tmp_path):
    source = tmp_path / "source"
    for number in range(4):
        _gray(source / f"{number}.png", 120 + number)
    encode(source, tmp_path / "out")
    for number in range(4, 8):
        paint(source / f"{number}.png", number, (20, 18))
    stream = io.StringIO()
    update(source, tmp_path / "out", progress=stream)
    assert "latent: " in stream.getvalue()
    assert "of the new values are outside the calibrated range" in stream.getvalue()
    update(source, tmp_path / "out", progress=(again := io.StringIO()))
    assert "calibrated range" not in again.getvalue()


def _gray(path, value):
    from PIL import Image

    path.parent.mkdir(exist_ok=True)
    Image.fromarray(np.full((20, 20, 3), value, np.uint8)).save(path)


def test_content_cannot_be_compared_without_hashes(tmp_path):
    source = pictures_in(tmp_path / "source", "1.png")
    encode(source, tmp_path / "out")
    file = tmp_path / "out" / "00000" / "content.xxh3"
    file.write_bytes(b"1234")
    with pytest.raises(LatentqError, match=r"content\.xxh3: 4 bytes, not 8 for each of 1 sample"):
        update(source, tmp_path / "out", check_content=True)
    file.unlink()
    with pytest.raises(LatentqError, match=r"content\.xxh3 is missing"):
        update(source, tmp_path / "out", check_content=True)


def test_a_sample_that_could_not_be_read_is_made_again_once_it_can(tmp_path, monkeypatch):
    source = pictures_in(tmp_path / "source", "1.png", "2.png")
    with monkeypatch.context() as patch:
        patch.setattr(latentq._core, "ImageBatch", failing_batch(PermissionError(13, "Permission denied")))
        assert encode(source, tmp_path / "out").counts.rejects == 1
    update(source, tmp_path / "out")
    assert Card.load(tmp_path / "out").counts.rejects == 1
    update(source, tmp_path / "out", check_content=True)
    assert Card.load(tmp_path / "out").counts.rejects == 0


@pytest.mark.parametrize("answer", ["n\n", "\n", "y\n"])
def test_prune_asks(tmp_path, answer, monkeypatch, capsys):
    source = pictures_in(tmp_path / "source", "1.png", "2.png")
    encode(source, tmp_path / "out")
    (source / "2.png").unlink()
    update(source, tmp_path / "out")
    assert main(["prune", str(tmp_path / "out")]) == 2
    assert "--yes" in capsys.readouterr().err
    terminal = io.StringIO(answer)
    terminal.isatty = lambda: True
    monkeypatch.setattr("sys.stdin", terminal)
    assert main(["prune", str(tmp_path / "out")]) == (0 if answer == "y\n" else 1)
    assert (tmp_path / "out" / "00000").exists() == (answer != "y\n")
    assert (tmp_path / "out" / "00000.1").exists()
    assert verify(tmp_path / "out") == []


def test_an_old_dataset_is_refused_with_one_line(tmp_path):
    source = pictures_in(tmp_path / "source", "1.png")
    encode(source, tmp_path / "out")
    card = tmp_path / "out" / "latents.toml"
    card.write_text(card.read_text().replace("format = 2", "format = 1"))
    with pytest.raises(LatentqError, match="format 1; this latentq reads format 2: encode the images again"):
        LatentDataset(tmp_path / "out")


def test_an_update_started_before_another_was_finished_gives_way(tmp_path):
    """A finisher that was held up does not put an old index back."""
    from latentq.run.finish import finish, finish_update, resume_update

    source = pictures_in(tmp_path / "source", "1.png", "2.png")
    out = tmp_path / "out"
    old = encode(source, out)
    pictures_in(source, "3.png")
    first = update(source, out)
    pictures_in(source, "4.png")
    update(source, out)
    before = keys(out)
    with pytest.raises(MismatchError, match="update 2 was finished in the meantime"):
        finish(out, old)
    with pytest.raises(MismatchError, match="update 2 was finished in the meantime"):
        finish_update(out, first)
    assert not (out / "latents.next.toml").exists()
    (out / "latents.next.toml").write_bytes(b"# index.json: sha256 0\n" + first.to_toml())
    resume_update(out)
    assert not (out / "latents.next.toml").exists()
    assert keys(out) == before
    assert verify(out) == []
    assert torch.equal(LatentDataset(out)[0]["latent"], LatentDataset(out)[0]["latent"])
    shutil.rmtree(out)
