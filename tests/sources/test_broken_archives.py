"""Broken and hostile archives: no sample is lost without an error, and memory stays bounded."""

import os
import struct
import tarfile
import time
import zipfile

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from latentq import FormatError, LatentqError, MismatchError, encode
from latentq.sources import open_source
from latentq.sources.member import MAX_MEMBER_BYTES
from support.archive_making import faults_of, make_archive, make_tar, make_zip
from support.listing import listed


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_a_damaged_tar_loses_no_sample_without_an_error(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("tar") / "a.tar"
    make_tar(path, [(f"{i}.jpg", bytes([i]) * 700) for i in range(4)], format=tarfile.GNU_FORMAT)
    raw = bytearray(path.read_bytes()[: data.draw(st.integers(0, 7000))])
    for _ in range(data.draw(st.integers(0, 3))):
        if raw:
            raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(raw)
    try:
        listing = listed(open_source(path))
    except LatentqError:
        return
    faulty = {s.key for s in listing.samples if s.fault}
    assert len(listing.samples) == 4 or "a.tar" in faulty  # a missing member is reported
    source = open_source(path)
    for sample in listing.samples:
        if not sample.fault:
            assert len(source.data(sample)) == sample.bytes


def test_tar_members_that_are_not_files_are_reported(tmp_path):
    link, sparse = tarfile.TarInfo("link.jpg"), tarfile.TarInfo("sparse.jpg")
    link.type, link.linkname = tarfile.SYMTYPE, "a.jpg"
    sparse.pax_headers = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0"}
    members = [("a.jpg", b"1"), (link, b""), (sparse, b"x" * 512), ("a.jpg", b"2"), ("._a.jpg", b"3"), ("b.csv", b"4")]
    path = make_tar(tmp_path / "a.tar", members, format=tarfile.PAX_FORMAT)
    source = open_source(path)
    assert faults_of(source) == {
        "a.tar/link.jpg": "a link or device, not a file",
        "a.tar/sparse.jpg": "a sparse member",
        "a.tar/a.jpg#2": "a member of this name came before",
    }
    assert listed(source).notes == ("members that are not images are skipped: 2",)
    assert source.data(listed(source).samples[0]) == b"1"


def test_a_header_that_promises_too_much_allocates_nothing(tmp_path):
    info = tarfile.TarInfo("huge.jpg")
    info.size = 1 << 40
    head = info.tobuf(tarfile.GNU_FORMAT)
    first = tarfile.TarInfo("a.jpg")
    first.size = 1
    (tmp_path / "a.tar").write_bytes(first.tobuf(tarfile.GNU_FORMAT) + b"1".ljust(512, b"\0") + head)
    found = faults_of(open_source(tmp_path / "a.tar"))
    assert "cut short" in found["a.tar/huge.jpg"]
    long = tarfile.TarInfo("././@LongLink")
    long.type, long.size = tarfile.GNUTYPE_LONGNAME, 1 << 33
    (tmp_path / "a.tar").write_bytes(
        first.tobuf(tarfile.GNU_FORMAT) + b"1".ljust(512, b"\0") + long.tobuf(tarfile.GNU_FORMAT)
    )
    assert "extension of 8589934592 bytes" in faults_of(open_source(tmp_path / "a.tar"))["a.tar"]


@pytest.mark.parametrize("name", ["a.tar", "a.tgz", "a.zip"])
def test_a_cut_off_archive_loses_nothing_silently(tmp_path, pictures_made, name):
    path = make_archive(tmp_path / name, [("noise.jpg", np.random.default_rng(0).bytes(9000)), *pictures_made.items()])
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    if name == "a.zip":  # its directory was at the end
        with pytest.raises(FormatError, match=r"a\.zip hold no images: offset 0: not a zip"):
            listed(open_source(path))
        return
    listing = listed(open_source(path))
    good = [s for s in listing.samples if not s.fault]
    assert 0 < len(good) < len(pictures_made) + 1
    assert listing.samples[-1].key == name
    assert "cut short" in listing.samples[-1].fault
    source = open_source(path)
    inside = {"noise.jpg": None, **pictures_made}
    assert all(source.data(s) == inside[s.key.partition("/")[2]] for s in good if "noise" not in s.key)


@pytest.mark.parametrize("name", ["a.tar", "a.tgz", "a.zip"])
def test_empty_archives_are_errors_alone_and_rejects_among_others(tmp_path, pictures_made, name):
    (tmp_path / name).write_bytes(b"")
    with pytest.raises(FormatError, match="hold no images: offset 0: an empty file"):
        listed(open_source(tmp_path / name))
    other = make_archive(tmp_path / f"b{name[1:]}", pictures_made.items())
    listing = listed(open_source(tmp_path / f"*{other.suffix}"))
    assert [s.key for s in listing.samples if s.fault] == [name]
    assert len(listing.samples) == 1 + len(pictures_made)


def test_zip_members_that_cannot_be_read_say_why(tmp_path, pictures_made):
    data = next(iter(pictures_made.values()))
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("good.jpg", data)
        file.writestr("other.jpg", data, zipfile.ZIP_BZIP2)
        file.writestr("locked.jpg", data)
        file.writestr("bent.jpg", data, zipfile.ZIP_DEFLATED)
    raw = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as file:
        places = {info.filename: info for info in file.infolist()}
    directory = raw.rindex(b"PK\1\2", 0, raw.rindex(b"locked.jpg"))
    raw[directory + 8] |= 1  # encrypted
    middle = places["bent.jpg"].header_offset + 40 + len(data) // 3
    raw[middle : middle + 20] = bytes(20)
    path.write_bytes(raw)
    source = open_source(path)
    assert faults_of(source) == {
        "a.zip/other.jpg": "compressed by method 12; only stored and deflated members can be read",
        "a.zip/locked.jpg": "encrypted",
    }
    samples = {s.key: s for s in listed(source).samples}
    assert source.data(samples["a.zip/good.jpg"]) == data
    with pytest.raises(FormatError, match=r"compressed data is broken|checksum differs|bytes that are listed"):
        source.data(samples["a.zip/bent.jpg"])


def test_a_deflate_bomb_is_inflated_only_to_its_listed_size(tmp_path):
    path = make_zip(tmp_path / "a.zip", [("a.jpg", bytes(100_000_000))], zipfile.ZIP_DEFLATED)
    raw = bytearray(path.read_bytes())
    directory = raw.rindex(b"PK\1\2")
    raw[directory + 24 : directory + 28] = struct.pack("<L", 1000)
    path.write_bytes(raw)
    source = open_source(path)
    with pytest.raises(FormatError, match="holds more of the 1000 bytes"):
        source.data(listed(source).samples[0])


def test_member_names_never_become_paths(tmp_path, pictures_made):
    data = next(iter(pictures_made.values()))
    members = [("../up.jpg", data), ("/abs.jpg", data), ("a\tb\nc.jpg", data), ("..\\w.jpg", data)]
    (tmp_path / "in").mkdir()
    path = make_tar(tmp_path / "in" / "a.tar", members)
    encode(path, tmp_path / "out", size=64)
    assert {entry.name for entry in tmp_path.iterdir()} == {"in", "out"}
    keys = [line.split("\t")[0] for line in (tmp_path / "out" / "list" / "00000.tsv").read_text().splitlines()[2:]]
    assert keys == ["a.tar/../up.jpg", "a.tar//abs.jpg", "a.tar/a\\tb\\nc.jpg", "a.tar/..\\\\w.jpg"]


def test_a_name_that_is_not_utf_8_is_a_reject(tmp_path, pictures_made):
    data = next(iter(pictures_made.values()))
    make_tar(tmp_path / "a.tar", [(os.fsdecode(b"\xff.jpg"), data), ("b.jpg", data)], format=tarfile.GNU_FORMAT)
    assert encode(tmp_path / "a.tar", tmp_path / "out", size=64).counts.rejects == 1
    assert (tmp_path / "out" / "rejects.tsv").read_text() == "a.tar/\\\\udcff.jpg\tlist\tthe file's name is not UTF-8\n"


def test_members_above_the_pixel_limit_are_rejects(tmp_path):
    info = tarfile.TarInfo("huge.jpg")
    info.size = MAX_MEMBER_BYTES + 1
    first = tarfile.TarInfo("1.jpg")
    with (tmp_path / "a.tar").open("wb") as file:
        file.write(first.tobuf() + info.tobuf())
        file.seek(info.size, 1)
        file.write(bytes(2048))
    fault = f"{info.size} bytes, more than the {MAX_MEMBER_BYTES} of an image at the pixel limit"
    assert faults_of(open_source(tmp_path / "a.tar")) == {"a.tar/huge.jpg": fault}


@pytest.mark.parametrize("name", ["a.tgz", "a.zip"])
def test_a_large_member_is_read_only_if_it_begins_as_an_image(tmp_path, name, monkeypatch):
    monkeypatch.setattr("latentq.sources.archives._LARGE_BYTES", 1000)
    jpeg = b"\xff\xd8\xff" + bytes(2000)
    source = open_source(make_archive(tmp_path / name, [("bomb.jpg", bytes(2000)), ("large.jpg", jpeg)]))
    bomb, large = listed(source).samples
    with pytest.raises(FormatError, match=r"^not an image$"):
        source.data(bomb)
    assert source.data(large) == jpeg


def test_members_of_one_name_are_listed_in_linear_time(tmp_path):
    path = make_tar(tmp_path / "a.tar", [("b.jpg#3", b""), *[("b.jpg", b"")] * 20_000])
    start = time.process_time()
    samples = listed(open_source(path)).samples
    assert time.process_time() - start < 20  # by trying every number from 2 it took minutes
    assert len({sample.key for sample in samples}) == len(samples) == 20_000
    assert sum(sample.fault == "a member of this name came before" for sample in samples) == 19_999


def test_every_process_refuses_a_changed_archive(tmp_path, pictures_made):
    path = make_tar(tmp_path / "a.tar", pictures_made.items())
    encode(path, tmp_path / "out", size=64, unit_size=4, rank=0, world_size=2)
    make_tar(path, [*pictures_made.items(), ("more.jpg", bytes(20_000))])
    with pytest.raises(MismatchError, match=r"8 samples, the source has 9 now"):
        encode(path, tmp_path / "out", size=64, unit_size=4, rank=0, world_size=2)
    with pytest.raises(MismatchError, match=r"a\.tar is listed with \d+ bytes and has \d+ bytes now"):
        encode(path, tmp_path / "out", size=64, unit_size=4, rank=1, world_size=2)


def test_a_broken_image_in_an_archive_is_one_reject(tmp_path, pictures_made):
    make_archive(tmp_path / "a.tgz", [*pictures_made.items(), ("broken.jpg", b"no")])
    assert vars(encode(tmp_path / "a.tgz", tmp_path / "out", size=64).counts)["rejects"] == 1
    assert (tmp_path / "out" / "rejects.tsv").read_text().startswith("a.tgz/broken.jpg\tdecode\t")
