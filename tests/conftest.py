"""Fixtures that every folder of tests may ask for."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def data_folder() -> Path:
    """The folder with the papers' data sets; for tests marked `data`."""
    folder = Path(os.environ.get("RAY_ERASER_DATA", Path(__file__).parents[2] / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no data sets at {folder}: set RAY_ERASER_DATA to the folder that holds ml-1m, ml-100k and yelp2018")
    return folder
