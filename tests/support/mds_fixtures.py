"""Fixtures of the tests of shards. The stock package is imported only by tests that use it."""

from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture
def no_naps() -> Iterator[None]:
    """Removes the pauses of the stock writer."""
    from support.mds_schemas import stock_without_naps

    with stock_without_naps():
        yield


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    """Fifty samples in shards of at most 4,000 bytes."""
    from support.mds_stock import COLUMNS, samples, write_ours

    path = tmp_path / "dataset"
    write_ours(path, COLUMNS, samples(50), size_limit=4000, hashes=["xxh3_64"])
    return path
