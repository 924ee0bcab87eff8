"""Finishing is one pass over the units, whose result depends on nothing else."""

import errno
import functools
import os
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import latentq
from conftest import contents, paint
from latentq import FormatError, Quantizer
from latentq.quantizer import Moments
from latentq.run.finish import CardCompletion, finish
from latentq.run.units import LatentSums, UnitFacts
from latentq.store.local import bytes_below, holds, replacement

UNITS = ("00000", "00001", "00002")


@pytest.fixture
def dataset(tmp_path):
    for index in range(5):
        paint(tmp_path / "photos" / f"{index}.png", index)
    (tmp_path / "photos" / "broken\t.png").write_bytes(b"no picture")
    latentq.encode(tmp_path / "photos", tmp_path / "out", size=32, unit_size=2)
    return tmp_path / "out"


def inodes(folder):
    return {path.name: path.stat().st_ino for path in folder.iterdir()}


def test_finishing_again_replaces_nothing(dataset):
    before = inodes(dataset), contents(dataset)
    finish(dataset, latentq.Card.load(dataset))
    assert (inodes(dataset), contents(dataset)) == before


@pytest.mark.parametrize("name", ["index.json", "latents.toml", "rejects.tsv"])
def test_only_what_has_other_bytes_is_replaced(dataset, name):
    before = contents(dataset)
    card = latentq.Card.load(dataset)
    data = (dataset / name).read_bytes()
    for edited in (data[:-1], data[:-1] + b"x", data + b"x"):
        (dataset / name).write_bytes(edited)
        files = inodes(dataset)
        finish(dataset, card)
        assert contents(dataset) == before
        assert {file for file, inode in inodes(dataset).items() if files[file] != inode} == {name}


def test_a_broken_unit_leaves_everything_as_it_was(dataset):
    (dataset / "00001" / "unit.toml").write_bytes(b"rejects = 1")
    (dataset / "rejects.tsv").write_bytes(b"")
    before = inodes(dataset), contents(dataset)
    with pytest.raises(FormatError, match=r"00001/unit\.toml"):
        finish(dataset, latentq.Card.load(dataset))
    assert (inodes(dataset), contents(dataset)) == before


def test_units_are_loaded_one_by_one_in_order(dataset, monkeypatch):
    loaded, load = [], UnitFacts.load
    monkeypatch.setattr(UnitFacts, "load", lambda path: loaded.append(path.parent.name) or load(path))
    finish(dataset, latentq.Card.load(dataset))
    assert loaded == list(UNITS)


@settings(deadline=None)
@given(st.lists(st.lists(st.floats(-1e6, 1e6), min_size=2, max_size=2), min_size=1, max_size=30))
def test_statistics_of_floats_are_those_of_all_moments_merged_in_order(values):
    moments = [Moments.of(np.array([[a], [b]], np.float64)) for a, b in values]
    quantizer = Quantizer.floating("float32", channels=2)
    card = _card_of(quantizer)
    completion = CardCompletion(card)
    for unit in moments:
        completion.add(UnitFacts(samples=1, latents={"latent": LatentSums(np.ones(2, np.int64), None, [unit])}))
        assert len(completion._latents["latent"].moments) == 1
    completed = completion.card()
    assert completed.latents["latent"].statistics == functools.reduce(Moments.merge, moments).statistics()
    assert completed.latents["latent"].clipped == (len(values), len(values))
    assert (completed.counts.samples, completed.counts.rejects) == (len(values), 0)


@functools.cache
def _example_card():
    with tempfile.TemporaryDirectory() as folder:
        paint(Path(folder) / "photos" / "0.png", 0)
        return latentq.encode(Path(folder) / "photos", Path(folder) / "out", size=32)


def _card_of(quantizer):
    card = _example_card()
    return replace(card, latents={"latent": replace(card.latents["latent"], quantizer=quantizer)}, counts=None)


def test_a_replacement_outlives_the_removal_of_its_temporary(tmp_path):
    path = tmp_path / "index.json"
    path.write_bytes(b"old")
    with replacement(path) as file:
        file.write(b"new" * 1000)
        (temporary,) = tmp_path.glob(".index.json.*")
        temporary.unlink()  # as a process that finished first does
    assert path.read_bytes() == b"new" * 1000
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), ValueError("broken")])
def test_a_replacement_that_fails_changes_nothing_and_names_its_target(tmp_path, error):
    path = tmp_path / "index.json"
    path.write_bytes(b"old")

    def fail():
        with replacement(path) as file:
            file.write(b"new")
            raise error

    with pytest.raises(type(error)) as raised:
        fail()
    assert getattr(raised.value, "filename", str(path)) == str(path)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_replacement_takes_the_place_of_a_fifo(tmp_path):
    os.mkfifo(tmp_path / "rejects.tsv")
    with replacement(tmp_path / "rejects.tsv") as file:
        file.write(b"a")
    assert (tmp_path / "rejects.tsv").read_bytes() == b"a"


@pytest.mark.parametrize(
    ("pieces", "expected"),
    [([b"abc", b"def"], True), ([b"abcdef"], True), ([b"", b"abcde"], False), ([b"abcdef", b"g"], False),
     ([b"abd", b"def"], False), ([], False)],
)  # fmt: skip
def test_a_file_holds_exactly_the_bytes_of_the_pieces(tmp_path, pieces, expected):
    (tmp_path / "file").write_bytes(b"abcdef")
    assert holds(tmp_path / "file", pieces) is expected
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(FormatError, match="not a regular file"):
        holds(tmp_path / "fifo", pieces)


def test_bytes_below_a_folder_are_those_of_its_files(tmp_path):
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / "c").write_bytes(bytes(5))
    (tmp_path / "d").write_bytes(bytes(7))
    (tmp_path / "a" / "up").symlink_to(tmp_path)
    assert bytes_below(tmp_path) == 12
