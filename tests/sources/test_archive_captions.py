"""Captions, labels and images in archives, matched by name: sidecars, JSON fields and WebDataset's keys."""

import tracemalloc

import pytest

from latentq import LatentqError
from latentq.sources import open_source
from support.archive_making import faults_of, make_archive, make_tar, make_zip, with_captions
from support.listing import known, listed

# Captions in the archive.


def test_an_image_without_a_caption_and_a_caption_without_an_image_are_rejects(tmp_path, pictures_made):
    members = [
        *with_captions(pictures_made),
        ("alone.txt", b"a caption"),
        ("bare.jpg", next(iter(pictures_made.values()))),
    ]
    members += [("bad.jpg", b"x"), ("bad.txt", b"\xff"), ("blank.jpg", b"x"), ("blank.txt", b" \n")]
    found = faults_of(open_source(make_tar(tmp_path / "a.tar", members)))
    assert found == {
        "a.tar/alone.txt": "no image for this caption",
        "a.tar/bare.jpg": "no caption",
        "a.tar/bad.jpg": "its caption is not UTF-8",
        "a.tar/blank.jpg": "no caption: it is empty",
    }


def test_captions_may_be_a_field_of_json(tmp_path):
    members = [("1.jpg", b"x"), ("1.json", b'{"caption": "one", "prompt": "uno"}'), ("2.jpg", b"x"), ("2.json", b"{}")]
    path = make_zip(tmp_path / "a.zip", members)
    assert known(listed(open_source(path))) == ()
    listing = listed(open_source(path, captions="json"))
    assert [(s.caption, s.fault) for s in listing.samples] == [
        ("one", ""),
        (
            None,
            "no caption: no text of a usual name (caption, text, prompt, captions, reference_strs, txt) in its JSON",
        ),
    ]
    assert listed(open_source(path, captions="json:prompt")).samples[0].caption == "uno"
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
    listing = listed(open_source(path))
    expected = [sample[caption.lower()].decode() for sample in webdataset.WebDataset(str(path), shardshuffle=False)]
    assert [(s.caption, s.fault) for s in listing.samples] == [(text, "") for text in expected]


@pytest.mark.parametrize("kind", ["zip", "tar", "folder"])
def test_names_with_dots_keep_their_own_captions(tmp_path, kind):
    names = ("a 2.0 x", "a 2.0 y", "a 2.1", "b")
    members = [(f"{name}.png", b"image") for name in names] + [(f"{name}.txt", name.encode()) for name in names]
    if kind == "folder":
        for name, data in members:
            (tmp_path / name).write_bytes(data)
        listing = listed(open_source(tmp_path, captions="txt"))
    else:
        make = make_zip if kind == "zip" else make_tar
        listing = listed(open_source(make(tmp_path / f"a.{kind}", members)))
    assert {s.key.rpartition("/")[2]: s.caption for s in listing.samples} == {f"{name}.png": name for name in names}


def test_a_zip_has_no_webdataset_keys(tmp_path):
    path = make_zip(
        tmp_path / "a.zip", [("v1.0.png", b"x"), ("v1.1.png", b"x"), ("v1.txt", b"other"), ("v1.1.txt", b"own")]
    )
    samples = listed(open_source(path)).samples
    assert [(s.caption, s.fault) for s in samples] == [
        (None, "no caption"),
        ("own", ""),
        (None, "no image for this caption"),
    ]


def test_several_captions_of_one_key_are_chosen_by_name(tmp_path):
    members = [("1.png", b"x"), ("1.prompt.txt", b"third"), ("1.text.txt", b"second"), ("1.notes.txt", b"never")]
    path = make_tar(tmp_path / "a.tar", members)
    listing = listed(open_source(path))
    assert listing.samples[0].caption == "second"
    assert faults_of(open_source(path)) == {"a.tar/1.notes.txt": "no image for this caption"}
    path = make_tar(tmp_path / "a.tar", [*members, ("1.txt", b"first")])
    assert listed(open_source(path)).samples[0].caption == "first"


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_a_txt_comes_first_whatever_the_case_of_its_field(tmp_path, order):
    texts = [("1.Caption.text", b"text"), ("1.caption.txt", b"txt")]
    path = make_tar(tmp_path / "a.tar", [("1.image.png", b"x"), *(texts[number] for number in order)])
    assert listed(open_source(path)).samples[0].caption == "txt"


def test_cls_members_are_labels(tmp_path):
    members = []
    for number in range(3):
        members += [(f"{number}.image.png", b"x"), (f"{number}.cls", b"%d\n" % (7 * number))]
    listing = listed(open_source(make_tar(tmp_path / "a.tar", members)))
    assert [s.label for s in listing.samples] == [0, 7, 14]
    assert (known(listing), listing.notes) == (("label",), ())
    listing = listed(open_source(make_zip(tmp_path / "a.zip", [("1.png", b"x"), ("1.cls", b"cat"), ("2.png", b"x")])))
    assert [(s.label, s.label_text, s.fault) for s in listing.samples] == [(0, "cat", ""), (None, None, "")]
    assert listing.notes == ("no label for 1 of 2 samples, a.zip/2.png first",)


def test_one_image_of_several_of_a_key_can_be_named(tmp_path):
    members = [
        ("1.mask.png", b"mask"),
        ("1.image.png", b"image"),
        ("1.txt", b"a"),
        ("2.mask.png", b"m"),
        ("2.image.jpg", b"i"),
    ]
    path = make_tar(tmp_path / "a.tar", members)
    listing = listed(open_source(path))
    assert len(listing.samples) == 4
    note = "a.tar has several images of one key, 1.mask.png and 1.image.png: each is a sample; "
    assert listing.notes == (f"{note}--image-column names the one to take",)
    source = open_source(path, image_column="image")
    listing = listed(source)
    assert [source.data(sample) for sample in listing.samples] == [b"image", b"i"]
    assert listing.samples[0].caption == "a"


@pytest.mark.parametrize("name", ["a.tgz", "a.zip"])
def test_large_sidecars_are_not_read(tmp_path, name):
    members = [("1.jpg", b"x"), ("1.txt", bytes(50_000_000)), ("2.jpg", b"x"), ("2.txt", b"two")]
    path = make_archive(tmp_path / name, members)
    tracemalloc.start()
    found = faults_of(open_source(path))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert found == {f"{name}/1.jpg": "its caption: 50000000 bytes, more than the 65536 that are read"}
    assert peak < 10_000_000


@pytest.mark.parametrize("name", ["a.tgz", "a.zip"])
def test_the_captions_of_a_compressed_archive_have_a_bound_in_bytes(tmp_path, monkeypatch, name):
    path = make_archive(tmp_path / name, [(f"{i}.txt", b"caption " * 100) for i in range(20)] + [("1.jpg", b"x")])
    monkeypatch.setattr("latentq.sources.archives._TEXT_BYTES", 8_000)
    with pytest.raises(LatentqError, match=f"{name}: its captions and labels take more than"):
        listed(open_source(path))


def test_tars_of_webdatasets_own_writer_are_read(tmp_path, pictures_made):
    webdataset = pytest.importorskip("webdataset")
    with webdataset.TarWriter(str(tmp_path / "a.tar")) as writer:
        for name, data in pictures_made.items():
            writer.write({"__key__": name[:3], "jpg": data, "txt": f"of {name}", "json": {"width": 1}})
    source = open_source(tmp_path / "a.tar")
    samples = listed(source).samples
    assert [(s.key, s.caption) for s in samples] == [(f"a.tar/{name}", f"of {name}") for name in pictures_made]
    assert [source.data(s) for s in samples] == list(pictures_made.values())
