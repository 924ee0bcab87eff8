"""Fixtures: latent datasets whose values are known."""

import pytest

from support.making import ReferenceDataset, make_dataset


@pytest.fixture(scope="session")
def reference(tmp_path_factory: pytest.TempPathFactory) -> ReferenceDataset:
    """A dataset of 40 samples in many small shards. Tests must not change it."""
    return make_dataset(tmp_path_factory.mktemp("reference") / "out", 40, size_limit=1 << 11)
