"""The list in parts: any part and any unit is read alone, and a broken part is found."""

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from latentq import FormatError
from latentq.run import sample_list
from latentq.run.sample_list import SampleList, cut_into_units, list_parts, write_list
from latentq.sources import Sample

TEXTS = st.none() | st.text(st.characters(codec="utf-8"), min_size=1)
ARCHIVES = st.sampled_from([None, "a.tar", "b.tgz", "c.tar.gz", "d.zip"])
SAMPLES = st.lists(
    st.builds(
        Sample,
        st.text(st.characters(codec="utf-8")),
        st.none() | st.integers(0, 1 << 62),
        st.none() | st.integers(0, 1 << 62),
        TEXTS,
        TEXTS,
        st.none() | st.lists(st.text(st.characters(codec="utf-8")), min_size=2, max_size=3).map(tuple),
        TEXTS,
        ARCHIVES,
    ),
    max_size=40,
)


def listed(folder, samples, unit_size=3):
    write_list(folder, list_parts((unit, 0) for unit in cut_into_units(samples, unit_size)))
    return SampleList(folder)


@pytest.fixture
def small_parts(monkeypatch):
    monkeypatch.setattr(sample_list, "MAX_PART", 7)


@pytest.fixture
def three_parts(tmp_path, small_parts):
    """A list of 20 samples, in parts of two units of three."""
    return listed(tmp_path / "list", [Sample(f"{number:02}.png", number) for number in range(20)])


@settings(max_examples=200, deadline=None)
@given(samples=SAMPLES, unit_size=st.integers(1, 7), largest=st.integers(7, 12))
def test_units_and_samples_read_back_in_any_order(tmp_path_factory, samples, unit_size, largest):
    if not samples:
        return
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sample_list, "MAX_PART", largest)
        units = [*cut_into_units(samples, unit_size)]
        found = listed(tmp_path_factory.mktemp("list") / "list", samples, unit_size)
    assert list(found) == samples
    assert (len(found), found.totals.units) == (len(samples), len(units))
    entries = list(found.units())
    assert [found.samples(entry) for entry in reversed(entries)] == units[::-1]
    assert [found.unit(entry.number) for entry in entries] == entries
    for index in range(len(samples)):
        assert found.sample(index) == samples[index]
        assert index in found.unit_of(index).indices
    usable = [sample for sample in samples if not sample.fault]
    assert found.totals.usable == len(usable)
    for name in ("label", "caption", "captions", "archive"):
        assert found.totals.known.get(name, 0) == sum(getattr(sample, name) is not None for sample in usable)
    assert [found.check_chain(part) for part in range(found.parts)] == [None] * found.parts


def test_a_unit_has_no_more_samples_than_a_part_and_a_gzip_tar_units_of_its_own(small_parts):
    samples = [Sample(f"{n}.png", 1) for n in range(4)]
    gzip = [Sample(f"a.tgz/{n}.png", 1, archive="a.tgz") for n in range(9)]
    tar = [Sample(f"b.tar/{n}.png", 1, archive="b.tar") for n in range(2)]
    assert [len(unit) for unit in cut_into_units([*samples, *gzip, *tar], 3)] == [3, 1, 7, 2, 2]


def test_parts_hold_whole_units_up_to_the_limit(three_parts):
    assert three_parts.parts == 4
    assert [entry.name for entry in three_parts.units()] == [f"{number:05}" for number in range(7)]
    assert [entry.samples for entry in three_parts.units()] == [3, 3, 3, 3, 3, 3, 2]


def test_only_the_columns_that_a_part_has_are_in_it(tmp_path, small_parts):
    samples = [Sample(f"{n}.png", 1, label=n if n > 6 else None) for n in range(9)]
    listed(tmp_path / "list", samples)
    first, second = (tmp_path / "list" / f"0000{part}.tsv" for part in range(2))
    assert first.read_text().splitlines()[1] == "key\tbytes"
    assert second.read_text().splitlines()[1] == "key\tbytes\tlabel"


def test_the_hash_of_a_unit_does_not_depend_on_its_part(tmp_path):
    unit, other = [Sample("a.png", 1)], [Sample("b.png", 1, label=3)]
    alone = listed(tmp_path / "alone", unit, 1)
    together = listed(tmp_path / "together", unit + other, 1)
    assert alone.unit_sha256(alone.unit(0)) == together.unit_sha256(together.unit(0))
    assert together.unit_sha256(together.unit(0)) != together.unit_sha256(together.unit(1))


