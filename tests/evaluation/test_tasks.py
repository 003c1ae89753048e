"""Tasks by name, and the paper's figures beside them."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
from tests.experiments.miniature import write_all
from tests.experiments.own_set import write_classes, write_table

from medmoe.data.registry import READERS
from medmoe.errors import ConfigError, DataError
from medmoe.evaluation.ask.records import task_records
from medmoe.evaluation.tasks import TASKS, paper_rows, task_spec

MEDMNIST = """
pathmnist chestmnist dermamnist octmnist pneumoniamnist retinamnist breastmnist bloodmnist
tissuemnist organamnist organcmnist organsmnist
"""


def test_every_promised_task_is_there() -> None:
    named = "phantom_vqa phantom_classification vqa_rad vqa_rad_disjoint slake slake_zh path_vqa"
    assert set(TASKS) >= {
        *(*named.split(), *MEDMNIST.split(), "vqa_med_2019", "pmc_vqa"),
        *("omnimed_vqa", "mmmu_med", "medxpertqa_mm", "iu_xray"),
    }
    assert all(name == task.name for name, task in TASKS.items())


@pytest.mark.parametrize("name", sorted(name for name in TASKS if TASKS[name].dataset in READERS))
def test_splits_of_a_task_are_those_of_its_reader(name: str) -> None:
    task = TASKS[name]
    assert {task.split, task.train_split or task.split} <= set(READERS[task.dataset].SPLITS)
    assert task.split != task.train_split


def test_table_1_stands_beside_the_tasks_it_is_about() -> None:
    rows = {(r.system, r.subset): r for r in paper_rows("slake")}
    assert rows["Med-MoE (Phi-2)", "closed"].value == 85.58
    assert rows["Med-MoE (Phi-2)", "open"].value == 85.06
    assert {(r.metric, r.protocol, r.table) for r in paper_rows("slake") if r.subset == "open"} == {
        ("recall", "reference", 1)
    }
    assert {r.metric for r in paper_rows("slake") if r.subset == "closed"} == {"accuracy"}
    assert len(paper_rows("vqa_rad")) == len(paper_rows("path_vqa")) == 12


def test_table_3_names_no_protocol_and_is_nearest_to_label_score() -> None:
    rows = {r.system: r for r in paper_rows("organcmnist")}
    assert rows["Med-MoE (Phi-2)"].value == 89.9
    assert {(r.protocol, r.our_protocol) for r in rows.values()} == {("unstated", "label_score")}


@pytest.mark.parametrize(
    "name", ["vqa_rad_disjoint", "vqa_rad_hub", "slake_zh", "phantom_vqa", "pathmnist"]
)
def test_nothing_is_said_where_the_paper_reports_nothing(name: str) -> None:
    assert paper_rows(name) == []


def test_figures_are_shares_and_no_row_stands_twice(source: Path) -> None:
    text = (source / "recipes" / "paper.csv").read_text(encoding="utf-8")
    every = list(csv.DictReader(text.splitlines()))
    assert all(0 < float(row["value"]) < 100 for row in every)
    keys = [tuple(row[k] for k in ("task", "system", "subset", "metric", "table")) for row in every]
    assert len(set(keys)) == len(keys) == 54
    for table in ("4", "5", "6", "9"):
        low, high = (row for row in every if row["table"] == table)
        assert (low["metric"], high["metric"]) == ("difference_lowest", "difference_highest")
        assert float(low["value"]) < float(high["value"])


def test_a_path_is_a_users_own_task(tmp_path: Path) -> None:
    table = write_table(tmp_path / "ward")
    own = task_spec(f"{table}:validation")
    assert (own.name, own.dataset, own.split) == ("ward", "ward", "validation")
    asked = task_records(own, None, split=None, limit=None, seed=7)
    assert {record.split for record in asked.records} == {"validation"}
    assert {record.split for record in asked.train} == {"train"}
    assert paper_rows(str(table)) == []
    tiles = task_spec(str(write_classes(tmp_path / "tiles")))
    asked = task_records(tiles, None, split=None, limit=None, seed=7)
    assert (asked.spec.kind, asked.split) == ("classification", "test")
    with pytest.raises(
        DataError, match="unknown split of tiles 'tset'; choose one of: test, train"
    ):
        task_records(tiles, None, split="tset", limit=None, seed=7)


def test_an_own_set_does_not_pass_for_a_known_task(tmp_path: Path) -> None:
    table = write_table(tmp_path / "vqa_rad")
    with pytest.raises(ConfigError, match="vqa_rad is the name of a known task; rename your own"):
        task_spec(str(table))


def test_a_known_set_at_a_path_is_its_task(tmp_path: Path) -> None:
    root = write_all(tmp_path)
    spec = task_spec(str(root / "vqa-rad"))
    assert (spec.name, spec.split, spec.paper_name) == ("vqa_rad", "test", "VQA-RAD")
    records = task_records(spec, None, split=None, limit=None, seed=7).records
    assert {record.dataset for record in records} == {"vqa_rad"}


def test_an_unknown_task_gets_the_nearest_name() -> None:
    with pytest.raises(ConfigError, match=r"unknown task 'vqarad'.*did you mean 'vqa_rad'"):
        paper_rows("vqarad")
    with pytest.raises(ConfigError, match="unknown task"):
        task_spec("nothing")
