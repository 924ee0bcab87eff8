"""Sources with one row per sample: parquet, MDS and Hugging Face datasets."""

import os

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import streaming

from conftest import contents, run
from latentq import FormatError, LatentqError, MismatchError, encode, mds
from latentq.sources import open_source
from support.collection_making import parquet, picture
from support.hub_server import Repository, Server
from support.listing import listed


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


def test_a_dataset_on_the_hub_is_a_source(tmp_path):
    """Its parquet has bytes and captions, without the types that `datasets` would write."""
    images = [{"bytes": picture(seed), "path": f"{seed}.jpg"} for seed in range(3)] + [{"bytes": None, "path": None}]
    files = {"data/train-00000-of-00001.parquet": parquet({"image": images, "caption": [*"abcd"]}), "README.md": b"#"}
    with Server({"someone/pictures": Repository({"main": files})}) as server:
        environment = {"HF_ENDPOINT": server.url, "HF_HOME": str(tmp_path / "hub")}
        done = run("shards", "hf:someone/pictures:train", tmp_path / "out", env=os.environ | environment)
    assert done.returncode == 0, done.stderr
    assert "3 samples, 1 reject" in done.stdout
    assert (tmp_path / "out" / "rejects.tsv").read_text() == "train/00000003\tread\tno image in this row\n"
    assert [sample["caption"] for sample in mds.Reader(tmp_path / "out")] == [*"abc"]
