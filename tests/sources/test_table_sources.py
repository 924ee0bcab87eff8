"""Sources with one row per sample (parquet, MDS, Hugging Face datasets), and captions in separate files."""

import gzip
import json
import os
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import streaming
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from conftest import contents, run
from latentq import Card, FormatError, LatentqError, MismatchError, Recipe, encode, mds, verify
from latentq.sources import Captions, Listing, Sample, open_source
from latentq.sources.columns import captions_in
from latentq.sources.rows import samples_of_rows
from support.archive_making import make_tar, make_zip
from support.collection_making import parquet, picture
from support.hub_server import Repository, Server
from support.listing import listed, read_back


def table_of(pictures, struct):
    images = [{"bytes": data, "path": name} for name, data in pictures.items()] if struct else list(pictures.values())
    texts = [[f"first {name}", "second"] for name in pictures]
    return pa.table(
        {
            "image": images,
            "image_id": [f"id{i}" for i in range(len(images))],
            "reference_strs": texts,
            "label": range(8),
        }
    )


@pytest.mark.parametrize("struct", [True, False], ids=["struct", "binary"])
def test_parquet_rows_are_samples(tmp_path, pictures_made, struct):
    for name in ("a", "b"):
        pq.write_table(table_of(pictures_made, struct), tmp_path / f"{name}.parquet", row_group_size=3)
    source = open_source(tmp_path / "*.parquet")
    samples = listed(source).samples
    assert [s.key for s in samples] == [f"{name}.parquet/{row:08}" for name in ("a", "b") for row in range(8)]
    assert (samples[1].caption, samples[1].id, samples[1].label) == ("first 001.jpg", "id1", 1)
    assert [source.data(s) for s in samples] == [*pictures_made.values()] * 2
    assert [source.data(s) for s in reversed(samples)] == [*pictures_made.values()][::-1] * 2


def test_a_parquet_row_without_image_or_caption_is_a_reject(tmp_path, pictures_made):
    data = next(iter(pictures_made.values()))
    rows = {"image": [data, None, data], "caption": ["one", "two", None]}
    pq.write_table(pa.table(rows), tmp_path / "a.parquet")
    assert encode(tmp_path / "a.parquet", tmp_path / "out", size=64).counts.rejects == 2
    assert (tmp_path / "out" / "rejects.tsv").read_text() == (
        "a.parquet/00000001\tread\tno image in this row\na.parquet/00000002\tlist\tno caption\n"
    )


def test_parquet_that_is_broken_changed_or_without_images_is_an_error(tmp_path, pictures_made):
    path = tmp_path / "a.parquet"
    pq.write_table(table_of(pictures_made, True), path)
    source = open_source(path)
    sample = listed(source).samples[0]
    whole = path.read_bytes()
    path.write_bytes(whole[:-100])
    with pytest.raises(FormatError, match=r"a\.parquet: not a parquet file"):
        listed(open_source(path))
    with pytest.raises(MismatchError, match=r"a\.parquet is listed with \d+ bytes"):
        source.data(sample)
    pq.write_table(pa.table({"x": [1], "caption": ["y"]}), path)
    with pytest.raises(LatentqError, match="no column of images: it has x, caption"):
        listed(open_source(path))


def write_stock(path, pictures, limit=8_000):
    columns = {"jpg": "jpeg", "caption_syn_pixart_llava15": "str", "width": "int32", "height": "int32"}
    with streaming.MDSWriter(out=str(path), columns=columns, size_limit=limit) as writer:
        for name, data in pictures.items():
            writer.write({"jpg": data, "caption_syn_pixart_llava15": f"of {name}", "width": 1, "height": 2})
    return path


def test_mds_shards_of_the_stock_writer_are_a_source(tmp_path, pictures_made):
    source = open_source(write_stock(tmp_path / "mds", pictures_made))
    samples = listed(source).samples
    assert len({s.archive for s in samples}) > 1
    assert [s.caption for s in samples] == [f"of {name}" for name in pictures_made]
    assert [source.data(s) for s in samples] == list(pictures_made.values())
    assert listed(open_source(tmp_path / "mds", captions="caption_syn_pixart_llava15")).samples == samples
    with pytest.raises(LatentqError, match="no column 'text' of captions"):
        open_source(tmp_path / "mds", captions="text")


