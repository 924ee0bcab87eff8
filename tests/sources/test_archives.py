"""Archives as sources: listing, reading, and broken archives.

Over 500 lines: tar and zip files pass the same tests, with the same members.
"""

import gzip
import io
import os
import struct
import tarfile
import time
import tracemalloc
import zipfile

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conftest import contents, paint
from latentq import FormatError, LatentqError, MismatchError, encode
from latentq.cli.main import main
from latentq.sources import open_source
from latentq.sources.member import MAX_MEMBER_BYTES, Reads
from latentq.sources.tar import Tar
from support.archive_making import make_tar, make_zip, pictures_of, with_captions

FORMATS = {"ustar": tarfile.USTAR_FORMAT, "gnu": tarfile.GNU_FORMAT, "pax": tarfile.PAX_FORMAT}


@pytest.fixture(scope="module")
def pictures_made(tmp_path_factory):
    return pictures_of(tmp_path_factory.mktemp("pictures"))


def make(path, members):
    """Makes an archive of the kind that its suffix names."""
    if path.suffix == ".zip":
        return make_zip(path, members, zipfile.ZIP_DEFLATED)
    return make_tar(path, members, "w" if path.suffix == ".tar" else "w:gz")


def faults(source):
    return {sample.key: sample.fault for sample in source.listing().samples if sample.fault}


@pytest.mark.parametrize("name", ["a.tar", "a.tgz", "a.tar.gz", "a.zip"])
def test_every_member_is_listed_with_its_caption_and_read_by_its_offset(tmp_path, pictures_made, name):
    source = open_source(make(tmp_path / name, with_captions(pictures_made, "./x/")))
    listing = source.listing()
    # Without `./`, in the archive's order.
    assert [s.key for s in listing.samples] == [f"{name}/x/{picture}" for picture in pictures_made]
    assert [s.caption for s in listing.samples] == [f"picture {picture}" for picture in pictures_made]
    assert [source.data(s) for s in listing.samples] == list(pictures_made.values())
    assert [source.data(s) for s in reversed(listing.samples)] == list(pictures_made.values())[::-1]


@pytest.mark.parametrize("name", ["a.tar", "a.zip", "a.tgz"])
def test_samples_can_be_read_from_the_published_list_alone(tmp_path, pictures_made, name):
    path = make(tmp_path / name, with_captions(pictures_made))
    listing = open_source(path).listing()
    again = type(listing).from_tsv(listing.to_tsv(), "samples.tsv")
    source = open_source(path)
    assert [source.data(s) for s in again.samples] == list(pictures_made.values())
    assert source.unchanged(again)


def test_a_pattern_or_folder_of_archives_is_one_source_ordered_by_name(tmp_path, pictures_made):
    (tmp_path / "all").mkdir()
    for name in ("b.tar", "B.tar", "é.tar", "a.tar"):
        make_tar(tmp_path / "all" / name, [("x.jpg", b"1")])
    (tmp_path / "all" / "_info.json").write_text("{}")
    expected = ["B.tar/x.jpg", "a.tar/x.jpg", "b.tar/x.jpg", "é.tar/x.jpg"]
    for source in (tmp_path / "all" / "*.tar", tmp_path / "all"):
        assert [s.key for s in open_source(source).listing().samples] == expected


def test_archives_of_one_name_in_two_folders_have_different_keys(tmp_path):
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        make_zip(tmp_path / folder / "part.zip", [("x.webp", folder.encode())])
    source = open_source(tmp_path / "*" / "part.zip")
    samples = source.listing().samples
    assert [s.key for s in samples] == ["one/part.zip/x.webp", "two/part.zip/x.webp"]
    assert [source.data(s) for s in samples] == [b"one", b"two"]


def test_files_of_several_kinds_in_one_pattern_are_refused(tmp_path):
    make_tar(tmp_path / "a.tar", [("x.jpg", b"1")])
    make_zip(tmp_path / "b.zip", [("x.jpg", b"1")])
    for source in (tmp_path / "*", tmp_path):
        with pytest.raises(LatentqError, match=r"several kinds \(tar, zip\)"):
            open_source(source)
    with pytest.raises(FileNotFoundError):
        open_source(tmp_path / "*.tgz")


