"""The ledger of the stress runs."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from tests.stress.ledger import Ledger


@pytest.fixture(scope="session")
def ledger(repository: Path) -> Ledger:
    """What is counted already in `$MEDMOE_STRESS`, by default ``results/stress.json``."""
    path = Path(os.environ.get("MEDMOE_STRESS", repository / "results" / "stress.json"))
    return Ledger.open(path, repository)
