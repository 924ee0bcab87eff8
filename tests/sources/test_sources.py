"""Folders and tables as sources: samples, their order, labels and captions."""

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conftest import paint
from latentq import FormatError, LatentqError, MismatchError
from latentq.run.sample_list import SampleList
from latentq.sources import Captions, Listing, Sample, open_source
from latentq.sources.rows import image_bytes
from support.listing import known, listed, read_back


def test_class_folders_become_labels_by_sorted_name(pictures):
    listing = listed(open_source(pictures))
    assert known(listing) == ("label", "label_text")
    assert [(s.key, s.label, s.label_text) for s in listing.samples][3:6] == [
        ("ant/09.jpg", 0, "ant"),
        ("bee/01.png", 1, "bee"),
        ("bee/04.png", 1, "bee"),
    ]
    assert all(s.bytes == (pictures / s.key).stat().st_size for s in listing.samples)


JUNK = ("axe/", "__MACOSX/ant/._1.png", "$RECYCLE.BIN/desktop.ini", "@eaDir/x.jpg/thumbnail.jpg", "a cache/notes.json")


@pytest.mark.parametrize("junk", JUNK)
def test_only_folders_with_images_of_their_own_are_classes(pictures, junk):
    before = listed(open_source(pictures)).samples
    file = pictures / junk
    (file if junk.endswith("/") else file.parent).mkdir(parents=True)
    if not junk.endswith("/"):
        file.write_bytes((pictures / "ant" / "00.jpg").read_bytes() if "@eaDir" in junk else b"\0\5\x16\7")
    listing = listed(open_source(pictures))
    assert listing.samples == before
    assert listing.notes or junk == "axe/"


def test_images_are_found_by_their_bytes_if_their_names_do_not_tell(tmp_path):
    paint(tmp_path / "a.jpg", 1)
    jpeg = (tmp_path / "a.jpg").read_bytes()
    for name in ("b.jpg?w=1", "c", "d.dat", "._e.jpg", "f.txt"):
        (tmp_path / name).write_bytes(jpeg)
    for name in ("g.avif", "h.HEIC", "i.jxl", "j.mpo", "k.apng", "l.jp2", "m.psd", "n.ppm"):
        (tmp_path / name).write_bytes(b"any bytes")
    (tmp_path / "o").write_bytes(b"\0\0\0\x18ftypheic" + bytes(16))
    (tmp_path / "p").write_bytes(b"no image")
    (tmp_path / "q").symlink_to(tmp_path / "nowhere")
    listing = listed(open_source(tmp_path))
    keys = ["a.jpg", "b.jpg?w=1", "c", "d.dat", "g.avif", "h.HEIC", "i.jxl", "j.mpo", "k.apng", "l.jp2", "m.psd"]
    assert [s.key for s in listing.samples] == [*keys, "n.ppm", "o"]
    assert listing.notes == ("files that are not images are skipped: 4",)


def test_class_names_replace_folder_names(pictures, tmp_path):
    file = tmp_path / "names.txt"
    file.write_text("ant the ant\ncat a cat, asleep\n")
    texts = {s.label: s.label_text for s in listed(open_source(pictures, class_names=file)).samples}
    assert texts == {0: "the ant", 1: "bee", 2: "a cat, asleep"}


@pytest.mark.parametrize(("name", "text"), [("n.csv", 'ant,"a, b"\n'), ("n.tsv", "ant\ta, b\n"), ("n", "ant\ta, b\n")])
def test_class_names_may_be_separated_by_comma_or_tab(pictures, tmp_path, name, text):
    (tmp_path / name).write_text(text)
    assert listed(open_source(pictures, class_names=tmp_path / name)).samples[0].label_text == "a, b"


def test_a_class_name_without_a_second_column_is_an_error(pictures, tmp_path):
    (tmp_path / "names.txt").write_text("ant one\nbee\n")
    with pytest.raises(LatentqError, match=r"names\.txt, line 2"):
        open_source(pictures, class_names=tmp_path / "names.txt")


def test_no_image_has_a_label_if_one_is_outside_the_class_folders(pictures):
    paint(pictures / "outside.png", 1)
    listing = listed(open_source(pictures))
    assert known(listing) == ()
    assert any("no labels" in note for note in listing.notes)


