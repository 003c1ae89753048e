"""A judge: what it is told, what its verdicts score, what it costs, how far it and strict agree."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from tests.inference.test_endpoint import Sent, serving

from medmoe.cli.main import main
from medmoe.evaluation import judge as module
from medmoe.evaluation.judge import PROMPT

TRUTH = [
    ("a", "Is there a mass?", "yes", "closed", "one"),
    ("b", "Where is it?", "left lung", "open", "one"),
    ("c", "Where is the tube?", "trachea", "open", "two"),
    ("d", "Is it a CT?", "no", "closed", "three"),
]
SAID = {"a": "Yes.", "b": "in the lung on the left", "c": "stomach", "d": "no"}


def files(root: Path, **changes: Any) -> list[str]:
    """Write predictions and truth; return the words that score them."""
    truth, said = root / "truth.jsonl", root / "said.jsonl"
    names = ("id", "question", "answer", "answer_type", "image")
    rows = [dict(zip(names, row, strict=True)) | changes for row in TRUTH]
    truth.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    lines = [json.dumps({"id": name, "prediction": text}) + "\n" for name, text in SAID.items()]
    said.write_text("".join(lines), encoding="utf-8")
    return ["score", str(said), str(truth), "--json", str(root / "out.json")]


def grader(number: int, told: str) -> tuple[int, Any]:
    """Judge as a lenient reader does, thinking first; one verdict it does not give."""
    said = re.findall(r"answer: (.*)", told)[1]
    verdict = {"stomach": "no", "no": "I cannot say."}.get(said, "<think>no?</think> Yes")
    message = {"choices": [{"message": {"content": verdict}, "finish_reason": "stop"}]}
    return 200, message | {"usage": {"prompt_tokens": 50, "completion_tokens": 3}}


def test_verdicts_are_scored_under_their_own_name_beside_cost_and_agreement(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MEDMOE_API_KEY", "secret")
    with serving(grader) as (url, sent):
        report = ["--report", str(tmp_path / "report.html")]
        assert main([*files(tmp_path), *report, "--judge", url, "--judge-model", "grader"]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith(f"Questions and answers, no pictures, go to {url}, with:\n{PROMPT}\n")
    result = json.loads((tmp_path / "out.json").read_text(encoding="utf-8"))
    values = {name: cell["accuracy"] for name, cell in result["protocols"]["judge"].items()}
    assert {name: (cell["value"], cell["n"]) for name, cell in values.items()} == {
        "closed": (50.0, 2),
        "open": (50.0, 2),
        "all": (50.0, 4),
    }
    assert values["all"]["low"] < 50.0 < values["all"]["high"]
    judged = result["judge"]
    verdicts = judged.pop("verdicts")
    assert {name: row["judge"] for name, row in verdicts.items()} == {
        "a": "yes",
        "b": "yes",
        "c": "no",
        "d": None,
    }
    assert verdicts["b"] == {
        "question": "Where is it?",
        "answer": "left lung",
        "prediction": "in the lung on the left",
        "judge": "yes",
        "strict": False,
    }
    # Strict finds a and d right, the judge a and b: they agree on a and c, as chance would have it.
    assert judged == {
        "model": "grader",
        "prompt": PROMPT,
        "asked": 4,
        "without_verdict": 1,
        "prompt_tokens": 200,
        "completion_tokens": 12,
        "agreement_with_strict": 50.0,
        "kappa": 0.0,
        "right_for_judge_only": 1,
        "right_for_strict_only": 1,
    }
    assert result["protocols"]["strict"]["all"]["accuracy"]["value"] == 50.0
    assert "Judged by a language model: truth.jsonl" in shown
    assert "all accuracy (judge)" in shown
    (cost,) = [line.split() for line in shown.splitlines() if line.startswith("said.jsonl grader")]
    assert cost == ["said.jsonl", "grader", "4", "200", "12", "1", "50.0", "0.00", "1", "1"]
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    rows = [re.findall(r"<t[dh][^>]*>(.*?)</t[dh]>", row) for row in page.split("<tr>")]
    told_of = [row for row in rows if row and row[0] in SAID]
    assert [(row[0], *row[-2:]) for row in told_of] == [  # where they differ first
        ("b", "right", "wrong"),
        ("d", "–", "right"),
        ("a", "right", "right"),
        ("c", "wrong", "wrong"),
    ]
    assert "in the lung on the left" in told_of[0]
    headers, body = sent[0]
    assert headers["Authorization"] == "Bearer secret"
    assert (body["model"], body["temperature"], len(body["messages"])) == ("grader", 0, 1)
    assert [part["type"] for part in body["messages"][0]["content"]] == ["text"]


def test_the_prompt_is_frozen_and_the_same_answer_is_judged_once(tmp_path: Path) -> None:
    same = {"question": "Where?", "answer": "lung", "references": ["left lung"]}
    with serving(grader) as (url, sent):
        words = files(tmp_path, **same, answer_type="open")
        assert main([*words, "--judge", url, "--judge-model", "grader"]) == 0
    assert told(sent) == {
        "You grade an answer to a question about a medical image, which you do not see.\n"
        f"Question: Where?\nTrue answer: lung or left lung\nGiven answer: {said}\n"
        "Does the given answer mean the same as the true answer? "
        "Answer with one word: yes or no."
        for said in SAID.values()
    }
    lines = [json.dumps({"id": name, "prediction": "lung"}) + "\n" for name in SAID]
    Path(words[1]).write_text("".join(lines), encoding="utf-8")
    with serving(grader) as (url, sent):
        assert main([*words, "--judge", url, "--judge-model", "grader"]) == 0
    assert len(sent) == 1
    result = json.loads((tmp_path / "out.json").read_text(encoding="utf-8"))
    assert result["judge"]["kappa"] is None
    assert result["judge"]["agreement_with_strict"] == 100.0


def told(sent: list[Sent]) -> set[str]:
    return {body["messages"][0]["content"][0]["text"] for _, body in sent}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--judge-model", "grader"], "give both"),
        (["--judge", "http://127.0.0.1:9/v1"], "give both"),
        (["--judge", "nowhere", "--judge-model", "grader"], "the address of an endpoint"),
    ],
)
def test_flags_that_do_not_fit_are_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    assert main([*files(tmp_path), *words]) == 2
    assert message in capsys.readouterr().err


def test_questions_that_are_not_known_are_named_before_anything_is_asked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with serving(grader) as (url, sent):
        words = files(tmp_path, question="")
        assert main([*words, "--judge", url, "--judge-model", "grader"]) == 2
    assert "a judge needs the questions, and those of 'a', 'b'" in capsys.readouterr().err
    assert sent == []
    assert not (tmp_path / "out.json").exists()


def test_kappa_is_cohens() -> None:
    import numpy as np

    # The table of Cohen 1960's measure by hand: both 20, neither 15, one alone 5 and 10.
    right = np.array([True] * 25 + [False] * 25)
    strict = np.array([True] * 20 + [False] * 5 + [True] * 10 + [False] * 15)
    found = module._agreement(right, strict)
    assert found["agreement_with_strict"] == 70.0
    assert found["kappa"] == pytest.approx(0.4)
