"""What every test can use: the photographs and latents kept beside the checkout, where they are."""

from pathlib import Path

import pytest

SHARED = Path(__file__).resolve().parents[2] / "shared"


@pytest.fixture(scope="session")
def photographs() -> Path:
    """64 ImageNet photographs in class folders. Tests that need them are skipped where they are absent."""
    folder = SHARED / "images"
    if not folder.is_dir():
        pytest.skip("the shared photographs are not here")
    return folder


@pytest.fixture(scope="session")
def latents() -> Path:
    """Real latents as float16 .npy files. Tests that need them are skipped where they are absent."""
    folder = SHARED / "latents"
    if not folder.is_dir():
        pytest.skip("the shared latents are not here")
    return folder
