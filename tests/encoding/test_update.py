"""`encode --update`: the dataset follows its source, and what did not change is not touched."""

import contextlib
import dataclasses
import pickle
import random
import shutil

import pytest
import torch

import latentq
from conftest import paint
from latentq import Card, LatentDataset, LatentqError, MismatchError, verify
from latentq.run.units import unit_names
from support.archive_making import make_tar

SMALL = {"autoencoder": "dct-f8c16", "size": 16, "unit_size": 3}


def encode(source, out, **options):
    return latentq.encode(source, out, **SMALL, **options)


def update(source, out, **options):
    return latentq.encode(source, out, update=True, **options)


def samples_by_key(out):
    return {sample["key"]: sample for sample in LatentDataset(out)}


def are_equal(found, expected):
    """True if two datasets have the same samples, by key: latents, labels and captions."""
    return found.keys() == expected.keys() and all(
        sample.keys() == expected[key].keys()
        and all(
            torch.equal(value, expected[key][name]) if name == "latent" else value == expected[key][name]
            for name, value in sample.items()
        )
        for key, sample in found.items()
    )


def inodes(out, units):
    """The inode of every file in units."""
    return {file: file.stat().st_ino for unit in units for file in (out / unit).iterdir()}


def names(out):
    return list(unit_names(out, Card.load(out)))


def assert_follows(source, out, folder):
    """Asserts that a dataset has the samples of its source, with the latents that a fresh encode gives."""
    fresh = folder / f"fresh-{random.getrandbits(60):x}"
    latentq.encode(source, fresh, like=out)
    found = samples_by_key(out)
    assert are_equal(found, samples_by_key(fresh))
    assert verify(out) == []
    counts = Card.load(out).counts
    assert counts.samples == len(found)


@pytest.fixture
def source(tmp_path):
    folder = tmp_path / "source"
    for number in range(8):
        picture = folder / f"{number}.png"
        picture.parent.mkdir(exist_ok=True)
        paint(picture, number, (20, 18))
    return folder


@pytest.fixture
def out(source, tmp_path):
    encode(source, tmp_path / "out")
    return tmp_path / "out"


def test_without_changes_nothing_is_written(source, out):
    before = {file: (file.stat().st_ino, file.stat().st_mtime_ns) for file in out.rglob("*")}
    card = update(source, out)
    assert card == Card.load(out)
    assert {file: (file.stat().st_ino, file.stat().st_mtime_ns) for file in out.rglob("*")} == before


def test_new_samples_are_new_units_at_the_end(source, out, tmp_path):
    before, kept = inodes(out, names(out)), names(out)
    paint(source / "0a.png", 100, (20, 18))
    paint(source / "9.png", 101, (20, 18))
    update(source, out)
    assert names(out) == [*kept, "00003.1"]
    assert [sample["key"] for sample in LatentDataset(out)] == [*(f"{i}.png" for i in range(8)), "0a.png", "9.png"]
    assert inodes(out, kept) == before
    assert_follows(source, out, tmp_path)


def test_units_of_changed_and_removed_samples_are_made_again_and_the_old_ones_stay(source, out, tmp_path):
    before = inodes(out, names(out))
    paint(source / "1.png", 100, (40, 30))
    (source / "7.png").unlink()
    update(source, out)
    assert names(out) == ["00000.1", "00001", "00002.1"]
    assert inodes(out, ["00000", "00001", "00002"]) == before
    assert_follows(source, out, tmp_path)


def test_a_second_update_follows_the_first(source, out, tmp_path):
    paint(source / "1.png", 100, (40, 30))
    update(source, out)
    paint(source / "8.png", 8, (20, 18))
    shutil.copy(source / "8.png", source / "9.png")
    (source / "0.png").unlink()
    update(source, out)
    assert names(out) == ["00000.2", "00001", "00002", "00003.2"]
    assert_follows(source, out, tmp_path)
    update(source, out)
    assert Card.load(out).source.revision == 2


def test_a_unit_may_become_empty(source, out, tmp_path):
    for number in range(3):
        (source / f"{number}.png").unlink()
    update(source, out)
    assert names(out) == ["00000.1", "00001", "00002"]
    assert_follows(source, out, tmp_path)


