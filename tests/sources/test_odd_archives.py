"""Archives as other software writes them, out of public bug reports and test files."""

import contextlib
import gzip
import struct
import tarfile
import zipfile

import pytest

from latentq import FormatError
from latentq.sources import open_source
from support.archive_making import make_tar, make_zip
from support.listing import listed

BLOCK = 512


def faults(path):
    return {sample.key: sample.fault for sample in listed(open_source(path)).samples if sample.fault}


def keys(path):
    return [sample.key for sample in listed(open_source(path)).samples]


def header(name, size=0, kind=tarfile.REGTYPE):
    """The header of a member, one block."""
    info = tarfile.TarInfo(name)
    info.size, info.type = size, kind
    return info.tobuf(tarfile.GNU_FORMAT)


def member(name, data, kind=tarfile.REGTYPE):
    """A header and its data, padded to whole blocks."""
    return header(name, len(data), kind) + data + bytes(-len(data) % BLOCK)


def names_by_tarfile(path):
    with tarfile.open(path) as file:
        return [f"{path.name}/{info.name}" for info in file if info.isreg()]


@pytest.mark.parametrize("name", ["a.tar", "a.tgz"])
def test_an_archive_after_the_end_mark_is_not_lost_without_a_word(tmp_path, name):
    mode = "w:gz" if name == "a.tgz" else "w"
    joined = b"".join(
        make_tar(tmp_path / f"{number}.tar", [(f"{number}.jpg", b"1")], mode).read_bytes() for number in (1, 2)
    )
    (tmp_path / name).write_bytes(joined)
    found = faults(tmp_path / name)
    assert list(found) == [name]
    assert "another archive begins after the end mark" in found[name]
    assert keys(tmp_path / name) == [f"{name}/1.jpg", name]


@pytest.mark.parametrize("rest", [b"Hello, world!\n", b"\xf1\x10" * 700], ids=["text", "binary"])
def test_other_data_after_the_end_mark_are_ignored(tmp_path, rest):
    path = make_tar(tmp_path / "a.tar", [("a.jpg", b"1")])
    path.write_bytes(path.read_bytes() + rest)
    assert faults(path) == {}
    assert keys(path) == names_by_tarfile(path)


def test_the_remains_of_an_earlier_record_are_no_other_archive(tmp_path):
    # Ant writes the end mark into a buffer of one record that holds the record before it.
    record = b"".join(member(f"{number}.jpg", bytes([number])) for number in range(10))
    (tmp_path / "a.tar").write_bytes(record + bytes(2 * BLOCK) + record[2 * BLOCK :])
    assert faults(tmp_path / "a.tar") == {}
    assert keys(tmp_path / "a.tar") == names_by_tarfile(tmp_path / "a.tar")


def test_data_after_the_compressed_data_are_ignored(tmp_path):
    path = make_tar(tmp_path / "a.tgz", [("a.jpg", b"1")], "w:gz")
    path.write_bytes(path.read_bytes() + b"more")
    assert faults(path) == {}


def test_the_checksum_of_the_compressed_data_is_verified(tmp_path):
    path = make_tar(tmp_path / "a.tgz", [("a.jpg", b"1")], "w:gz")
    whole = bytearray(path.read_bytes())
    whole[-8] ^= 1
    path.write_bytes(whole)
    assert "CRC" in faults(path)["a.tgz"]


def test_header_checksums_of_signed_bytes_are_accepted(tmp_path):
    block = bytearray(header("é.jpg"))
    block[148:156] = b" " * 8
    total = sum(struct.unpack(f"{BLOCK}b", block))
    assert total != sum(block)
    block[148:156] = b"%06o\0 " % total
    (tmp_path / "a.tar").write_bytes(bytes(block) + bytes(2 * BLOCK))
    assert faults(tmp_path / "a.tar") == {}
    assert keys(tmp_path / "a.tar") == names_by_tarfile(tmp_path / "a.tar") == ["a.tar/é.jpg"]


