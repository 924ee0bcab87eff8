"""Fixtures: sources of generated pictures, and pictures to put into archives and tables."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.archive_making import pictures_of


@pytest.fixture(scope="session")
def pictures_made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The bytes of eight generated JPEGs by name."""
    return pictures_of(tmp_path_factory.mktemp("pictures"))


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of twelve generated PNGs of 60 x 50 pixels. Tests must not change it."""
    from conftest import paint

    folder = tmp_path_factory.mktemp("photos") / "pictures"
    for index in range(12):
        paint(folder / f"{index:02}.png", index, (60, 50))
    return folder


@pytest.fixture
def unreadable_bee(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes every folder named `bee` unreadable, as permissions do for a user who is not root."""
    scandir = os.scandir

    def refuse(path: str | int) -> Iterator[os.DirEntry[str]]:
        if not isinstance(path, int) and os.fspath(path).endswith("bee"):  # shutil.rmtree gives descriptors
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