def test_samples_are_ordered_by_path_as_bytes(tmp_path):
    for name in ("b.png", "B.png", "a/z.png", "a-1.png", "é.png", "a.png"):
        paint(tmp_path / name, 0)
    keys = [s.key for s in listed(open_source(tmp_path)).samples]
    assert keys == sorted(keys, key=os.fsencode)
    assert keys[0] == "B.png"


def test_other_files_are_skipped_and_counted(pictures):
    (pictures / "labels.txt").write_text("not an image")
    listing = listed(open_source(pictures))
    assert len(listing.samples) == 12
    assert listing.notes == ("files that are not images are skipped: 1",)


def test_links_are_followed_and_link_cycles_end(pictures, tmp_path):
    (pictures / "ant" / "round").symlink_to(pictures)
    (pictures / "dog").symlink_to(tmp_path / "elsewhere")
    paint(tmp_path / "elsewhere" / "d.png", 1)
    keys = [s.key for s in listed(open_source(pictures)).samples]
    assert "dog/d.png" in keys
    assert len(keys) == 13


def test_a_folder_without_images_is_an_error(tmp_path):
    (tmp_path / "a.txt").write_text("x")
    with pytest.raises(LatentqError, match="holds no images"):
        listed(open_source(tmp_path))


@pytest.mark.usefixtures("unreadable_bee")
def test_a_folder_that_cannot_be_read_is_an_error(pictures):
    with pytest.raises(PermissionError, match="bee"):
        listed(open_source(pictures))


def test_the_output_inside_the_source_is_skipped(pictures):
    paint(pictures / "out" / "x.png", 1)
    keys = [s.key for s in listed(open_source(pictures, exclude=pictures / "out")).samples]
    assert len(keys) == 12


def test_given_classes_number_the_folders_and_must_know_them(pictures):
    classes = {"ant": (5, "an ant"), "bee": (7, "a bee"), "cat": (9, "a cat")}
    samples = listed(open_source(pictures, classes=classes)).samples
    assert {(s.label, s.label_text) for s in samples} == set(classes.values())
    del classes["cat"]
    with pytest.raises(MismatchError, match="'cat'"):
        listed(open_source(pictures, classes=classes))


def test_hidden_folders_and_macos_shadow_files_are_skipped(pictures):
    paint(pictures / ".ipynb_checkpoints" / "x.png", 1)
    paint(pictures / "ant" / ".thumbnails" / "x.png", 1)
    (pictures / "ant" / "._00.jpg").write_text("x")
    samples = listed(open_source(pictures)).samples
    assert len(samples) == 12
    assert {s.label for s in samples} == {0, 1, 2}


def test_class_names_that_are_not_text_are_an_error(pictures, tmp_path):
    (tmp_path / "names.txt").write_bytes(b"ant \xff\n")
    with pytest.raises(LatentqError, match=r"names\.txt is not UTF-8"):
        open_source(pictures, class_names=tmp_path / "names.txt")


def table(tmp_path, text, name="table.tsv"):
    (tmp_path / name).write_text(text)
    return listed(open_source(tmp_path / name))


def test_a_table_keeps_its_order_and_its_columns(tmp_path):
    paint(tmp_path / "x.png", 1)
    listing = table(
        tmp_path, "image_file\tlabel\tlabel_as_text\tcaption\nx.png\t7\tseven\ta, b\nmissing.png\t3\tthree\t\n"
    )
    assert known(listing) == ("label", "label_text", "caption", "fault")
    size = (tmp_path / "x.png").stat().st_size
    assert listing.samples == (
        Sample("x.png", size, 7, "seven", "a, b"),
        Sample("missing.png", None, 3, "three", None, fault="no caption"),
    )


def test_a_table_without_a_header_has_the_path_first(tmp_path):
    listing = table(tmp_path, "a.png\t5\nb.png\t6\n")
    assert [s.key for s in listing.samples] == ["a.png", "b.png"]
    assert known(listing) == ()


def test_csv_quotes_are_understood(tmp_path):
    listing = table(tmp_path, 'Path,Text\n"a, b.png","say ""hi"""\n', "t.csv")
    assert listing.samples[0] == Sample("a, b.png", None, caption='say "hi"')


