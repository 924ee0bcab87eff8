"""Captions in files of many kinds and names, joined to images that share their names."""

import contextlib
import gzip
import json
import marshal
import os

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from conftest import paint
from latentq import LatentqError
from latentq.sources import Captions, file_dict, open_source
from latentq.sources.columns import captions_in
from support.archive_making import make_tar, make_zip
from support.listing import listed, read_back

ROWS = [{"file_name": "a.png", "text": "one"}, {"file_name": "b.png", "text": "two"}]
COCO = {
    "images": [{"id": 1, "file_name": "a.png"}, {"id": 2, "file_name": "b.png"}],
    "annotations": [{"image_id": 2, "caption": "two"}, {"image_id": 1, "caption": "one"}],
}


def lines(*rows):
    return "".join(json.dumps(row) + "\n" for row in rows)


def folder_of(path, *names):
    for number, name in enumerate(names):
        paint(path / name, number)
    return path


def captions_of(path, captions):
    return [(s.key, s.caption, s.captions, s.fault) for s in listed(open_source(path, captions=str(captions))).samples]


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0)])
def test_a_row_with_a_path_belongs_to_that_image_alone(tmp_path, order):
    images = folder_of(tmp_path / "images", "a.png", "b.png", "train/a.png")
    rows = [{"file_name": name, "text": f"of {name}"} for name in ("a.png", "b.png", "train/a.png")]
    file = tmp_path / "metadata.jsonl"
    file.write_text(lines(*(rows[number] for number in order)))
    assert captions_of(images, file) == [(name, f"of {name}", None, "") for name in ("a.png", "b.png", "train/a.png")]
    file.write_text(lines(rows[0], rows[1]))
    assert captions_of(images, file)[2] == ("train/a.png", "", None, "no caption in metadata.jsonl")


def test_a_row_of_another_image_adds_nothing_to_the_image_of_that_name(tmp_path):
    images = folder_of(tmp_path / "images", "train/a.png")
    file = tmp_path / "metadata.jsonl"
    rows = [{"file_name": "a.png", "text": "not here"}, *({"file_name": "train/a.png", "text": text} for text in "xy")]
    file.write_text(lines(*rows))
    assert captions_of(images, file) == [("train/a.png", "x", ("x", "y"), "")]
    file.write_text(lines(rows[0]))
    assert captions_of(images, file) == [("train/a.png", "not here", None, "")]


def test_the_list_of_a_dataset_is_a_file_of_captions(tmp_path):
    """Its keys name the archive too, so that images of one name in two archives have captions of their own."""
    folder_of(tmp_path, "a.png")
    for name in ("1.tar", "2.tar"):
        members = [("a.png", (tmp_path / "a.png").read_bytes()), ("a.txt", f"of {name}".encode())]
        make_tar(tmp_path / name, members)
    listing = listed(open_source(f"{tmp_path}/*.tar"))
    read_back(listing, tmp_path / "list")
    expected = [(f"{name}/a.png", f"of {name}", None, "") for name in ("1.tar", "2.tar")]
    assert captions_of(f"{tmp_path}/*.tar", tmp_path / "list" / "00000.tsv") == expected


@pytest.mark.parametrize("names", ["", ":file_name,text"])
def test_json_rows_may_lack_a_column(tmp_path, names):
    images = folder_of(tmp_path / "images", "a.png", "b.png")
    file = tmp_path / "captions.jsonl"
    file.write_text(lines({"file_name": "b.png"}, {"text": "of nothing"}, ROWS[0]))
    expected = [("a.png", "one", None, ""), ("b.png", "", None, "no caption in captions.jsonl")]
    assert captions_of(images, f"{file}{names}") == expected
    file.write_text(lines({"file_name": "b.png"}, {"file_name": "a.png"}))
    with pytest.raises(LatentqError, match=r"has no column ('text' )?for the caption: it has file_name"):
        captions_of(images, f"{file}{names}")


@pytest.mark.parametrize(
    "content",
    [
        json.dumps(ROWS, indent=2),
        lines(*ROWS),
        json.dumps({"a.png": {"caption": "one", "tags": "x"}, "b": {"caption": "two"}}),  # kohya's sd-scripts
        json.dumps(COCO),
    ],
    ids=["list", "lines", "by name", "COCO"],
)
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"], ids=["", "byte order mark"])
def test_a_json_file_may_have_any_usual_layout(tmp_path, content, mark):
    images = folder_of(tmp_path / "images", "a.png", "b.png")
    file = tmp_path / "captions.json"
    file.write_bytes(mark + content.replace("\n", "\r\n").encode())
    assert captions_of(images, file) == [("a.png", "one", None, ""), ("b.png", "two", None, "")]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[1, 2]", "neither rows of captions nor COCO's captions"),
        ('{"images": []}', "neither rows of captions nor COCO's captions"),
        ('{"a": ', "not JSON"),
        ('{"file_name": "a.png"}\n{"file_name": ', "line 2: not JSON"),
    ],
)
def test_a_json_file_of_another_layout_is_an_error(tmp_path, content, message):
    images = folder_of(tmp_path / "images", "a.png")
    (tmp_path / "captions.json").write_text(content)
    with pytest.raises(LatentqError, match=rf"captions\.json: .*{message}"):
        captions_of(images, tmp_path / "captions.json")


