"""`medmoe demo --records`: a user's own sets take the road of the demonstration."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
from tests.experiments.micro import SETTINGS, run_demo, silent
from tests.experiments.own_set import write_classes, write_pictures, write_table

from medmoe.errors import ConfigError, DataError
from medmoe.experiments.demo import next_steps, plan_demo
from medmoe.experiments.plan import TrainPlan


def own_plan(
    out: Path, *records: Path, modality: str | None = None, minutes: int = 2, **flags: Any
) -> TrainPlan:
    named = [] if modality is None else [f"data.modality={modality}"]
    sets = [str(path) for path in records]
    return plan_demo(None, out, "standard", minutes, 7, [*SETTINGS, *named], records=sets, **flags)


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A demonstration on a table with questions and a folder of classes that names no modality."""
    folder = tmp_path_factory.mktemp("own")
    sets = (write_table(folder / "clinic"), write_classes(folder / "tiles"))
    run_demo(own_plan(folder / "out", *sets, modality="histology"), silent)
    return folder / "out"


@pytest.fixture(scope="module")
def summary(out: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((out / "summary.json").read_text(encoding="utf-8"))
    return content


def test_every_own_set_is_a_task_scored_on_its_test_part(summary: dict[str, Any]) -> None:
    assert summary["data"] == "clinic, tiles"
    rows = {
        (row["task"], row["split"], row["protocol"])
        for row in summary["scores"]
        if row["system"] == "moe" and row["control"] is None
    }
    assert rows == {
        ("clinic", "test", "strict"),
        ("clinic", "test", "reference"),
        ("tiles", "test", "label_score"),
    }
    assert {row["system"] for row in summary["scores"]} == {"moe", "sft"}
    assert {row["control"] for row in summary["scores"]} == {None, "blank"}
    assert {row["task"] for row in summary["comparisons"]} == {"clinic", "tiles"}


def test_the_router_is_tested_on_every_own_set(summary: dict[str, Any]) -> None:
    assert set(summary["router"]["by_dataset"]) == {"clinic", "tiles"}


def test_the_pages_show_own_pictures_and_no_other_sets_names(out: Path) -> None:
    report = (out / "report.html").read_text(encoding="utf-8")
    assert "<h1>Med-MoE on clinic, tiles</h1>" in report
    for name in ("ct", "mri", "pathology", "xray"):
        assert f">{name}<" in report
    shown = report.partition(">Examples<")[2]
    assert "Is there a mass?" in shown
    assert "Which class does this image belong to?" in shown
    assert "data:image/png" in shown
    assert "VQA" not in report
    page = (out / "eval" / "moe" / "report.html").read_text(encoding="utf-8")
    assert "data:image/png" in page.partition(">Examples<")[2]


def test_no_path_of_the_data_is_told(out: Path) -> None:
    for name in ("summary.json", "report.html", "model/medmoe.json"):
        assert str(out.parent / "clinic") not in (out / name).read_text(encoding="utf-8")


def test_next_steps_name_a_picture_that_is_there(out: Path) -> None:
    plan = own_plan(
        out, out.parent / "clinic" / "data.csv", out.parent / "tiles", modality="histology"
    )
    ask, *others = next_steps(plan)
    assert str(out / "examples" / "ct.png") in ask
    assert (out / "examples" / "ct.png").is_file()
    assert any("medmoe predict" in step for step in others)


def test_own_data_take_the_shortest_preset_of_the_real_demonstration(tmp_path: Path) -> None:
    plan = own_plan(tmp_path / "out", write_classes(tmp_path / "tiles"), minutes=10)
    assert (plan.recipe.name, plan.recipe.minutes) == ("demo_real", 2)
    assert plan.recipe.spec.scored == {"tiles": f"{tmp_path / 'tiles'}:test"}
    assert plan.recipe.spec.phases["sft"].data == (str(tmp_path / "tiles"),)


def test_a_named_part_is_trained_on_and_the_test_part_scored(tmp_path: Path) -> None:
    path = write_table(tmp_path / "clinic")
    spec = own_plan(tmp_path / "out", Path(f"{path}:validation")).recipe.spec
    assert spec.scored == {"clinic": f"{path}:test"}
    assert spec.phases["phase3_moe"].data == (f"{path}:validation",)


def test_a_split_of_vqa_rad_is_none_of_own_data(tmp_path: Path) -> None:
    path = write_table(tmp_path / "clinic")
    with pytest.raises(ConfigError, match="--split disjoint is of VQA-RAD; leave it out"):
        plan_demo(None, tmp_path / "out", "disjoint", 2, 7, records=[str(path)])


def captions(folder: Path) -> Path:
    rows = [[f"{n:03d}.png", "a picture of the chest", "ct"] for n in range(12)]
    write_pictures(folder, range(12))
    with (folder / "data.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([["image", "caption", "modality"], *rows])
    return folder


def without_a_test_part(folder: Path) -> Path:
    write_classes(folder / "train")
    return folder


def test_what_cannot_be_scored_or_routed_is_one_line_before_anything_is_trained(
    tmp_path: Path,
) -> None:
    sets = {
        captions(tmp_path / "captions"): "holds captions only, and a score needs questions or clas",
        without_a_test_part(tmp_path / "tiles"): "has train and no test part; add it, or name no s",
        write_table(tmp_path / "clinic", modality=False): "--modality X labels all pictures of a s",
    }
    for number, (path, line) in enumerate(sets.items()):
        out = tmp_path / f"out{number}"
        with pytest.raises(DataError, match=line):
            run_demo(own_plan(out, path), silent)
        assert not out.exists()
