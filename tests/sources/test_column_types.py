"""Columns of every Arrow type that other tools write, and the values in them."""

from decimal import Decimal

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from latentq.sources import open_source
from support.collection_making import picture
from support.listing import listed

BYTES = [picture(seed) for seed in range(2)]


def source_of(kind, folder, table):
    """Writes a table as parquet, or as a data set of Hugging Face, and opens it."""
    if kind == "parquet":
        pq.write_table(table, folder / "a.parquet")
        return open_source(folder / "a.parquet")
    import datasets

    datasets.Dataset(table).save_to_disk(folder / "hf")
    return open_source(folder / "hf")


@pytest.mark.parametrize("kind", ["parquet", "datasets"])
@pytest.mark.parametrize(
    ("binary", "text"),
    [(pa.large_binary(), pa.large_string()), (pa.binary_view(), pa.string_view())],
    ids=["large", "views"],
)
def test_bytes_and_texts_may_be_of_every_arrow_type(tmp_path, kind, binary, text):
    """Polars and DuckDB write large types and views."""
    source = source_of(kind, tmp_path, pa.table({"image": pa.array(BYTES, binary), "text": pa.array(["a", "b"], text)}))
    samples = listed(source).samples
    assert [sample.caption for sample in samples] == ["a", "b"]
    assert [source.data(sample) for sample in samples] == BYTES


def test_the_bytes_of_an_image_struct_may_be_a_view(tmp_path):
    kind = pa.struct([("bytes", pa.binary_view()), ("path", pa.string_view())])
    images = pa.array([{"bytes": data, "path": None} for data in BYTES], kind)
    source = source_of("parquet", tmp_path, pa.table({"image": images}))
    assert [source.data(sample) for sample in listed(source).samples] == BYTES


@pytest.mark.parametrize(
    "lists",
    [
        pa.list_(pa.string()),
        pa.list_(pa.string(), 2),
        pa.large_list(pa.large_string()),
        pa.list_view(pa.string_view()),
        pa.list_(pa.dictionary(pa.int32(), pa.string())),
    ],
    ids=str,
)
def test_captions_may_be_lists_of_every_arrow_type(tmp_path, lists):
    values = [["a", "b"], ["c", "d"]]
    if pa.types.is_dictionary(lists.value_type):
        values = pa.ListArray.from_arrays([0, 2, 4], pa.array([*"abcd"]).dictionary_encode())
    else:
        values = pa.array(values, lists)
    samples = listed(source_of("parquet", tmp_path, pa.table({"image": BYTES, "captions": values}))).samples
    assert [sample.captions for sample in samples] == [("a", "b"), ("c", "d")]


def test_the_columns_of_a_webdataset_on_the_hub_are_known(tmp_path):
    """`datasets` names the columns of a WebDataset by the extensions of its members."""
    table = pa.table({"jpg": BYTES, "json": [{"w": 1}, {"w": 2}], "txt": ["a", "b"], "__key__": ["000", "001"]})
    listing = listed(source_of("parquet", tmp_path, table))
    assert [(sample.caption, sample.id) for sample in listing.samples] == [("a", "000"), ("b", "001")]
    assert listing.notes == ("columns: images from 'jpg', captions from 'txt'",)


@pytest.mark.parametrize(
    ("values", "labels"),
    [
        ([Decimal(3), Decimal("0.00")], [3, 0]),
        ([Decimal("1.5"), Decimal(2)], [None, 2]),
        ([Decimal(-1), Decimal((1 << 63) - 1)], [None, (1 << 63) - 1]),
    ],
)
def test_decimal_labels_are_numbers(tmp_path, values, labels):
    samples = listed(source_of("parquet", tmp_path, pa.table({"image": BYTES, "label": values}))).samples
    assert [sample.label for sample in samples] == labels


def test_nan_among_class_names_is_no_label(tmp_path):
    (tmp_path / "t.csv").write_text("path,label\na.png,dog\nb.png,nan\nc.png,ant\n")
    samples = listed(open_source(tmp_path / "t.csv")).samples
    assert [(sample.label, sample.label_text) for sample in samples] == [(1, "dog"), (None, None), (0, "ant")]


@pytest.mark.parametrize(
    ("values", "notes"),
    [
        ([-1, -1], ["no labels: -1 is neither a class number nor a name"]),
        ([[3], [4]], ["no labels: [3] is neither a class number nor a name"]),
        ([None, None], []),
    ],
)
def test_a_column_of_labels_without_any_label_is_noted(tmp_path, values, notes):
    listing = listed(source_of("parquet", tmp_path, pa.table({"image": BYTES, "label": values})))
    assert [sample.label for sample in listing.samples] == [None, None]
    assert list(listing.notes[1:]) == notes
