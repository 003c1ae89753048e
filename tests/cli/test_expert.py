"""`medmoe expert …`: what it prints, what it refuses, and that all verbs take what it leaves."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from tests.cli.running import refused_by
from tests.model.growing import ALL, grown

from medmoe.cli.main import main

refused = refused_by("expert")
SHORT = ("--max-new-tokens", 4, "--json")


@pytest.fixture(scope="module")
def larger(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny Med-MoE with an ultrasound expert that every token goes to."""
    folder = tmp_path_factory.mktemp("larger") / "model"
    grown(model, folder, ALL)
    return folder


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "x.png"
    Image.effect_noise((64, 64), 40).save(path)
    return path


def told(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    assert main([*map(str, words)]) == 0
    return capsys.readouterr().out


def test_experts_are_listed_shipped_taken_in_and_taken_out(
    model: Path, larger: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    listed = told(capsys, "expert", "list", larger, "--json", tmp_path / "list.json")
    assert "9,282 parameters in layers 0, 2; added on clinic/train; sha256 " in listed
    experts = json.loads((tmp_path / "list.json").read_text())["experts"]
    assert [e["name"] for e in experts] == ["ct", "mri", "pathology", "xray", "ultrasound"]
    shipped = told(capsys, "expert", "export", larger, "ultrasound", "--out", tmp_path / "pack")
    assert f"sha256 {experts[4]['sha256']}" in shipped
    copy = shutil.copytree(model, tmp_path / "site")
    taken = told(capsys, "expert", "import", copy, tmp_path / "pack")
    assert "10 came" in taken
    assert " tensors and rows are the same bytes" in taken
    assert '"xray"] → ["ct", "mri", "pathology", "xray", "ultrasound"]' in taken
    assert "MANIFEST.json: other hashes of README.md, config.json, medmoe.json, model." in taken
    said = refused(capsys, "import", copy, tmp_path / "pack")
    assert "has an expert ultrasound already; exchange it by `medmoe expert swap`" in said
    assert "no tensor changed" in told(capsys, "expert", "swap", copy, tmp_path / "pack")
    gone = told(capsys, "expert", "remove", copy, "ultrasound", "--to", "next")
    assert "10 went" in gone
    assert (copy / "config.json").read_text() == (model / "config.json").read_text()


def test_what_is_wrong_is_one_line(
    model: Path, larger: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "name it: --out DIR" in refused(capsys, "export", larger, "ct")
    assert "unknown expert 'us'" in refused(capsys, "export", larger, "us", "--out", tmp_path / "p")
    assert "no pack of an expert" in refused(capsys, "import", larger, tmp_path)
    assert "no such model directory" in refused(capsys, "list", tmp_path / "none")
    key = refused(capsys, "export", larger, "ct", "--out", tmp_path / "p", "--sign", tmp_path / "k")
    assert "medmoe[sign]" in key or "not readable as a key" in key
    assert not (tmp_path / "p").exists()


def test_verbs_take_a_model_with_an_expert_more(
    larger: Path, picture: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = told(capsys, "ask", larger, picture, "Is there a mass?", *SHORT, tmp_path / "a.json")
    answer: dict[str, Any] = json.loads((tmp_path / "a.json").read_text())
    assert answer["routing"]["domain"] == "ultrasound"
    assert "ultrasound" in asked
    assert "expert ultrasound forced" in told(
        capsys, "explain", larger, picture, "Is there a mass?", "--out", tmp_path / "why"
    )
    assert "5" in told(capsys, "cost", larger)
    words = ("--task", "phantom_vqa", "--limit", 12, "--seed", 3, "--out")
    told(capsys, "eval", larger, "--max-new-tokens", 2, *words, tmp_path / "eval")
    told(capsys, "routes", larger, *words, tmp_path / "r")
    assert "ultrasound" in (tmp_path / "r" / "routes.html").read_text(encoding="utf-8")


@pytest.mark.openvino
def test_its_exported_graphs_answer_as_it_does(
    larger: Path, picture: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("openvino")
    told(capsys, "export", larger, "--out", tmp_path / "ir", "--weights", "float32")
    answers = []
    for model in (larger, tmp_path / "ir"):
        told(capsys, "ask", model, picture, "Is there a mass?", *SHORT, tmp_path / "a.json")
        answers.append(json.loads((tmp_path / "a.json").read_text()))
    assert answers[1]["routing"]["domain"] == "ultrasound"
    assert answers[1]["text"] == answers[0]["text"]
