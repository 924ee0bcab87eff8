"""The dict for the names in a source equals a dict, in memory and in its file."""

import errno

import pytest
from hypothesis import given
from hypothesis import strategies as st

from latentq import LatentqError
from latentq.sources import file_dict, open_source
from latentq.sources.file_dict import FileDict
from support.archive_making import make_archive
from support.listing import listed

# Also surrogates: bytes of file names that are not UTF-8, and what JSON may hold.
_keys = st.text(st.characters(exclude_categories=()), max_size=3)
_values = st.none() | st.integers() | st.tuples(st.text(), st.tuples(st.text())) | st.dictionaries(st.text(), st.text())


@given(st.lists(st.tuples(_keys, _values)), st.lists(_keys), st.integers(0, 600))
def test_it_has_the_items_of_a_dict(items, others, memory):
    expected, found = {}, FileDict()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(file_dict, "_MEMORY_BYTES", memory)
        for key, value in items:
            expected[key] = found[key] = value
            assert bool(found)
    assert [*found.values()] == [*expected.values()]
    for key in (*expected, *others):
        assert found.get(key) == expected.get(key)
        assert (key in found) == (key in expected)
    assert bool(found) == bool(expected)


@given(st.sets(st.binary(max_size=4)), st.integers(0, 600))
def test_its_keys_are_sorted_by_their_bytes(names, memory):
    found = FileDict()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(file_dict, "_MEMORY_BYTES", memory)
        for name in names:
            found[name.decode("utf-8", "surrogateescape")] = None
    assert [key.encode("utf-8", "surrogateescape") for key in found.sorted_keys()] == sorted(names)


def test_a_full_disk_is_an_error_of_the_machine(monkeypatch):
    monkeypatch.setattr(file_dict, "_MEMORY_BYTES", 0)
    names = FileDict()
    names["first"] = "text"
    names._file.execute("PRAGMA max_page_count = 4")

    def fill():
        for number in range(10_000):
            names[f"{number}"] = "text"

    with pytest.raises(OSError, match=r"TMPDIR.*full") as raised:
        fill()
    assert raised.value.errno == errno.ENOSPC


def test_a_file_that_cannot_be_made_is_an_error_of_the_machine(monkeypatch):
    monkeypatch.setattr(file_dict, "_MEMORY_BYTES", 0)
    monkeypatch.setattr(file_dict.sqlite3, "connect", lambda *_, **__: _raise(file_dict.sqlite3.OperationalError("no")))
    with pytest.raises(OSError, match="TMPDIR") as raised:
        FileDict()["name"] = None
    assert raised.value.errno == errno.EIO


def test_its_file_is_closed_with_it(monkeypatch):
    monkeypatch.setattr(file_dict, "_MEMORY_BYTES", 0)
    names = FileDict()
    names["name"] = None
    file = names._file
    del names
    with pytest.raises(file_dict.sqlite3.ProgrammingError, match="closed"):
        file.execute("SELECT 1")


def _raise(error):
    raise error


def members():
    """The members of an archive: captions and labels in any order, names that are there twice, and a lone caption."""
    yield "0.txt", b"before its image"
    for number in range(40):
        yield f"{number}.png", b"\x89PNG"
        if number % 3:
            yield f"{number}.txt", f"caption {number}".encode()
        if number % 5:
            yield f"{number}.cls", str(number % 7).encode()
    yield "7.png", b"again"
    yield "7.png", b"and again"
    yield "8.image.png", b"\x89PNG"
    yield "8.caption.txt", b"of its key"
    yield "lone.txt", b"of no image"


@pytest.mark.parametrize("name", ["a.tar", "a.tgz", "a.zip", "folder"])
@pytest.mark.parametrize("captions", [None, "txt", "file"])
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_listing_does_not_depend_on_where_its_names_are(tmp_path, monkeypatch, name, captions):
    if name == "folder":
        (tmp_path / name).mkdir()
        for file, data in members():
            (tmp_path / name / file).write_bytes(data)
    else:
        make_archive(tmp_path / name, members())
    if captions == "file":
        captions = tmp_path / "captions.tsv"
        captions.write_text("file_name\tcaption\n" + "".join(f"{n}.png\tline {n}\n{n}\tstem {n}\n" for n in range(30)))
    expected = listed(open_source(tmp_path / name, captions=captions and str(captions)))
    monkeypatch.setattr(file_dict, "_MEMORY_BYTES", 0)
    found = listed(open_source(tmp_path / name, captions=captions and str(captions)))
    assert found == expected
    assert len(found.samples) >= 41


def test_captions_for_no_sample_are_still_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(file_dict, "_MEMORY_BYTES", 0)
    make_archive(tmp_path / "a.tar", [("a.png", b"x")])
    (tmp_path / "c.tsv").write_text("file_name\tcaption\nb.png\ttext\n")
    with pytest.raises(LatentqError, match=r"no caption for any of 1 sample: it names 'b\.png'"):
        listed(open_source(tmp_path / "a.tar", captions=str(tmp_path / "c.tsv")))
