from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from medmoe.data.schema import Record
from medmoe.errors import ConfigError, DataError
from medmoe.evaluation.files.predictions import Prediction, by_image
from medmoe.evaluation.protocols import PROTOCOLS
from medmoe.evaluation.score.rows import score_task
from medmoe.evaluation.statistics import clustered_bootstrap, wilson

Make = Callable[..., Record]
Key = tuple[str, str, str]


class Row(dict[str, Any]):
    """A score row whose values are attributes too, None where the row leaves one out."""

    def __getattr__(self, name: str) -> Any:
        return self.get(name)


def score(
    records: Sequence[Record], texts: Sequence[str], train: Sequence[Record] = (), **more: Any
) -> dict[Key, Row]:
    arguments: dict[str, Any] = {
        "system": "moe",
        "task": "hand_made_vqa",
        "split": "test",
        "records": records,
        "predictions": [Prediction(r.id, t) for r, t in zip(records, texts, strict=True)],
        "train_records": train,
        "seed": 7,
    }
    rows = [Row(row) for row in score_task(**arguments | more)]
    found = {(row.subset, row.protocol, row.metric): row for row in rows}
    assert len(found) == len(rows)
    return found


@pytest.fixture
def records(make_record: Make) -> list[Record]:
    return [
        make_record("c1", "yes", image="one"),
        make_record("c2", "no", image="one"),
        make_record("c3", "no", image="two"),
        make_record("c4", "no", image="three"),
        make_record("o1", "left lung", image="two", question_type="place", question="where?"),
        make_record("o2", "axial", image="three", question_type="plane", question="which plane?"),
    ]


@pytest.fixture
def train(make_record: Make) -> list[Record]:
    return [
        make_record("c1", "yes"),
        make_record("c2", "yes", question="is there air?"),
        make_record("c3", "yes", question="is there air?"),
        make_record("c4", "no"),
        make_record("c5", "no"),
        make_record("o1", "liver", question_type="place", question="where?"),
        make_record("o2", "axial", question_type="plane", question="which plane?"),
    ]


TEXTS = ["Yes", "no", "yes", "no", "left", "coronal"]


def test_an_interval_does_not_depend_on_the_order_of_the_questions_of_an_image(
    make_record: Make,
) -> None:
    mixed = [make_record(f"open{i}", "yes", image=f"i{i}", answer_type="open") for i in range(23)]
    mixed += [make_record(f"{i}", "yes", image=f"i{i * i % 23}") for i in range(5, 60)]
    told = {r.id: "yes" if len(r.id) + int(r.image.id[1:]) % 5 < 4 else "no" for r in mixed}
    first, second = (
        score(records, [told[r.id] for r in records]) for records in (mixed, by_image(mixed))
    )
    closed = ("closed", "strict", "accuracy")
    assert first == second
    # The draws of the closed questions by themselves, in their own order, are others.
    alone = [record for record in mixed if record.answer_type == "closed"]
    other = score(alone, [told[r.id] for r in alone])[closed]
    assert (other.value, other.n) == (first[closed].value, first[closed].n)
    assert (other.low, other.high) != (first[closed].low, first[closed].high)


def test_rows_of_a_vqa_task(records: list[Record]) -> None:
    found = score(records, TEXTS)
    assert {key: (row.value, row.n) for key, row in found.items()} == {
        ("closed", "strict", "accuracy"): (75.0, 4),
        ("closed", "reference", "accuracy"): (75.0, 4),
        ("open", "strict", "exact_match"): (0.0, 2),
        ("open", "strict", "f1"): (pytest.approx(100 / 3), 2),
        ("open", "strict", "recall"): (25.0, 2),
        ("open", "reference", "recall"): (25.0, 2),
        ("open", "reference", "f1"): (pytest.approx(100 / 3), 2),
        ("all", "strict", "accuracy"): (50.0, 6),
        ("place", "strict", "accuracy"): (0.0, 1),
        ("place", "reference", "recall"): (50.0, 1),
        ("place", "reference", "f1"): (pytest.approx(200 / 3), 1),
        ("plane", "strict", "accuracy"): (0.0, 1),
        ("plane", "reference", "recall"): (0.0, 1),
        ("plane", "reference", "f1"): (0.0, 1),
        ("presence", "strict", "accuracy"): (75.0, 4),
        ("presence", "reference", "accuracy"): (75.0, 4),
    }


