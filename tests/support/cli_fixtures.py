"""A small dataset for tests of the command line."""

from pathlib import Path

import pytest

import latentq

SMALL = ("--autoencoder", "dct-f8c16", "--size", "64")


@pytest.fixture
def small_dataset(pictures: Path, tmp_path: Path) -> Path:
    """The twelve pictures, encoded by the built-in transform at 64 pixels."""
    latentq.encode(pictures, tmp_path / "out", autoencoder="dct-f8c16", size=64)
    return tmp_path / "out"