def test_the_hash_of_the_list_depends_on_every_part(three_parts, tmp_path, small_parts):
    samples = list(three_parts)
    for index in (0, 19):
        changed = [*samples]
        changed[index] = changed[index]._replace(bytes=99)
        assert listed(tmp_path / f"list-{index}", changed).sha256 != three_parts.sha256


def _edited(path, old, new):
    data = path.read_bytes()
    assert old in data
    path.write_bytes(data.replace(old, new, 1))


def test_edited_and_swapped_parts_break_the_chain(three_parts):
    folder = three_parts.folder
    _edited(folder / "00001.tsv", b"06.png", b"66.png")
    broken = [part for part in range(4) if SampleList(folder).check_chain(part)]
    assert broken == [2]
    _edited(folder / "00001.tsv", b"66.png", b"06.png")
    (folder / "00001.tsv").rename(folder / "x")
    (folder / "00002.tsv").rename(folder / "00001.tsv")
    (folder / "x").rename(folder / "00002.tsv")
    assert SampleList(folder).check_chain(1)


@pytest.mark.parametrize(
    "change",
    [
        lambda folder: (folder / "00001.tsv").unlink(),
        lambda folder: (folder / "00004.tsv").mkdir(),
        lambda folder: (folder / "extra").touch(),
        lambda folder: (folder / "00003.tsv").write_bytes(b""),
        lambda folder: (folder / "00003.tsv").write_bytes((folder / "00003.tsv").read_bytes()[:-1]),
        lambda folder: _edited(folder / "00003.tsv", b'"units": [[', b'"units": [[-'),
        lambda folder: _edited(folder / "00003.tsv", b'"units": [[', b'"units": [[1e9'),
        lambda folder: _edited(folder / "00003.tsv", b'"first_unit": 6', b'"first_unit": "x"'),
        lambda folder: _edited(folder / "00003.tsv", b"key\tbytes", b"key\tbyte "),
    ],
)
def test_a_damaged_list_is_refused(three_parts, change):
    change(three_parts.folder)
    with pytest.raises(FormatError, match="list"):
        list(SampleList(three_parts.folder))


@pytest.mark.parametrize("line", [b"06.png\t6", b"06.png\tsix", b"06.png"])
def test_a_line_that_is_no_sample_is_named(three_parts, line):
    path = three_parts.folder / "00001.tsv"
    other = line.ljust(len(b"06.png\t6"), b"\t" if line == b"06.png" else b"6")
    path.write_bytes(path.read_bytes().replace(b"06.png\t6", other[: len(b"06.png\t6")]))
    if line == b"06.png\t6":
        assert list(SampleList(three_parts.folder)) == list(three_parts)
    else:
        with pytest.raises(FormatError, match=r"00001\.tsv, line 3"):
            list(SampleList(three_parts.folder))
        with pytest.raises(FormatError, match=r"00001\.tsv, line 3"):
            SampleList(three_parts.folder).sample(6)


def test_a_unit_of_another_number_of_lines_has_no_samples(three_parts):
    path = three_parts.folder / "00001.tsv"
    path.write_bytes(path.read_bytes().replace(b"06.png\t6\n", b"06.png\t6 "))
    for read in (lambda samples: samples.samples(samples.unit(2)), lambda samples: samples.sample(8)):
        with pytest.raises(FormatError, match=r"00001\.tsv: unit 2 does not have 3 lines"):
            read(SampleList(three_parts.folder))


def test_a_process_reads_only_the_parts_of_its_units(three_parts, monkeypatch):
    opened = []
    read = SampleList._read_header
    monkeypatch.setattr(SampleList, "_read_header", lambda self, part: opened.append(part) or read(self, part))
    samples = SampleList(three_parts.folder)
    assert [sample.key for sample in samples.samples(samples.unit(6))] == ["18.png", "19.png"]
    assert set(opened) < set(range(4))


def test_an_interrupted_list_leaves_its_samples_unread(tmp_path):
    """Samples are taken as the parts are written, not before."""
    taken = []
    samples = (taken.append(number) or Sample(f"{number}.png", 1) for number in itertools.count())
    parts = list_parts((unit, 0) for unit in cut_into_units(samples, 4096))
    next(parts)
    assert len(taken) <= 65536 + 2 * 4096
