"""What a model is called by its folder, wherever that is mounted."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from medmoe.cli import main as cli
from medmoe.errors import ConfigError
from medmoe.serving.chat_engine import model_facts, name_of


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("/data/phi", "phi"),
        ("/runs/demo/model", "demo"),
        ("/runs/demo/model/", "demo"),
        ("/runs/demo/model/../model", "demo"),
        ("/model", "medmoe"),
        ("/", "medmoe"),
        ("/model/model", "model"),
        ("/runs/My run (2)/model", "My-run-2"),
        ("/runs/.hidden", "hidden"),
        ("/runs/...", "medmoe"),
        ("/runs/a\nb\t\x1b[31m", "a-b-31m"),
        (os.fsdecode(b"/runs/\xff\xfe"), "medmoe"),
        (os.fsdecode(b"/runs/x\xff"), "x"),
        ("/runs/模型", "模型"),
        ("/runs/step-100", "step-100"),
    ],
)
def test_a_folder_gives_a_name_that_can_be_said(path: str, name: str) -> None:
    assert name_of(Path(path)) == name


def test_the_present_folder_is_called_by_where_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "demo" / "model"
    folder.mkdir(parents=True)
    monkeypatch.chdir(folder)
    assert name_of(Path()) == "demo"
    monkeypatch.chdir(folder.parent)
    assert name_of(Path()) == name_of(Path("model")) == "demo"


@pytest.mark.parametrize("name", ["", " ", "a b", "a/b", "a\nb", "\udcff"])
def test_a_name_that_cannot_be_said_is_refused(tiny_model: Path, name: str) -> None:
    with pytest.raises(ConfigError, match=r"^--name .* must be one or more letters, digits and"):
        model_facts(tiny_model, name)


def test_the_refusal_is_one_line_and_leaves_no_log(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--name", "a b", "--port", "8999", "--audit-log", str(tmp_path / "logs" / "a.jsonl")]
    assert cli.main(["serve", str(tiny_model), *words]) == 2
    assert capsys.readouterr().err.startswith("medmoe: error: --name 'a b' must be")
    assert not (tmp_path / "logs").exists()


def test_the_name_is_the_one_that_is_shown_and_asked_for(talk: Any) -> None:
    (shown,) = talk("GET", "/v1/models").json()["data"]
    assert talk("GET", f"/v1/models/{shown['id']}").json() == shown
    body = {"model": shown["id"], "messages": [{"role": "user", "content": "Is there a mass?"}]}
    reply = talk("POST", "/v1/chat/completions", content=json.dumps(body).encode(),
                 headers={"Content-Type": "application/json"})  # fmt: skip
    assert reply.json()["model"] == shown["id"] == "tiny"
