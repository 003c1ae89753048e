from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from medmoe.data.schema import Record
from medmoe.evaluation.metrics import exact_match
from medmoe.evaluation.score import baselines

Make = Callable[..., Record]


@pytest.fixture
def train(make_record: Make) -> list[Record]:
    rows = [
        ("Is there a mass?", "yes", "presence"),
        ("Is there a mass?", "yes", "presence"),
        ("is it normal?", "no", "presence"),
        ("any effusion?", "No.", "presence"),
        ("any nodule?", "no", "presence"),
        ("which plane?", "axial", "plane"),
        ("which plane?", "Axial", "plane"),
        ("which plane?", "Axial", "plane"),
        ("what plane is this?", "coronal", "plane"),
        ("what is wrong?", "mass", "presence"),
    ]
    return [
        make_record(f"t{i}", a, question=q, question_type=t, answer_type="closed" if t2 else "open")
        for i, (q, a, t) in enumerate(rows)
        for t2 in [a.strip(".").lower() in ("yes", "no")]
    ]


def test_most_frequent_counts_spellings_together_and_keeps_the_commonest() -> None:
    assert baselines.most_frequent(["CT", "ct", "the MRI", "mri", "mri"]) == "mri"
    assert baselines.most_frequent(["left", "Left.", "Left.", "right", "right"]) == "Left."


def test_ties_do_not_depend_on_the_order() -> None:
    assert baselines.most_frequent(["b", "c", "b", "c"]) == "b"
    assert baselines.most_frequent(["c", "c", "b", "b"]) == "b"
    assert baselines.most_frequent(["Axial", "axial"]) == "Axial"
    assert baselines.most_frequent(["axial", "Axial"]) == "Axial"


def test_most_frequent_per_type_counts_open_and_closed_apart(
    make_record: Make, train: list[Record]
) -> None:
    test = [
        make_record("closed", "yes"),
        make_record("open", "effusion"),
        make_record("plane", "sagittal", question_type="plane"),
    ]
    found = baselines.most_frequent_per_type(train, test)
    assert found == ["no", "mass", "Axial"]


def test_question_only_falls_back_from_question_to_type_to_answer_type(
    make_record: Make, train: list[Record]
) -> None:
    expected = {
        make_record("same question", "no", question="is there a mass"): "yes",
        make_record("same type", "no", question="is there a fracture?"): "no",
        make_record(
            "same answer type", "ct", question="which modality?", question_type="modality"
        ): "Axial",
        make_record("new closed type", "yes", question="large?", question_type="size"): "no",
    }
    assert baselines.question_only(train, list(expected)) == list(expected.values())


def test_an_answer_type_that_training_lacks_falls_back_on_all_answers(
    make_record: Make, train: list[Record]
) -> None:
    closed = [r for r in train if r.answer_type == "closed"]
    assert baselines.question_only(closed, [make_record("open", "ct", question="?")]) == ["no"]


def test_constants_answer_every_record(make_record: Make, train: list[Record]) -> None:
    test = [make_record("a", "yes"), make_record("b", "left")]
    assert baselines.CONSTANTS["always_yes"](train, test) == ["yes", "yes"]
    assert baselines.CONSTANTS["always_no"]([], test) == ["no", "no"]
    for name, predict in baselines.CONSTANTS.items():
        assert len(predict(train, test)) == 2, name


def _vqa_med(root: Path, split: str, make_record: Make) -> list[Record]:
    files = sorted((root / split / "QAPairsByCategory").glob("*.txt"))
    rows = [
        (path.name, *line.strip().split("|"))
        for path in files
        for line in path.read_text(encoding="utf-8").splitlines()
    ]
    return [
        make_record(str(i), answer, question=question, question_type=category[:2])
        for i, (category, _, question, answer) in enumerate(rows)
    ]


def test_question_only_on_vqa_med_2019_gives_the_known_figure(
    shared: Path, make_record: Make
) -> None:
    root = shared / "data" / "vqa-med-2019"
    if not (root / "val").is_dir():
        pytest.skip(f"no VQA-Med-2019 at {root}")
    train, validation = (_vqa_med(root, split, make_record) for split in ("train", "val"))
    found = baselines.question_only(train, validation)
    right = sum(exact_match(a, r.answer) for a, r in zip(found, validation, strict=True))
    assert len(validation) == 2000
    assert round(100 * right / 2000, 1) == 34.9