def test_many_rows_of_one_name_take_time_in_proportion(tmp_path, monkeypatch):
    class Counted:
        bytes = 0
        loads = staticmethod(marshal.loads)

        @classmethod
        def dumps(cls, value):
            data = marshal.dumps(value)
            cls.bytes += len(data)
            return data

    monkeypatch.setattr(file_dict, "marshal", Counted)
    images = folder_of(tmp_path / "images", "a.png", "b.png")
    file = tmp_path / "metadata.jsonl"
    texts = [f"caption {number}" for number in range(1000)]
    file.write_text(lines(*({"file_name": "a.png", "text": text} for text in texts), ROWS[1]))
    assert captions_of(images, file) == [("a.png", texts[0], tuple(texts), ""), ("b.png", "two", None, "")]
    assert Counted.bytes < 5 * file.stat().st_size


def test_rows_of_one_name_with_and_without_captions_are_joined_in_order(tmp_path):
    images = folder_of(tmp_path / "images", "a.png", "b.png")
    rows = [("a.png", ["one", "two"]), ("b.png", ""), ("a.png", ""), ("a.png", "three"), ("b.png", "five")]
    rows.append(("a.png", ["four"]))
    file = tmp_path / "metadata.jsonl"
    file.write_text(lines(*({"file_name": name, "text": text} for name, text in rows)))
    assert captions_of(images, file) == [
        ("a.png", "one", ("one", "two", "three", "four"), ""),
        ("b.png", "five", None, ""),
    ]


def test_captions_for_no_image_are_an_error_that_shows_both_names(tmp_path):
    images = folder_of(tmp_path / "images", "a.png")
    file = tmp_path / "captions.jsonl"
    file.write_text(lines({"file_name": "/data/b.png", "text": "one"}))
    message = r"no caption for any of 1 sample: it names '/data/b\.png', the source 'a\.png'"
    with pytest.raises(LatentqError, match=message):
        captions_of(images, file)


def test_a_caption_may_be_longer_than_the_csv_module_allows(tmp_path):
    images = folder_of(tmp_path / "images", "a.png", "b.png")
    file = tmp_path / "captions.csv"
    file.write_text(f"file,caption,embedding\na.png,{'x' * 200_000},\nb.png,two,{'0.1 ' * 100_000}\n")
    assert captions_of(images, file) == [("a.png", "x" * 200_000, None, ""), ("b.png", "two", None, "")]


# Files next to the images.


def test_the_txt_next_to_an_image_comes_before_other_captions(tmp_path, monkeypatch):

    images = folder_of(tmp_path / "images", "a.png", "b.png", "c.png")
    for name in ("a.caption", "a.text", "a.txt", "b.caption", "b.text", "c.caption"):
        (images / name).write_text(name)
    expected = [("a.png", "a.txt", None, ""), ("b.png", "b.text", None, ""), ("c.png", "c.caption", None, "")]
    assert captions_of(images, "txt") == expected
    scandir = os.scandir

    @contextlib.contextmanager
    def reversed_scandir(path):
        with scandir(path) as entries:
            yield iter(sorted(entries, key=lambda entry: entry.name, reverse=True))

    monkeypatch.setattr(os, "scandir", reversed_scandir)
    assert captions_of(images, "txt") == expected  # whatever the order in which the file system lists names


def test_a_caption_may_keep_the_extension_of_its_image(tmp_path):
    images = folder_of(tmp_path / "images", "a.png", "a.jpg", "b.png")
    for name in ("a.png.txt", "a.jpg.txt", "b.png.txt", "b.txt"):
        (images / name).write_text(name)
    assert listed(open_source(images)).notes == (
        "images with a .txt of the same name: 3; --captions txt takes those as captions",
    )
    captions = [caption for _, caption, _, _ in captions_of(images, "txt")]
    assert captions == ["a.jpg.txt", "a.png.txt", "b.txt"]


def caption_file(folder, kind, rows):
    """Writes rows of (image, caption, score) in one of the kinds of caption files."""
    path = folder / f"captions.{kind}"
    if kind == "jsonl":
        path.write_text("".join(json.dumps({"img_path": f"./{n}", "prompt": c, "score": s}) + "\n" for n, c, s in rows))
    elif kind == "csv":
        path.write_text("path,caption,score\n" + "".join(f'{n},"{c}",{s}\n' for n, c, s in rows))
    elif kind == "parquet":
        names, texts, scores = zip(*rows, strict=True)
        pq.write_table(pa.table({"image_name": names, "prompt": texts, "score": scores}), path)
    elif kind == "json":
        images = [{"id": i, "file_name": n} for i, (n, _, _) in enumerate(rows)]
        notes = [{"image_id": i, "caption": t} for i, (_, c, _) in enumerate(rows) for t in (c, "another")]
        path.write_text(json.dumps({"images": images, "annotations": notes}))
    elif kind == "tgz":
        make_tar(path, [(f"{n.rpartition('.')[0]}.txt", c.encode()) for n, c, _ in rows], "w:gz")
    else:
        lines = "".join(json.dumps({"img_path": n, "prompt": c}) + "\n" for n, c, _ in rows)
        make_tar(path, [("train.jsonl", lines.encode())], "w:gz")
    return path


