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


#: A file of the tests that have passed, a line each: these are left out, and what passes is added.
#: So what a worker of pytest-xdist left when it died can be run by another.
PASSED = os.environ.get("MEDMOE_TESTS_PASSED")


@pytest.hookimpl(tryfirst=True)  # before pytest chooses by mark
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark what drives a browser, and leave out what has passed before."""
    for item in items:
        if isinstance(item, pytest.Function) and "browser" in item.fixturenames:
            item.add_marker(pytest.mark.browser)
    if PASSED and Path(PASSED).exists():
        passed = set(Path(PASSED).read_text(encoding="utf-8").splitlines())
        config.hook.pytest_deselected(items=[item for item in items if item.nodeid in passed])
        items[:] = [item for item in items if item.nodeid not in passed]


_called: set[str] = set()


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Keep what passed, to its end, in the process that gathers the results of all workers."""
    if not PASSED or "PYTEST_XDIST_WORKER" in os.environ or not report.passed:
        return
    if report.when == "call":
        _called.add(report.nodeid)
    elif report.when == "teardown" and report.nodeid in _called:
        with Path(PASSED).open("a", encoding="utf-8") as file:
            file.write(f"{report.nodeid}\n")


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
