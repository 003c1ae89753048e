"""PMC-VQA: both versions of its CSV, choices with and without letters, bad rows."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from medmoe.data.bad_rows import BadRows
from medmoe.data.readers.choice_sets import PMC_VQA as pmc_vqa
from medmoe.data.schema import question_text
from medmoe.errors import DataError

FIRST = {
    "Figure_path": "PMC1_Fig1.jpg",
    "Question": "What does the arrow show?",
    "Answer": "Focal uptake",
    "Choice A": " A:Edema ",
    "Choice B": " B:Focal uptake ",
    "Choice C": " C:Ratio 1:2 ",
    "Choice D": " D:Nothing ",
    "Answer_label": "B",
}
SECOND = {
    "index": "0",
    "Figure_path": "PMC1_Fig1.jpg",
    "Caption": "Uptake.",
    "Question": "What, exactly, is it?",
    "Choice A": "CT",
    "Choice B": "MRI",
    "Choice C": "PET",
    "Choice D": "X-ray",
    "Answer": "C",
    "split": "test",
}


def write(root: Path, name: str, rows: list[dict[str, str]]) -> Path:
    folder = root / "pmc-vqa"
    (folder / "images").mkdir(parents=True, exist_ok=True)
    (folder / "images" / "PMC1_Fig1.jpg").write_bytes(b"never opened")
    with (folder / name).open("w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, list(rows[0]))
        table.writeheader()
        table.writerows(rows)
    return root


def test_choices_become_options_and_stand_in_the_question(tmp_path: Path) -> None:
    (record,) = pmc_vqa.read(write(tmp_path, "test.csv", [FIRST]), "test")
    assert record.options == ("Edema", "Focal uptake", "Ratio 1:2", "Nothing")
    assert (record.answer, record.answer_type, record.task) == ("Focal uptake", "closed", "vqa")
    assert question_text(record) == (
        "What does the arrow show? Options: Edema, Focal uptake, Ratio 1:2, Nothing."
    )
    assert record.place.endswith("test.csv row 2")


def test_second_version_gives_the_letter_as_answer(tmp_path: Path) -> None:
    (record,) = pmc_vqa.read(write(tmp_path, "test_2.csv", [SECOND]), "test_2")
    assert (record.answer, record.image.id) == ("PET", "pmc_vqa/PMC1_Fig1.jpg")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"Figure_path": "gone.jpg"}, r"row 3: image file 'gone\.jpg' is missing"),
        ({"Choice C": " C: "}, "row 3: empty Choice C"),
        ({"Answer": "Fat", "Answer_label": ""}, "row 3: answer 'Fat' must be one of the choices"),
        ({"Question": ""}, "row 3: empty Question"),
    ],
)
def test_bad_row_is_named_or_counted(tmp_path: Path, changes: dict[str, str], message: str) -> None:
    root = write(tmp_path, "train.csv", [FIRST, {**FIRST, **changes}])
    with pytest.raises(DataError, match=message):
        pmc_vqa.read(root, "train")
    skipped = BadRows("skip")
    assert len(pmc_vqa.read(root, "train", skipped)) == 1
    assert len(skipped.reasons) == 1


def test_a_set_without_figures_says_so(tmp_path: Path) -> None:
    root = write(tmp_path, "test.csv", [FIRST])
    (root / "pmc-vqa" / "images" / "PMC1_Fig1.jpg").unlink()
    (root / "pmc-vqa" / "images").rmdir()
    with pytest.raises(DataError, match=r"unpack images\.zip"):
        pmc_vqa.read(root, "test")
