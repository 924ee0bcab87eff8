"""Listings are streams: samples come in order, in memory that does not depend on their number."""

import itertools
import os
import subprocess
import sys
import tracemalloc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from latentq import LatentqError
from latentq.sources import Sample, file_dict, label_values, open_source, spool
from latentq.sources.label_values import with_labels
from latentq.sources.spool import spooled
from latentq.system.text import counted
from support.archive_making import make_archive
from support.listing import listed

# Names whose order as bytes is not that of their characters, or changes behind a `/`.
_names = st.lists(
    st.sampled_from(
        [b"a", b"b", b"-", b".", b"0", b" ", b"/", b"\xc3\xa9", b"\xff", b"\xee\x80\x80", b"\xf0\x9f\x98\x80"]
    ),
    min_size=1,
    max_size=4,
).map(b"".join)


def make_files(root, names):
    """Make empty images of names that may have any bytes; returns their keys."""
    keys = []
    for name in names:
        key = os.path.normpath(f"x/{os.fsdecode(name)}x.png")
        if any(part.startswith(".") for part in key.split("/")) or (root / key).exists():
            continue
        (root / key).parent.mkdir(parents=True, exist_ok=True)
        (root / key).touch()
        keys.append(key)
    return keys


@settings(deadline=None)
@given(st.lists(_names, min_size=1, max_size=12), st.booleans())
def test_the_images_of_any_folder_are_in_the_order_of_their_keys_as_bytes(tmp_path_factory, names, within):
    root = tmp_path_factory.mktemp("folder")
    keys = make_files(root, names)
    source = root / "x" if within else root
    keys = [key.removeprefix("x/") for key in keys] if within else keys
    if not keys:
        return
    samples = listed(open_source(source)).samples
    assert [sample.key for sample in samples] == sorted(keys, key=os.fsencode)
    folders = sorted({key.partition("/")[0] for key in keys}, key=os.fsencode)
    labels = [None if any("/" not in key for key in keys) else folders.index(s.key.partition("/")[0]) for s in samples]
    assert [sample.label for sample in samples] == labels


def test_class_folders_are_numbered_by_their_names_as_bytes_and_not_by_their_paths(tmp_path):
    names = ("a", "a-1", "a.b", "\U0001f600", os.fsdecode(b"\xff"))
    for name in names:
        (tmp_path / name).mkdir()
        (tmp_path / name / "x.png").touch()
    labels = {sample.key: sample.label for sample in listed(open_source(tmp_path)).samples}
    assert labels == {f"{name}/x.png": label for label, name in enumerate(names)}
    assert list(labels)[:3] == ["a-1/x.png", "a.b/x.png", "a/x.png"]


def test_a_folder_of_two_paths_is_listed_under_the_first(tmp_path):
    (tmp_path / "z").mkdir()
    (tmp_path / "z" / "x.png").touch()
    for name in ("a", "zz"):
        (tmp_path / name).symlink_to(tmp_path / "z")
    assert [sample.key for sample in listed(open_source(tmp_path)).samples] == ["a/x.png"]


def test_a_deep_folder_is_listed(tmp_path):
    deep = sys.getrecursionlimit() + 100
    folder = os.open(tmp_path, os.O_RDONLY)
    for _ in range(deep):
        os.mkdir("d", dir_fd=folder)
        inner = os.open("d", os.O_RDONLY, dir_fd=folder)
        os.close(folder)
        folder = inner
    try:
        os.close(os.open("x.png", os.O_CREAT | os.O_WRONLY, dir_fd=folder))
        assert [sample.key for sample in listed(open_source(tmp_path)).samples] == ["d/" * deep + "x.png"]
    finally:
        os.close(folder)
        subprocess.run(["rm", "-r", tmp_path / "d"], check=True)  # pytest would remove it by recursion


_number = st.sampled_from(["0", "3", "12", "3.0", "+7", " 5 ", 0, 9, 4.0, True, False])
_none = st.sampled_from([None, "", " ", "-1", "1.5", "nan", -2, 0.5, float("nan"), b"x", [3], "1e3"])
_name = st.sampled_from(["dog", "cat", " ant ", "\ue000", "\U0001f600", "x1", "0x"])


