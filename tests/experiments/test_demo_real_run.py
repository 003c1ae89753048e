"""A whole demonstration of a few steps on real layouts in miniature."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tests.experiments import miniature
from tests.experiments.micro import micro_plan, run_demo, silent

from medmoe.model.checkpoint import verify


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = miniature.write_all(tmp_path_factory.mktemp("data"))
    folder = tmp_path_factory.mktemp("out")
    run_demo(micro_plan(folder, root=root), silent)
    return folder


@pytest.fixture(scope="module")
def summary(out: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((out / "summary.json").read_text(encoding="utf-8"))
    return content


def test_every_reported_set_is_scored_with_its_n(summary: dict[str, Any]) -> None:
    n = {
        (row["task"], row["split"]): row["n"]
        for row in summary["scores"]
        if row["subset"] == "all" and row["system"] == "moe" and row["control"] is None
    }
    pictures = len(miniature.MED_VALIDATION) - 1  # one is also in VQA-RAD
    assert n == {
        ("vqa_rad", "test"): miniature.RAD_TEST_IMAGES,
        ("vqa_med_2019", "validation"): 4 * pictures,
        ("pneumoniamnist", "test"): miniature.PNEUMONIA["test"],
    }


def test_every_score_of_shared_images_says_how_many(summary: dict[str, Any]) -> None:
    shared = {(row["task"], row.get("shared_images")) for row in summary["scores"]}
    assert shared == {
        ("vqa_rad", miniature.RAD_TEST_IMAGES),
        ("vqa_med_2019", None),
        ("pneumoniamnist", None),
    }


def test_router_is_scored_set_by_set(summary: dict[str, Any]) -> None:
    by_set = summary["router"]["by_dataset"]
    assert set(by_set) == {"lc25000", "mednist", "vqa_med_2019"}
    assert summary["router"]["n"] == sum(row["n"] for row in by_set.values())
    assert set(summary["router"]["by_source"]) == {"taught"}
    assert summary["router"]["apart"] == ["pathology"], "LC25000 has nothing else"


def test_shared_images_are_said_in_run_model_and_report(out: Path, summary: dict[str, Any]) -> None:
    run = json.loads((out / "run.json").read_text(encoding="utf-8"))
    model = json.loads((out / "model" / "medmoe.json").read_text(encoding="utf-8"))
    for shared in (run["data"]["shared_images"], model["training"]["shared_images"]):
        assert shared["vqa_rad/test"] == miniature.RAD_TEST_IMAGES
    assert any("nearly equal pictures of vqa_rad/test" in note for note in summary["notes"])
    report = (out / "report.html").read_text(encoding="utf-8")
    assert "(shared images)" in report
    assert "Research use only" in report


def test_report_shows_every_modality_of_the_data(out: Path) -> None:
    report = (out / "report.html").read_text(encoding="utf-8")
    for name in ("ct", "mri", "pathology", "xray"):
        assert f">{name}<" in report


def test_model_verifies_and_no_path_of_the_data_is_told(out: Path) -> None:
    verify(out / "model")
    for name in ("summary.json", "report.html", "run.json", "model/medmoe.json"):
        assert "mednist-6k.npz" not in (out / name).read_text(encoding="utf-8")
