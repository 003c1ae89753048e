"""VQA-Med 2019: a miniature of its layout, bad rows, the overlap with VQA-RAD, real counts."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path

import pytest

from medmoe.data.readers.vqa_med_2019 import OVERLAP
from medmoe.data.readers.vqa_med_2019 import SET as vqa_med_2019
from medmoe.data.schema import Record
from medmoe.errors import DataError

STEMS = {
    "modality": "C1_Modality",
    "plane": "C2_Plane",
    "organ": "C3_Organ",
    "abnormality": "C4_Abnormality",
}
#: Two pictures that are also in VQA-RAD, and an adjacent slice of a third.
COPY, COPY_OF_VALIDATION, ADJACENT = "15006", "17664", "26696"
LABELS = [
    ("train", "synpic1.jpg", "MR", "answer"),
    ("train", "synpic2.jpg", "XR-mammo", "answer"),
    ("val", "synpic6.jpg", "CT", "question-wording"),
]


def lines(names: Sequence[str], answer: str) -> str:
    return "\n".join(f"synpic{name}|what is it?|{answer}" for name in names)


def write(root: Path) -> Path:
    folder = root / "vqa-med-2019"
    for split, names in (
        ("train", ("1", "2", COPY, ADJACENT)),
        ("val", (COPY_OF_VALIDATION, "6")),
        ("test", ("7",)),
    ):
        (folder / split / "images").mkdir(parents=True)
        (folder / split / "QAPairsByCategory").mkdir()
        for name in names:
            (folder / split / "images" / f"synpic{name}.jpg").write_bytes(b"never opened")
        for category, text in (
            ("modality", lines(names, "no")),
            ("plane", lines(names, "axial")),
            ("organ", lines(names, "skull and contents")),
            ("abnormality", lines(names, "meningioma") + "\n"),
        ):
            category_file(root, category, split).write_text(text, encoding="utf-8")
    (folder / "train" / "All_QA_Pairs_train.txt").write_text("")
    keys = ("split", "image", "modality", "source")
    rows = [json.dumps(dict(zip(keys, row, strict=True))) for row in LABELS]
    (folder / "modality_labels.jsonl").write_text("\n".join(rows) + "\n")
    answers_file(root).write_text(
        "synpic7|modality|what is it?|us - ultrasound#us#us\nsynpic7|plane|plane?|axial\n"
    )
    return root


def category_file(root: Path, category: str, split: str = "train") -> Path:
    folder = root / "vqa-med-2019" / split / "QAPairsByCategory"
    return folder / f"{STEMS[category]}_{split}.txt"


def answers_file(root: Path) -> Path:
    folder = root / "vqa-med-2019" / "test"
    return folder / "VQAMed2019_Test_Questions_w_Ref_Answers.txt"


def questions(records: list[Record]) -> list[Record]:
    return [record for record in records if record.task == "vqa"]


def test_rows_become_records_with_the_category_as_question_type(tmp_path: Path) -> None:
    records = questions(vqa_med_2019.read(write(tmp_path), "train"))
    by_id = {record.id: record for record in records}
    modality = by_id["vqa_med_2019/train/synpic1/modality"]
    assert (modality.answer, modality.answer_type) == ("no", "closed")
    organ = by_id["vqa_med_2019/train/synpic1/organ"]
    assert (organ.answer_type, organ.question_type) == ("open", "organ")
    assert organ.image.organ == "skull and contents"
    assert organ.image.labels == {
        "plane": "axial",
        "organ": "skull and contents",
        "modality": "mri",
    }


def test_pictures_of_vqa_rad_are_dropped_and_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = write(tmp_path)
    with caplog.at_level(logging.INFO):
        train = vqa_med_2019.read(root, "train")
        validation = vqa_med_2019.read(root, "validation")
    assert {r.image.id[-5] for r in train} == {"1", "2"}
    assert {r.image.id[-5] for r in validation} == {"6"}
    assert "train: dropped 8 rows on 2 images that are also in VQA-RAD, kept 8" in caplog.text
    assert "validation: dropped 4 rows on 1 images that are also in VQA-RAD" in caplog.text


def test_modality_comes_from_answers_never_from_the_wording(tmp_path: Path) -> None:
    root = write(tmp_path)
    train = {r.image.id: r.image.modality for r in vqa_med_2019.read(root, "train")}
    assert train == {
        "vqa_med_2019/train/synpic1.jpg": "mri",
        "vqa_med_2019/train/synpic2.jpg": "xray",
    }
    assert {r.image.modality for r in vqa_med_2019.read(root, "validation")} == {None}


def test_train_has_one_caption_per_image_and_validation_none(tmp_path: Path) -> None:
    root = write(tmp_path)
    captions = [r.answer for r in vqa_med_2019.read(root, "train") if r.task == "caption"]
    assert captions == [
        "An axial MRI of the skull and contents.",
        "An axial X-ray of the skull and contents.",
    ]
    assert {r.task for r in vqa_med_2019.read(root, "validation")} == {"vqa"}


def test_official_test_file_gives_several_references(tmp_path: Path) -> None:
    first, second = vqa_med_2019.read(write(tmp_path), "test")
    assert (first.answer, first.references) == ("us - ultrasound", ("us",))
    assert (first.question_type, first.image.modality) == ("modality", "ultrasound")
    assert (second.answer, second.references) == ("axial", ())


def test_byte_order_mark_and_crlf_are_accepted(tmp_path: Path) -> None:
    path = category_file(write(tmp_path), "plane")
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n") + b"\r\n")
    planes = [r for r in vqa_med_2019.read(tmp_path, "train") if r.question_type == "plane"]
    assert [record.answer for record in planes] == ["axial", "axial"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("synpic1|q|a\nsynpic1|q", "row 2: 2 fields, 3 are needed"),
        ("synpic1|q|a\nsynpic2|q| ", "row 2: empty answer"),
        ("synpic1||a", "row 1: empty question"),
        ("synpic1|q|a\n\nsynpic2|q|a", "row 2: 1 fields"),
        ("synpic9|q|a", r"row 1: image file synpic9\.jpg is missing"),
        ("synpic1|q|a\nsynpic1|r|b", "id 'vqa_med_2019/train/synpic1/plane' occurs twice"),
    ],
)
def test_bad_row_is_named(tmp_path: Path, text: str, message: str) -> None:
    category_file(write(tmp_path), "plane").write_text(text)
    with pytest.raises(DataError, match=message):
        vqa_med_2019.read(tmp_path, "train")


def test_text_that_is_not_utf8_is_named_with_its_row(tmp_path: Path) -> None:
    category_file(write(tmp_path), "organ").write_bytes(b"synpic1|q|a\nsynpic2|q|\xe9\n")
    with pytest.raises(DataError, match=r"C3_Organ_train\.txt row 2: not UTF-8"):
        vqa_med_2019.read(tmp_path, "train")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("synpic7|mood|q|a", "row 1: category 'mood' must be one of modality, plane"),
        ("synpic7|plane|q|#", "row 1: empty answer"),
    ],
)
def test_bad_row_of_the_test_file_is_named(tmp_path: Path, line: str, message: str) -> None:
    answers_file(write(tmp_path)).write_text(line)
    with pytest.raises(DataError, match=message):
        vqa_med_2019.read(tmp_path, "test")


def test_bad_label_row_is_named(tmp_path: Path) -> None:
    path = write(tmp_path) / "vqa-med-2019" / "modality_labels.jsonl"
    path.write_text(path.read_text() + '{"split": "train"}\n')
    with pytest.raises(DataError, match=r"modality_labels\.jsonl row 4: field 'image' is missing"):
        vqa_med_2019.read(tmp_path, "train")


def test_missing_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no vqa-med-2019/train/All_QA_Pairs_train\.txt under"):
        vqa_med_2019.read(tmp_path, "train")
    category_file(write(tmp_path), "organ").unlink()
    with pytest.raises(DataError, match=r"no QAPairsByCategory/C3_Organ_train\.txt in"):
        vqa_med_2019.read(tmp_path, "train")


def test_real_counts_before_and_after_the_drops(
    shared: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        train = questions(vqa_med_2019.read(shared / "data", "train"))
        validation = questions(vqa_med_2019.read(shared / "data", "validation"))
    dropped = [int(r.args[2]) for r in caplog.records if isinstance(r.args, tuple)]  # type: ignore[call-overload]
    assert [len(train) + dropped[0], len(validation) + dropped[1]] == [12_792, 2_000]
    assert (len(train), len(validation)) == (12_640, 1_976)


def test_real_train_and_validation_keep_no_picture_of_vqa_rad(shared: Path) -> None:
    path = shared / "data" / "vqa-med-2019" / "overlap_with_vqa_rad.json"
    content = json.loads(path.read_text())
    banned = {t["image"] for twins in content["same_picture"].values() for t in twins}
    assert len(banned) == 38
    adjacent = content["perhaps_only_adjacent_slices"].values()
    near = {t["image"] for twins in adjacent for t in twins if t["split"] == "train"}
    assert {f"{name}.jpg" for name in OVERLAP["train"]} == banned | near
    for split, names in (("train", banned | near), ("validation", banned)):
        records = vqa_med_2019.read(shared / "data", split)
        assert not {Path(r.image.id).name for r in records} & names


def test_modality_rule_agrees_with_the_label_file(shared: Path, tmp_path: Path) -> None:
    """Barium swallows apart: the file says X-ray for them, the rule fluoroscopy."""
    real = shared / "data" / "vqa-med-2019"
    copy = tmp_path / "vqa-med-2019"
    copy.mkdir()
    (copy / "train").symlink_to(real / "train")
    labelled = vqa_med_2019.read(shared / "data", "train")
    ruled = vqa_med_2019.read(tmp_path, "train")
    different = {
        one.answer
        for one, other in zip(labelled, ruled, strict=True)
        if one.image.modality != other.image.modality and one.question_type == "modality"
    }
    assert different == {"bas - barium swallow"}