def test_shards_other_than_the_listed_ones_are_refused(tmp_path, pictures_made):
    samples = listed(open_source(write_stock(tmp_path / "a", pictures_made))).samples
    other = open_source(write_stock(tmp_path / "b", pictures_made, None))
    with pytest.raises(MismatchError, match="the shards have changed since"):
        other.data(samples[0])


def test_mds_without_images_is_an_error(tmp_path):
    with mds.Writer(tmp_path / "mds", {"x": "int"}) as writer:
        writer.write({"x": 1})
    with pytest.raises(LatentqError, match="no column of images: it has x"):
        open_source(tmp_path / "mds")


def test_a_saved_data_set_is_a_source(tmp_path, pictures_made):
    import datasets

    rows = {
        "image": [{"bytes": data, "path": None} for data in pictures_made.values()],
        "label": [i % 2 for i in range(8)],
        "text": [f"of {name}" for name in pictures_made],
    }
    features = datasets.Features(
        {
            "image": datasets.Image(),
            "label": datasets.ClassLabel(names=["cat", "dog"]),
            "text": datasets.Value("string"),
        }
    )
    dataset = datasets.Dataset.from_dict(rows, features=features)
    datasets.DatasetDict({"train": dataset, "test": dataset.select(range(2))}).save_to_disk(tmp_path / "saved")
    source = open_source(tmp_path / "saved")
    samples = listed(source).samples
    assert [s.key for s in samples[:3]] == ["test/00000000", "test/00000001", "train/00000000"]
    assert (samples[1].caption, samples[1].label, samples[1].label_text) == ("of 001.jpg", 1, "dog")
    assert [source.data(s) for s in samples[2:]] == list(pictures_made.values())


@pytest.mark.parametrize("kind", ["parquet", "mds"])
def test_any_number_of_processes_makes_the_same_dataset(tmp_path, pictures_made, kind):
    path = tmp_path / "in.parquet"
    if kind == "mds":
        path = write_stock(tmp_path / "in", pictures_made)
    else:
        pq.write_table(table_of(pictures_made, True), path, row_group_size=3)
    for world_size in (1, 2):
        for rank in reversed(range(world_size)):
            encode(path, tmp_path / f"out{world_size}", size=64, unit_size=3, rank=rank, world_size=world_size)
    assert contents(tmp_path / "out1") == contents(tmp_path / "out2")


# Columns, labels and captions: one rule for every kind of source.


def hf(folder, rows, features=None, form=None):
    import datasets

    dataset = datasets.Dataset.from_dict(rows, features=features)
    (dataset.with_format(form) if form else dataset).save_to_disk(folder)
    return folder


def images_and(picture_bytes, name="image", **columns):
    length = len(next(iter(columns.values())))
    return {name: [{"bytes": data, "path": None} for data in [picture_bytes] * length], **columns}


def source_of(kind, folder, **columns):
    """Writes rows as a source of a kind, and opens it."""
    data = picture(1)
    if kind == "parquet":
        pq.write_table(pa.table(images_and(data, **columns)), folder / "a.parquet")
        return open_source(folder / "a.parquet")
    if kind == "datasets":
        return open_source(hf(folder / "hf", images_and(data, **columns)))
    if kind == "mds":
        with streaming.MDSWriter(
            out=str(folder / "mds"), columns={"image": "bytes", **dict.fromkeys(columns, "json")}
        ) as file:
            for row in zip(*columns.values(), strict=True):
                file.write({"image": data, **dict(zip(columns, row, strict=True))})
        return open_source(folder / "mds")
    names, rows = list(columns), list(zip(*columns.values(), strict=True))
    if kind == "csv":
        import csv

        with (folder / "t.csv").open("w", newline="") as file:
            csv.writer(file).writerows([["path", *names], *(["x.jpg", *row] for row in rows)])
        return open_source(folder / "t.csv")
    members = []
    for number, row in enumerate(rows):
        members.append((f"{number}.jpg", data))
        cells = dict(zip(names, row, strict=True))
        for name, extension in (("label", "cls"), ("caption", "txt")):
            if cells.get(name) is not None:
                members.append((f"{number}.{extension}", str(cells[name]).encode()))
    return open_source(make_tar(folder / "a.tar", members))


