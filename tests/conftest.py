"""Fixtures and helpers for all tests; photographs and latents are next to the checkout, if they are available."""

import fcntl
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

pytest_plugins = [
    "support.model_fixtures",
    "support.layout_fixtures",
    "support.cli_fixtures",
    "support.mds_fixtures",
    "support.dataset_fixtures",
    "support.source_fixtures",
    "support.collect_fixtures",
    "support.store_fixtures",
    "support.ray_fixtures",
]

SHARED = Path(__file__).resolve().parents[2] / "shared"


@pytest.fixture(autouse=True)
def no_encoding_is_left_registered() -> Iterator[None]:
    """A test that leaves imagenet.int8's encoding in the table of mosaicml-streaming fails, not those after it."""
    yield
    encodings = sys.modules.get("streaming.base.format.mds.encodings")
    if encodings is not None and encodings._encodings["uint8"] is not encodings.UInt8:
        left = encodings._encodings["uint8"]
        encodings._encodings["uint8"] = encodings.UInt8
        pytest.fail(f"{left} is left registered")


@pytest.fixture
def kept_encodings() -> Iterator[None]:
    """The table of encodings of mosaicml-streaming is afterwards what it was."""
    from streaming.base.format.mds.encodings import _encodings

    before = dict(_encodings)
    yield
    _encodings.clear()
    _encodings.update(before)


@pytest.fixture(scope="session")
def photographs() -> Path:
    """64 ImageNet photographs in class folders. Tests that need them are skipped if they are not available."""
    folder = SHARED / "images"
    if not folder.is_dir():
        pytest.skip("the shared photographs are not available")
    return folder


@pytest.fixture(scope="session")
def latents() -> Path:
    """Real latents as float16 .npy files. Tests that need them are skipped if they are not available."""
    folder = SHARED / "latents"
    if not folder.is_dir():
        pytest.skip("the shared latents are not available")
    return folder


@pytest.fixture
def streaming_alone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Runs tests with a StreamingDataset one at a time, even under pytest-xdist.

    mosaicml-streaming looks for a free name in shared memory and then takes it, a race between two processes.
    """
    with (tmp_path_factory.getbasetemp().parent / "streaming.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def paint(path: Path, seed: int, size: tuple[int, int] = (96, 72)) -> None:
    """Save a smooth random picture of (width, height) pixels; the name decides the format."""
    random = np.random.default_rng(seed)
    small = random.integers(0, 256, (6, 8, 3), np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(small).resize(size, Image.Resampling.BICUBIC).save(path)


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """A folder of twelve small generated pictures, JPEG and PNG, in three class folders."""
    folder = tmp_path / "pictures"
    for index in range(12):
        name = f"{index:02}.{'png' if index % 3 else 'jpg'}"
        paint(folder / ["ant", "bee", "cat"][index % 3] / name, index, (90 + index, 70 + 3 * index))
    return folder


def run(*arguments: object, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run one `latentq` command in its own process and capture its output."""
    command = [sys.executable, "-m", "latentq", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, **options)


def heed_interrupts() -> None:
    """Restore Ctrl-C, as a `preexec_fn`: a child of tests that run in the background would ignore it."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def contents(folder: Path) -> dict[str, bytes]:
    """Return the bytes of all files below a folder by relative path; folders end with `/` and map to no bytes."""
    return {
        f"{path.relative_to(folder)}{'/' if path.is_dir() else ''}": b"" if path.is_dir() else path.read_bytes()
        for path in folder.rglob("*")
    }
