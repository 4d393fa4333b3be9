"""Fixtures that all tests share."""

import os
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def sample_data() -> Path:
    """Folder of the real Sentinel-2 series; tests that need it are skipped where it is missing."""
    folder = Path(os.environ.get("SR_SAMPLE_DATA", REPOSITORY.parent / "shared" / "data"))
    if not (folder / "okavango").is_dir():
        pytest.skip(f"real Sentinel-2 series not found in {folder} (set SR_SAMPLE_DATA)")
    return folder
