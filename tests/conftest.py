"""Fixtures of the whole suite: where the repository and the shared data are, and no network."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

# Set before any test imports transformers: the suite never asks a network.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# A user's own data folder must not change what the tests see, nor the tests a user's cache.
os.environ.pop("MEDMOE_DATA", None)
os.environ["MEDMOE_CACHE"] = "off"

REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def repository() -> Path:
    return REPOSITORY


@pytest.fixture(scope="session")
def source(repository: Path) -> Path:
    return repository / "src" / "medmoe"


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with real data and references, beside the repository or at `$MEDMOE_SHARED`."""
    path = Path(os.environ.get("MEDMOE_SHARED", REPOSITORY.parent / "shared"))
    if not path.is_dir():
        pytest.skip(f"no shared data at {path}: set MEDMOE_SHARED to its folder")
    return path
