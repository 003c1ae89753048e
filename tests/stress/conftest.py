"""The ledger of the stress runs."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from tests.model.tiny import moe_model, processor
from tests.stress.ledger import Ledger

from medmoe.model.checkpoint import save_model


@pytest.fixture(scope="session")
def ledger(repository: Path) -> Ledger:
    """What is counted already in `$MEDMOE_STRESS`, by default ``results/stress.json``."""
    path = Path(os.environ.get("MEDMOE_STRESS", repository / "results" / "stress.json"))
    return Ledger.open(path, repository)


@pytest.fixture(scope="session")
def stress_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model, or the trained one that `$MEDMOE_PAGE_MODEL` names, under the name "tiny"."""
    directory = tmp_path_factory.mktemp("attacked") / "tiny" / "model"
    if given := os.environ.get("MEDMOE_PAGE_MODEL"):
        shutil.copytree(given, directory)
    else:
        save_model(moe_model("stablelm"), processor(), directory, {"seed": 7})
    return directory
