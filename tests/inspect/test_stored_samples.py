"""The stored samples of a finished dataset are found by their indices, whatever was rejected."""

import shutil

import pytest

import latentq
from conftest import paint
from latentq import FormatError, mds
from latentq.inspect.stored import StoredSamples
from latentq.run.units import sample_list

REJECTED = {0, 3, 4, 5, 9, 13}  # a unit's first, a whole unit, a unit's last, and the last of all


@pytest.fixture
def dataset(tmp_path):
    for index in range(14):
        if index in REJECTED:
            (tmp_path / "photos").mkdir(exist_ok=True)
            (tmp_path / "photos" / f"{index:02}.png").write_bytes(b"no picture")
        else:
            paint(tmp_path / "photos" / f"{index:02}.png", index)
    latentq.encode(tmp_path / "photos", tmp_path / "out", size=32, unit_size=3)
    return tmp_path / "out"


def test_every_index_finds_the_sample_that_is_stored_there(dataset):
    samples = StoredSamples(dataset, latentq.Card.load(dataset))
    keys = mds.Reader(dataset).gather(range(8), "key")
    assert len(samples) == len(keys) == 8
    everything = list(sample_list(dataset, latentq.Card.load(dataset)))
    kept = [number for number in range(14) if number not in REJECTED]
    for order in (range(8), reversed(range(8))):
        for index in order:
            number, sample = samples.find(index)
            assert (number, sample.key) == (kept[index], keys[index])
            assert sample == everything[number]
    assert list(samples) == [samples.find(index) for index in range(8)]
    for index in (-1, 8):
        with pytest.raises(IndexError, match="8 samples"):
            samples.find(index)


def test_no_more_than_a_few_units_are_in_memory(dataset, monkeypatch):
    samples = StoredSamples(dataset, latentq.Card.load(dataset))
    read = []
    of_unit = samples._list.samples
    monkeypatch.setattr(samples._list, "samples", lambda unit: read.append(unit.number) or of_unit(unit))
    for index in range(8):
        samples.find(index)
    assert read == [0, 2, 3, 4]  # each once; nothing of unit 1 is stored
    assert samples._unit.cache_info().maxsize == 2


def test_a_table_with_a_row_twice_finds_both(tmp_path):
    for index in range(3):
        paint(tmp_path / f"{index}.png", index)
    (tmp_path / "broken.png").write_bytes(b"no picture")
    rows = ["0.png", "broken.png", "1.png", "broken.png", "1.png", "2.png"]
    (tmp_path / "table.csv").write_text("path\n" + "".join(f"{row}\n" for row in rows))
    latentq.encode(tmp_path / "table.csv", tmp_path / "out", size=32, unit_size=4)
    samples = StoredSamples(tmp_path / "out", latentq.Card.load(tmp_path / "out"))
    assert [(number, sample.key) for number, sample in samples] == [
        (0, "0.png"),
        (2, "1.png"),
        (4, "1.png"),
        (5, "2.png"),
    ]


def test_an_index_of_other_units_is_refused(dataset):
    card = latentq.Card.load(dataset)
    mds.merge(dataset, ["00002", "00000"])
    with pytest.raises(FormatError, match="'00000' is not the next unit of the list"):
        StoredSamples(dataset, card)
    mds.merge(dataset, ["00000", "00002", "00003", "00004"])
    shutil.copy(dataset / "00003" / "unit.toml", dataset / "00000" / "unit.toml")
    with pytest.raises(FormatError, match="00000 holds 2 samples and 1 reject, its part of the list 3"):
        StoredSamples(dataset, card).find(0)