KINDS = ("parquet", "datasets", "mds", "csv", "tar")
LABELS = {
    "numbers": ([3, 0, 7], [3, 0, 7], None),
    "booleans": ([True, False, True], [1, 0, 1], None),
    "floats, as pandas makes them": ([1.0, None, 2.0], [1, None, 2], None),
    "digits": (["3", "0", "12"], [3, 0, 12], None),
    "names": (["dog", "ant", "dog"], [1, 0, 1], ["dog", "ant", "dog"]),
    "-1 of a test split": ([-1, -1, -1], [None] * 3, None),
    "missing": ([4, None, 5], [4, None, 5], None),
    "fractions": ([0.5, 1.5, 2.0], [None, None, 2], None),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", LABELS)
def test_labels_of_every_kind_of_source_follow_one_rule(tmp_path, kind, name):
    values, labels, texts = LABELS[name]
    if kind in ("csv", "tar") and name == "booleans":  # a text has no booleans: there True is a name
        texts = ["True", "False", "True"]
    listing = listed(source_of(kind, tmp_path, label=values))
    assert [sample.label for sample in listing.samples] == labels
    assert [sample.label_text for sample in listing.samples] == (texts or [None] * 3)
    assert [sample.fault for sample in listing.samples] == [""] * 3
    partly = None in labels and any(label is not None for label in labels)
    assert any("samples have no label" in note for note in listing.notes) == partly


@pytest.mark.parametrize("kind", ["mds", "csv", "tar"])
def test_a_label_above_int64_is_a_reject(tmp_path, kind):
    samples = listed(source_of(kind, tmp_path, label=[1, 1 << 70, (1 << 63) - 1])).samples
    assert [sample.label for sample in samples] == [1, None, (1 << 63) - 1]
    assert [sample.fault for sample in samples] == ["", f"the label {1 << 70} is above int64", ""]


_cells = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(st.characters(exclude_categories=["Cs"]), max_size=6)
    | st.binary(max_size=4)
    | st.lists(st.integers(0, 9) | st.text(st.characters(exclude_categories=["Cs"]), max_size=3), max_size=3)
    | st.dictionaries(st.text(max_size=2), st.integers(), max_size=2)
    | st.integers(-5, 5).map(np.int64)
    | st.floats(width=32).map(np.float32)
)


@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(
    st.lists(
        st.fixed_dictionaries({}, optional=dict.fromkeys(("label", "caption", "label_text", "id"), _cells)),
        min_size=1,
        max_size=6,
    )
)
def test_whatever_rows_hold_their_listing_reads_back(tmp_path_factory, rows):
    samples = ((Sample(f"{number}", None, archive="a", offset=number), cells) for number, cells in enumerate(rows))
    listing = Listing(tuple(samples_of_rows("a source", samples, None, [])))
    folder = tmp_path_factory.mktemp("lists")
    again = read_back(listing, folder / "first")
    read_back(Listing([*again]), folder / "second")
    assert (folder / "first" / "00000.tsv").read_bytes() == (folder / "second" / "00000.tsv").read_bytes()
    assert [sample.label for sample in again] == [sample.label for sample in listing.samples]
    assert all(type(sample.label) in (int, type(None)) for sample in listing.samples)
    assert all(sample.label is None or 0 <= sample.label < 1 << 63 for sample in listing.samples)


def test_a_sample_without_a_label_is_rejected_only_if_the_recipe_requires_labels(tmp_path, pictures_made):
    images = list(pictures_made.values())[:3]
    pq.write_table(pa.table({"image": images, "label": [3, None, 7]}), tmp_path / "a.parquet")
    card = encode(tmp_path / "a.parquet", tmp_path / "optional", size=64)
    assert (card.counts.samples, card.counts.rejects, "label" in card.columns) == (3, 0, False)
    recipe = Recipe.load("default")
    label = replace(recipe.columns["label"], optional=False)
    recipe = replace(recipe, columns={**recipe.columns, "label": label})
    card = encode(tmp_path / "a.parquet", tmp_path / "required", recipe=recipe, size=64)
    assert (card.counts.samples, card.counts.rejects) == (2, 1)
    assert [sample["label"] for sample in mds.Reader(tmp_path / "required")] == [3, 7]
    assert (tmp_path / "required" / "rejects.tsv").read_text() == "a.parquet/00000001\tlist\tno label\n"
    assert verify(tmp_path / "required") == verify(tmp_path / "optional") == []


