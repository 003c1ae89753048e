"""Every protocol side by side: exact means of `score_pair`, intervals by image, blind answers."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from medmoe.data.schema import Record
from medmoe.errors import ConfigError, DataError
from medmoe.evaluation.files.predictions import Prediction
from medmoe.evaluation.protocols import ALL_PROTOCOLS, score_pair
from medmoe.evaluation.score.rows import cells_of
from medmoe.evaluation.score.table import score_table
from medmoe.evaluation.score_files import Answers, score_answers
from medmoe.evaluation.statistics import clustered_bootstrap, wilson

Make = Callable[..., Record]
PAIRS = [
    ("yes", "Yes, there is", "one", "presence"),
    ("no", "I do not know", "one", "presence"),
    ("no", "no", "two", "presence"),
    ("yes", "", "three", "presence"),
    ("left lung", "lung left", "two", "place"),
    ("left upper lobe", "the left lobe", "three", "place"),
    ("axial", "axial", "four", "plane"),
]


@pytest.fixture
def records(make_record: Make) -> list[Record]:
    return [
        make_record(f"q{i}", answer, image=image, question_type=kind)
        for i, (answer, _, image, kind) in enumerate(PAIRS)
    ]


def score_records(records: list[Record], said: list[Prediction], **options: Any) -> dict[str, Any]:
    return cells_of(score_table(records, said, **options))


def predictions(records: list[Record]) -> list[Prediction]:
    return [Prediction(r.id, said) for r, (_, said, _, _) in zip(records, PAIRS, strict=True)]


@pytest.fixture
def found(records: list[Record]) -> dict[str, Any]:
    return score_records(records, list(reversed(predictions(records))))


def mean(protocol: str, kind: str, key: str) -> float:
    values = [
        score_pair(protocol, said, answer, kind)[key]
        for answer, said, _, _ in PAIRS
        if (answer in ("yes", "no")) == (kind == "closed")
    ]
    return 100 * math.fsum(values) / len(values)


@pytest.mark.parametrize("protocol", ["reference", "llava_med"])
def test_published_protocols_hold_the_mean_of_each_metric(
    found: dict[str, Any], protocol: str
) -> None:
    cells = found["protocols"][protocol]
    for key in ("exact_match", "f1", "precision", "recall", "bleu1", "bleu2", "bleu3"):
        # Rounded to six decimals of a percent.
        assert cells["open"][key]["value"] == pytest.approx(mean(protocol, "open", key), abs=5e-7)
    for metric in ("accuracy", "closed_correct"):
        value = cells["closed"][metric]["value"]
        assert value == pytest.approx(mean(protocol, "closed", "closed_correct"), abs=5e-7)
    assert cells["closed"]["f1"]["value"] == pytest.approx(mean(protocol, "closed", "f1"), abs=5e-7)
    assert {cell["n"] for cell in cells["open"].values()} == {3}
    assert {cell["n"] for cell in cells["closed"].values()} == {4}


def test_strict_and_token_f1_hold_the_mean_of_each_metric(found: dict[str, Any]) -> None:
    strict, token_f1 = found["protocols"]["strict"], found["protocols"]["token_f1"]
    assert strict["closed"]["accuracy"]["value"] == 50.0  # "I do not know" is no "no"
    assert found["protocols"]["reference"]["closed"]["accuracy"]["value"] == 75.0
    assert strict["open"]["exact_match"]["value"] == pytest.approx(100 / 3)
    assert strict["all"]["accuracy"] | {"low": 0, "high": 0} == {
        "value": pytest.approx(300 / 7),
        "low": 0,
        "high": 0,
        "n": 7,
    }
    for kind in ("closed", "open"):
        value = token_f1[kind]["f1"]["value"]
        assert value == pytest.approx(mean("token_f1", kind, "f1"), abs=5e-7)


def test_subsets_are_broken_down_with_their_n(found: dict[str, Any]) -> None:
    strict = found["protocols"]["strict"]
    assert {name: cells["accuracy"]["n"] for name, cells in strict.items() if name != "open"} == {
        "closed": 4, "all": 7, "place": 2, "plane": 1, "presence": 4,
    }  # fmt: skip
    assert found["protocols"]["reference"]["place"]["recall"]["n"] == 2
    assert "accuracy" not in found["protocols"]["reference"]["place"]


def test_intervals_are_those_of_the_bootstrap_by_image(found: dict[str, Any]) -> None:
    cell = found["protocols"]["strict"]["closed"]["accuracy"]
    low, high = clustered_bootstrap([1, 0, 1, 0], ["one", "one", "two", "three"], seed=7)
    assert (cell["low"], cell["high"]) == (pytest.approx(100 * low), pytest.approx(100 * high))
    recall = found["protocols"]["reference"]["open"]["recall"]
    values = [1.0, 2 / 3, 1.0]
    low, high = clustered_bootstrap(values, ["two", "three", "four"], seed=7)
    assert (recall["low"], recall["high"]) == (pytest.approx(100 * low), pytest.approx(100 * high))


def test_one_image_has_no_interval_and_certainty_is_not_claimed(make_record: Make) -> None:
    one = [make_record(i, "yes", image="x") for i in "abc"]
    half = score_records(one, [Prediction(i, "yes" if i == "a" else "no") for i in "abc"])
    cell = half["protocols"]["strict"]["closed"]["accuracy"]
    assert (cell["low"], cell["high"], cell["n"]) == (None, None, 3)
    many = [make_record(i, "yes") for i in "abc"]
    right = score_records(many, [Prediction(i, "yes") for i in "abc"])
    cell = right["protocols"]["strict"]["closed"]["accuracy"]
    assert cell["low"] == pytest.approx(100 * wilson(3, 3)[0], abs=1e-6)


def test_blind_answers_stand_under_each_protocol(found: dict[str, Any]) -> None:
    values = {
        name: cells["strict"]["closed"]["accuracy"]["value"]
        for name, cells in found["baselines"].items()
    }
    alike = {"always_yes": 50.0, "always_no": 50.0, "most_frequent_per_type": 50.0}
    assert values == {**alike, "constant": 50.0}
    assert found["baselines"]["constant"]["strict"]["plane"]["accuracy"] == {
        "value": 100.0, "n": 1, "answer": "most_frequent_per_type", "chosen_on": "scored answers"
    }  # fmt: skip
    frequent = found["baselines"]["most_frequent_per_type"]
    assert frequent["strict"]["plane"]["accuracy"] == {"value": 100.0, "n": 1}
    assert any("upper bound" in note for note in found["notes"])


def test_constants_are_chosen_on_training_answers_where_they_are_given(
    records: list[Record], make_record: Make
) -> None:
    train = [make_record(f"t{i}", "coronal", question_type="plane") for i in range(3)]
    found = score_records(records, predictions(records), train=train)
    frequent = found["baselines"]["most_frequent_per_type"]
    assert frequent["strict"]["plane"]["accuracy"]["value"] == 0.0
    assert "question_only" in found["baselines"]
    constant = found["baselines"]["constant"]["strict"]
    # The most frequent is best on the training answers, though nothing fits here.
    assert constant["plane"]["accuracy"] == {
        "value": 0.0, "n": 1, "answer": "most_frequent_per_type", "chosen_on": "training answers"
    }  # fmt: skip
    assert constant["place"]["accuracy"]["chosen_on"] == "scored answers"  # none of this type
    assert not any("upper bound" in note for note in found["notes"])


@pytest.mark.parametrize(("kind", "absent"), [("closed", "open"), ("open", "closed")])
def test_one_type_of_question_alone_divides_by_nothing(
    records: list[Record], kind: str, absent: str
) -> None:
    # The released scorer raises ZeroDivisionError here (reference/metrics.json, evaluate_edges).
    chosen = [r for r in records if r.answer_type == kind]
    found = score_records(chosen, [Prediction(r.id, "yes") for r in chosen])
    for protocol in ("strict", "reference", "llava_med", "token_f1"):
        assert kind in found["protocols"][protocol]
        assert absent not in found["protocols"][protocol]


def test_empty_predictions_are_wrong_and_named(found: dict[str, Any]) -> None:
    assert "1 empty predictions, scored as they are: 'q3'" in found["notes"]


def test_records_without_an_image_are_said(tmp_path: Path) -> None:
    from medmoe.evaluation.files.truth import read_truth

    path = tmp_path / "t.jsonl"
    rows = [{"id": i, "answer": "yes", "answer_type": "closed"} for i in "ab"]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = score_records(read_truth(path), [Prediction("a", "yes"), Prediction("b", "no")])
    assert found["images"] == 2
    assert any("2 of 2 records name no image" in note for note in found["notes"])


def classified(make_record: Make, answers: str, scores: list[float] | None) -> dict[str, Any]:
    options = ("well", "ill")
    records = [
        make_record(f"q{i}", options[int(label)], options=options, answer_type="closed")
        for i, label in enumerate(answers)
    ]
    told = [
        Prediction(r.id, options[i % 2], option_scores=None if scores is None else (0.0, scores[i]))
        for i, r in enumerate(records)
    ]
    return score_records(records, told)


def test_scored_options_add_label_score(make_record: Make) -> None:
    found = classified(make_record, "0101", [-1.0, 1.0, -0.5, -0.1])
    cells = found["protocols"]["label_score"]["all"]
    assert (cells["accuracy"]["value"], cells["auc"]["value"]) == (75.0, 100.0)
    assert found["baselines"]["constant"]["label_score"]["all"]["accuracy"]["value"] == 50.0
    assert found["protocols"]["strict"]["closed"]["accuracy"]["value"] == 100.0


def test_one_class_only_has_no_auc_and_says_why(make_record: Make) -> None:
    found = classified(make_record, "111", [1.0, 1.0, -1.0])
    cells = found["protocols"]["label_score"]["all"]
    assert cells["auc"] == {"value": None, "low": None, "high": None, "n": 3}
    assert cells["accuracy"]["value"] == pytest.approx(200 / 3)
    assert any("one class only in the truth" in note for note in found["notes"])


def test_options_without_scores_are_answers_in_words(make_record: Make) -> None:
    found = classified(make_record, "01", None)
    assert "label_score" not in found["protocols"]
    assert "no label_score: the predictions hold no option_scores" in found["notes"]


def test_scores_without_options_are_refused(make_record: Make) -> None:
    with pytest.raises(DataError, match="option scores without options in the truth: 'a'"):
        score_records([make_record("a")], [Prediction("a", "yes", None, (0.0, 1.0))])


def test_only_the_wanted_protocols_are_scored(records: list[Record]) -> None:
    found = score_records(records, predictions(records), wanted=("strict",))
    assert list(found["protocols"]) == ["strict"]
    with pytest.raises(ConfigError, match=r"unknown protocol 'strickt'.*did you mean 'strict'"):
        score_records(records, predictions(records), wanted=("strickt",))
    assert set(ALL_PROTOCOLS) == {
        *("strict", "reference", "llava_med", "token_f1", "label_score", "letter", "report")
    }


@pytest.mark.parametrize(
    ("answers", "truth", "message"),
    [
        ("", '{"id": "a", "answer": "yes", "answer_type": "closed"}\n', "holds no predictions"),
        ('{"id": "a", "prediction": "yes"}\n', "", "holds no truth"),
    ],
)
def test_no_records_are_no_score(tmp_path: Path, answers: str, truth: str, message: str) -> None:
    (tmp_path / "answers.jsonl").write_text(answers)
    (tmp_path / "truth.jsonl").write_text(truth)
    with pytest.raises(DataError, match=message):
        score_answers(Answers(tmp_path / "answers.jsonl", tmp_path / "truth.jsonl"))


def test_predictions_of_another_task_are_said_to_be(records: list[Record]) -> None:
    other = [Prediction(f"other/{i}", "yes") for i in range(7)]
    with pytest.raises(DataError, match=r"no id in common: .*'other/0'.*'q0'.*the same task"):
        score_records(records, other)
