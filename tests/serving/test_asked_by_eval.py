"""`medmoe eval --model-api` against `medmoe serve`: the scores of a model asked directly."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from tests.serving.support import Running

from medmoe.cli.main import main

WORDS = ["--task", "phantom_vqa", "--limit", "20", "--max-new-tokens", "8", "--batch-size", "2"]


def test_a_served_model_scores_as_the_same_model_asked_directly(
    server: Running, tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    direct, served = tmp_path / "direct", tmp_path / "served"
    assert main(["eval", str(tiny_model), *WORDS, "--control", "blank", "--out", str(direct)]) == 0
    capsys.readouterr()
    asked = ["eval", "tiny", "--model-api", f"{server.address}/v1", *WORDS, "--control", "blank"]
    assert main([*asked, "--out", str(served)]) == 0
    note = f"Pictures and questions go to {server.address}/v1."
    assert capsys.readouterr().out.startswith(note)
    runs = [json.loads((out / "summary.json").read_text()) for out in (direct, served)]
    rows = [[row | {"system": ""} for row in run["scores"]] for run in runs]
    assert rows[0] == rows[1]
    assert {row["system"] for row in runs[1]["scores"]} == {"tiny"}
    assert [run["cut_answers"] for run in runs] == [runs[0]["cut_answers"]] * 2
    assert runs[1]["failed_answers"] == {"phantom_vqa": 0}
    assert note in runs[1]["notes"]
    answers = [
        [(row["id"], row["prediction"]) for row in map(json.loads, path.read_text().splitlines())]
        for path in (out / "phantom_vqa" / "predictions.jsonl" for out in (direct, served))
    ]
    assert answers[0] == answers[1]
    assert main(["compare", str(direct), str(served)]) == 0
    # Cut off within its last chunk, it goes on there.
    path = served / "phantom_vqa" / "predictions.jsonl"
    whole = path.read_bytes()
    path.write_bytes(b"".join(whole.splitlines(keepends=True)[:-1]) + b'{"id"')
    shutil.rmtree(served / "phantom_vqa" / "controls")
    words = [*asked, "--out", str(served), "--json", str(tmp_path / "again.json")]
    assert main(words) == 0
    assert path.read_bytes() == whole
    assert 20 < json.loads((tmp_path / "again.json").read_text())["asked"] < 40
    capsys.readouterr()


def test_a_model_that_is_not_served_is_one_line_and_leaves_no_answer(
    server: Running, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--model-api", f"{server.address}/v1", *WORDS, "--out", str(tmp_path / "out")]
    assert main(["eval", "huge", *words]) == 2
    error = capsys.readouterr().err
    assert "answered none of" in error
    assert "HTTP 404" in error
    assert error.count("\n") == 1
    assert not list((tmp_path / "out").rglob("*.jsonl"))
