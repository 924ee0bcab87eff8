"""Everything that a run writes to its list reads back, whatever values the source has."""

import json
import math
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import latentq
from conftest import contents, paint
from latentq import LatentqError, MismatchError, mds
from latentq.run.listing import list_source, open_run_source
from latentq.sources import Listing, Sample, open_source

INT64 = (1 << 63) - 1
NUMBERS = [
    st.booleans(),
    st.integers(),
    st.floats(),
    st.integers(-(1 << 31), (1 << 31) - 1).map(np.int32),
    st.integers(-(1 << 63), INT64).map(np.int64),
    st.integers(0, (1 << 64) - 1).map(np.uint64),
    st.floats(width=32).map(np.float32),
    st.booleans().map(np.bool_),
]
TEXTS = st.text(st.characters(codec=None))  # with surrogates, control characters and line ends of every kind
LABELS = st.one_of(st.none(), *NUMBERS, TEXTS, TEXTS.map(np.str_), st.just(""), st.decimals(), st.binary())
SAMPLES = st.builds(
    lambda label, label_text, caption, captions, size: Sample(
        "", size, label=label, label_text=label_text, caption=caption, captions=captions
    ),
    LABELS,
    st.none() | TEXTS,
    st.none() | TEXTS,
    st.none() | st.lists(TEXTS, min_size=1).map(tuple),
    st.none() | st.integers(0, INT64),
)


class Given:
    """A user's own source that lists given samples."""

    kind = "given"

    def __init__(self, samples):
        self.samples = samples

    def listing(self):
        return Listing(iter(self.samples))

    def data(self, sample):
        pytest.fail(f"{sample.key} is read, and only a list is asked for")


def listed(source):
    """Returns the samples of a source as a run reads them from its list."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out"
        with list_source(source, out, 2, compare=False) as run_list:
            return list(run_list.samples)


def listed_samples(*samples):
    return listed(open_run_source(Given(samples), Path("out")))


@settings(max_examples=100, deadline=None)
@given(st.lists(SAMPLES, min_size=1, max_size=4))
def test_values_of_any_type_read_back(samples):
    samples = listed_samples(*(sample._replace(key=f"{i}.png") for i, sample in enumerate(samples)))
    assert listed_samples(*samples) == samples
    for number, sample in enumerate(samples):
        assert sample.key == f"{number}.png"
        assert sample.label is None or (type(sample.label) is int and 0 <= sample.label <= INT64)
        for text in (sample.label_text, sample.caption, *(sample.captions or ())):
            (text or "").encode()  # no surrogates are left


class Text(str):
    """A subclass of str, as NumPy's and pandas' texts are."""


def test_values_of_other_types_than_pythons_own_are_listed():
    given = Sample(
        Text("a.png"), np.int64(5), np.uint8(3), np.str_("cat"), Text("one"), (np.str_("one"), Text("two")), Text("x")
    )
    assert listed_samples(given) == [Sample("a.png", 5, 3, "cat", "one", ("one", "two"), "x")]
    with pytest.raises(LatentqError, match="cannot be written"):
        listed_samples(Sample("a.png", 0.5))


def label_of(value):
    """Returns the label and the fault of one sample, next to which no other is."""
    (sample,) = listed_samples(Sample("a.png", 1, label=value))
    return sample.label, sample.fault


@pytest.mark.parametrize(
    ("value", "label"),
    [
        (True, 1), (np.bool_(False), 0), (7, 7), (np.int64(7), 7), (np.uint8(7), 7), (7.0, 7), (np.float32(7), 7),
        ("7", 7), (-1, None), (math.nan, None), (math.inf, None), (0.5, None), (None, None), ("", None), (INT64, INT64),
    ],
)  # fmt: skip
def test_labels_become_whole_numbers_or_none(value, label):
    assert label_of(value) == (label, "")


def test_a_run_continues_where_only_the_list_was_published(pictures, tmp_path):
    latentq.encode(pictures, tmp_path / "whole", size=32)
    source = open_run_source(pictures, tmp_path / "out")
    with list_source(source, tmp_path / "out", 4096, compare=False) as run_list:
        run_list.publish()
    latentq.encode(pictures, tmp_path / "out", size=32)
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_label_above_int64_is_a_fault():
    label, fault = label_of(1 << 63)
    assert label is None
    assert "above int64" in fault


def test_surrogates_of_json_become_characters():
    caption = json.loads(r'"\ud83d\ude00 \ud800"')
    (sample,) = listed_samples(Sample("a.png", 1, caption=caption))
    assert sample.caption == "\U0001f600 \ufffd"


@pytest.mark.parametrize("key", ["a\ud800.png", "a\udcc3\udca9.png"])
def test_key_that_cannot_be_written_is_an_error(key):
    with pytest.raises(LatentqError, match="cannot"):
        listed_samples(Sample(key, 1))


class Labelled:
    """A user's own source: images in memory with labels of any type."""

    kind = "labeled"

    def __init__(self, folder, labels):
        self.labels = labels
        paint(folder / "a.png", 0)
        self.image = (folder / "a.png").read_bytes()

    def listing(self):
        return Listing([Sample(f"{i}.png", None, label=label) for i, label in enumerate(self.labels)])

    def data(self, _):
        return self.image


