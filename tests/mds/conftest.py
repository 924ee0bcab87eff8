"""Fixtures of the tests of shards."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from support.mds_schemas import stock_without_naps
from support.mds_stock import COLUMNS, samples, write_ours


@pytest.fixture
def no_naps() -> Iterator[None]:
    """Removes the pauses of the stock writer."""
    with stock_without_naps():
        yield


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    path = tmp_path / "dataset"
    write_ours(path, COLUMNS, samples(50), size_limit=4000, hashes=["xxh3_64"])
    return path
