"""Truth files of any model become records, or a line says which row cannot."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from medmoe.errors import DataError
from medmoe.evaluation.files.truth import check_same_truth, names_an_image, own_truth, read_truth


def written(path: Path, *rows: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_a_truth_line_becomes_a_record(tmp_path: Path) -> None:
    path = written(
        tmp_path / "t.jsonl",
        {"id": "a", "answer": "yes", "answer_type": "CLOSED ", "image": "s/1.png", "subset": "x"},
        {"id": "b", "answer": "left", "answer_type": "open", "references": ["links"]},
        {"id": "c", "answer": "ill", "answer_type": "closed", "options": ["well", "ill"]},
    )
    a, b, c = read_truth(path)
    assert (a.answer_type, a.image.id, a.question_type, a.task) == ("closed", "s/1.png", "x", "vqa")
    assert (b.references, b.question_type, names_an_image(b)) == (("links",), "", False)
    assert (c.task, c.options) == ("classification", ("well", "ill"))
    # Without an image each record is one of its own: never one cluster by accident.
    assert len({a.image.id, b.image.id, c.image.id}) == 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"id": 7.5}, "id holds 7.5"),
        ({"answer": None}, "answer holds None"),
        ({"answer": " "}, "answer of 'a' is empty; give the true answer"),
        ({"answer_type": "yes/no"}, "answer_type holds 'yes/no'; it should be 'open' or 'closed'"),
        ({"options": "a, b"}, "options holds 'a, b'; it should be"),
        ({"options": ["a", 2]}, "options holds 2"),
        ({"image": 3}, "image holds 3"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    good = {"id": "a", "answer": "yes", "answer_type": "closed"}
    with pytest.raises(DataError, match=f"t.jsonl row 2: {message}"):
        read_truth(written(tmp_path / "t.jsonl", good | {"id": "z"}, good | change))


def test_predictions_made_for_another_truth_are_refused(tmp_path: Path) -> None:
    truth = read_truth(
        written(tmp_path / "t.jsonl", {"id": "a", "answer": "Yes.", "answer_type": "closed"})
    )
    same = {"id": "a", "prediction": "no", "answer": "yes"}
    check_same_truth(written(tmp_path / "p.jsonl", same), truth)
    check_same_truth(written(tmp_path / "p.jsonl", {"id": "a", "prediction": "no"}), truth)
    with pytest.raises(DataError, match=r"p\.jsonl was made for another truth: .*'a' differ"):
        check_same_truth(written(tmp_path / "p.jsonl", same | {"answer": "left"}), truth)


def test_a_file_without_its_truth_asks_for_one(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"row 1 holds no answer: give the truth .*by --truth"):
        own_truth(written(tmp_path / "p.jsonl", {"id": "a", "prediction": "no"}))