def test_an_empty_extension_header_says_nothing(tmp_path):
    data = header("PaxHeader/a", kind=tarfile.XHDTYPE) + member("a.jpg", b"1") + bytes(2 * BLOCK)
    (tmp_path / "a.tar").write_bytes(data)
    assert faults(tmp_path / "a.tar") == {}
    assert keys(tmp_path / "a.tar") == names_by_tarfile(tmp_path / "a.tar") == ["a.tar/a.jpg"]


def test_an_empty_size_in_a_pax_header_is_no_size(tmp_path):
    data = member("PaxHeader/a", b"8 size=\n", tarfile.XHDTYPE) + member("a.jpg", b"12") + bytes(2 * BLOCK)
    (tmp_path / "a.tar").write_bytes(data)
    source = open_source(tmp_path / "a.tar")
    assert [source.data(sample) for sample in listed(source).samples] == [b"12"]


@pytest.mark.parametrize("kind", [b"A", b"D", b"V"])
def test_access_lists_and_labels_are_no_members(tmp_path, kind):
    # Solaris writes the access list of a file under the file's own name.
    data = member("a.jpg", b"user::rw-", kind) + member("a.jpg", b"1") + bytes(2 * BLOCK)
    (tmp_path / "a.tar").write_bytes(data)
    source = open_source(tmp_path / "a.tar")
    (sample,) = listed(source).samples
    assert (sample.key, sample.fault, source.data(sample)) == ("a.tar/a.jpg", "", b"1")


def test_a_sparse_member_is_a_reject_under_its_own_name(tmp_path):
    info = tarfile.TarInfo("GNUSparseFile.7/a.jpg")
    info.pax_headers = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.name": "a.jpg"}
    path = make_tar(tmp_path / "a.tar", [(info, b"x" * BLOCK), ("b.jpg", b"1")], format=tarfile.PAX_FORMAT)
    assert faults(path) == {"a.tar/a.jpg": "a sparse member"}


def test_a_zip_member_without_a_name_is_skipped(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as file:
        file.writestr("a.jpg", b"1")
        with contextlib.closing(file.open(zipfile.ZipInfo(""), "w")) as nameless:
            nameless.write(b"\x01\0\0\0")
    assert keys(tmp_path / "a.zip") == ["a.zip/a.jpg"]
    assert listed(open_source(tmp_path / "a.zip")).notes == ("members that are not images are skipped: 1",)


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_a_zip_that_announces_data_descriptors_and_has_none_is_read(tmp_path, method):
    # adm-zip writes such files.
    path = make_zip(tmp_path / "a.zip", [("a.jpg", b"one" * 100), ("b.jpg", b"two" * 100)], method)
    data = bytearray(path.read_bytes())
    for signature, flags in ((b"PK\3\4", 6), (b"PK\1\2", 8)):
        start = -1
        while (start := data.find(signature, start + 1)) >= 0:
            data[start + flags] |= 8
    path.write_bytes(data)
    source = open_source(path)
    samples = listed(source).samples
    with zipfile.ZipFile(path) as reference:
        assert [source.data(sample) for sample in samples] == [reference.read("a.jpg"), reference.read("b.jpg")]
    if method == zipfile.ZIP_STORED:
        path.write_bytes(bytes(data).replace(b"oneone", b"oneore", 1))
        with pytest.raises(FormatError, match="checksum"):
            open_source(path).data(samples[0])


def test_gzip_members_of_one_tar_are_one_archive(tmp_path):
    # pigz, bgzip and appended writers make several.
    tar = make_tar(tmp_path / "a.tar", [("a.jpg", b"1" * 700), ("b.jpg", b"2" * 700)]).read_bytes()
    (tmp_path / "a.tgz").write_bytes(b"".join(gzip.compress(tar[at : at + 700]) for at in range(0, len(tar), 700)))
    source = open_source(tmp_path / "a.tgz")
    assert [source.data(sample) for sample in listed(source).samples] == [b"1" * 700, b"2" * 700]
