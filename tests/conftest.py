"""Fixtures of the whole suite: where the repository and the shared data are, and no network."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import pytest

# Set before any test imports transformers: the suite never asks a network.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# A thread that pyarrow starts when it is imported, for an allocator that nobody uses. It blocks all
# signals: where it fails, the process is gone without a word.
os.environ["JE_ARROW_MALLOC_CONF"] = "background_thread:false"
# A user's own data folder must not change what the tests see, nor the tests a user's cache.
os.environ.pop("MEDMOE_DATA", None)
os.environ["MEDMOE_CACHE"] = "off"

REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.hookimpl(tryfirst=True)  # before pytest chooses by mark
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what drives a browser."""
    for item in items:
        if isinstance(item, pytest.Function) and "browser" in item.fixturenames:
            item.add_marker(pytest.mark.browser)


@pytest.hookimpl(optionalhook=True)  # of pytest-xdist, which need not be here
def pytest_testnodedown(node: Any, error: object) -> None:
    """Say how a worker of pytest-xdist ended, where it did before its time."""
    if error is not None:
        sys.stderr.write(f"\n{node.gateway.id} ended with {node.gateway._io.wait()}\n")


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
