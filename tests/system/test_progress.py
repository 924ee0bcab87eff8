"""Progress of long work."""

import io

import pytest

from latentq.system import progress as module
from latentq.system.progress import Progress, Totals


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_stream_gets_a_last_line_with_count_rate_and_time_left() -> None:
    stream = io.StringIO()
    with Progress(3, "encode", stream) as bar:
        bar.skip(1)
        bar.update(2)
    line = stream.getvalue()
    assert line.startswith("encode: 3 of 3 images, ")
    assert line.endswith(" images/s, 0:00 left\n")


def test_a_run_with_nothing_left_to_do_prints_no_rate() -> None:
    stream = io.StringIO()
    with Progress(3, "encode", stream) as bar:
        bar.skip(3)
    assert stream.getvalue() == "encode: 3 of 3 images\n"


def test_nothing_is_printed_without_a_stream(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress(9, "encode", None) as bar:
        for index in range(9):
            bar.reject(f"{index}", "decode", "broken")
        bar.note("a note")
    assert capsys.readouterr() == ("", "")


def test_many_rejects_are_counted_by_reason_and_few_are_printed() -> None:
    stream = io.StringIO()
    with Progress(140, "encode", stream) as bar:
        bar.update(2)
        for index in range(120):
            bar.reject(f"{index}.png", "size", f"{index} x 80 pixels, below 256")
        for index in range(18):
            bar.reject(f"{index}.jpg", "decode", "not an image")
    lines = stream.getvalue().splitlines()
    assert lines[0] == "rejected: 0.png: size: 0 x 80 pixels, below 256"
    assert [line.partition(":")[0] for line in lines[:5]] == ["rejected"] * 5
    assert "rejects.tsv" in lines[5]
    assert lines[6].endswith("138 rejects")
    assert lines[7:] == [
        "rejected: 120 images: size: for example: 0 x 80 pixels, below 256",
        "rejected: 18 images: decode: not an image",
    ]


def test_a_few_rejects_are_printed_and_not_counted_again() -> None:
    stream = io.StringIO()
    with Progress(5, "encode", stream) as bar:
        for index in range(5):
            bar.reject(f"{index}", "decode", "broken")
    assert stream.getvalue().count("rejected: ") == 5


def test_rejects_that_are_undone_are_not_counted() -> None:
    stream = io.StringIO()
    with Progress(20, "encode", stream) as bar:
        for index in range(7):
            bar.reject(f"{index}", "decode", "broken")
        bar.update(3)
        bar.undo(3, [("decode", "broken")] * 7)
        bar.update(14)
        for index in range(6):
            bar.reject(f"{index}", "decode", "broken")
    lines = stream.getvalue().splitlines()
    assert lines[-1] == "rejected: 6 images: decode: broken"
    assert lines[-2].startswith("encode: 20 of 20 images, ")


def test_control_characters_of_names_do_not_reach_the_stream() -> None:
    for stream in (io.StringIO(), Terminal()):
        with Progress(1, "encode", stream) as bar:
            bar.reject("a\x1b]0;evil\x07\nb.png", "decode", "broken \x9b31m")
        assert "a\\x1b]0;evil\\x07 b.png: decode: broken \\x9b31m" in stream.getvalue()


def test_a_terminal_gets_a_bar() -> None:
    stream = Terminal()
    with Progress(4, "encode", stream) as bar:
        bar.update(3)
        bar.reject("x", "decode", "broken")
    assert "4/4" in stream.getvalue()
    assert "1 reject" in stream.getvalue()


def test_totals_are_those_of_this_run() -> None:
    totals = Totals()
    with Progress(10, "encode", None, totals=totals) as bar:
        bar.skip(4)
        bar.update(5)
        bar.reject("x", "decode", "broken")
    assert totals.images == 6
    assert 0 < totals.seconds < 60


def test_progress_that_nobody_asked_for_goes_to_a_terminal_only(monkeypatch: pytest.MonkeyPatch) -> None:
    for stream, expected in ((io.StringIO(), False), (Terminal(), True)):
        monkeypatch.setattr(module.sys, "stderr", stream)
        assert (module.terminal() is stream) is expected
    monkeypatch.setattr(module.sys, "stderr", None)
    assert module.terminal() is None


def test_a_single_image_is_counted_in_the_singular() -> None:
    stream = io.StringIO()
    with Progress(1, "encode", stream) as bar:
        bar.skip(1)
    with Progress(1, "read", stream, noun="byte") as bar:
        bar.skip(1)
    assert stream.getvalue() == "encode: 1 of 1 image\nread: 1 of 1 byte\n"


def test_a_line_ends_with_rejects_bytes_and_the_callers_text() -> None:
    stream = io.StringIO()
    with Progress(2, "encode", stream, detail=lambda: "GPU 87%") as bar:
        bar.update(1)
        bar.wrote(1_500_000)
        bar.reject("a", "decode", "broken")
    assert stream.getvalue().splitlines()[-1].endswith(" left, 1 reject, 1.5 MB, GPU 87%")


def test_a_bar_shows_rejects_bytes_and_the_callers_text() -> None:
    stream = Terminal()
    with Progress(2, "encode", stream, detail=lambda: "GPU 87%", mininterval=0) as bar:
        bar.reject("a", "decode", "broken")
        bar.wrote(1_500_000)
        bar.update(1)
    assert "1 reject, 1.5 MB, GPU 87%" in stream.getvalue()