def test_boolean_labels_are_encoded_and_verified(tmp_path, pictures_made):
    images = list(pictures_made.values())[:2]
    pq.write_table(pa.table({"image": images, "label": [True, False]}), tmp_path / "a.parquet")
    for _ in range(2):
        assert encode(tmp_path / "a.parquet", tmp_path / "out", size=64).counts.samples == 2
    assert verify(tmp_path / "out") == []
    assert [sample["label"] for sample in mds.Reader(tmp_path / "out")] == [1, 0]


@pytest.mark.parametrize("kind", KINDS)
def test_blank_captions_of_every_kind_of_source_are_no_captions(tmp_path, kind):
    samples = listed(source_of(kind, tmp_path, caption=[" a cat\n", " \n", "a dog"])).samples
    assert [sample.caption for sample in samples] == ["a cat", None, "a dog"]
    assert [sample.fault.partition(":")[0] for sample in samples] == ["", "no caption", ""]


@pytest.mark.parametrize("kind", ["parquet", "datasets", "mds"])
@pytest.mark.parametrize("name", ["caption", "text", "TEXT", "Prompt", "captions", "caption_long"])
def test_captions_of_every_kind_of_source_have_the_same_names(tmp_path, kind, name):
    source = source_of(kind, tmp_path, caption_score=[0.5], **{name: [["one", "", "two"]]})
    [sample] = listed(source).samples
    assert (sample.caption, sample.captions) == ("one", ("one", "two"))


@pytest.mark.parametrize("name", ["text", "TEXT", "Prompt"])
def test_captions_of_a_table_have_the_same_names(tmp_path, name):
    [sample] = listed(source_of("csv", tmp_path, caption_score=[0.5], **{name: ["one"]})).samples
    assert sample.caption == "one"


@pytest.mark.parametrize("kind", ["parquet", "datasets", "mds", "csv"])
def test_columns_of_unusual_names_are_pointed_out(tmp_path, kind):
    columns = {"fine_label": [3], "coarse_label": [1], "blip_description": ["a cat"], "width": [9]}
    listing = listed(source_of(kind, tmp_path, **columns))
    assert (listing.samples[0].label, listing.samples[0].caption) == (None, None)
    [note] = [note for note in listing.notes if note.startswith("columns: ")]
    labels, captions = "'fine_label', 'coarse_label'", "'blip_description'"
    if kind == "mds":  # its columns are sorted
        labels = "'coarse_label', 'fine_label'"
    assert note.partition("; ")[2] == (
        f"labels may be in {labels}: encode --label-column NAME takes one; "
        f"captions may be in {captions}: --captions NAME takes one"
    )
    (tmp_path / "usual").mkdir()
    usual = listed(source_of(kind, tmp_path / "usual", label=[3], text=["a cat"], coarse_label=[1], prompt_2=["b"]))
    assert not any("may be in" in note for note in usual.notes)


@pytest.mark.parametrize("kind", ["parquet", "datasets", "mds"])
def test_the_image_is_the_column_of_a_usual_name_whatever_the_order(tmp_path, kind):
    mask, right = picture(1), picture(2)
    folder = tmp_path / "source"
    if kind == "parquet":
        pq.write_table(pa.table({"mask": [mask], "image": [right], "text": ["a"]}), tmp_path / "source.parquet")
        folder = tmp_path / "source.parquet"
    elif kind == "datasets":
        import datasets

        features = {"mask": datasets.Image(), "image": datasets.Image(), "text": datasets.Value("string")}
        cells = {"mask": [{"bytes": mask, "path": None}], "image": [{"bytes": right, "path": None}], "text": ["a"]}
        hf(folder, cells, datasets.Features(features))
    else:
        with streaming.MDSWriter(out=str(folder), columns={"mask": "jpeg", "image": "jpeg", "text": "str"}) as writer:
            writer.write({"mask": mask, "image": right, "text": "a"})
    source = open_source(folder)
    listing = listed(source)
    assert source.data(listing.samples[0]) == right
    assert "columns: images from 'image', captions from 'text'" in listing.notes
    named = open_source(folder, image_column="mask")
    assert named.data(listed(named).samples[0]) == mask
    with pytest.raises(LatentqError, match=r"no column 'text' of images: it has (mask|image), "):
        listed(open_source(folder, image_column="text"))


