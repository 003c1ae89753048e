"""The tasks' files and functions, without lmms-eval: what they name exists and scores as we do."""

from __future__ import annotations

import importlib
import tomllib
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.evaluation.lmms_eval.miniature import save_tiny_model, write_data

from medmoe.data import registry
from medmoe.evaluation.files.predictions import Prediction
from medmoe.evaluation.lmms_eval import TASKS, task
from medmoe.evaluation.score.rows import score_task
from medmoe.evaluation.tasks import task_spec
from medmoe.inference.engine import SHORT_ANSWER

NAMES = ("path_vqa", "vqa_rad", "vqa_rad_disjoint")


class Functions(yaml.SafeLoader):
    """Reads lmms-eval's YAML: ``!function`` names what it calls."""


Functions.add_constructor("!function", lambda loader, node: named(loader.construct_scalar(node)))


def named(path: str) -> Any:
    module, _, name = path.rpartition(".")
    return getattr(importlib.import_module(module), name)


def read(name: str) -> dict[str, Any]:
    """Return a task's file with what it includes."""
    found: dict[str, Any] = yaml.load((TASKS / name).read_text(encoding="utf-8"), Functions)
    return (read(found.pop("include")) if "include" in found else {}) | found


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("lmms")
    return write_data(folder / "data", save_tiny_model(folder / "model"))


@pytest.fixture
def at(data: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(registry.ENVIRONMENT_VARIABLE, str(data))
    return data


def test_the_entry_point_names_the_function(repository: Path) -> None:
    project = tomllib.loads((repository / "pyproject.toml").read_text())["project"]
    module, _, name = project["entry-points"]["lmms_eval.models"]["medmoe"].partition(":")
    assert callable(named(f"{module}.{name}"))


def test_there_is_a_file_for_each_task() -> None:
    assert sorted(path.stem for path in TASKS.rglob("*.yaml")) == list(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_a_tasks_file_names_what_exists(name: str) -> None:
    config = read(f"{name}.yaml")
    assert config["task"] == f"medmoe_{name}"
    assert task_spec(config["process_docs"].args[0]).name == name
    assert (TASKS / config["dataset_kwargs"]["data_files"]["test"]).is_file()
    assert config["generation_kwargs"]["max_new_tokens"] == SHORT_ANSWER
    for key, function in (("doc_to_visual", task.doc_to_visual), ("doc_to_text", task.doc_to_text)):
        assert config[key] is function


@pytest.mark.parametrize("name", ["vqa_rad", "path_vqa"])
def test_documents_are_the_questions_of_the_tasks_split_without_pictures(
    at: Path, name: str
) -> None:
    found = read(f"{name}.yaml")["process_docs"](None)
    records = registry.read(name, at, "test")
    assert found["id"] == [record.id for record in records]
    assert found["answer_type"] == [record.answer_type for record in records]
    assert all(isinstance(value, str) for value in found[0].values())


@pytest.mark.parametrize("name", ["vqa_rad", "path_vqa"])
def test_metrics_are_those_of_the_file_and_their_means_our_scores(at: Path, name: str) -> None:
    config = read(f"{name}.yaml")
    records = registry.read(name, at, "test")
    said = [("yes liver", "no", record.answer)[i % 3] for i, record in enumerate(records)]
    scores: defaultdict[str, list[Any]] = defaultdict(list)
    for document, answer in zip(config["process_docs"](None), said, strict=True):
        for metric, score in config["process_results"](document, [f" {answer} "]).items():
            scores[metric].append(score)
    means = {entry["metric"]: entry["aggregation"] for entry in config["metric_list"]}
    rows = score_task(
        system="moe", task=name, split="test", records=records, train_records=[], seed=7,
        predictions=[Prediction(r.id, text) for r, text in zip(records, said, strict=True)],
    )  # fmt: skip
    ours = {
        "{protocol}_{subset}_{metric}".format_map(row): row["value"]
        for row in rows
        if row["subset"] in ("closed", "open", "all")
    }
    assert {metric: means[metric](each) for metric, each in scores.items()} == ours
    assert means.keys() == ours.keys()
    assert {each[config["cluster_key"]] for each in scores["strict_all_accuracy"]} == {
        record.image.id for record in records
    }


def test_our_models_are_asked_the_bare_question_and_others_to_be_brief(at: Path) -> None:
    config = read("vqa_rad.yaml")
    document = config["process_docs"](None)[0]
    words = config["lmms_eval_specific_kwargs"]
    assert task.doc_to_text(document) == document["question"]
    assert task.doc_to_text(document, words["medmoe"]) == document["question"]
    assert "single word" in task.doc_to_text(document, words["default"])


def test_the_picture_is_that_of_the_question(at: Path) -> None:
    (image,) = task.doc_to_visual(read("vqa_rad.yaml")["process_docs"](None)[3])
    assert (image.mode, image.size) == ("RGB", (50, 40))


def test_without_data_one_line_ends_the_program(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv(registry.ENVIRONMENT_VARIABLE, raising=False)
    with pytest.raises(SystemExit, match=r"^DataError: task 'vqa_rad' needs its data set; set"):
        task.documents("vqa_rad")
    monkeypatch.setenv(registry.ENVIRONMENT_VARIABLE, str(tmp_path / "nowhere"))
    with pytest.raises(SystemExit, match=r"^DataError: \$MEDMOE_DATA .*nowhere: no such folder"):
        task.documents("vqa_rad")
