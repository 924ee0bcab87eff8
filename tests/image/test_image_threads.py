"""Images that threads load in the background: `ImageBatch`, which the images of a run go through."""

import os
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xxhash

from latentq import ImageError, _core, image
from support.images import Pixels, picture_of, saved

SIZES = [(24, 24), (32, 40)]  # height, width


@pytest.fixture
def threads() -> Any:
    threads = _core.Threads(2)
    yield threads
    threads.shutdown()


def arrays(count: int, fill: int = 255) -> list[Pixels]:
    return [np.full((count, 3 * height * width), fill, np.uint8) for height, width in SIZES]


def loaded(batch: _core.ImageBatch, position: int) -> tuple[Exception | None, tuple[int, int] | None]:
    """Returns the error of an image, and its size."""
    error, size, _ = batch.result(position)
    return error, size


def check(outs: list[Pixels], position: int, data: bytes | None) -> None:
    """Compares a position with what `load` gives, or with zeros."""
    for out, size in zip(outs, SIZES, strict=True):
        expected = np.zeros((*size, 3), np.uint8) if data is None else image.load(data, size)
        np.testing.assert_array_equal(out[position].reshape(3, *size), expected.transpose(2, 0, 1))


def test_images_are_loaded_to_their_positions(threads: _core.Threads, tmp_path: Path) -> None:
    good = [saved(picture_of("RGB", 50 + i, 70 - i, i), format) for i, format in enumerate(["JPEG", "PNG", "WEBP"])]
    (tmp_path / "good.dat").write_bytes(good[1])
    outs = arrays(6)
    batch = _core.ImageBatch(threads, SIZES, outs, {"layout": "chw"}, True)
    assert batch.is_done()
    batch.start(4, good[0])
    batch.start(0, str(tmp_path / "good.dat"))
    batch.start(2, good[2])
    batch.start(1, b"no image")
    batch.start(3, str(tmp_path / "none.jpg"))
    hashes = [int(xxhash.xxh3_64_hexdigest(data), 16) for data in (good[1], good[2], good[0])]
    sizes = [(69, 51), (68, 52), (70, 50)]
    found = [batch.result(position) for position in (0, 2, 4)]
    assert found == [(None, size, content) for size, content in zip(sizes, hashes, strict=True)]
    assert _core.image_hash(str(tmp_path / "good.dat")) == _core.image_hash(good[1]) == hashes[0]
    error, size = loaded(batch, 1)
    assert isinstance(error, ImageError)
    assert size is None
    error, _ = loaded(batch, 3)
    assert isinstance(error, FileNotFoundError)
    assert error.filename == str(tmp_path / "none.jpg")
    assert batch.is_done()
    for position, data in enumerate((good[1], None, good[2], None, good[0])):
        check(outs, position, data)
    assert all((out[5] == 255).all() for out in outs)  # never started
    with pytest.raises(ValueError, match="taken"):
        loaded(batch, 0)


def test_size_is_that_of_the_file_even_if_the_image_is_broken(threads: _core.Threads) -> None:
    data = saved(picture_of("RGB", 50, 70), "PNG")
    outs = arrays(2)
    for measure, expected in ((True, (70, 50)), (False, None)):
        batch = _core.ImageBatch(threads, SIZES, outs, {}, measure)
        batch.start(1, data[:200])
        error, size = loaded(batch, 1)
        assert isinstance(error, ImageError)
        assert size == expected
        check(outs, 1, None)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes")
def test_slow_image_does_not_hold_up_the_batches_after_it(threads: _core.Threads, tmp_path: Path) -> None:
    data = saved(picture_of("RGB", 50, 70), "PNG")
    os.mkfifo(tmp_path / "slow")
    first, second = arrays(3), arrays(5)
    slow = _core.ImageBatch(threads, SIZES, first, {}, False)
    slow.start(0, str(tmp_path / "slow"))  # reading it waits for a writer
    slow.start(1, data)
    after = _core.ImageBatch(threads, SIZES, second, {}, False)
    for position in range(5):
        after.start(position, data)
    assert [loaded(after, position) for position in range(5)] == [(None, None)] * 5
    assert loaded(slow, 1) == (None, None)
    assert not slow.is_done()
    (tmp_path / "slow").write_bytes(data)
    assert loaded(slow, 0) == (None, None)
    assert slow.is_done()
    check(first, 0, data)