def test_several_columns_of_images_without_a_usual_name_are_a_question(tmp_path):
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"before": [picture(1)], "after": [picture(2)]}), path)
    with pytest.raises(LatentqError, match=r"several columns of images \(before, after\): choose by --image-column"):
        listed(open_source(path))
    assert run("encode", path, tmp_path / "out", "--size", 16, "--image-column", "after").returncode == 0
    assert Card.load(tmp_path / "out").source.image_column == "after"
    refused = run("encode", path, tmp_path / "out", "--size", 16, "--image-column", "before")
    assert refused.returncode == 1
    assert "image_column" in refused.stderr
    pq.write_table(pa.table({"mask": [picture(1)], "edited_image": [picture(2)]}), path)
    source = open_source(path)
    assert source.data(listed(source).samples[0]) == picture(2)


@pytest.mark.parametrize("form", ["torch", "numpy", "pandas", "arrow"])
def test_a_saved_format_of_a_data_set_changes_nothing(tmp_path, form):
    import datasets

    features = datasets.Features(
        {
            "image": datasets.Image(),
            "label": datasets.ClassLabel(names=["cat", "dog"]),
            "captions": [datasets.Value("string")],
        }
    )
    rows = images_and(picture(1), label=[1, 0, 1], captions=[["a", "b"], ["c"], ["d", "e"]])
    plain = open_source(hf(tmp_path / "plain", rows, features))
    formatted = open_source(hf(tmp_path / form, rows, features, form))
    assert listed(formatted).samples == listed(plain).samples
    assert listed(formatted).samples[0].captions == ("a", "b")
    assert listed(formatted).samples[0].label_text == "dog"
    assert formatted.data(listed(formatted).samples[0]) == picture(1)


def test_a_row_whose_image_is_a_missing_file_says_so(tmp_path):
    images = [{"bytes": picture(1), "path": "a.jpg"}, {"bytes": None, "path": "gone.jpg"}, None]
    pq.write_table(pa.table({"image": images}), tmp_path / "a.parquet")
    source = open_source(tmp_path / "a.parquet")
    samples = listed(source).samples
    reason = r"the row has no bytes, and its file gone\.jpg cannot be read: No such file or directory"
    with pytest.raises(FormatError, match=reason):
        source.data(samples[1])
    with pytest.raises(FormatError, match="no image in this row"):
        source.data(samples[2])


# Captions in separate files.


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
    with pytest.raises(LatentqError, match="no caption for any of the 1 samples"):
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


def test_a_dataset_on_the_hub_is_a_source(tmp_path):
    """Its parquet has bytes and captions, without the types that `datasets` would write."""
    images = [{"bytes": picture(seed), "path": f"{seed}.jpg"} for seed in range(3)] + [{"bytes": None, "path": None}]
    files = {"data/train-00000-of-00001.parquet": parquet({"image": images, "caption": [*"abcd"]}), "README.md": b"#"}
    with Server({"someone/pictures": Repository({"main": files})}) as server:
        environment = {"HF_ENDPOINT": server.url, "HF_HOME": str(tmp_path / "hub")}
        done = run("shards", "hf:someone/pictures:train", tmp_path / "out", env=os.environ | environment)
    assert done.returncode == 0, done.stderr
    assert "3 samples, 1 rejects" in done.stdout
    assert (tmp_path / "out" / "rejects.tsv").read_text() == "train/00000003\tread\tno image in this row\n"
    assert [sample["caption"] for sample in mds.Reader(tmp_path / "out")] == [*"abc"]