@pytest.mark.parametrize(
    ("labels", "stored"),
    [
        ([True, False], [1, 0]),
        ([np.int64(3), 5.0], [3, 5]),
        (["cat", "ant"], [1, 0]),
        ([-1, 2], None),
        ([None, None], None),
    ],
    ids=str,
)
def test_no_label_condemns_a_sample_whose_label_is_optional(tmp_path, labels, stored):
    source = Labelled(tmp_path, labels)
    card = latentq.encode(source, tmp_path / "out", size=32)
    assert (card.counts.samples, card.counts.rejects) == (2, 0)
    dataset = latentq.LatentDataset(tmp_path / "out")
    assert [sample.get("label") for sample in dataset] == (stored or [None, None])
    before = contents(tmp_path / "out")
    latentq.encode(source, tmp_path / "out", size=32)  # the same command again
    assert contents(tmp_path / "out") == before
    assert latentq.verify(tmp_path / "out") == []


@pytest.mark.parametrize("kind", ["parquet", "datasets", "mds", "csv", "tsv", "tar", "jsonl", "folder"])
@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_values_of_every_kind_of_source_read_back(kind, data):
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    texts = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=9)
    column = data.draw(
        st.sampled_from([st.booleans(), st.integers(-3, INT64), st.floats(), texts, st.integers(-3, 3) | st.none()])
    )
    rows = data.draw(st.lists(st.tuples(column, texts), min_size=1, max_size=3))
    with tempfile.TemporaryDirectory() as top:
        folder = Path(top) / "source"
        samples = listed(_open_made_source(kind, folder, rows, pa, pq))
        assert listed_samples(*samples) == samples
        assert len(samples) == len(rows)


def _open_made_source(kind, folder, rows, pa, pq):
    """Opens a source of a kind with one image for each label and caption."""
    folder.mkdir()
    for index in range(len(rows)):
        paint(folder / f"{index}.png", index, (16, 16))
    labels, captions = zip(*rows, strict=True)
    images = [(folder / f"{index}.png").read_bytes() for index in range(len(rows))]
    table = {"label": list(labels), "caption": list(captions)}
    if kind == "parquet":
        pq.write_table(pa.table({"image": images, **table}), folder / "a.parquet")
        return open_source(folder / "a.parquet")
    if kind == "datasets":
        datasets = pytest.importorskip("datasets")
        datasets.disable_progress_bars()
        rows = datasets.Dataset.from_dict({"image": images, **table})  # bytes, as in parquet of other tools
        rows.save_to_disk(folder / "saved")
        return open_source(folder / "saved")
    if kind in ("csv", "tsv"):
        import csv

        path = folder / f"a.{kind}"
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, delimiter="," if kind == "csv" else "\t")
            writer.writerow(["path", "label", "caption"])
            writer.writerows([f"{index}.png", *row] for index, row in enumerate(zip(labels, captions, strict=True)))
        return open_source(path)
    if kind == "mds":
        with mds.Writer(folder / "mds", {"image": "bytes", "label": "json", "caption": "str"}) as file:
            for image, label, caption in zip(images, labels, captions, strict=True):
                file.write({"image": image, "label": label, "caption": caption})
        return open_source(folder / "mds")
    if kind == "tar":
        from support.archive_making import make_tar

        members = []
        for index, (image, label, caption) in enumerate(zip(images, labels, captions, strict=True)):
            members += [
                (f"{index}.png", image),
                (f"{index}.cls", str(label).encode()),
                (f"{index}.txt", caption.encode()),
            ]
        return open_source(make_tar(folder / "a.tar", members))
    if kind == "jsonl":
        lines = [json.dumps({"file_name": f"{i}.png", "caption": text + "\ud800"}) for i, text in enumerate(captions)]
        (folder / "captions.jsonl").write_text("\n".join(lines))
        from support.archive_making import make_zip

        path = make_zip(folder / "a.zip", [(f"{index}.png", image) for index, image in enumerate(images)])
        return open_source(path, captions=f"{folder / 'captions.jsonl'}:file_name,caption")
    return open_source(folder)


def test_a_source_that_cannot_be_listed_leaves_no_folder_behind(tmp_path):
    (tmp_path / "source").mkdir()
    (tmp_path / "kept").mkdir()
    with pytest.raises(LatentqError, match="holds no images"):
        latentq.encode(tmp_path / "source", tmp_path / "kept" / "new" / "out", autoencoder="dct-f8c16", size=16)
    assert contents(tmp_path) == {"source/": b"", "kept/": b""}


def test_a_changed_caption_is_named_in_the_message(tmp_path):
    paint(tmp_path / "a.png", 0, (20, 18))
    table = tmp_path / "t.csv"
    table.write_text("path,caption\na.png,one\n")
    latentq.encode(table, tmp_path / "out", autoencoder="dct-f8c16", size=16)
    table.write_text("path,caption\na.png,two\n")
    with pytest.raises(MismatchError, match=r"the first difference: 'a\.png': caption 'one' there, 'two' now"):
        latentq.encode(table, tmp_path / "out", autoencoder="dct-f8c16", size=16)
