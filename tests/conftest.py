"""Fixtures shared by the whole suite."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def data_folder() -> Path:
    """The folder of outside data, or a visible skip."""
    folder = os.environ.get("EHRSEQ_DATA")
    if not folder or not Path(folder).is_dir():
        pytest.skip("needs outside data: set EHRSEQ_DATA to its folder")
    return Path(folder)
