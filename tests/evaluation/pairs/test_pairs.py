"""What is found of pairs: hand-counted shares, coverage, and the report's part."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest

from medmoe.data.phantom import read_phantom
from medmoe.data.schema import Record
from medmoe.errors import DataError
from medmoe.evaluation.files.predictions import Prediction
from medmoe.evaluation.pages.sections.pairs import pairs_section
from medmoe.evaluation.pairs.measure import pair_scores
from medmoe.evaluation.pairs.rewriting import PAIRS, rewritten

Make = Callable[..., Record]


def said(records: list[Record], answers: list[str]) -> list[Prediction]:
    return [Prediction(r.id, text) for r, text in zip(records, answers, strict=True)]


def value(found: dict, name: str) -> float:
    return found["scores"][name]["value"]


def test_negated_pairs_have_the_opposite_truth_and_the_same_ids(make_record: Make) -> None:
    records = [
        make_record("a", "yes", question="Is there a mass?"),
        make_record("b", "No", question="Is the heart enlarged?"),
        make_record("c", "yes", question="Are both lungs clear?"),
        make_record("d", "liver", question="Which organ is this?"),
    ]
    found = rewritten(records, "negated")
    assert [(r.id, r.question, r.answer) for r in found] == [
        ("a", "Is there no mass?", "no"),
        ("b", "Is the heart not enlarged?", "yes"),
    ]
    assert [r.image for r in found] == [r.image for r in records[:2]]


def test_flips_and_right_pairs_are_counted(make_record: Make) -> None:
    """Right and flipped; wrong and flipped; not flipped; no yes or no at all."""
    records = [make_record(n, "yes", question="Is there a mass?") for n in "abcd"]
    others = rewritten(records, "negated")
    found = pair_scores(
        "negated", records, said(records, ["Yes.", "no", "yes", "yes"]),
        others, said(others, ["no", "yes", "yes", "maybe"]), seed=7,
    )  # fmt: skip
    assert (found["n"], found["of"]) == (4, 4)
    assert value(found, "flips") == 50
    assert value(found, "both_right") == 25
    assert value(found, "right_as_asked") == 75
    assert value(found, "right_rewritten") == 25
    assert found["scores"]["flips"]["low"] < 50 < found["scores"]["flips"]["high"]
    assert sorted(e["id"] for e in found["examples"] if e["agree"]) == ["a", "b"]


def test_a_constant_answer_never_flips(make_record: Make) -> None:
    records = [make_record(n, "yes", question="Is there a mass?") for n in "abc"]
    others = rewritten(records, "negated")
    yes = said(records, ["yes"] * 3)
    assert value(pair_scores("negated", records, yes, others, yes, 7), "flips") == 0


def test_exchanged_options_ask_for_the_same_answer(make_record: Make) -> None:
    records = [
        make_record("a", "mri", question="Is this a CT or an MRI?"),
        make_record("b", "yes", question="Is there a mass or a cyst?"),  # asks for neither
        make_record("c", "ct", question="Which?", options=("ct", "mri", "x-ray")),
        make_record("d", "ct", question="Which?", options=("ct", "mri", "all of the above")),
    ]
    others = rewritten(records, "swapped_options")
    assert [(r.id, r.question, r.options, r.answer) for r in others] == [
        ("a", "Is this an MRI or a CT?", (), "mri"),
        ("c", "Which?", ("x-ray", "mri", "ct"), "ct"),
    ]
    answers = said(records, ["an MRI", "yes", "ct", "ct"])
    found = pair_scores(
        "swapped_options", records, answers, others, said(others, ["mri", "mri"]), 7
    )
    assert (found["n"], found["of"]) == (2, 3)
    assert value(found, "stays") == 50
    assert value(found, "both_right") == 50


def test_excluding_words_are_asked_of_true_questions_only(make_record: Make) -> None:
    records = [
        make_record("a", "yes", question="Is this a CT?"),
        make_record("b", "no", question="Is this a CT?"),  # may be an MRI, or not
        make_record("c", "yes", question="Is there a mass?"),
    ]
    others = rewritten(records, "swapped_words")
    assert [(r.id, r.question, r.answer) for r in others] == [("a", "Is this an MRI?", "no")]
    both = pair_scores(
        "swapped_words", records, said(records, ["yes"] * 3), others, said(others, ["yes"]), 7
    )
    assert (both["n"], both["of"], value(both, "excludes")) == (1, 2, 0)
    neither = pair_scores(
        "swapped_words", records, said(records, ["no"] * 3), others, said(others, ["no"]), 7
    )
    assert (value(neither, "excludes"), value(neither, "both_right")) == (100, 0)


def test_rewritten_phantom_questions_have_the_truth_of_their_picture() -> None:
    """The phantom's plan says what is true of a picture: it must be what the pair's record says."""
    records = [r for r in read_phantom("test", 60, seed=3, size=32) if r.task == "vqa"]
    checked = 0
    for r in rewritten(records, "negated"):
        facts = r.image.labels
        asked = re.search(r"(?:no|any) (finding|nodule|ring|band)", r.question)
        side = r"((?:viewer's )?(?:left|right)) side"
        placed = re.search(rf"not on the (?:patient's )?{side}|not (small|large)", r.question)
        if asked:
            there = facts["finding"] != "normal" and asked[1] in ("finding", facts["finding"])
        else:
            assert placed, r.question
            there = (placed[1] or placed[2]) in (facts["side"], facts["size"])
        assert r.answer == ("no" if there else "yes"), r.question
        checked += 1
    for r in rewritten(records, "swapped_words"):
        found = re.search(rf"on the (?:patient's )?{side}", r.question)
        assert found, r.question
        assert r.image.labels["side"] != found[1]
        assert r.answer == "no"
        checked += 1
    assert checked > 150


def test_options_exchanged_twice_are_the_question_itself() -> None:
    records = read_phantom("test", 60, seed=3, size=32)
    once = rewritten(records, "swapped_options")
    by_id = {r.id: r for r in records}
    assert len(once) > 60
    for one, two in zip(once, rewritten(once, "swapped_options"), strict=True):
        assert (one.question, one.options) != (two.question, two.options)
        assert (two.question, two.options) == (by_id[two.id].question, by_id[two.id].options)


def test_answers_to_other_questions_are_refused(make_record: Make) -> None:
    records = [make_record("a", "yes", question="Is there a mass?")]
    others = rewritten(records, "negated")
    with pytest.raises(DataError, match="no id in common"):
        pair_scores("negated", records, said(records, ["yes"]), others, [Prediction("z", "no")], 7)


def test_the_report_shows_shares_coverage_and_examples(make_record: Make) -> None:
    records = [make_record(n, "yes", question="Is there a mass?") for n in "ab"]
    others = rewritten(records, "negated")
    found = pair_scores(
        "negated", records, said(records, ["yes", "yes"]), others, said(others, ["no", "yes"]), 7
    )
    none = pair_scores("swapped_words", records, said(records, ["yes", "yes"]), [], [], 7)
    place = {"task": "phantom_vqa", "split": "test"}
    summary = {
        "pairs": [
            {**place, "pair": "negated", **found},
            {**place, "pair": "swapped_words", **none},
        ]
    }
    section = pairs_section(summary)
    assert section is not None
    first, second = section.tables[0].rows
    assert first[1:4] == ("the other word", "2 of 2", "100.0 (34.2–100.0)")
    assert second[2:4] == ("0 of 2", "–")
    example = ("Is there a mass?", "yes", "Is there no mass?", "no", "yes\u00a0/\u00a0no", "agree")
    assert example in section.tables[1].rows
    assert pairs_section({}) is None
    assert set(PAIRS) == {"negated", "swapped_options", "swapped_words"}