@given(st.lists(_number | _none), st.booleans())
def test_numbers_are_labels_as_they_are(values, faulty):
    fault = "broken" if faulty else ""
    samples = [
        *with_labels("s", ((Sample(str(i), 1, fault=fault), v) for i, v in enumerate(values)), None, notes := [])
    ]
    assert [sample.key for sample in samples] == [str(number) for number in range(len(values))]
    for sample, value in zip(samples, values, strict=True):
        is_number = any(value is other for other in (True, False)) or (
            isinstance(value, (int, float, str))
            and str(value).strip() in ("0", "3", "12", "3.0", "+7", "5", "9", "4.0")
        )
        assert sample.label == (int(float(value)) if is_number else None)
        assert (sample.label_text, sample.fault) == (None, fault)
    missing = [sample.key for sample in samples if sample.label is None]
    if faulty or not missing:
        assert notes == []
    elif len(missing) < len(samples):
        assert notes == [f"no label for {len(missing)} of {counted(len(samples), 'sample')}, {missing[0]} first"]
    else:
        shown = [f"no labels: {v!r:.30} is neither a class number nor a name" for v in values if v not in (None, "")]
        assert notes == shown[:1]


@given(st.lists(_number | _none | _name), _name, st.integers(0, 5), st.sampled_from([0, 1, 1 << 16]))
def test_one_name_makes_names_of_all(values, name, position, cached):
    values.insert(position, name)
    label_values._CACHED_VALUES, default = cached, label_values._CACHED_VALUES
    try:
        samples = [*with_labels("s", ((Sample(str(i), 1), value) for i, value in enumerate(values)), None, [])]
    finally:
        label_values._CACHED_VALUES = default
    texts = [
        str(value).strip() if isinstance(value, (str, int, float)) and value == value and str(value).strip() else None
        for value in values
    ]
    texts = [None if text == "nan" else text for text in texts]
    names = sorted({text for text in texts if text is not None})
    assert [sample.label_text for sample in samples] == texts
    assert [sample.label for sample in samples] == [None if text is None else names.index(text) for text in texts]


@pytest.mark.parametrize(
    ("finish", "kept", "notes"),
    [
        (lambda sample: None if sample.key == "1" else sample, 3, ["no label for 1 of 3 samples, 3 first"]),
        (lambda sample: sample._replace(fault="no caption"), 4, []),
    ],
    ids=["dropped", "faulty"],
)
def test_only_the_labels_of_samples_that_can_be_used_are_counted(finish, kept, notes):
    rows = [(Sample(str(number), 1), None if number % 2 else number) for number in range(4)]
    found = []
    assert len([*with_labels("s", rows, None, found, finish=finish)]) == kept
    assert found == notes


@given(st.lists(st.tuples(st.none() | st.integers(), st.text(st.characters()), st.floats(allow_nan=False))))
def test_rows_come_back_from_a_spool(rows):
    assert [*spooled(iter(rows))] == rows
    assert [*spooled(Sample(text, 1, label=number) for number, text, _ in rows)] == [
        tuple(Sample(text, 1, label=number)) for number, text, _ in rows
    ]


def peak_of(samples):
    """Returns the number of samples, and the peak of the memory that Python allocated for them."""
    tracemalloc.start()
    count = sum(1 for _ in samples)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return count, peak


@pytest.mark.parametrize("columns", ["path,caption", "path,caption,label"])
def test_a_table_of_many_rows_is_listed_in_bounded_memory(tmp_path, monkeypatch, columns):
    monkeypatch.setattr(spool, "_MEMORY_BYTES", 1 << 18)
    with (tmp_path / "t.csv").open("w") as file:
        file.write(f"{columns}\n")
        file.writelines(f"{number}.png,a caption of {number},class {number % 50}\n" for number in range(50_000))
    count, peak = peak_of(open_source(tmp_path / "t.csv").listing().samples)
    assert count == 50_000
    assert peak < 3_000_000  # all samples take 20 MB


