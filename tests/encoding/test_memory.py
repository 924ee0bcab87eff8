"""The memory of a batch has a bound in bytes."""

import time
import tracemalloc

import numpy as np
import pytest
from PIL import Image

import latentq
from conftest import contents, paint
from latentq import LatentqError, mds
from latentq.encoding import images
from latentq.sharding import pipeline as sharding
from latentq.sources import Listing, Sample

SMALL = {"size": 32, "unit_size": 8, "batch_size": 8}


class Members:
    """A source of twelve images in memory, each padded to `padding` bytes, that counts the bytes it gave out."""

    kind = "members"

    def __init__(self, folder, padding):
        self.files = {}
        for index in range(12):
            paint(folder / f"{index:02}.png", index)
            self.files[f"{index:02}.png"] = (folder / f"{index:02}.png").read_bytes()
        self.padding = padding

    def listing(self):
        return Listing(tuple(Sample(name, self.padding) for name in self.files), ())

    def data(self, sample):
        return self.files[sample.key].ljust(self.padding, b"\0")


@pytest.fixture
def peak():
    """Returns a function that calls another and gives the peak of the memory that Python allocated, in bytes."""

    def measure(function):
        tracemalloc.start()
        try:
            function()
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    return measure


@pytest.mark.parametrize("command", ["encode", "shards"])
def test_bytes_read_ahead_are_bounded(tmp_path, monkeypatch, peak, command):
    source, bound = Members(tmp_path / "photos", 4 << 20), 8 << 20
    run = {
        "encode": lambda out: latentq.encode(source, out, **SMALL),
        "shards": lambda out: sharding.shards(source, out, min_size=32, unit_size=12, threads=4),
    }[command]
    convert = sharding.to_jpeg

    def slow(*arguments, **options):
        time.sleep(0.5)  # so that reading is ahead, on a busy machine too
        return convert(*arguments, **options)

    monkeypatch.setattr(sharding, "to_jpeg", slow)
    run(tmp_path / "warm")  # what is imported late does not count
    free = peak(lambda: run(tmp_path / "free"))
    monkeypatch.setattr(images, "READ_BYTES", bound)
    monkeypatch.setattr(sharding, "_READ_BYTES", bound)
    bounded = peak(lambda: run(tmp_path / "bounded"))
    assert free > 30 << 20
    # Encoding prefetches two batches, of which only one is being read. One image is read beyond the bound, and
    # converting holds an image once more.
    assert bounded < 2 * bound + (6 << 20) < free
    assert contents(tmp_path / "bounded") == contents(tmp_path / "free")


def test_rejects_of_a_batch_that_is_read_in_parts_keep_their_places(tmp_path, monkeypatch):
    source = Members(tmp_path / "photos", 100_000)
    source.files["03.png"] = b"broken"
    source.files["06.png"] = b"broken"
    latentq.encode(source, tmp_path / "whole", **SMALL, image=True)
    for bound in (1, 150_000, 350_000):
        monkeypatch.setattr(images, "READ_BYTES", bound)
        out = tmp_path / f"{bound}"
        latentq.encode(source, out, **SMALL, image=True)
        assert contents(out) == contents(tmp_path / "whole")
    keys = [sample["key"] for sample in map(mds.Reader(out).__getitem__, range(10))]
    assert keys == [f"{index:02}.png" for index in range(12) if index not in (3, 6)]


def test_batch_of_stored_files_above_the_bound_names_the_largest(tmp_path, monkeypatch):
    source = Members(tmp_path / "photos", 10_000)
    source.files["02.png"] = source.files["02.png"].ljust(30_000, b"\0")
    monkeypatch.setattr(images, "STORED_BYTES", 50_000)
    with pytest.raises(
        LatentqError, match=r"02\.png: the image files of a batch of 8 take more than 50\.0 kB .* 30\.0 kB"
    ):
        latentq.encode(source, tmp_path / "out", **SMALL, image=True)
    latentq.encode(source, tmp_path / "out", **{**SMALL, "batch_size": 2}, image=True)
    array = np.asarray(Image.open(tmp_path / "photos" / "02.png"))
    assert array.shape == (72, 96, 3)
    assert latentq.Card.load(tmp_path / "out").counts.samples == 12
