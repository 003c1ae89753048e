"""Trackers write into the run directory, by the Trainer's own callbacks."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest
from tests.training import toy

from medmoe.config.train_schema import RunSpec
from medmoe.errors import ConfigError
from medmoe.training.context import RunSettings
from medmoe.training.packed import train_packed
from medmoe.training.trackers import TRACKERS, check_trackers, tracker_folders


@pytest.mark.parametrize("name", sorted(TRACKERS))
def test_folders_are_the_runs_for_as_long_as_it_lasts(name: str, tmp_path: Path) -> None:
    variable = TRACKERS[name]
    before = os.environ.get(variable)
    with tracker_folders([name], tmp_path):
        assert os.environ[variable] == str(tmp_path / name)
        assert (tmp_path / name).is_dir()
    assert os.environ.get(variable) == before


def test_a_users_own_folder_stays(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("WANDB_DIR", "mine")
    with tracker_folders(["wandb"], tmp_path):
        assert os.environ["WANDB_DIR"] == "mine"
    assert os.environ["WANDB_DIR"] == "mine"


def test_the_recipe_knows_the_same_trackers() -> None:
    assert RunSpec(trackers=tuple(TRACKERS)).trackers == tuple(TRACKERS)  # type: ignore[arg-type]


def test_none_is_no_error() -> None:
    check_trackers([])


@pytest.mark.parametrize("name", sorted(TRACKERS))
def test_a_missing_package_is_one_line_with_the_command(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda package: None)
    with pytest.raises(ConfigError, match=rf"not installed; run: pip install {name}, or use --set"):
        check_trackers([name])


def test_tensorboard_gets_the_learning_curve(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    settings = RunSettings(trackers=("tensorboard",), log_every=1)
    context = replace(toy.context(toy.dense(), steps=3), settings=settings)
    with tracker_folders(["tensorboard"], tmp_path):
        result = train_packed(context)
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    found = [(event.step, event.value) for event in events.Scalars("train/loss")]
    assert found == [(step, pytest.approx(loss, rel=1e-6)) for step, loss in result.curve]