def test_content_of_the_same_size_is_found_if_asked_for(source, out, tmp_path):
    data = bytearray((source / "4.png").read_bytes())
    picture = tmp_path / "other.bmp"
    paint(source / "4.bmp", 4, (20, 18))
    update(source, out)
    paint(picture, 99, (20, 18))
    assert picture.stat().st_size == (source / "4.bmp").stat().st_size
    shutil.copy(picture, source / "4.bmp")
    assert data == (source / "4.png").read_bytes()
    before = names(out)
    update(source, out)
    assert names(out) == before
    update(source, out, check_content=True)
    assert names(out) == [*before[:-1], "00003.2"]
    assert_follows(source, out, tmp_path)


def test_classes_keep_their_numbers_and_new_ones_follow(tmp_path):
    source, out = tmp_path / "source", tmp_path / "out"
    for name in ("bee", "dog"):
        (source / name).mkdir(parents=True)
        paint(source / name / "1.png", len(name), (20, 18))
    encode(source, out)
    (source / "cat").mkdir()
    paint(source / "cat" / "1.png", 5, (20, 18))
    update(source, out)
    labels = {sample["key"]: (sample["label"], sample["label_text"]) for sample in LatentDataset(out)}
    assert labels == {"bee/1.png": (0, "bee"), "dog/1.png": (1, "dog"), "cat/1.png": (2, "cat")}
    assert names(out) == ["00000", "00001.1"]


def test_the_number_of_a_class_that_is_gone_is_not_used_again(tmp_path):
    source, out = tmp_path / "source", tmp_path / "out"
    for name in ("bee", "dog"):
        (source / name).mkdir(parents=True)
        paint(source / name / "1.png", len(name), (20, 18))
    encode(source, out)
    shutil.rmtree(source / "dog")
    update(source, out)
    (source / "emu").mkdir()
    paint(source / "emu" / "1.png", 5, (20, 18))
    update(source, out)
    assert [(sample["label"], sample["label_text"]) for sample in LatentDataset(out)] == [(0, "bee"), (2, "emu")]


def test_the_first_command_accepts_an_updated_dataset_with_a_class_that_sorts_first(tmp_path):
    source, out = tmp_path / "source", tmp_path / "out"
    for name in ("cat", "dog"):
        (source / name).mkdir(parents=True)
        paint(source / name / "1.png", len(name), (20, 18))
    encode(source, out)
    (source / "ant").mkdir()
    paint(source / "ant" / "1.png", 5, (20, 18))
    update(source, out)
    card = Card.load(out)
    assert encode(source, out) == card


def test_an_open_reader_keeps_reading_the_old_dataset(source, out):
    dataset = LatentDataset(out)
    before = samples_by_key(out)
    paint(source / "1.png", 100, (40, 30))
    (source / "7.png").unlink()
    update(source, out)
    assert are_equal({sample["key"]: sample for sample in dataset}, before)
    assert len(LatentDataset(out)) == 7


def test_a_pickled_dataset_is_not_taken_for_the_updated_one(source, out):
    dataset = pickle.dumps(LatentDataset(out))
    assert len(pickle.loads(dataset)) == 8
    (source / "7.png").unlink()
    update(source, out)
    with pytest.raises(MismatchError, match="open it again"):
        pickle.loads(dataset)


def test_the_same_command_without_update_is_refused_once_the_source_changed(source, out):
    paint(source / "9.png", 9, (20, 18))
    with pytest.raises(MismatchError, match="--update"):
        encode(source, out)
    update(source, out)
    encode(source, out)
    (source / "9.png").unlink()
    with pytest.raises(MismatchError, match=r"0 new, 0 changed, 1 removed.*--update"):
        encode(source, out)


def test_update_of_nothing_encodes(source, tmp_path):
    latentq.encode(source, tmp_path / "new", update=True, **SMALL)
    assert_follows(source, tmp_path / "new", tmp_path)