@pytest.mark.parametrize("name", FORMATS)
@settings(max_examples=25, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.text(st.characters(exclude_characters="\0/", exclude_categories=["Cs"]), min_size=1, max_size=150),
            st.binary(max_size=1200),
        ),
        max_size=6,
        unique_by=lambda member: member[0],
    )
)
def test_tars_of_every_format_are_read_as_by_tarfile(tmp_path_factory, name, members):
    path = tmp_path_factory.mktemp("tar") / "a.tar"
    fits = [(n, d) for n, d in members if name != "ustar" or len(n.encode()) <= 100]
    make_tar(path, [(f"{n}.jpg", d) for n, d in fits if len(f"{n}.jpg".encode()) <= 100 or name != "ustar"],
             format=FORMATS[name])  # fmt: skip
    tar = Tar(path)
    with tarfile.open(path) as reference:
        assert [(m.name, m.offset, m.size) for m in tar.members(lambda _: Reads())] == [
            (m.name, m.offset_data, m.size) for m in reference.getmembers()
        ]
    tar.close()


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
        listing = open_source(path).listing()
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
    assert faults(source) == {
        "a.tar/link.jpg": "a link or device, not a file",
        "a.tar/sparse.jpg": "a sparse member",
        "a.tar/a.jpg#2": "a member of this name came before",
    }
    assert source.listing().notes == ("members that are not images are skipped: 2",)
    assert source.data(source.listing().samples[0]) == b"1"


def test_a_header_that_promises_too_much_allocates_nothing(tmp_path):
    info = tarfile.TarInfo("huge.jpg")
    info.size = 1 << 40
    head = info.tobuf(tarfile.GNU_FORMAT)
    first = tarfile.TarInfo("a.jpg")
    first.size = 1
    (tmp_path / "a.tar").write_bytes(first.tobuf(tarfile.GNU_FORMAT) + b"1".ljust(512, b"\0") + head)
    found = faults(open_source(tmp_path / "a.tar"))
    assert "cut short" in found["a.tar/huge.jpg"]
    long = tarfile.TarInfo("././@LongLink")
    long.type, long.size = tarfile.GNUTYPE_LONGNAME, 1 << 33
    (tmp_path / "a.tar").write_bytes(
        first.tobuf(tarfile.GNU_FORMAT) + b"1".ljust(512, b"\0") + long.tobuf(tarfile.GNU_FORMAT)
    )
    assert "extension of 8589934592 bytes" in faults(open_source(tmp_path / "a.tar"))["a.tar"]


@pytest.mark.parametrize("name", ["a.tar", "a.tgz", "a.zip"])
def test_a_cut_off_archive_loses_nothing_silently(tmp_path, pictures_made, name):
    path = make(tmp_path / name, [("noise.jpg", np.random.default_rng(0).bytes(9000)), *pictures_made.items()])
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    if name == "a.zip":  # its directory was at the end
        with pytest.raises(FormatError, match=r"a\.zip hold no images: offset 0: not a zip"):
            open_source(path).listing()
        return
    listing = open_source(path).listing()
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
        open_source(tmp_path / name).listing()
    other = make(tmp_path / f"b{name[1:]}", pictures_made.items())
    listing = open_source(tmp_path / f"*{other.suffix}").listing()
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
    assert faults(source) == {
        "a.zip/other.jpg": "compressed by method 12; only stored and deflated members can be read",
        "a.zip/locked.jpg": "encrypted",
    }
    samples = {s.key: s for s in source.listing().samples}
    assert source.data(samples["a.zip/good.jpg"]) == data
    with pytest.raises(FormatError, match=r"compressed data is broken|checksum differs|bytes that are listed"):
        source.data(samples["a.zip/bent.jpg"])


