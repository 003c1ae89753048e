"""Paired comparison of two systems on the same records."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from medmoe.data.schema import Record
from medmoe.errors import DataError
from medmoe.evaluation.compare import pooled
from medmoe.evaluation.files.predictions import Prediction
from medmoe.evaluation.score.measures import is_right
from medmoe.evaluation.statistics import mcnemar

MakeRecord = Callable[..., Record]


def answers(records: list[Record], right: list[bool]) -> list[Prediction]:
    return [
        Prediction(r.id, r.answer if ok else "no such thing")
        for r, ok in zip(records, right, strict=True)
    ]


def test_rows_hold_the_paired_difference_and_mcnemars_p(make_record: MakeRecord) -> None:
    records = [make_record(f"q{n}", image=f"i{n // 2}") for n in range(12)]
    first = [True] * 9 + [False] * 3
    second = [True] * 4 + [False] * 8
    a, b = answers(records, first), answers(records, second)
    (row,) = pooled("t", [(records, a, b)], seed=0)
    assert row.difference == pytest.approx(-100 * 5 / 12)  # B − A
    assert row.low is not None
    assert row.high is not None
    assert row.low <= row.difference <= row.high
    assert row.p == mcnemar([float(x) for x in first], [float(x) for x in second])
    assert row.n == 12
    (mirror,) = pooled("t", [(records, b, a)], seed=0)
    assert mirror.difference == pytest.approx(-row.difference)
    assert mirror.p == row.p


def test_closed_and_open_questions_are_compared_apart(make_record: MakeRecord) -> None:
    records = [make_record(f"q{n}", image=f"i{n}") for n in range(4)]
    records[0] = replace(records[0], answer_type="closed", answer="yes")
    records[1:] = [replace(r, answer_type="open", answer="liver") for r in records[1:]]
    same = answers(records, [True] * 4)
    rows = pooled("t", [(records, same, same)], seed=0)
    assert {(row.subset, row.n) for row in rows} == {("closed", 1), ("open", 3)}
    assert all(row.difference == 0 and row.p == 1 for row in rows)
    (closed,) = [row for row in rows if row.subset == "closed"]
    assert (closed.low, closed.high) == (None, None)


def test_a_missing_prediction_is_named(make_record: MakeRecord) -> None:
    records = [make_record("q1"), make_record("q2")]
    both = answers(records, [True, True])
    with pytest.raises(DataError, match="q2"):
        pooled("t", [(records, both, both[:1])], seed=0)


def test_right_means_strict(make_record: MakeRecord) -> None:
    record = replace(make_record("q"), answer_type="closed", answer="no")
    assert is_right(record, Prediction("q", "No."))
    assert not is_right(record, Prediction("q", "I do not know"))
    option = replace(record, task="classification", answer="normal", options=("normal", "ill"))
    assert is_right(option, Prediction("q", "normal"))
    assert not is_right(option, Prediction("q", "ill"))
