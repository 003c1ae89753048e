"""What the tests of several verbs run on."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.data.test_download import server as server  # the fixture
from tests.model.tiny import moe_model, processor

from medmoe.model.checkpoint import save_model


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Med-MoE."""
    folder = tmp_path_factory.mktemp("moe") / "model"
    save_model(moe_model("stablelm"), processor(), folder, {})
    return folder