@pytest.mark.parametrize("outside", [False, True])
def test_a_folder_of_many_folders_is_listed_in_bounded_memory(tmp_path, monkeypatch, outside):
    monkeypatch.setattr(spool, "_MEMORY_BYTES", 1 << 16)
    for folder in range(200):
        (tmp_path / f"{folder}").mkdir()
        for number in range(50):
            os.close(os.open(tmp_path / f"{folder}" / f"{number}.png", os.O_CREAT | os.O_WRONLY))
    if outside:
        (tmp_path / "x.png").touch()
    count, peak = peak_of(open_source(tmp_path).listing().samples)
    assert count == 10_000 + outside
    assert peak < 1_500_000  # all samples take 3 MB


@pytest.mark.parametrize(
    ("kind", "most"),  # bytes; without a file for the names it would be 1.4, 5.9 and 3.9 MB
    [("folder", 500_000), ("a.tar", 3_000_000), ("a.zip", 3_000_000)],
)
def test_many_names_in_one_place_are_listed_in_bounded_memory(tmp_path, monkeypatch, kind, most):
    monkeypatch.setattr(spool, "_MEMORY_BYTES", 1 << 16)
    monkeypatch.setattr(file_dict, "_MEMORY_BYTES", 1 << 16)
    source = tmp_path / kind
    if kind == "folder":
        source.mkdir()
        for number in range(10_000):
            os.close(os.open(source / f"{number}.png", os.O_CREAT | os.O_WRONLY))
    else:
        make_archive(source, ((f"{number}.png", b"") for number in range(10_000)))
    count, peak = peak_of(open_source(source).listing().samples)
    assert count == 10_000
    assert peak < most


def test_captions_of_a_file_are_joined_in_bounded_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(spool, "_MEMORY_BYTES", 1 << 16)
    monkeypatch.setattr(file_dict, "_MEMORY_BYTES", 1 << 16)
    (tmp_path / "t.csv").write_text("path\n" + "".join(f"{number}.png\n" for number in range(6_000)))
    rows = (f'{{"key": "{number}", "caption": "a caption of {number}"}}\n' for number in range(6_000))
    (tmp_path / "c.jsonl").write_text("".join(rows))
    count, peak = peak_of(open_source(tmp_path / "t.csv", captions=str(tmp_path / "c.jsonl")).listing().samples)
    assert count == 6_000
    assert peak < 1_000_000  # all captions take 2 MB


def test_without_labels_the_first_sample_of_a_table_does_not_wait_for_the_last(tmp_path):
    (tmp_path / "t.csv").write_text("path,caption\na.png,one\nb.png\n")
    samples = open_source(tmp_path / "t.csv").listing().samples
    assert next(iter(samples)).key == "a.png"
    with pytest.raises(LatentqError, match="line 3: the row has no caption"):
        list(samples)


def test_images_outside_class_folders_are_known_before_the_first_sample(tmp_path):
    (tmp_path / "z.png").touch()
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "x.png").touch()
    listing = open_source(tmp_path).listing()
    samples = iter(listing.samples)
    assert [sample.key for sample in itertools.islice(samples, 1)] == ["a/x.png"]
    (tmp_path / "b" / "y.png").touch()  # `b` has not been looked into
    assert [sample.key for sample in samples] == ["b/x.png", "b/y.png", "z.png"]
    assert listing.notes == ["no labels: 1 image outside class folders, z.png first"]


def test_quotation_marks_are_checked_before_the_last_row_is_taken(tmp_path):
    (tmp_path / "t.csv").write_text('path,caption,label\na.png,one,1\nb.png,"two,2\nc.png,three,3\n')
    with pytest.raises(LatentqError, match="the quotation mark in line 3 is never closed"):
        listed(open_source(tmp_path / "t.csv"))


@pytest.mark.parametrize("path", ["x.png/", "x.png/.", "./x.png", "d/../x.png", "//x.png"])
def test_paths_of_a_table_are_those_that_are_read(tmp_path, path):
    (tmp_path / "d").mkdir()
    (tmp_path / "x.png").write_bytes(b"123")
    (tmp_path / "t.csv").write_text(f"path\n{path}\n")
    source = open_source(tmp_path / "t.csv")
    [sample] = listed(source).samples
    assert sample.bytes == (3 if source.data(sample).is_file() else None)
    assert (sample.bytes is None) == (path == "//x.png")