def test_misuse_is_an_error(threads: _core.Threads) -> None:
    data = saved(picture_of("RGB", 50, 70), "PNG")
    outs = arrays(2)
    batch = _core.ImageBatch(threads, SIZES, outs, {}, False)
    batch.start(1, data)
    for position in (1, 2, 99):
        with pytest.raises(ValueError, match=f"position {position} is used already, or does not exist"):
            batch.start(position, data)
    for position in (0, 99):
        with pytest.raises(ValueError, match=f"no image was started at position {position}"):
            loaded(batch, position)
    with pytest.raises(OverflowError):
        batch.start(-1, data)
    for wrong in (outs[:1], outs[::-1], [outs[0], outs[1][:1]], [outs[0], outs[1][:, :-1]]):
        with pytest.raises(ValueError, match="an array must have a row"):
            _core.ImageBatch(threads, SIZES, wrong, {}, False)
    with pytest.raises(ValueError, match="an array must have a row"):
        _core.ImageBatch(threads, [(0, 8)], [np.empty((1, 0), np.uint8)], {}, False)
    twice = np.zeros((2, 3 * 24 * 24), np.uint8)
    with pytest.raises(TypeError, match="'outs'"):  # NumPy's crate: already borrowed
        _core.ImageBatch(threads, [(24, 24)] * 2, [twice, twice], {}, False)
    with pytest.raises((ValueError, TypeError)):
        _core.ImageBatch(threads, [(24, 24)], [np.zeros((2, 2 * 3 * 24 * 24), np.uint8)[:, ::2]], {}, False)
    assert loaded(batch, 1) == (None, None)


def test_images_that_are_not_begun_are_dropped_with_the_threads() -> None:
    threads = _core.Threads(1)
    data = saved(picture_of("RGB", 600, 700), "PNG")
    batch = _core.ImageBatch(threads, SIZES, arrays(200), {}, False)
    for position in range(200):
        batch.start(position, data)
    threads.shutdown()
    assert batch.is_done()
    with pytest.raises(ValueError, match="the threads ended before"):
        loaded(batch, 199)
    with pytest.raises(ValueError, match="shut down"):
        _core.ImageBatch(threads, SIZES, arrays(1), {}, False).start(0, data)


def test_shutdown_wakes_a_thread_that_waits(threads: _core.Threads) -> None:
    data = saved(picture_of("RGB", 600, 700), "PNG")
    batch = _core.ImageBatch(threads, SIZES, arrays(500), {}, False)
    for position in range(500):
        batch.start(position, data)
    errors: list[Exception] = []

    def wait() -> None:
        try:
            loaded(batch, 499)
        except ValueError as error:
            errors.append(error)

    waiting = threading.Thread(target=wait)
    waiting.start()
    threads.shutdown()
    waiting.join(60)
    assert not waiting.is_alive()
    assert "the threads ended before" in str(errors[0])


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_forked_child_is_refused(threads: _core.Threads) -> None:
    data = saved(picture_of("RGB", 50, 70), "PNG")
    outs = arrays(2)
    batch = _core.ImageBatch(threads, SIZES, outs, {}, False)
    batch.start(0, data)
    child = os.fork()
    if not child:
        refusals = 0
        for call in (lambda: batch.start(1, data), lambda: batch.result(0)):
            try:
                call()
            except ValueError as error:
                refusals += "another process" in str(error) and "make a new iterator or loader" in str(error)
        del batch
        threads.shutdown()
        os._exit(refusals)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 2
    assert loaded(batch, 0) == (None, None)
    check(outs, 0, data)


@pytest.mark.skipif(sys.platform != "linux", reason="/proc")
def test_threads_live_as_long_as_their_owner() -> None:
    def named() -> set[str]:
        tasks = Path("/proc/self/task").glob("*/comm")
        return {task.parent.name for task in tasks if task.read_text().strip() == "latentq"}

    def load() -> None:
        batch = _core.ImageBatch(threads, SIZES, arrays(8), {}, False)
        for position in range(8):
            batch.start(position, data)
        assert [loaded(batch, position) for position in range(8)] == [(None, None)] * 8

    data = saved(picture_of("RGB", 50, 70), "PNG")
    before = named()
    threads = _core.Threads(3)
    load()
    deadline = time.monotonic() + 60
    while len(own := named() - before) < 3 and time.monotonic() < deadline:  # a thread names itself once it runs
        time.sleep(0.01)
    assert len(own) == 3
    for _ in range(4):
        load()
        assert named() - before == own
    threads.shutdown()
    assert not named() & own
