"""Archives as sources: tars and zips are listed in order, and read by position."""

import gzip
import io
import os
import tarfile
import zipfile

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conftest import contents, paint
from latentq import FormatError, LatentqError, encode
from latentq.cli.main import main
from latentq.run.sample_list import cut_into_units
from latentq.sources import open_source
from latentq.sources.member import Reads
from latentq.sources.tar import Tar
from support.archive_making import make_archive, make_tar, make_zip, pictures_of, with_captions
from support.listing import listed, read_back

FORMATS = {"ustar": tarfile.USTAR_FORMAT, "gnu": tarfile.GNU_FORMAT, "pax": tarfile.PAX_FORMAT}


@pytest.mark.parametrize("name", ["a.tar", "a.tgz", "a.tar.gz", "a.zip"])
def test_every_member_is_listed_with_its_caption_and_read_by_its_offset(tmp_path, pictures_made, name):
    source = open_source(make_archive(tmp_path / name, with_captions(pictures_made, "./x/")))
    listing = listed(source)
    # Without `./`, in the archive's order.
    assert [s.key for s in listing.samples] == [f"{name}/x/{picture}" for picture in pictures_made]
    assert [s.caption for s in listing.samples] == [f"picture {picture}" for picture in pictures_made]
    assert [source.data(s) for s in listing.samples] == list(pictures_made.values())
    assert [source.data(s) for s in reversed(listing.samples)] == list(pictures_made.values())[::-1]


@pytest.mark.parametrize("name", ["a.tar", "a.zip", "a.tgz"])
def test_samples_can_be_read_from_the_published_list_alone(tmp_path, pictures_made, name):
    path = make_archive(tmp_path / name, with_captions(pictures_made))
    listing = listed(open_source(path))
    again = read_back(listing, tmp_path / "list")
    assert [*again] == list(listing.samples)
    source = open_source(path)
    assert [source.data(s) for s in again] == list(pictures_made.values())
    assert source.unchanged(again)


def test_a_pattern_or_folder_of_archives_is_one_source_ordered_by_name(tmp_path, pictures_made):
    (tmp_path / "all").mkdir()
    for name in ("b.tar", "B.tar", "é.tar", "a.tar"):
        make_tar(tmp_path / "all" / name, [("x.jpg", b"1")])
    (tmp_path / "all" / "_info.json").write_text("{}")
    expected = ["B.tar/x.jpg", "a.tar/x.jpg", "b.tar/x.jpg", "é.tar/x.jpg"]
    for source in (tmp_path / "all" / "*.tar", tmp_path / "all"):
        assert [s.key for s in listed(open_source(source)).samples] == expected


def test_archives_of_one_name_in_two_folders_have_different_keys(tmp_path):
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        make_zip(tmp_path / folder / "part.zip", [("x.webp", folder.encode())])
    source = open_source(tmp_path / "*" / "part.zip")
    samples = listed(source).samples
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
    samples = listed(source).samples
    assert [source.data(s) for s in samples] == [b"one" * 100, b"two" * 100]
    (tmp_path / "a.zip").write_bytes(pipe.data.replace(b"twotwo", b"twotoo", 1))
    with pytest.raises(FormatError, match="checksum"):
        open_source(tmp_path / "a.zip").data(samples[1])


@pytest.mark.parametrize("name", ["a.tar", "a.tgz", "a.zip"])
def test_members_are_images_by_their_bytes_if_their_names_do_not_tell(tmp_path, pictures_made, name):
    jpeg = next(iter(pictures_made.values()))
    images = ["1.jpg", "2", "3.jpg?w=1", "4.dat", "5.avif", "6.HEIC"]
    others = ["7", "8.dat", "9.csv", "__MACOSX/1.jpg", "@eaDir/1.jpg/thumb.jpg", "._1.jpg"]
    members = [(inside, jpeg if inside[0] in "1234_@." else b"\1\2\3" * 99) for inside in [*images, *others]]
    source = open_source(make_archive(tmp_path / name, members))
    listing = listed(source)
    assert [s.key for s in listing.samples] == [f"{name}/{inside}" for inside in images]
    assert listing.notes == ("members that are not images are skipped: 6",)
    assert [source.data(s) for s in listing.samples[:4]] == [jpeg] * 4


def test_gzip_is_detected_by_its_bytes_and_not_by_the_name(tmp_path, pictures_made):
    packed = make_tar(tmp_path / "x.tgz", pictures_made.items(), "w:gz").rename(tmp_path / "a.tar")
    plain = make_tar(tmp_path / "x.tar", pictures_made.items()).rename(tmp_path / "b.tar.gz")
    for path in (packed, plain):
        source = open_source(path)
        listing = listed(source)
        assert [source.data(s) for s in reversed(listing.samples)] == list(pictures_made.values())[::-1]
        assert bool(listing.notes) == (path == packed)
        card = encode(path, tmp_path / f"out of {path.name}", size=64, unit_size=3)
        assert card.counts.samples == len(pictures_made)


