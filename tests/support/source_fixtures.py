"""Fixtures: pictures to put into archives and tables."""

import pytest

from support.archive_making import pictures_of


@pytest.fixture(scope="session")
def pictures_made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The bytes of eight generated JPEGs by name."""
    return pictures_of(tmp_path_factory.mktemp("pictures"))