def test_rows_are_those_of_the_summary_file(records: list[Record]) -> None:
    row = score(records, TEXTS, control="blank")["closed", "strict", "accuracy"]
    identity = {"system", "task", "split", "subset", "protocol", "metric", "control"}
    baselines = {"constant_baseline", "constant_chosen_on", "question_only_baseline", "blind_twin"}
    assert set(row) == identity | {"value", "low", "high", "n", "share"} | baselines
    assert (row["system"], row["task"], row["split"]) == ("moe", "hand_made_vqa", "test")
    assert row["control"] == "blank"
    assert row["constant_chosen_on"] == "scored answers"  # no training answers were given
    assert (row["blind_twin"], row["share"]) == (None, None)
    assert json.loads(json.dumps(row)) == row


def test_intervals_are_clustered_on_the_image(records: list[Record]) -> None:
    row = score(records, TEXTS)["closed", "strict", "accuracy"]
    low, high = clustered_bootstrap([1, 1, 0, 1], ["one", "one", "two", "three"], seed=7)
    assert (row.low, row.high) == (pytest.approx(100 * low), pytest.approx(100 * high))
    free = clustered_bootstrap([1, 1, 0, 1], "abcd", seed=7)
    assert (low, high) != tuple(free)


def test_the_picture_s_share_is_paired_and_clustered_on_the_image(records: list[Record]) -> None:
    blind = [
        Prediction(r.id, t) for r, t in zip(records, ["no"] * 4 + ["left lung", "x"], strict=True)
    ]
    found = score(records, TEXTS, twin=blind)
    closed = found["closed", "strict", "accuracy"]  # seeing: right, right, wrong, right
    gained = [1, 0, -1, 0]
    low, high = clustered_bootstrap(gained, ["one", "one", "two", "three"], seed=7)
    assert (closed.value, closed.blind_twin) == (75.0, 75.0)
    assert closed.share == {
        "value": 0.0, "low": pytest.approx(100 * low), "high": pytest.approx(100 * high)
    }  # fmt: skip
    assert found["open", "strict", "exact_match"].share["value"] == -50.0  # type: ignore[index]
    assert found["place", "strict", "accuracy"].share == {"value": -100, "low": None, "high": None}


def test_a_twin_that_did_not_answer_the_same_questions_is_refused(records: list[Record]) -> None:
    with pytest.raises(DataError, match="o2"):
        score(records, TEXTS, twin=[Prediction(r.id, "no") for r in records[:-1]])


def test_all_right_does_not_claim_certainty(records: list[Record]) -> None:
    row = score(records, [r.answer for r in records])["closed", "strict", "accuracy"]
    low, high = wilson(3, 3)  # three images
    assert (row.value, row.low, row.high) == (100.0, pytest.approx(100 * low), 100.0 * high)


def test_one_image_gives_a_value_without_an_interval(make_record: Make) -> None:
    records = [make_record("a", "yes", image="x"), make_record("b", "no", image="x")]
    row = score(records, ["yes", "yes"])["closed", "strict", "accuracy"]
    assert (row.value, row.low, row.high) == (50.0, None, None)
    assert row.note == "one image only: no interval"


def test_baselines_stand_beside_each_score(records: list[Record], train: list[Record]) -> None:
    found = score(records, TEXTS, train)
    closed = found["closed", "strict", "accuracy"]
    # "yes" is right on 3 of 5 training questions, so it is the constant, though "no" fits the test
    # better; "is there a mass?" was answered "no" twice of three times.
    assert closed.constant_baseline == 25.0
    assert closed.question_only_baseline == 75.0
    opened = found["open", "strict", "exact_match"]
    assert (opened.constant_baseline, opened.question_only_baseline) == (50.0, 50.0)
    assert found["place", "strict", "accuracy"].question_only_baseline == 0.0
    everything = found["all", "strict", "accuracy"]
    assert everything.constant_baseline == pytest.approx(100 * 2 / 6)
    assert everything.question_only_baseline == pytest.approx(100 * 4 / 6)


