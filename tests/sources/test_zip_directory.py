"""The directory of a zip is read as Python's zipfile reads it."""

import contextlib
import io
import os
import struct
import zipfile
import zlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from latentq import FormatError
from latentq.sources.zip_directory import entries
from latentq.store.blocks import FileBytes

_names = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)


def entries_of(path):
    file = FileBytes(path)
    try:
        return list(entries(file))
    finally:
        file.close()


def expected_of(data):
    with zipfile.ZipFile(io.BytesIO(data)) as file:
        return [
            (info.filename, info.flag_bits, info.compress_type, info.compress_size, info.file_size, info.header_offset)
            for info in file.infolist()
        ]


def make(members, *, before=b"", comment=b"", wide=False):
    """Make the bytes of a zip; `wide` has it write zip64 fields and records."""
    buffer = io.BytesIO()
    with pytest.MonkeyPatch.context() as patch:
        if wide:
            patch.setattr(zipfile, "ZIP64_LIMIT", 10)
            patch.setattr(zipfile, "ZIP_FILECOUNT_LIMIT", 0)
        with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as file:
            file.comment = comment
            for name, data in members:
                info = zipfile.ZipInfo(name)
                info.comment = b"a comment"
                file.writestr(info, data)
    return before + buffer.getvalue()


@settings(deadline=None)
@given(
    st.lists(st.tuples(_names, st.binary(max_size=50)), max_size=5),
    st.binary(max_size=20),
    st.binary(max_size=40).filter(lambda comment: b"PK\5\6" not in comment),  # which is not read by zipfile either
    st.booleans(),
)
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_any_zip_is_read_as_zipfile_reads_it(tmp_path_factory, members, before, comment, wide):
    data = make(members, before=before, comment=comment, wide=wide)
    path = tmp_path_factory.mktemp("zip") / "a.zip"
    path.write_bytes(data)
    assert entries_of(path) == expected_of(data)


def test_a_directory_longer_than_what_is_read_at_once(tmp_path):
    path = tmp_path / "a.zip"
    path.write_bytes(make([(f"{number:0200}.jpg", b"") for number in range(8_000)]))
    assert entries_of(path) == expected_of(path.read_bytes())
    assert len(entries_of(path)) == 8_000


@pytest.mark.parametrize("count", [100, 8_000])
def test_a_directory_is_read_once(tmp_path, monkeypatch, count):
    path = tmp_path / "a.zip"
    path.write_bytes(make([(f"{number:0200}.jpg", b"") for number in range(count)]))
    read, pread = [], os.pread

    def counting(descriptor, size, offset):
        read.append(len(data := pread(descriptor, size, offset)))
        return data

    monkeypatch.setattr(os, "pread", counting)
    entries_of(path)
    assert sum(read) < 2 * path.stat().st_size


def unicode_path(name, plain, version=1):
    """Make the extra field of Info-ZIP that gives a member's name in UTF-8."""
    return struct.pack("<HHBL", 0x7075, 5 + len(name), version, zlib.crc32(plain)) + name


@pytest.mark.parametrize(
    ("extra", "name"),
    [
        (unicode_path("é.jpg".encode(), b"x.jpg"), "é.jpg"),
        (b"UT\5\0\3abcd" + unicode_path("é.jpg".encode(), b"x.jpg"), "é.jpg"),
        (unicode_path("é\0.jpg".encode(), b"x.jpg"), "é"),
        (unicode_path("é.jpg".encode(), b"y.jpg"), "x.jpg"),  # another program has changed the name since
        (unicode_path("é.jpg".encode(), b"x.jpg", version=2), "x.jpg"),
        (unicode_path(b"", b"x.jpg"), "x.jpg"),
        (unicode_path(b"\xff.jpg", b"x.jpg"), "x.jpg"),
        (b"up\4\0\1abc", "x.jpg"),
        (b"up\xff\0\1abc", "x.jpg"),
    ],
)
def test_a_name_in_the_field_of_unicode_paths_counts(tmp_path, extra, name):
    # As zipfile reads it since Python 3.12; fields that it refuses are ignored.
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as file:
        info = zipfile.ZipInfo("x.jpg")
        info.extra = extra
        file.writestr(info, b"")
    assert [entry.name for entry in entries_of(tmp_path / "a.zip")] == [name]


def test_a_directory_that_is_broken_ends_with_an_error_after_the_entries_before_it(tmp_path):
    data = bytearray(make([(f"{number}.jpg", b"x") for number in range(3)]))
    second = data.index(b"PK\1\2", data.index(b"PK\1\2") + 1)
    data[second] = 0
    (tmp_path / "a.zip").write_bytes(data)
    with contextlib.closing(FileBytes(tmp_path / "a.zip")) as file:
        found = entries(file)
        assert next(found).name == "0.jpg"
        with pytest.raises(FormatError, match=f"offset {second}: not an entry"):
            next(found)


@settings(deadline=None)
@given(st.data())
def test_no_damage_gives_anything_but_entries_or_a_format_error(tmp_path_factory, data):
    made = make([("a.jpg", b"x" * 20), ("é.txt", b"text")], wide=data.draw(st.booleans()))
    at = data.draw(st.integers(0, len(made) - 1))
    cut = data.draw(st.booleans())
    changed = made[:at] if cut else made[:at] + bytes([data.draw(st.integers(0, 255))]) + made[at + 1 :]
    path = tmp_path_factory.mktemp("zip") / "a.zip"
    path.write_bytes(changed)
    found = []
    with contextlib.suppress(FormatError):
        found = entries_of(path)
    assert len(found) <= 2


def test_a_file_without_a_directory_is_no_zip(tmp_path):
    (tmp_path / "a.zip").write_bytes(os.urandom(100))
    with pytest.raises(FormatError, match="not a zip: it has no directory at its end"):
        entries_of(tmp_path / "a.zip")