def test_another_recipe_is_refused_and_the_same_one_accepted(source, out):
    paint(source / "9.png", 9, (20, 18))
    with pytest.raises(MismatchError, match=r"recipe\.columns\.latent\.size = 16; this run has 32"):
        update(source, out, size=32)
    with pytest.raises(MismatchError, match=r"recipe\.columns\.key\.encoding = 'str'; this run has None"):
        update(source, out, recipe="imagenet.int8")
    assert update(source, out, **SMALL, recipe="default").counts.samples == 9
    with pytest.raises(ValueError, match="check_content"):
        encode(source, out, check_content=True)


def test_an_unfinished_dataset_is_refused(source, tmp_path):
    encode(source, tmp_path / "out", rank=0, world_size=2)
    with pytest.raises(LatentqError, match="not finished"):
        update(source, tmp_path / "out")


class Killed(BaseException):
    """Stands for a kill: no handler of an exception catches it."""


@dataclasses.dataclass
class Picture:
    """A picture of a random source."""

    seed: int
    size: tuple[int, int]
    label: str
    caption: str

    @classmethod
    def random(cls, rng):
        size = rng.randrange(16, 60), rng.randrange(16, 60)
        return cls(rng.getrandbits(30), size, rng.choice("abcd"), f"caption {rng.getrandbits(30)}")

    def png(self, folder):
        paint(folder / "picture.png", self.seed, self.size)
        return (folder / "picture.png").read_bytes()


def write_folder(source, pictures, scratch):
    shutil.rmtree(source, ignore_errors=True)
    source.mkdir()
    for name, picture in pictures.items():
        (source / f"{name}.png").write_bytes(picture.png(scratch))


def write_table(source, pictures, scratch):
    write_folder(source.with_name("pictures"), pictures, scratch)
    rows = [f"pictures/{name}.png,{picture.label},{picture.caption}\n" for name, picture in pictures.items()]
    source.write_text("".join(["path,label,caption\n", *rows]))


def write_tars(source, pictures, scratch):
    source.mkdir(exist_ok=True)
    for archive in range(2):
        members = []
        for name, picture in pictures.items():
            if int(name) % 2 == archive:
                texts = (f"{name}.txt", picture.caption.encode()), (f"{name}.cls", str(ord(picture.label)).encode())
                members += [(f"{name}.png", picture.png(scratch)), *texts]
        make_tar(source / f"{archive}.tar", members)


@pytest.mark.parametrize(
    ("write", "name", "seed"),
    [
        *((write_folder, "source", seed) for seed in range(3)),
        *((write_table, "source.csv", seed) for seed in range(3)),
        *((write_tars, "source", seed) for seed in range(3)),
    ],
)
def test_a_dataset_follows_any_changes_of_its_source(write, name, tmp_path, seed, monkeypatch):
    """Random additions, changes and removals, with an update after each, some of them killed half way."""
    rng, source, out = random.Random(seed), tmp_path / name, tmp_path / "out"
    pictures = {str(number): Picture.random(rng) for number in range(8)}
    write(source, pictures, tmp_path)
    encode(source, out)
    for _ in range(4):
        for number in rng.sample([*pictures], rng.randrange(min(4, len(pictures)))):
            del pictures[number]
        for number in rng.sample([*pictures], rng.randrange(min(3, len(pictures) + 1))):
            pictures[number] = Picture.random(rng)
        for _ in range(rng.randrange(4)):
            pictures[str(rng.randrange(30))] = Picture.random(rng)
        pictures = pictures or {"0": Picture.random(rng)}
        write(source, pictures, tmp_path)
        before = samples_by_key(out)
        if rng.random() < 0.5:
            with monkeypatch.context() as patch:
                _kill_at(patch, rng.randrange(25))
                with contextlib.suppress(Killed):
                    update(source, out)
            if not are_equal(samples_by_key(out), before):
                assert_follows(source, out, tmp_path)
        kept = inodes(out, names(out))
        update(source, out)
        current = set(names(out))
        assert all(file.stat().st_ino == inode for file, inode in kept.items() if file.parent.name in current)
        assert_follows(source, out, tmp_path)


def _kill_at(patch, count):
    """Ends the process, as far as a test can, at the count-th fsync."""
    from latentq.store import local

    sync = local.os.fsync
    left = [count]

    def fsync(descriptor):
        left[0] -= 1
        if left[0] < 0:
            raise Killed
        sync(descriptor)

    patch.setattr(local.os, "fsync", fsync)
