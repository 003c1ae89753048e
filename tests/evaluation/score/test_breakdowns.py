"""Scores by modality, organ and length of the answer."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest

from medmoe.data.schema import Record
from medmoe.evaluation.files.predictions import Prediction
from medmoe.evaluation.pages.report_rows import results
from medmoe.evaluation.score.breakdowns import breakdowns
from medmoe.evaluation.score.rows import score_task

Make = Callable[..., Record]


def seen(record: Record, modality: str | None, organ: str | None = None) -> Record:
    image = dataclasses.replace(record.image, modality=modality, organ=organ)
    return dataclasses.replace(record, image=image)


@pytest.fixture
def records(make_record: Make) -> list[Record]:
    return [
        seen(make_record("a", "yes"), "ct"),
        seen(make_record("b", "liver"), "ct"),
        seen(make_record("c", "the left upper lobe"), "mri"),
        seen(make_record("d", "a small mass in the left upper lobe"), None),
    ]


def test_each_subset_holds_its_records_and_no_other(records: list[Record]) -> None:
    found = {
        name: [record.id for record in records if belongs(record)]
        for name, belongs in breakdowns(records).items()
    }
    assert found == {
        "modality:ct": ["a", "b"],
        "modality:mri": ["c"],
        "answer_length:1": ["b"],
        "answer_length:2-3": ["c"],  # an article is no word
        "answer_length:4 or more": ["d"],
    }


def test_what_all_records_share_is_no_subset(make_record: Make) -> None:
    same = [seen(make_record(i, "yes"), "ct", "chest") for i in "ab"]
    assert breakdowns(same) == {}
    assert breakdowns([]) == {}


def test_rows_of_a_breakdown_have_their_own_n_and_table(records: list[Record]) -> None:
    rows = score_task(
        system="moe", task="t", split="test", records=records,
        predictions=[Prediction(r.id, r.answer) for r in records],
        train_records=records, seed=7, subsets=breakdowns(records),
    )  # fmt: skip
    found = {(r["subset"], r["metric"]): r for r in rows if r["protocol"] == "strict"}
    of_ct = found["modality:ct", "accuracy"]
    assert (of_ct["n"], of_ct["value"]) == (2, 100)
    assert found["answer_length:2-3", "accuracy"]["n"] == 1
    assert of_ct["constant_baseline"] is not None
    tables = dict(results(rows).tables)
    parts = tables["By modality, organ and length of the answer"].rows
    named = {row[1].split()[0] for row in parts}
    assert named == {name.split()[0] for name in breakdowns(records)}
    assert all(":" not in row[1] for row in tables["By question type"].rows)


def test_a_classification_is_broken_down_too(make_record: Make) -> None:
    options = ("well", "ill")
    records = [
        seen(make_record(i, "ill", options=options), modality)
        for i, modality in (("a", "ct"), ("b", "ct"), ("c", "mri"))
    ]
    rows = score_task(
        system="moe", task="t", split="test", records=records,
        predictions=[Prediction(r.id, "ill", None, (0.0, 1.0)) for r in records],
        train_records=(), seed=7, subsets=breakdowns(records),
    )  # fmt: skip
    counts = {row["subset"]: row["n"] for row in rows if row["metric"] == "accuracy"}
    assert counts == {"all": 3, "modality:ct": 2, "modality:mri": 1}
