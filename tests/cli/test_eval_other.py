"""`medmoe eval` of what is no model of ours: other classes by their folder, endpoints by URL."""

from __future__ import annotations

import json
import math
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

import pytest
from tests.cli.running import refused_by
from tests.inference.other_checkpoints import idefics3, llava

from medmoe.cli.eval import _other
from medmoe.cli.main import main
from medmoe.inference.endpoint import Endpoint, Reply
from medmoe.inference.other_model import OtherModel
from medmoe.model.locate import find_other

WORDS = ["--task", "phantom_vqa", "--limit", "6", "--max-new-tokens", "5", "--batch-size", "3"]
refused = refused_by("eval")


def test_other_classes_stand_beside_ours(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    llava(tmp_path / "some-llava")
    idefics3(tmp_path / "some-idefics")
    found = {}
    for folder in (model, tmp_path / "some-llava", tmp_path / "some-idefics"):
        out = tmp_path / f"run-{folder.name}"
        assert main(["eval", str(folder), *WORDS, "--control", "blank", "--out", str(out)]) == 0
        printed = capsys.readouterr().out
        found[folder.name] = json.loads((out / "summary.json").read_text(encoding="utf-8"))
        (cut,) = found[folder.name]["cut_answers"].values()
        assert (f"{cut} of 6 answers were cut at 5 tokens" in printed) == (cut > 0)
    ours = found.pop(model.name)
    for name, summary in found.items():
        assert {row["system"] for row in summary["scores"]} == {name}
        assert summary["router"] is None
        assert set(summary["reliability"]["phantom_vqa"]) <= {"closed", "open"}
        keys = ("subset", "protocol", "metric", "n", "constant_baseline", "control")
        rows = [[row[key] for key in keys] for row in summary["scores"]]
        assert rows == [[row[key] for key in keys] for row in ours["scores"]]
        assert main(["compare", str(tmp_path / f"run-{name}"), str(tmp_path / "run-model")]) == 0
        assert main(["score", str(tmp_path / f"run-{name}" / "phantom_vqa/predictions.jsonl")]) == 0
    capsys.readouterr()


def test_a_finished_run_is_scored_anew_and_another_folder_is_another_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, out = llava(tmp_path / "model"), tmp_path / "out"
    words = [*WORDS, "--out", str(out), "--json", str(tmp_path / "again.json")]
    assert main(["eval", str(folder), *words]) == 0
    monkeypatch.setattr(OtherModel, "__init__", None)  # loading would fail
    assert main(["eval", str(folder), *words]) == 0
    assert json.loads((tmp_path / "again.json").read_text())["asked"] == 0
    (folder / "README.md").write_text("changed")
    capsys.readouterr()
    assert "holds another run (its model: " in refused(capsys, folder, *words)


def test_zero_shot_systems_may_answer_at_length(tmp_path: Path) -> None:
    folder, out = llava(tmp_path / "model"), tmp_path / "out"
    words = ["--task", "phantom_vqa", "--limit", "2", "--out", str(out)]
    assert main(["eval", str(folder), *words]) == 0
    settings = json.loads((out / "settings.json").read_text())
    assert settings["max_new_tokens"] == {"phantom_vqa": 512}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--model-api", "ftp://somewhere/v1"], "is not the address of an endpoint"),
        (["--model-api", "http://me:secret@somewhere/v1"], "is not the address of an endpoint"),
        (["--model-api", "http://x/v1", "--calibrate", "validation"], "need confidences"),
        (["--model-api", "http://x/v1", "--corruption", "all"], "need confidences"),
        (["--model-api", "http://x/v1", "--blind-twin", "x"], "can have no blind twin"),
    ],
)
def test_bad_flags_are_one_line_and_write_nothing(
    tmp_path: Path, words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    line = refused(capsys, "name", "--task", "phantom_vqa", *words, "--out", out)
    assert message in line
    assert "secret" not in line.replace("me:secret@somewhere", "")
    assert not out.exists()


def test_failed_answers_are_counted_and_said_and_not_asked_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def answers(
        self: Endpoint, pictures: object, talks: Sequence[object], further: object
    ) -> list[Reply]:
        failed = Reply("", math.nan, None, failed="HTTP 413: too large")
        return [failed, *(Reply("yes", math.nan, None) for _ in talks[1:])]

    monkeypatch.setattr(Endpoint, "answers", answers)
    out = tmp_path / "out"
    words = ["eval", "name", "--model-api", "http://127.0.0.1:9/v1", *WORDS, "--out", str(out)]
    assert main(words) == 0
    note = "phantom_vqa, name: 1 of 6 answers failed, e.g.: HTTP 413: too large."
    assert note in capsys.readouterr().out
    monkeypatch.setattr(Endpoint, "answers", None)
    assert main(words) == 0
    summary = json.loads((out / "summary.json").read_text(encoding="utf-8"))
    assert (summary["asked"], summary["failed_answers"]) == (0, {"phantom_vqa": 1})
    assert note in summary["notes"]
    assert "HTTP 413: too large" in (out / "report.html").read_text(encoding="utf-8")
    assert summary["reliability"] == {}
    assert main(["score", str(out)]) == 0
    capsys.readouterr()


def test_tasks_by_likelihood_are_refused_before_anything_is_asked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = llava(tmp_path / "model")
    words = ["--task", "phantom_classification", "--limit", "2", "--out", tmp_path / "out"]
    assert "is scored by likelihoods" in refused(capsys, folder, *words)


def test_an_endpoint_elsewhere_is_said_to_get_the_pictures(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked = {"model": Path("org/model"), "batch_size": 2, "dtype": None}
    monkeypatch.setenv("MEDMOE_API_KEY", "secret")
    far = _other(Namespace(model_api="https://far.example/v1", **asked))
    near = _other(Namespace(model_api="http://127.0.0.1:8000/v1", **asked))
    assert far is not None
    assert near is not None
    assert far.notes == ("Pictures and questions leave this machine for https://far.example/v1.",)
    assert near.notes == ("Pictures and questions go to http://127.0.0.1:8000/v1.",)
    assert (far.name, far.identity) == ("org/model", "org/model of https://far.example/v1")
    assert far.begin()._headers["Authorization"] == "Bearer secret"


def test_what_transformers_cannot_ask_about_pictures_is_refused_as_before(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert find_other(model) is None
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "config.json").write_text('{"model_type": "llama"}')
    words = ["--task", "phantom_vqa", "--out", tmp_path / "out"]
    assert "describes a model of type 'llama'" in refused(capsys, tmp_path / "text", *words)