def test_a_zip_written_as_a_stream_is_read_with_its_checksums(tmp_path):
    class Pipe(io.RawIOBase):
        """Cannot seek, so sizes and checksums come after the data."""

        def __init__(self):
            self.data = b""

        def writable(self):
            return True

        def write(self, data):
            self.data += bytes(data)
            return len(data)

    pipe = Pipe()
    with zipfile.ZipFile(pipe, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("a.jpg", b"one" * 100)
        file.writestr("b.jpg", b"two" * 100, zipfile.ZIP_STORED)
    (tmp_path / "a.zip").write_bytes(pipe.data)
    source = open_source(tmp_path / "a.zip")
    samples = source.listing().samples
    assert [source.data(s) for s in samples] == [b"one" * 100, b"two" * 100]
    (tmp_path / "a.zip").write_bytes(pipe.data.replace(b"twotwo", b"twotoo", 1))
    with pytest.raises(FormatError, match="checksum"):
        open_source(tmp_path / "a.zip").data(samples[1])


def test_a_deflate_bomb_is_inflated_only_to_its_listed_size(tmp_path):
    path = make_zip(tmp_path / "a.zip", [("a.jpg", bytes(100_000_000))], zipfile.ZIP_DEFLATED)
    raw = bytearray(path.read_bytes())
    directory = raw.rindex(b"PK\1\2")
    raw[directory + 24 : directory + 28] = struct.pack("<L", 1000)
    path.write_bytes(raw)
    source = open_source(path)
    with pytest.raises(FormatError, match="holds more of the 1000 bytes"):
        source.data(source.listing().samples[0])


def test_member_names_never_become_paths(tmp_path, pictures_made):
    data = next(iter(pictures_made.values()))
    members = [("../up.jpg", data), ("/abs.jpg", data), ("a\tb\nc.jpg", data), ("..\\w.jpg", data)]
    (tmp_path / "in").mkdir()
    path = make_tar(tmp_path / "in" / "a.tar", members)
    encode(path, tmp_path / "out", size=64)
    assert {entry.name for entry in tmp_path.iterdir()} == {"in", "out"}
    keys = [line.split("\t")[0] for line in (tmp_path / "out" / "samples.tsv").read_text().splitlines()[1:]]
    assert keys == ["a.tar/../up.jpg", "a.tar//abs.jpg", "a.tar/a\\tb\\nc.jpg", "a.tar/..\\\\w.jpg"]


def test_a_name_that_is_not_utf_8_is_a_reject(tmp_path, pictures_made):
    data = next(iter(pictures_made.values()))
    make_tar(tmp_path / "a.tar", [(os.fsdecode(b"\xff.jpg"), data), ("b.jpg", data)], format=tarfile.GNU_FORMAT)
    assert encode(tmp_path / "a.tar", tmp_path / "out", size=64).counts.rejects == 1
    assert (tmp_path / "out" / "rejects.tsv").read_text() == "a.tar/\\\\udcff.jpg\tlist\tthe file's name is not UTF-8\n"


# Captions in the archive.


def test_an_image_without_a_caption_and_a_caption_without_an_image_are_rejects(tmp_path, pictures_made):
    members = [
        *with_captions(pictures_made),
        ("alone.txt", b"a caption"),
        ("bare.jpg", next(iter(pictures_made.values()))),
    ]
    members += [("bad.jpg", b"x"), ("bad.txt", b"\xff"), ("blank.jpg", b"x"), ("blank.txt", b" \n")]
    found = faults(open_source(make_tar(tmp_path / "a.tar", members)))
    assert found == {
        "a.tar/alone.txt": "no image for this caption",
        "a.tar/bare.jpg": "no caption",
        "a.tar/bad.jpg": "its caption is not UTF-8",
        "a.tar/blank.jpg": "no caption: it is empty",
    }


def test_captions_may_be_a_field_of_json(tmp_path):
    members = [("1.jpg", b"x"), ("1.json", b'{"caption": "one", "prompt": "uno"}'), ("2.jpg", b"x"), ("2.json", b"{}")]
    path = make_zip(tmp_path / "a.zip", members)
    assert open_source(path).listing().fields[0] != "caption"
    listing = open_source(path, captions="json").listing()
    assert [(s.caption, s.fault) for s in listing.samples] == [
        ("one", ""),
        (None, "no caption: no text of a usual name (caption, text, prompt, captions, reference_strs) in its JSON"),
    ]
    assert open_source(path, captions="json:prompt").listing().samples[0].caption == "uno"
    with pytest.raises(LatentqError, match="neither a file, nor txt"):
        open_source(path, captions="captions.xml")


@pytest.mark.parametrize("image", ["png", "image.png"])
@pytest.mark.parametrize("caption", ["txt", "caption.txt", "TEXT.txt"])
def test_a_webdataset_key_ends_at_the_first_dot(tmp_path, image, caption):
    webdataset = pytest.importorskip("webdataset")
    members = []
    for number in range(2):
        members += [(f"a/{number:04}.{image}", b"image"), (f"a/{number:04}.{caption}", b"caption %d" % number)]
    path = make_tar(tmp_path / "a.tar", members)
    listing = open_source(path).listing()
    expected = [sample[caption.lower()].decode() for sample in webdataset.WebDataset(str(path), shardshuffle=False)]
    assert [(s.caption, s.fault) for s in listing.samples] == [(text, "") for text in expected]


@pytest.mark.parametrize("kind", ["zip", "tar", "folder"])
def test_names_with_dots_keep_their_own_captions(tmp_path, kind):
    names = ("a 2.0 x", "a 2.0 y", "a 2.1", "b")
    members = [(f"{name}.png", b"image") for name in names] + [(f"{name}.txt", name.encode()) for name in names]
    if kind == "folder":
        for name, data in members:
            (tmp_path / name).write_bytes(data)
        listing = open_source(tmp_path, captions="txt").listing()
    else:
        make = make_zip if kind == "zip" else make_tar
        listing = open_source(make(tmp_path / f"a.{kind}", members)).listing()
    assert {s.key.rpartition("/")[2]: s.caption for s in listing.samples} == {f"{name}.png": name for name in names}


def test_a_zip_has_no_webdataset_keys(tmp_path):
    path = make_zip(
        tmp_path / "a.zip", [("v1.0.png", b"x"), ("v1.1.png", b"x"), ("v1.txt", b"other"), ("v1.1.txt", b"own")]
    )
    samples = open_source(path).listing().samples
    assert [(s.caption, s.fault) for s in samples] == [
        (None, "no caption"),
        ("own", ""),
        (None, "no image for this caption"),
    ]


def test_several_captions_of_one_key_are_chosen_by_name(tmp_path):
    members = [("1.png", b"x"), ("1.prompt.txt", b"third"), ("1.text.txt", b"second"), ("1.notes.txt", b"never")]
    path = make_tar(tmp_path / "a.tar", members)
    listing = open_source(path).listing()
    assert listing.samples[0].caption == "second"
    assert faults(open_source(path)) == {"a.tar/1.notes.txt": "no image for this caption"}
    path = make_tar(tmp_path / "a.tar", [*members, ("1.txt", b"first")])
    assert open_source(path).listing().samples[0].caption == "first"


def test_cls_members_are_labels(tmp_path):
    members = []
    for number in range(3):
        members += [(f"{number}.image.png", b"x"), (f"{number}.cls", b"%d\n" % (7 * number))]
    listing = open_source(make_tar(tmp_path / "a.tar", members)).listing()
    assert [s.label for s in listing.samples] == [0, 7, 14]
    assert (listing.fields[0], listing.notes) == ("label", ())
    listing = open_source(make_zip(tmp_path / "a.zip", [("1.png", b"x"), ("1.cls", b"cat"), ("2.png", b"x")])).listing()
    assert [(s.label, s.label_text, s.fault) for s in listing.samples] == [(0, "cat", ""), (None, None, "")]
    assert listing.notes == ("1 of 2 samples have no label, a.zip/2.png first",)


def test_one_image_of_several_of_a_key_can_be_named(tmp_path):
    members = [
        ("1.mask.png", b"mask"),
        ("1.image.png", b"image"),
        ("1.txt", b"a"),
        ("2.mask.png", b"m"),
        ("2.image.jpg", b"i"),
    ]
    path = make_tar(tmp_path / "a.tar", members)
    listing = open_source(path).listing()
    assert len(listing.samples) == 4
    note = "a.tar has several images of one key, 1.mask.png and 1.image.png: each is a sample; "
    assert listing.notes == (f"{note}--image-column names the one to take",)
    source = open_source(path, image_column="image")
    listing = source.listing()
    assert [source.data(sample) for sample in listing.samples] == [b"image", b"i"]
    assert listing.samples[0].caption == "a"


@pytest.mark.parametrize("name", ["a.tar", "a.tgz", "a.zip"])
def test_members_are_images_by_their_bytes_if_their_names_do_not_tell(tmp_path, pictures_made, name):
    jpeg = next(iter(pictures_made.values()))
    images = ["1.jpg", "2", "3.jpg?w=1", "4.dat", "5.avif", "6.HEIC"]
    others = ["7", "8.dat", "9.csv", "__MACOSX/1.jpg", "@eaDir/1.jpg/thumb.jpg", "._1.jpg"]
    members = [(inside, jpeg if inside[0] in "1234_@." else b"\1\2\3" * 99) for inside in [*images, *others]]
    source = open_source(make(tmp_path / name, members))
    listing = source.listing()
    assert [s.key for s in listing.samples] == [f"{name}/{inside}" for inside in images]
    assert listing.notes == ("members that are not images are skipped: 6",)
    assert [source.data(s) for s in listing.samples[:4]] == [jpeg] * 4


@pytest.mark.parametrize("name", ["a.tgz", "a.zip"])
def test_large_sidecars_are_not_read(tmp_path, name):
    members = [("1.jpg", b"x"), ("1.txt", bytes(50_000_000)), ("2.jpg", b"x"), ("2.txt", b"two")]
    path = make(tmp_path / name, members)
    tracemalloc.start()
    found = faults(open_source(path))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert found == {f"{name}/1.jpg": "its caption: 50000000 bytes, more than the 65536 that are read"}
    assert peak < 10_000_000


@pytest.mark.parametrize("name", ["a.tar", "a.tgz", "a.zip"])
def test_the_captions_of_an_archive_have_a_bound_in_bytes(tmp_path, monkeypatch, name):
    path = make(tmp_path / name, [(f"{i}.txt", b"caption " * 100) for i in range(20)] + [("1.jpg", b"x")])
    monkeypatch.setattr("latentq.sources.archives._TEXT_BYTES", 8_000)
    with pytest.raises(LatentqError, match=f"{name}: its captions and labels take more than"):
        open_source(path).listing()


def test_members_above_the_pixel_limit_are_rejects(tmp_path):
    info = tarfile.TarInfo("huge.jpg")
    info.size = MAX_MEMBER_BYTES + 1
    first = tarfile.TarInfo("1.jpg")
    with (tmp_path / "a.tar").open("wb") as file:
        file.write(first.tobuf() + info.tobuf())
        file.seek(info.size, 1)
        file.write(bytes(2048))
    fault = f"{info.size} bytes, more than the {MAX_MEMBER_BYTES} of an image at the pixel limit"
    assert faults(open_source(tmp_path / "a.tar")) == {"a.tar/huge.jpg": fault}


@pytest.mark.parametrize("name", ["a.tgz", "a.zip"])
def test_a_large_member_is_read_only_if_it_begins_as_an_image(tmp_path, name, monkeypatch):
    monkeypatch.setattr("latentq.sources.archives._LARGE_BYTES", 1000)
    jpeg = b"\xff\xd8\xff" + bytes(2000)
    source = open_source(make(tmp_path / name, [("bomb.jpg", bytes(2000)), ("large.jpg", jpeg)]))
    bomb, large = source.listing().samples
    with pytest.raises(FormatError, match=r"^not an image$"):
        source.data(bomb)
    assert source.data(large) == jpeg


def test_members_of_one_name_are_listed_in_linear_time(tmp_path):
    path = make_tar(tmp_path / "a.tar", [("b.jpg#3", b""), *[("b.jpg", b"")] * 20_000])
    start = time.process_time()
    samples = open_source(path).listing().samples
    assert time.process_time() - start < 20  # by trying every number from 2 it took minutes
    assert len({sample.key for sample in samples}) == len(samples) == 20_000
    assert sum(sample.fault == "a member of this name came before" for sample in samples) == 19_999


def test_gzip_is_detected_by_its_bytes_and_not_by_the_name(tmp_path, pictures_made):
    packed = make_tar(tmp_path / "x.tgz", pictures_made.items(), "w:gz").rename(tmp_path / "a.tar")
    plain = make_tar(tmp_path / "x.tar", pictures_made.items()).rename(tmp_path / "b.tar.gz")
    for path in (packed, plain):
        source = open_source(path)
        listing = source.listing()
        assert [source.data(s) for s in reversed(listing.samples)] == list(pictures_made.values())[::-1]
        assert bool(listing.notes) == (path == packed)
        card = encode(path, tmp_path / f"out of {path.name}", size=64, unit_size=3)
        assert card.counts.samples == len(pictures_made)


# Units and processes.


def test_each_compressed_tar_is_one_unit(tmp_path, pictures_made):
    for name in ("a.tgz", "b.tar", "c.tgz"):
        make(tmp_path / name, pictures_made.items())
    listing = open_source(tmp_path / "*").listing()
    assert listing.units(3) == [range(8), range(8, 11), range(11, 14), range(14, 16), range(16, 24)]
    card = encode(tmp_path / "*.tgz", tmp_path / "out", size=64, unit_size=3)
    assert card.units == 2
    assert sorted(p.name for p in (tmp_path / "out").iterdir() if p.is_dir()) == ["00000", "00001"]


@pytest.mark.parametrize("suffix", [".tar", ".tgz", ".zip"])
def test_any_number_of_processes_makes_the_same_dataset(tmp_path, pictures_made, suffix):
    for name in ("a", "b", "c"):
        make(tmp_path / f"{name}{suffix}", with_captions(pictures_made))
    outputs = []
    for world_size in (1, 2, 3):
        out = tmp_path / f"out{world_size}"
        for rank in reversed(range(world_size)):
            encode(tmp_path / f"*{suffix}", out, size=64, unit_size=5, rank=rank, world_size=world_size)
        outputs.append(contents(out))
    assert outputs[0] == outputs[1] == outputs[2]
    assert b"captions" not in outputs[0]["rejects.tsv"]


@pytest.mark.parametrize("name", ["a.tar", "a.zip"])
def test_a_unit_reads_only_its_own_bytes(tmp_path, monkeypatch, name):
    noise = np.random.default_rng(0)
    path = make(tmp_path / name, [(f"{i}.jpg", noise.bytes(20_000)) for i in range(40)])
    listing = open_source(path).listing()
    source, read, pread = open_source(path), [], os.pread
    monkeypatch.setattr(os, "pread", lambda fd, count, at: read.append((at, count)) or pread(fd, count, at))
    unit = [source.data(listing.samples[number]) for number in listing.units(10)[2]]
    first, last = listing.samples[20].offset, listing.samples[29].offset
    assert all(first <= at and at + count <= last + 20_200 for at, count in read)
    assert sum(count for _, count in read) < sum(map(len, unit)) + 10 * 200


def test_a_compressed_tar_is_read_once_for_the_list_and_once_for_its_unit(tmp_path, pictures_made, monkeypatch):
    path = make(tmp_path / "a.tgz", pictures_made.items())
    opens, gzip_open = [], gzip.open
    monkeypatch.setattr(gzip, "open", lambda *args: opens.append(args) or gzip_open(*args))
    source = open_source(path)
    samples = source.listing().samples
    assert len(opens) == 1
    assert [source.data(sample) for sample in samples] == list(pictures_made.values())
    assert len(opens) == 2


def test_the_originals_of_a_dataset_are_found_in_their_archive(tmp_path, pictures_made):
    path = make(tmp_path / "a.tgz", pictures_made.items())
    encode(path, tmp_path / "out", size=64)
    picture = tmp_path / "sheet.png"
    assert main(["decode", str(tmp_path / "out"), "--source", str(path), "-o", str(picture)]) == 0
    assert picture.exists()


def test_the_output_may_be_next_to_the_archives(tmp_path, pictures_made):
    make(tmp_path / "a.zip", pictures_made.items())
    for _ in range(2):
        assert encode(tmp_path, tmp_path / "out", size=64).source.kind == "zip"


def test_every_process_refuses_a_changed_archive(tmp_path, pictures_made):
    path = make_tar(tmp_path / "a.tar", pictures_made.items())
    encode(path, tmp_path / "out", size=64, unit_size=4, rank=0, world_size=2)
    make_tar(path, [*pictures_made.items(), ("more.jpg", bytes(20_000))])
    with pytest.raises(MismatchError, match=r"8 samples, the source has 9 now"):
        encode(path, tmp_path / "out", size=64, unit_size=4, rank=0, world_size=2)
    with pytest.raises(MismatchError, match=r"a\.tar is listed with \d+ bytes and has \d+ bytes now"):
        encode(path, tmp_path / "out", size=64, unit_size=4, rank=1, world_size=2)


def test_archives_are_listed_once(tmp_path, pictures_made, monkeypatch):
    path = make(tmp_path / "a.tgz", pictures_made.items())
    encode(path, tmp_path / "out", size=64, rank=0, world_size=1)
    monkeypatch.setattr(Tar, "members", lambda *_: pytest.fail("listed again"))
    encode(path, tmp_path / "out", size=64)


def test_tars_of_webdatasets_own_writer_are_read(tmp_path, pictures_made):
    webdataset = pytest.importorskip("webdataset")
    with webdataset.TarWriter(str(tmp_path / "a.tar")) as writer:
        for name, data in pictures_made.items():
            writer.write({"__key__": name[:3], "jpg": data, "txt": f"of {name}", "json": {"width": 1}})
    source = open_source(tmp_path / "a.tar")
    samples = source.listing().samples
    assert [(s.key, s.caption) for s in samples] == [(f"a.tar/{name}", f"of {name}") for name in pictures_made]
    assert [source.data(s) for s in samples] == list(pictures_made.values())


def test_a_broken_image_in_an_archive_is_one_reject(tmp_path, pictures_made):
    make(tmp_path / "a.tgz", [*pictures_made.items(), ("broken.jpg", b"no")])
    assert vars(encode(tmp_path / "a.tgz", tmp_path / "out", size=64).counts)["rejects"] == 1
    assert (tmp_path / "out" / "rejects.tsv").read_text().startswith("a.tgz/broken.jpg\tdecode\t")


def test_a_folder_of_images_and_archives_is_a_folder_source(tmp_path):
    paint(tmp_path / "x.png", 1)
    make_tar(tmp_path / "a.tar", [("x.jpg", b"1")])
    assert open_source(tmp_path).kind == "folder"


def test_archive_names_do_not_depend_on_other_files(tmp_path):
    pictures = pictures_of(tmp_path / "pictures", 2)
    for part in ("a", "b"):
        (tmp_path / "all" / part).mkdir(parents=True)
        make_tar(tmp_path / "all" / part / "0.tar", pictures.items())
    pattern = str(tmp_path / "all" / "*" / "*.tar")
    assert {sample.archive for sample in open_source(pattern).listing().samples} == {"a/0.tar", "b/0.tar"}
    (tmp_path / "all" / "a" / "0.tar").unlink()
    assert {sample.archive for sample in open_source(pattern).listing().samples} == {"b/0.tar"}


def test_listing_many_archives_shows_progress(tmp_path, monkeypatch):
    for number in range(3):
        make_tar(tmp_path / f"{number}.tar", pictures_of(tmp_path / "pictures" / str(number), 1).items())
    output = io.StringIO()
    pattern = str(tmp_path / "*.tar")
    open_source(pattern, progress=output).listing()
    assert output.getvalue() == ""  # it did not take long
    monkeypatch.setattr("latentq.system.progress._LINE_SECONDS", 0.0)
    open_source(pattern, progress=output).listing()
    assert output.getvalue().splitlines()[-1].startswith("list: 3 of 3 archives, ")
