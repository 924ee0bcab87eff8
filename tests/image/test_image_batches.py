"""Loads batches of images, in threads and processes."""

import multiprocessing
import subprocess
import sys
import threading
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from latentq import ImageError, image
from support.images import Pixels, picture_of, saved


@pytest.fixture
def mixed(tmp_path: Path) -> list[bytes | str | Path]:
    """Returns good and bad items, as bytes and as paths."""
    good = [saved(picture_of("RGB", 50 + i, 70 - i, i), format) for i, format in enumerate(["JPEG", "PNG", "WEBP"])]
    (tmp_path / "good.dat").write_bytes(good[0])
    (tmp_path / "cut.jpg").write_bytes(good[0][:600])
    (tmp_path / "empty.jpg").write_bytes(b"")
    return [good[0], tmp_path / "cut.jpg", good[1], tmp_path / "none.jpg", str(tmp_path / "good.dat"), b"text", good[2]]


def test_a_bad_item_gets_zeros_and_its_error(mixed: list[bytes | str | Path], tmp_path: Path) -> None:
    for threads in (1, 2, 5):
        for layout in ("chw", "hwc"):
            out, errors = image.load_batch(mixed, 32, threads=threads, layout=layout)  # type: ignore[arg-type]
            assert out.shape == ((7, 3, 32, 32) if layout == "chw" else (7, 32, 32, 3))
            assert [type(error) for error in errors] == [
                *(type(None), ImageError, type(None), FileNotFoundError, type(None), ImageError, type(None))
            ]
            assert str(tmp_path / "cut.jpg") in str(errors[1])
            assert isinstance(errors[3], FileNotFoundError)
            assert errors[3].filename == str(tmp_path / "none.jpg")
            for item, pixels, error in zip(mixed, out, errors, strict=True):
                expected = np.zeros((32, 32, 3), np.uint8) if error else image.load(item, 32)
                np.testing.assert_array_equal(pixels, expected.transpose(2, 0, 1) if layout == "chw" else expected)


def test_a_batch_is_written_to_out(mixed: list[bytes | str | Path]) -> None:
    whole = np.full((9, 3, 32, 32), 7, np.uint8)
    out, _ = image.load_batch(mixed, 32, out=whole[1:8])
    assert np.shares_memory(out, whole)
    np.testing.assert_array_equal(out, image.load_batch(mixed, 32)[0])
    assert (whole[[0, 8]] == 7).all()
    for wrong in (np.empty((7, 32, 32, 3), np.uint8), np.empty((7, 3, 32, 32), np.int8), whole[1:8, :, :, ::-1]):
        with pytest.raises(ValueError, match="out must be"):
            image.load_batch(mixed, 32, out=wrong)


def test_an_empty_batch_is_empty() -> None:
    out, errors = image.load_batch([], 32)
    assert out.shape == (0, 3, 32, 32)
    assert errors == []


def load_small(data: bytes) -> Pixels:
    return image.load_batch([data, data], 24, threads=2)[0]


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_images_load_in_processes_of_every_start_method(method: str) -> None:
    data = saved(picture_of("RGB", 50, 60), "JPEG")
    expected = load_small(data)  # So that a fork finds a library that was used before.
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context(method)) as pool:
        for pixels in pool.map(load_small, [data] * 4):
            np.testing.assert_array_equal(pixels, expected)


def test_the_documented_data_loader_runs(tmp_path: Path) -> None:
    text = (Path(__file__).parents[2] / "docs" / "image.md").read_text()
    (example,) = [block.split("```")[0] for block in text.split("```python\n")[1:] if "import DataLoader" in block]
    (tmp_path / "example.py").write_text(example)
    (tmp_path / "photographs").mkdir()
    for index in range(20):
        picture_of("RGB", 300 + index, 280, index).save(tmp_path / "photographs" / f"{index}.jpg")
    result = subprocess.run([sys.executable, "example.py"], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert result.stdout.splitlines() == [
        "(8, 3, 256, 256) torch.uint8",
        "(8, 3, 256, 256) torch.uint8",
        "(4, 3, 256, 256) torch.uint8",
    ]


def test_python_threads_can_load_at_the_same_time(mixed: list[bytes | str | Path]) -> None:
    expected = image.load_batch(mixed, 32)[0]
    results: list[Pixels] = []
    threads = [
        threading.Thread(target=lambda: results.append(image.load_batch(mixed, 32, threads=2)[0])) for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 8
    for result in results:
        np.testing.assert_array_equal(result, expected)
