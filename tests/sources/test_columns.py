"""Images, labels and captions in the columns of rows: one rule for every kind of source."""

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import streaming
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from conftest import run
from latentq import Card, LatentqError, Recipe, encode, mds, verify
from latentq.sources import Listing, Sample, open_source
from latentq.sources.rows import samples_of_rows
from support.archive_making import make_tar
from support.collection_making import picture
from support.listing import listed, read_back


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
    assert any(note.startswith("no label for ") for note in listing.notes) == partly


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