@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet", "json", "tgz", "jsonl.tgz"])
def test_captions_are_joined_by_name_and_an_image_without_one_is_a_reject(tmp_path, pictures_made, kind):
    rows = [(name, f"of {name}, this", 0.1) for name in pictures_made if name != "003.jpg"]
    rows.append(("elsewhere.jpg", "an image that is not here", 0.1))
    captions = caption_file(tmp_path, kind, rows)
    path = make_tar(tmp_path / "a.tar", pictures_made.items())
    samples = listed(open_source(path, captions=str(captions))).samples
    expected = [
        ("", f"no caption in {captions.name}") if n == "003.jpg" else (f"of {n}, this", "") for n in pictures_made
    ]
    assert [(s.caption, s.fault) for s in samples] == expected


def test_a_text_with_a_lone_surrogate_is_not_a_caption():
    assert captions_in(["a \ud800", "b \U0001f600"]) == ("b \U0001f600",)


def test_the_columns_of_a_caption_file_may_be_named(tmp_path):
    path = make_zip(tmp_path / "a.zip", [("x/1.jpg", b"1")])
    (tmp_path / "c.tsv").write_text("a\tb\tcaption\nx/1.jpg\tthis\tthat\n")
    assert listed(open_source(path, captions=f"{tmp_path / 'c.tsv'}:a,b")).samples[0].caption == "this"
    with pytest.raises(LatentqError, match="no column 'z' for the caption: it has a, b, caption"):
        listed(open_source(path, captions=f"{tmp_path / 'c.tsv'}:a,z"))
    with pytest.raises(LatentqError, match="no column for the image"):
        listed(open_source(path, captions=str(tmp_path / "c.tsv")))
    with pytest.raises(LatentqError, match="two columns: KEY,CAPTION"):
        open_source(path, captions=f"{tmp_path / 'c.tsv'}:a")


def test_a_folder_of_images_takes_a_caption_file(pictures, tmp_path):
    names = [path.relative_to(pictures).as_posix() for path in pictures.rglob("*.*")]
    (tmp_path / "c.jsonl").write_text("".join(json.dumps({"path": n, "caption": n.upper()}) + "\n" for n in names))
    samples = listed(open_source(pictures, captions=str(tmp_path / "c.jsonl"))).samples
    assert all(s.caption == s.key.upper() for s in samples)
    assert samples[-1].label == 2


def test_broken_caption_files_and_those_without_a_match_are_errors(tmp_path):
    path = make_zip(tmp_path / "a.zip", [("1.jpg", b"1")])
    (tmp_path / "c.jsonl").write_text('{"path": "2.jpg", "caption": "x"}\n')
    with pytest.raises(LatentqError, match="no caption for any of 1 sample"):
        listed(open_source(path, captions=str(tmp_path / "c.jsonl")))
    for name, data in {
        "c.jsonl": b'{"path": "1.jpg", "caption": "x"}\nno\n',
        "d.json": b"[]",
        "e.csv": b"\xff\xfe",
        "f.tgz": gzip.compress(b"no tar" * 200),
        "g.parquet": b"PAR1",
        "h.xml": b"<x/>",
    }.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(LatentqError, match=name):
            listed(open_source(path, captions=str(tmp_path / name)))


def test_images_above_a_limit_are_rejects_with_that_reason(tmp_path, pictures_made):
    rows = [(name, "a caption", score) for name, score in zip(pictures_made, np.linspace(0, 0.35, 8), strict=True)]
    path = make_zip(tmp_path / "a.zip", pictures_made.items())
    captions = Captions(caption_file(tmp_path, "parquet", rows), limits={"score": 0.2})
    samples = listed(open_source(path, captions=captions)).samples
    assert [s.fault for s in samples if s.fault] == [
        f"not safe: score is {score}, above 0.2" for score in np.linspace(0, 0.35, 8).tolist() if score > 0.2
    ]


def test_changed_captions_change_the_list(tmp_path, pictures_made):
    path = make_zip(tmp_path / "a.zip", pictures_made.items())
    rows = [(name, f"of {name}", 0.0) for name in pictures_made]
    source = open_source(path, captions=str(caption_file(tmp_path, "jsonl", rows)))
    listing = listed(source)
    assert source.unchanged(listing.samples)
    caption_file(tmp_path, "jsonl", [*rows[:-1], ("007.jpg", "another", 0.0)])
    assert not source.unchanged(listing.samples)
    caption_file(tmp_path, "jsonl", rows[:-1])
    assert not source.unchanged(listing.samples)
