"""B against A: paired, clustered on the image, seeds averaged within a record."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest

from medmoe.data.schema import Record
from medmoe.errors import DataError
from medmoe.evaluation.compare import Comparison, Difference, Flip, compare_runs
from medmoe.evaluation.files.predictions import Prediction
from medmoe.evaluation.pages.compare_page import answers_in_words, losses, most_telling, verdict
from medmoe.evaluation.statistics import (
    clustered_bootstrap,
    difference_interval,
    mcnemar,
    wilson,
)

Make = Callable[..., Record]


def answers(records: Sequence[Record], right: Sequence[bool]) -> list[Prediction]:
    return [
        Prediction(r.id, r.answer if ok else "none such")
        for r, ok in zip(records, right, strict=True)
    ]


def closed(make_record: Make, count: int, per_image: int = 2) -> list[Record]:
    return [make_record(f"q{i}", "yes", image=f"i{i // per_image}") for i in range(count)]


def row(found: Comparison, subset: str, metric: str) -> Difference:
    (one,) = [r for r in found.differences if (r.subset, r.metric) == (subset, metric)]
    return one


def test_one_run_each_is_the_paired_bootstrap_and_mcnemar(make_record: Make) -> None:
    records = closed(make_record, 24)
    rng = np.random.default_rng(0)
    a, b = rng.random(24) < 0.8, rng.random(24) < 0.4
    found = compare_runs("t", records, [answers(records, a)], [answers(records, b)], seed=3)
    one = row(found, "closed", "accuracy")
    images = [r.image.id for r in records]
    difference = b.astype(float) - a.astype(float)
    low, high = clustered_bootstrap(difference, images, seed=3)
    expected = (100 * difference.mean(), 100 * low, 100 * high)
    assert (one.difference, one.low, one.high) == pytest.approx(expected)
    assert one.p == mcnemar(list(a.astype(float)), list(b.astype(float)))
    assert (one.n, one.images, one.decides) == (24, 12, True)
    assert one.worse == (one.high is not None and one.high < 0)


def test_seeds_are_averaged_within_a_record_before_images_are_drawn(make_record: Make) -> None:
    records = closed(make_record, 30)
    rng = np.random.default_rng(1)
    a_runs = [rng.random(30) < 0.7 for _ in range(3)]
    b_runs = [rng.random(30) < 0.6 for _ in range(2)]
    found = compare_runs(
        "t", records,
        [answers(records, run) for run in a_runs], [answers(records, run) for run in b_runs],
        seed=5,
    )  # fmt: skip
    one = row(found, "closed", "accuracy")
    by_record = np.mean(b_runs, axis=0) - np.mean(a_runs, axis=0)
    low, high = clustered_bootstrap(by_record, [r.image.id for r in records], seed=5)
    assert one.difference == pytest.approx(100 * by_record.mean())
    assert (one.low, one.high) == pytest.approx((100 * low, 100 * high))
    assert one.p is None
    assert one.a_runs == pytest.approx([100 * run.mean() for run in a_runs])
    assert one.b_runs == pytest.approx([100 * run.mean() for run in b_runs])


def test_a_copy_of_the_same_run_adds_no_precision(make_record: Make) -> None:
    records = closed(make_record, 20)
    rng = np.random.default_rng(2)
    a, b = (answers(records, rng.random(20) < share) for share in (0.7, 0.5))
    once = row(compare_runs("t", records, [a], [b], 7), "closed", "accuracy")
    twice = row(compare_runs("t", records, [a, a], [b, b], 7), "closed", "accuracy")
    assert (twice.difference, twice.low, twice.high) == (once.difference, once.low, once.high)


def test_questions_of_one_image_are_no_further_evidence(make_record: Make) -> None:
    right = [True] * 8 + [False] * 4
    wrong = [False] * 4 + [True] * 4 + [False] * 4

    def width(per_image: int) -> float:
        records = closed(make_record, 12, per_image)
        found = compare_runs("t", records, [answers(records, right)], [answers(records, wrong)], 7)
        one = row(found, "closed", "accuracy")
        assert one.low is not None
        assert one.high is not None
        return one.high - one.low

    assert width(4) > width(1)


def test_open_questions_are_compared_by_exact_match_and_words(make_record: Make) -> None:
    records = [make_record(f"q{i}", "left lung", image=f"i{i}") for i in range(6)]
    a = [Prediction(r.id, "left lung") for r in records]
    b = [Prediction(r.id, "left lung" if i < 3 else "left") for i, r in enumerate(records)]
    found = compare_runs("t", records, [a], [b], 7)
    assert row(found, "open", "exact_match").difference == -50.0
    assert row(found, "open", "recall").difference == -25.0
    assert row(found, "open", "recall").p is None
    assert [r.metric for r in found.differences if r.decides] == ["exact_match"]


def test_classification_is_compared_by_the_chosen_option(make_record: Make) -> None:
    options = ("well", "ill")
    records = [make_record(f"q{i}", "ill", options=options, image=f"i{i}") for i in range(4)]
    a = [Prediction(r.id, "ill") for r in records]
    b = [Prediction(r.id, options[i % 2]) for i, r in enumerate(records)]
    found = compare_runs("t", records, [a], [b], 7)
    assert [(r.subset, r.metric, r.difference) for r in found.differences] == [
        ("all", "accuracy", -50.0)
    ]


def test_wins_and_losses_add_up_by_answer_and_question_type(make_record: Make) -> None:
    kinds = ["x", "x", "y", "y"]
    records = [make_record(f"q{i}", "yes", question_type=k) for i, k in enumerate(kinds)]
    a, b = [True, True, False, False], [True, False, True, False]
    found = compare_runs("t", records, [answers(records, a)], [answers(records, b)], 7)
    table = {w.subset: (w.both_right, w.only_a, w.only_b, w.both_wrong, w.n) for w in found.wins}
    assert table == {"closed": (1, 1, 1, 1, 4), "x": (1, 1, 0, 0, 2), "y": (0, 0, 1, 1, 2)}
    assert [(f.record.id, f.change) for f in found.flips] == [("q1", -1.0), ("q2", 1.0)]


def test_equal_differences_do_not_claim_certainty() -> None:
    # Three images lost of three: a bootstrap would have no width.
    low, high = difference_interval(np.full(3, -1.0), ["a", "b", "c"], 7)
    assert low == -1.0
    assert high is not None
    assert high > 0
    low, high = difference_interval(np.full(50, -1.0), [str(i) for i in range(50)], 7)
    assert high == pytest.approx(-(2 * wilson(50, 50)[0] - 1))
    assert high < 0
    assert difference_interval(np.full(4, 0.5), list("abcd"), 7)[1] == 0.5


def test_no_difference_is_no_loss_and_one_image_shows_nothing() -> None:
    assert difference_interval(np.zeros(3), list("abc"), 7) == (0.0, 0.0)
    assert difference_interval(np.full(3, -1.0), ["a"] * 3, 7) == (None, None)


def test_verdict_names_what_is_worse(make_record: Make) -> None:
    records = closed(make_record, 40, 1)
    a, b = answers(records, [True] * 40), answers(records, [i % 2 == 0 for i in range(40)])
    worse = compare_runs("vqa", records, [a], [b], 7).differences
    assert verdict(worse) == "B is worse than A: vqa closed."
    assert len(losses(worse)) == 1
    better = compare_runs("vqa", records, [b], [a], 7).differences
    assert verdict(better).startswith("B is better than A: vqa closed.")
    assert losses(better) == []
    same = compare_runs("vqa", records, [a], [a], 7).differences
    assert verdict(same) == "Neither is shown to be better."


def test_predictions_that_do_not_pair_are_named(make_record: Make) -> None:
    records = closed(make_record, 4)
    both = answers(records, [True] * 4)
    with pytest.raises(DataError, match="missing predictions for: 'q3'"):
        compare_runs("t", records, [both], [both[:3]], 7)


def test_shown_flips_are_half_losses_where_there_are_enough(make_record: Make) -> None:
    record = make_record("q")

    def flips(lost: int, won: int) -> list[Flip]:
        return [Flip("", record, ("",), ("",), c) for c in [-1.0] * lost + [1.0] * won]

    def counts(lost: int, won: int) -> tuple[int, int]:
        chosen = most_telling(flips(lost, won), 10)
        return sum(f.change < 0 for f in chosen), sum(f.change > 0 for f in chosen)

    assert counts(20, 20) == (5, 5)
    assert counts(20, 2) == (8, 2)
    assert counts(2, 20) == (2, 8)
    assert counts(3, 4) == (3, 4)


def test_answers_of_several_runs_are_counted() -> None:
    assert answers_in_words(("left",)) == "left"
    assert answers_in_words(("",)) == "(empty)"
    assert answers_in_words(("left", "right", "left")) == "left (2×); right (1×)"
