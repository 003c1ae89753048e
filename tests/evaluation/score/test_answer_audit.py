"""What answers give away without a picture, on counts made by hand."""

from __future__ import annotations

from pathlib import Path

from tests.data.pictures import record

from medmoe.data.schema import ImageRecord, Record
from medmoe.evaluation.score.answer_audit import audit_answers

IMAGES = [ImageRecord(f"set/{n}", Path("unused")) for n in range(4)]


def asked(image: int, question: str, answer: str, name: str, kind: str = "closed") -> Record:
    return record(IMAGES[image], name, question=question, answer=answer, answer_type=kind)


TRAIN = [
    asked(0, "Is it large?", "yes", "a"),
    asked(1, "Is it large?", "Yes.", "b"),
    asked(0, "Where is it?", "liver", "c", "open"),
    asked(0, "Is it large?", "no", "d"),
]
TEST = [
    asked(2, "Is it large?", "yes", "a"),
    asked(2, "is it LARGE? ", "yes", "b"),
    asked(3, "Is it round?", "no", "c"),
    asked(3, "Where is it?", "lung", "d", "open"),
    asked(1, "Is it large?", "yes", "e"),
]


def test_counts_repeats_and_contradictions() -> None:
    found = audit_answers({"set/train": TRAIN, "set/test": TEST})
    train, test = found["set/train"], found["set/test"]
    assert (train["n"], train["images"], train["contradicting_rows"]) == (4, 2, 1)
    assert train["answer_types"] == {"closed": 3, "open": 1}
    assert train["top_answers"]["closed"][0] == {"answer": "yes", "n": 2, "share": 66.67}
    assert (test["repeated_rows"], test["contradicting_rows"]) == (1, 0)
    assert test["rows_also_in"] == {"set/train": 1}


def test_baselines_learn_from_the_training_part_of_the_same_set() -> None:
    found = audit_answers({"set/train": TRAIN, "set/test": TEST, "other/test": TEST})
    test = found["set/test"]
    assert test["baselines_learned_from"] == "set/train"
    assert test["baselines"]["always_yes"] == {"closed": 75.0, "open": 0.0}
    assert test["baselines"]["always_no"]["closed"] == 25.0
    assert test["baselines"]["question_only"] == {"closed": 75.0, "open": 0.0}
    assert found["other/test"]["baselines_learned_from"] is None
    assert set(found["other/test"]["baselines"]) == {"always_yes", "always_no"}


def test_captions_are_no_answers() -> None:
    captions = [record(IMAGES[0], "x", task="caption")]
    assert audit_answers({"set/train": captions}) == {}
