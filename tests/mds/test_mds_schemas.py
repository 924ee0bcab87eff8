"""Compares ten thousand random schemas with the stock writer and reader."""

import logging
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from support.mds_schemas import compare_many, workplace


@pytest.fixture(scope="module")
def root() -> Iterator[Path]:
    logging.disable(logging.WARNING)
    with workplace() as path:
        yield path
    logging.disable(logging.NOTSET)


@settings(max_examples=500, derandomize=True, deadline=None, suppress_health_check=list(HealthCheck))
@given(seed=st.integers(0, 2**64 - 1))
@pytest.mark.long
def test_random_datasets_and_merged_indexes_equal_the_stock_ones(root: Path, seed: int) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # NumPy on a float16 out of range
        compare_many(seed, 20, root)