def test_baselines_are_scored_with_the_rows_own_protocol(make_record: Make) -> None:
    test = [make_record("a", "right lung", question="where?")]
    train = [make_record("a", "left lung", question="where?")]
    found = score(test, ["?"], train)
    assert found["open", "strict", "exact_match"].question_only_baseline == 0.0
    assert found["open", "reference", "recall"].question_only_baseline == 50.0


def test_without_training_answers_the_constant_is_chosen_on_the_scored_ones_and_says_so(
    records: list[Record], train: list[Record]
) -> None:
    found = score(records, TEXTS)
    for key, constant in (
        (("closed", "strict", "accuracy"), 75.0),
        (("open", "strict", "exact_match"), 100.0),  # one open question of each type
    ):
        row = found[key]
        assert (row.constant_baseline, row.question_only_baseline) == (constant, None)
        assert row.constant_chosen_on == "scored answers"
    trained = score(records, TEXTS, train)
    assert {row.constant_chosen_on for row in trained.values()} == {None}


def test_questions_without_a_type_are_no_type_of_their_own(make_record: Make) -> None:
    found = score([make_record("a", "yes", question_type=""), make_record("b", "no")], ["yes"] * 2)
    assert {subset for subset, _, _ in found} == {"closed", "all", "presence"}


def test_captions_in_training_do_not_count(records: list[Record], make_record: Make) -> None:
    captions = [make_record(f"k{i}", "no", task="caption") for i in range(9)]
    assert score(records, TEXTS, captions) == score(records, TEXTS)


def test_training_records_may_repeat_and_share_an_id(
    records: list[Record], train: list[Record], make_record: Make
) -> None:
    once, twice = score(records, TEXTS, train), score(records, TEXTS, train + train)
    assert once == twice
    alike, apart = (score(records, TEXTS, [*train, make_record(i, "axial")]) for i in ("c1", "new"))
    assert alike == apart


def test_only_open_and_only_closed_are_scored_without_the_other(make_record: Make) -> None:
    closed = score([make_record("a", "yes"), make_record("b", "no")], ["yes", "no"])
    assert {subset for subset, _, _ in closed} == {"closed", "all", "presence"}
    opened = score([make_record("a", "ct"), make_record("b", "mri")], ["ct", "ct"])
    assert {subset for subset, _, _ in opened} == {"open", "all", "presence"}
    assert score([], []) == {}


def test_a_question_type_called_like_a_subset_keeps_its_own_row(make_record: Make) -> None:
    records = [make_record("a", "yes", question_type="open"), make_record("b", "no")]
    found = score(records, ["yes", "yes"])
    assert found["type:open", "strict", "accuracy"].n == 1
    assert ("open", "strict", "exact_match") not in found


def test_strict_takes_the_best_of_several_references(make_record: Make) -> None:
    record = make_record("a", "mri", references=("mr", "magnetic resonance"))
    found = score([record], ["MR"])
    assert found["open", "strict", "exact_match"].value == 100.0
    assert found["open", "reference", "recall"].value == 0.0


def test_every_protocol_can_be_asked_for(records: list[Record], train: list[Record]) -> None:
    found = score(records, TEXTS, train, protocols=PROTOCOLS)
    # No answer here is a letter or a report.
    assert {protocol for _, protocol, _ in found} == set(PROTOCOLS) - {"letter", "report"}
    assert found["closed", "llava_med", "accuracy"].value == 75.0
    assert found["open", "token_f1", "f1"].value == pytest.approx(100 / 3)


def test_the_same_seed_gives_the_same_rows(records: list[Record], train: list[Record]) -> None:
    assert score(records, TEXTS, train) == score(records, TEXTS, train)
    order = [3, 1, 5, 0, 2, 4]
    shuffled = [Prediction(records[i].id, TEXTS[i]) for i in order]
    assert score(records, TEXTS, train, predictions=shuffled) == score(records, TEXTS, train)


