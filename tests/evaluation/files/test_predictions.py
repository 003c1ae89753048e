from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from medmoe.data.schema import Record
from medmoe.errors import DataError
from medmoe.evaluation.ask.answers import AnswerFile
from medmoe.evaluation.files.predictions import (
    Prediction,
    pair,
    read_predictions,
    without_thinking,
)

Make = Callable[..., Record]


def test_pairs_follow_ids_and_not_positions(make_record: Make) -> None:
    records = [make_record("a"), make_record("b", "no")]
    found = pair(records, [Prediction("b", "no"), Prediction("a", "yes")])
    assert [(r.id, p.id, p.text) for r, p in found] == [("a", "a", "yes"), ("b", "b", "no")]


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        (["a"], "missing predictions for: 'b'"),
        (["a", "b", "b"], "predictions with a duplicate id: 'b'"),
        (["a", "b", "c"], "unknown prediction ids: 'c'"),
    ],
)
def test_ids_that_do_not_pair_are_named(make_record: Make, ids: list[str], message: str) -> None:
    records = [make_record("a"), make_record("b")]
    with pytest.raises(DataError, match=message):
        pair(records, [Prediction(i, "yes") for i in ids])


def test_a_record_that_stands_twice_is_named(make_record: Make) -> None:
    with pytest.raises(DataError, match="records with a duplicate id: 'a'"):
        pair([make_record("a"), make_record("a")], [Prediction("a", "yes")])


def test_many_ids_are_counted_and_not_all_listed(make_record: Make) -> None:
    with pytest.raises(DataError, match=r"'r0', 'r1', 'r2', 'r3', 'r4' and 15 more") as caught:
        pair([make_record(f"r{i}") for i in range(20)], [])
    assert "\n" not in str(caught.value)


def test_a_file_gives_back_what_was_written(make_record: Make, tmp_path: Path) -> None:
    records = [
        make_record("a", "no", image="scan 1"),
        make_record("b", "links", references=("rechts, ödem",)),
        make_record("c", "x", options=("x", "y")),
    ]
    predictions = [
        Prediction("c", "y", option_scores=(-1.2345678901234567, -0.1)),
        Prediction("a", "no", confidence=0.25),
        Prediction("b", "left\nlung"),
    ]
    path = tmp_path / "new" / "predictions.jsonl"
    AnswerFile(path, [records]).append(records, predictions)
    assert read_predictions(path) == [predictions[1], predictions[2], predictions[0]]
    assert [p.name for p in path.parent.iterdir()] == ["predictions.jsonl"]


def test_the_file_holds_the_truth_and_nothing_of_the_question(
    make_record: Make, tmp_path: Path
) -> None:
    path = tmp_path / "predictions.jsonl"
    record = make_record("a", "no", image="scan 1", question="a secret?")
    AnswerFile(path, [[record]]).append([record], [Prediction("a", "yes", confidence=0.5)])
    assert json.loads(path.read_text(encoding="utf-8")) == {
        "id": "a",
        "prediction": "yes",
        "confidence": 0.5,
        "answer": "no",
        "answer_type": "closed",
        "image": "scan 1",
        "subset": "presence",
    }


def test_writing_refuses_what_reading_would_refuse(make_record: Make, tmp_path: Path) -> None:
    path, records = tmp_path / "predictions.jsonl", [make_record("a")]
    file = AnswerFile(path, [records])
    with pytest.raises(DataError, match="missing predictions"):
        file.append(records, [])
    with pytest.raises(DataError, match="a: a confidence or option score is not finite"):
        file.append(records, [Prediction("a", "x", None, (0.0, float("-inf")))])
    assert not path.exists()


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", r"p\.jsonl row 2: not JSON"),
        ("[1]", "row 2: list instead of an object"),
        ('{"id": 7.5, "prediction": "x"}', "id holds 7.5; it should be a valid string"),
        ('{"id": true, "prediction": "x"}', "id holds True"),
        ('{"id": 7}', "row 2: prediction is missing"),
        ('{"id": "a", "prediction": "x", "confidence": "high"}', "confidence holds 'high'"),
        ('{"id": "a", "prediction": "x", "confidence": NaN}', "confidence holds nan"),
        (
            '{"id": "a", "prediction": "x", "option_scores": 3}',
            "option_scores holds 3; it should be",
        ),
        ('{"id": "a", "prediction": "x", "option_scores": [true]}', "option_scores holds True"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text('{"id": "z", "prediction": "fine", "routing": {"ct": 1}}\n' + line + "\n")
    with pytest.raises(DataError, match=message):
        read_predictions(path)


def test_an_unreadable_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none\.jsonl: .*give an existing file"):
        read_predictions(tmp_path / "none.jsonl")
    (tmp_path / "latin.jsonl").write_bytes(b"\xff\xfe\xff")
    with pytest.raises(DataError, match=r"latin\.jsonl row 1: not"):
        read_predictions(tmp_path / "latin.jsonl")


def test_whole_numbers_are_ids_and_count_as_their_text(tmp_path: Path) -> None:
    path = tmp_path / "p.json"
    path.write_text('[{"id": 7, "prediction": "x"}, {"id": "8", "prediction": ""}]')
    assert [(each.id, each.text) for each in read_predictions(path)] == [("7", "x"), ("8", "")]


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("yes", "yes"),
        ("<think>There is no mass. </think>\n\nyes", "yes"),
        ("Yes <thinking>or\nno</thinking>.", "Yes ."),
        ("or no</think> yes", "yes"),
        ("<think>no, since it was cut", ""),
        ("<THINK>a</THINK><think>b</think> yes", "yes"),
        ("<unused94>thought\nno<unused95>yes", "yes"),
        ("they think <5 mm", "they think <5 mm"),
    ],
)
def test_what_was_thought_is_left_out(text: str, answer: str) -> None:
    assert without_thinking(text) == answer
