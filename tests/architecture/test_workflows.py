"""GitHub's workflows: they run what the Makefile has, and may write no more than they must."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.architecture.test_readme import TARGETS

ROOT = Path(__file__).resolve().parents[2]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))


def read(path: Path) -> dict[Any, Any]:
    content: dict[Any, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    return content


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_targets_exist(path: Path) -> None:
    steps = [step for job in read(path)["jobs"].values() for step in job["steps"]]
    targets = {name for step in steps for name in re.findall(r"\bmake (\w+)", step.get("run", ""))}
    assert targets <= TARGETS


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_only_a_job_that_publishes_may_write(path: Path) -> None:
    content = read(path)
    assert content["permissions"] == {"contents": "read"}
    writing = [name for name, job in content["jobs"].items() if "permissions" in job]
    assert set(writing) <= {"publish"}


def test_every_python_that_we_name_is_tested() -> None:
    (ci,) = (path for path in WORKFLOWS if path.stem == "ci")
    tested = read(ci)["jobs"]["test"]["strategy"]["matrix"]["python"]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    named = [words[-1] for line in project["classifiers"] if "3." in (words := line.split())[-1]]
    assert set(named) <= set(tested)


def test_nothing_is_published_by_a_stored_password() -> None:
    assert not any("secrets." in path.read_text(encoding="utf-8") for path in WORKFLOWS)