# Units and processes.


def test_each_compressed_tar_is_one_unit(tmp_path, pictures_made):
    for name in ("a.tgz", "b.tar", "c.tgz"):
        make_archive(tmp_path / name, pictures_made.items())
    listing = listed(open_source(tmp_path / "*"))
    assert [len(unit) for unit in cut_into_units(listing.samples, 3)] == [8, 3, 3, 2, 8]
    card = encode(tmp_path / "*.tgz", tmp_path / "out", size=64, unit_size=3)
    assert card.units == 2
    assert sorted(p.name for p in (tmp_path / "out").iterdir() if p.is_dir()) == ["00000", "00001", "list"]


@pytest.mark.parametrize("suffix", [".tar", ".tgz", ".zip"])
def test_any_number_of_processes_makes_the_same_dataset(tmp_path, pictures_made, suffix):
    for name in ("a", "b", "c"):
        make_archive(tmp_path / f"{name}{suffix}", with_captions(pictures_made))
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
    path = make_archive(tmp_path / name, [(f"{i}.jpg", noise.bytes(20_000)) for i in range(40)])
    listing = listed(open_source(path))
    source, read, pread = open_source(path), [], os.pread
    monkeypatch.setattr(os, "pread", lambda fd, count, at: read.append((at, count)) or pread(fd, count, at))
    unit = [source.data(sample) for sample in [*cut_into_units(listing.samples, 10)][2]]
    first, last = listing.samples[20].offset, listing.samples[29].offset
    read = [entry for entry in read if entry != (0, 2)]  # whether it is gzip
    assert all(first <= at and at + count <= last + 20_200 for at, count in read)
    assert sum(count for _, count in read) < sum(map(len, unit)) + 10 * 200


def test_a_compressed_tar_is_read_once_for_the_list_and_once_for_its_unit(tmp_path, pictures_made, monkeypatch):
    path = make_archive(tmp_path / "a.tgz", pictures_made.items())
    opens, gzip_file = [], gzip.GzipFile
    monkeypatch.setattr(gzip, "GzipFile", lambda **args: opens.append(args) or gzip_file(**args))
    source = open_source(path)
    samples = listed(source).samples
    assert len(opens) == 1
    assert [source.data(sample) for sample in samples] == list(pictures_made.values())
    assert len(opens) == 2


def test_the_originals_of_a_dataset_are_found_in_their_archive(tmp_path, pictures_made):
    path = make_archive(tmp_path / "a.tgz", pictures_made.items())
    encode(path, tmp_path / "out", size=64)
    picture = tmp_path / "sheet.png"
    assert main(["decode", str(tmp_path / "out"), "--source", str(path), "-o", str(picture)]) == 0
    assert picture.exists()


def test_the_output_may_be_next_to_the_archives(tmp_path, pictures_made):
    make_archive(tmp_path / "a.zip", pictures_made.items())
    for _ in range(2):
        assert encode(tmp_path, tmp_path / "out", size=64).source.kind == "zip"


def test_archives_are_listed_once(tmp_path, pictures_made, monkeypatch):
    path = make_archive(tmp_path / "a.tgz", pictures_made.items())
    encode(path, tmp_path / "out", size=64, rank=0, world_size=1)
    monkeypatch.setattr(Tar, "members", lambda *_: pytest.fail("listed again"))
    encode(path, tmp_path / "out", size=64)


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
    assert {sample.archive for sample in listed(open_source(pattern)).samples} == {"a/0.tar", "b/0.tar"}
    (tmp_path / "all" / "a" / "0.tar").unlink()
    assert {sample.archive for sample in listed(open_source(pattern)).samples} == {"b/0.tar"}


def test_listing_many_archives_shows_progress(tmp_path, monkeypatch):
    for number in range(3):
        make_tar(tmp_path / f"{number}.tar", pictures_of(tmp_path / "pictures" / str(number), 1).items())
    output = io.StringIO()
    pattern = str(tmp_path / "*.tar")
    listed(open_source(pattern, progress=output))
    assert output.getvalue() == ""  # it did not take long
    monkeypatch.setattr("latentq.system.progress._LINE_SECONDS", 0.0)
    listed(open_source(pattern, progress=output))
    assert output.getvalue().splitlines()[-1].startswith("list: 3 of 3 archives, ")