def test_label_names_are_numbered_and_become_the_label_text(tmp_path):
    listing = table(tmp_path, "path\tlabel\na\tdog\nb\tant\nc\tdog\n")
    assert [(s.label, s.label_text) for s in listing.samples] == [(1, "dog"), (0, "ant"), (1, "dog")]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no rows"),
        ("path\tlabel\n", "no rows"),
        ("path\tlabel\na.png\n", "line 2: the row has no label"),
        ("path\tlabel\n\t3\n", "line 2: the row has no path"),
        ("label\tcaption\n3\tx\n", "names no column of image paths"),
    ],
)
def test_a_table_that_cannot_be_understood_is_an_error(tmp_path, text, message):
    with pytest.raises(LatentqError, match=message):
        table(tmp_path, text)


def tsv_of(rows):
    return "path\tcaption\n" + "".join("\t".join(row) + "\n" for row in rows)


def captions_of(listing):
    return [(s.key, s.caption) for s in listing.samples]


PLAIN = [("a.png", '"stop'), ("b.png", "two"), ("c.png", 'say "go"'), ("d.png", '"four"'), ("e.png", 'six"')]


def test_a_tsv_without_consistent_quoting_is_plain_text(tmp_path):
    assert captions_of(table(tmp_path, tsv_of(PLAIN))) == PLAIN
    (tmp_path / "i.zip").write_bytes(b"")
    (tmp_path / "pictures").mkdir()
    for name, _ in PLAIN:
        paint(tmp_path / "pictures" / name, 1)
    source = open_source(tmp_path / "pictures", captions=str(tmp_path / "table.tsv"))
    assert captions_of(listed(source)) == PLAIN


def test_a_tsv_with_consistent_quoting_is_unquoted(tmp_path):
    text = 'path\tcaption\na.png\t"say ""go"""\nb.png\ttwo\n'
    assert captions_of(table(tmp_path, text)) == [("a.png", 'say "go"'), ("b.png", "two")]
    text = 'path\tcaption\na.png\t"two\nlines"\nb.png\ttwo\n'
    assert captions_of(table(tmp_path, text)) == [("a.png", "two\nlines"), ("b.png", "two")]


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=8).map(lambda text: f"x{text}x")))
def test_a_list_of_latentq_reads_back_as_a_table(tmp_path_factory, texts):
    folder = tmp_path_factory.mktemp("table")
    samples = [Sample(f"{i}.png", 1, caption=text) for i, text in enumerate(['"', *texts], start=1)]
    read_back(Listing(samples), folder / "list")
    listing = listed(open_source(folder / "list" / "00000.tsv"))
    assert captions_of(listing) == [(s.key, s.caption) for s in samples]
    assert listing.notes == ("columns: images from 'key', captions from 'caption'",)
    part = (folder / "list" / "00000.tsv").read_bytes()
    (folder / "bare.tsv").write_bytes(part.partition(b"\n")[2])  # without the line for latentq
    assert listed(open_source(folder / "bare.tsv")) == listing


def test_a_quotation_mark_in_a_csv_that_is_never_closed_is_an_error(tmp_path):
    with pytest.raises(LatentqError, match=r"t\.csv: not a table: the quotation mark in line 3 is never closed"):
        table(tmp_path, 'path,caption\na.png,one\nb.png,"two\nc.png,three\n', "t.csv")
    assert len(table(tmp_path, 'path,caption\na.png,"one\ntwo"\nb.png,"x"y\n', "t.csv").samples) == 2


def test_columns_of_a_table_may_be_named(tmp_path):
    (tmp_path / "t.csv").write_text("path,file,kind,label,caption,note\na.png,b.png,3,5,x,y\n")
    source = open_source(tmp_path / "t.csv", image_column="file", label_column="kind", captions="note")
    listing = listed(source)
    assert listing.samples == (Sample("b.png", None, 3, caption="y"),)
    assert listing.notes == ("columns: images from 'file', labels from 'kind', captions from 'note'",)
    for options in ({"image_column": "x"}, {"label_column": "x"}, {"captions": "x"}):
        with pytest.raises(LatentqError, match=r"has no column 'x' of (images|labels|captions): it has path, file"):
            listed(open_source(tmp_path / "t.csv", **options))