def test_wrong_use_is_refused(records: list[Record], make_record: Make) -> None:
    with pytest.raises(DataError, match="missing predictions for: 'c1'"):
        score(records, TEXTS, predictions=[])
    with pytest.raises(ConfigError, match="unknown protocol 'loose'"):
        score(records, TEXTS, protocols=("loose",))
    with pytest.raises(DataError, match="records of caption, vqa; score"):
        score([make_record("a"), make_record("b", task="caption")], ["yes", "a scan"])


# --- classification ---------------------------------------------------------------------------


def classify(
    records: Sequence[Record], scores: Sequence[tuple[float, ...]], train: Sequence[Record] = ()
) -> dict[Key, Row]:
    predictions = [
        Prediction(r.id, "", option_scores=s) for r, s in zip(records, scores, strict=True)
    ]
    return score(records, [""] * len(records), train, predictions=predictions)


@pytest.fixture
def items(make_record: Make) -> list[Record]:
    answers = ["normal", "pneumonia", "pneumonia", "pneumonia"] * 10
    options = ("normal", "pneumonia")
    return [make_record(f"i{i}", a, options=options) for i, a in enumerate(answers)]


def test_classification_rows(items: list[Record]) -> None:
    # Right for all but the first; its rank is between those of the other positives.
    scores = [(-3.0, -5.0) if r.answer == "normal" else (-5.0, -3.0) for r in items]
    scores[0] = (-4.0, -3.5)
    found = classify(items, scores, items)
    assert set(found) == {("all", "label_score", "accuracy"), ("all", "label_score", "auc")}
    accuracy, auc = found["all", "label_score", "accuracy"], found["all", "label_score", "auc"]
    assert (accuracy.value, accuracy.n) == (97.5, 40)
    assert (accuracy.constant_baseline, accuracy.question_only_baseline) == (75.0, 75.0)
    assert auc.value == 100.0
    assert (auc.constant_baseline, auc.question_only_baseline) == (50.0, 50.0)
    assert accuracy.low is not None
    assert accuracy.high is not None
    assert accuracy.low < 97.5 < accuracy.high


def test_one_class_only_gives_accuracy_and_a_null_auc_with_the_reason(items: list[Record]) -> None:
    ill = [r for r in items if r.answer == "pneumonia"]
    found = classify(ill, [(-2.0, -1.0)] * len(ill))
    assert found["all", "label_score", "accuracy"].value == 100.0
    auc = found["all", "label_score", "auc"]
    assert (auc.value, auc.low, auc.constant_baseline, auc.n) == (None, None, None, 30)
    assert auc.note == ("one class only in the truth (label 1): AUC is not defined")


def test_several_findings_are_scored_apart_where_their_options_differ(
    items: list[Record], make_record: Make
) -> None:
    tiles = [
        make_record(f"t{i}", a, options=("benign", "malignant"), question_type="tissue")
        for i, a in enumerate(["benign", "malignant"] * 5)
    ]
    found = classify(items + tiles, [(-1.0, -2.0)] * 50, items + tiles)
    assert found["all", "label_score", "auc"].value is None
    assert found["all", "label_score", "accuracy"].value == 30.0
    assert found["tissue", "label_score", "auc"].value == 50.0
    assert found["presence", "label_score", "accuracy"].constant_baseline == 75.0


def test_without_training_answers_the_best_class_of_the_scored_ones_is_the_constant(
    items: list[Record],
) -> None:
    row = classify(items, [(0.0, -1.0)] * 40)["all", "label_score", "accuracy"]
    assert (row.value, row.constant_baseline, row.question_only_baseline) == (25.0, 75.0, None)


@pytest.mark.parametrize(
    ("scores", "message"),
    [
        ((-1.0,), r"not one per option: 'a'"),
        ((), r"option scores missing or not one per option: 'a'"),
    ],
)
def test_bad_option_scores_name_the_record(
    make_record: Make, scores: tuple[float, ...], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        classify([make_record("a", "x", options=("x", "y"))], [scores])


def test_an_answer_outside_its_options_names_the_record(make_record: Make) -> None:
    with pytest.raises(DataError, match="answer not among two or more options: 'a'"):
        classify([make_record("a", "z", options=("x", "y"))], [(0.0, 1.0)])
