"""Tasks by name, and the paper's figures beside them."""

from __future__ import annotations

from pathlib import Path

import pytest

from medmoe.data.registry import READERS
from medmoe.errors import ConfigError
from medmoe.evaluation.tasks import TASKS, paper_rows, paper_table, task_spec

MEDMNIST = """
pathmnist chestmnist dermamnist octmnist pneumoniamnist retinamnist breastmnist bloodmnist
tissuemnist organamnist organcmnist organsmnist
"""


def test_every_promised_task_is_there() -> None:
    named = "phantom_vqa phantom_classification vqa_rad vqa_rad_disjoint slake slake_zh path_vqa"
    assert set(TASKS) >= {*named.split(), "vqa_med_2019", "pmc_vqa", *MEDMNIST.split()}
    assert all(name == task.name for name, task in TASKS.items())


@pytest.mark.parametrize("name", sorted(name for name in TASKS if TASKS[name].dataset in READERS))
def test_splits_of_a_task_are_those_of_its_reader(name: str) -> None:
    task = TASKS[name]
    assert {task.split, task.train_split} <= set(READERS[task.dataset].SPLITS)
    assert task.split != task.train_split


def test_table_1_stands_beside_the_tasks_it_is_about() -> None:
    rows = {(r.system, r.subset): r for r in paper_rows("slake")}
    assert rows["Med-MoE (Phi-2)", "closed"].value == 85.58
    assert rows["Med-MoE (Phi-2)", "open"].value == 85.06
    assert {(r.metric, r.protocol, r.table) for r in paper_rows("slake", "open")} == {
        ("recall", "reference", 1)
    }
    assert {r.metric for r in paper_rows("slake", "closed")} == {"accuracy"}
    assert len(paper_rows("vqa_rad")) == len(paper_rows("path_vqa")) == 12


def test_table_3_names_no_protocol_and_is_nearest_to_label_score() -> None:
    rows = {r.system: r for r in paper_rows("organcmnist")}
    assert rows["Med-MoE (Phi-2)"].value == 89.9
    assert {(r.protocol, r.our_protocol) for r in rows.values()} == {("unstated", "label_score")}


@pytest.mark.parametrize("name", ["vqa_rad_disjoint", "slake_zh", "phantom_vqa", "pathmnist"])
def test_nothing_is_said_where_the_paper_reports_nothing(name: str) -> None:
    assert paper_rows(name) == []


def test_figures_are_shares_and_no_row_stands_twice() -> None:
    every = [(task, row) for table in (1, 3, 4, 5, 6, 9) for task, row in paper_table(table)]
    assert all(0 < row.value < 100 for _, row in every)
    keys = [(task, r.system, r.subset, r.metric, r.table) for task, r in every]
    assert len(set(keys)) == len(keys) == 54
    assert {row.metric for table in (4, 5, 6, 9) for _, row in paper_table(table)} == {
        "difference_lowest",
        "difference_highest",
    }
    for table in (4, 5, 6, 9):
        low, high = (row.value for _, row in paper_table(table))
        assert low < high


def test_a_path_is_a_users_own_task(tmp_path: Path) -> None:
    table, folder = tmp_path / "ward.csv", tmp_path / "tiles"
    table.touch()
    folder.mkdir()
    own = task_spec(str(table))
    assert (own.name, own.dataset, own.kind) == ("ward", str(table), "vqa")
    assert task_spec(str(folder)).kind == "classification"
    assert paper_rows(str(table)) == []


def test_an_unknown_task_gets_the_nearest_name() -> None:
    with pytest.raises(ConfigError, match=r"unknown task 'vqarad'.*did you mean 'vqa_rad'"):
        paper_rows("vqarad")
    with pytest.raises(ConfigError, match="unknown task"):
        task_spec("nothing")