def test_texts_next_to_images_are_captions_if_asked_for(pictures):
    note = "images with a .txt of the same name: 11; --captions txt takes those as captions"
    images = sorted(path for path in pictures.rglob("*.*"))
    for path in images[1:]:
        path.with_suffix(".txt").write_text(f" {path.stem} \n")
    assert listed(open_source(pictures)).notes == (note,)
    listing = listed(open_source(pictures, captions="txt"))
    assert known(listing) == ("label", "label_text", "caption", "fault")
    assert [(s.caption, s.fault) for s in listing.samples][:3] == [(None, "no caption"), ("03", ""), ("06", "")]
    assert len(listing.samples) == 12
    images[1].with_suffix(".txt").write_bytes(b"x" * 100_000)
    images[2].with_suffix(".json").write_text('{"TEXT": ["", "one", "two"]}')
    fault = "its caption: more than the 65536 bytes that are read"
    assert listed(open_source(pictures, captions="txt")).samples[1].fault == fault
    sample = listed(open_source(pictures, captions="json")).samples[2]
    assert (sample.caption, sample.captions) == ("one", ("one", "two"))
    with pytest.raises(LatentqError, match="neither a file, nor txt"):
        open_source(pictures, captions="captions.xml")


def test_a_table_that_is_not_text_is_an_error(tmp_path):
    (tmp_path / "t.csv").write_bytes(b"\xff\xd8\xff")
    with pytest.raises(LatentqError, match="not UTF-8"):
        listed(open_source(tmp_path / "t.csv"))


def test_a_file_that_is_not_a_source_is_an_error(tmp_path):
    paint(tmp_path / "x.png", 1)
    with pytest.raises(LatentqError, match="neither a folder of images nor a table"):
        open_source(tmp_path / "x.png")
    with pytest.raises(FileNotFoundError):
        open_source(tmp_path / "nothing")


_text = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
_keys = st.binary(min_size=1, max_size=8).map(os.fsdecode)


@given(
    st.lists(
        st.tuples(_keys, st.none() | st.integers(0), st.integers(0, 9), _text, _text).map(lambda cells: Sample(*cells)),
        min_size=1,
    ),
    st.integers(1, 3),
)
def test_a_listing_reads_back_from_its_list(tmp_path_factory, samples, unit_size):
    folder = tmp_path_factory.mktemp("lists") / "list"
    again = read_back(Listing(samples), folder, unit_size)
    texts = [s._replace(label_text=s.label_text or None, caption=s.caption or None) for s in samples]
    assert [*again] == texts  # in a list, an empty text is none
    assert (folder / "00000.tsv").read_bytes().count(b"\n") == len(samples) + 2


_MARK = b'# {"first_unit": 0, "first_sample": 0, "units": [[1, 4]], "usable": 1, "known": {}, "previous": ""}\n'


@pytest.mark.parametrize(
    "data",
    [b"", b"key\tbytes", _MARK + b"key\tsize\na\t1\n", _MARK + b"key\tbytes\na\tb\n", _MARK + b"key\tbytes\nabc\n"],
)
def test_a_broken_list_is_an_error(tmp_path, data):
    (tmp_path / "list").mkdir()
    (tmp_path / "list" / "00000.tsv").write_bytes(_MARK + b"key\tbytes\na\t1\n")
    assert [*SampleList(tmp_path / "list")] == [Sample("a", 1)]
    (tmp_path / "list" / "00000.tsv").write_bytes(data)
    with pytest.raises(FormatError, match=r"00000\.tsv"):
        list(SampleList(tmp_path / "list"))


@pytest.mark.parametrize("name", ["a.tar", "a.tgz", "a.zip", "a.parquet", "a.csv", "a.tsv"])
def test_a_fifo_is_no_source(tmp_path, name):
    os.mkfifo(tmp_path / name)
    with pytest.raises(FormatError, match="not a regular file"):
        open_source(tmp_path / name)


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".json", ".zip", ".tgz", ".parquet"])
def test_a_fifo_is_no_file_of_captions(tmp_path, suffix):
    os.mkfifo(tmp_path / f"captions{suffix}")
    listing = Captions(tmp_path / f"captions{suffix}").join(Listing([Sample("a.jpg", 1)]))
    with pytest.raises(FormatError, match="not a regular file"):
        list(listing.samples)


def test_a_fifo_is_no_image_of_a_row(tmp_path):
    os.mkfifo(tmp_path / "a.jpg")
    with pytest.raises(FormatError, match="not a regular file"):
        image_bytes({"bytes": None, "path": str(tmp_path / "a.jpg")})
