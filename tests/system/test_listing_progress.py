"""The progress of a listing whose length nobody knows."""

import io
import itertools

from latentq.system import progress


def test_a_long_listing_prints_how_many_images_there_are_so_far(monkeypatch):
    monkeypatch.setattr(progress, "_LINE_SECONDS", 0.0)
    stream = io.StringIO()
    assert list(progress.counting_progress(range(3000), stream)) == list(range(3000))
    lines = stream.getvalue().splitlines()
    assert [line.partition(",")[0] for line in lines] == [f"list: {n} images" for n in (1024, 2048, 3000)]


def test_a_short_listing_prints_nothing_and_takes_no_more_than_it_needs():
    stream, taken = io.StringIO(), itertools.count()
    images = progress.counting_progress(taken, stream)
    assert list(itertools.islice(images, 5)) == [0, 1, 2, 3, 4]
    assert next(taken) <= 1024
    assert stream.getvalue() == ""
