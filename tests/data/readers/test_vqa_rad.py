"""VQA-RAD: a miniature of its layout, each kind of bad row, and the counts of the real files."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from medmoe.data.bad_rows import BadRows
from medmoe.data.readers.vqa_rad import SET as vqa_rad
from medmoe.data.schema import Record
from medmoe.errors import DataError


def row(qid: int, image: str = "a.jpg", **changes: Any) -> dict[str, Any]:
    return {
        "qid": qid,
        "image_name": image,
        "image_organ": "CHEST",
        "question": "Is there a mass?",
        "answer": "No",
        "answer_type": "CLOSED",
        "question_type": "PRES",
        **changes,
    }


TRAIN = [
    row(1, answer_type="CLOSED "),
    row(2, "b.jpg", image_organ="HEAD", answer=3, answer_type="OPEN", question_type="COUNT"),
    row(3, "b.jpg", image_organ="HEAD", answer="MR - Flair", question_type="MODALITY"),
    row(4, "b.jpg", image_organ="HEAD", answer="Axial", question_type="PLANE"),
    row(5, "c.jpg", image_organ="ABD", answer="CT or MRI", question_type="MODALITY"),
]
TEST = [
    row(6, answer="Chest X-ray", answer_type="OPEN", question_type="MODALITY, PLANE"),
    row(7, "b.jpg", image_organ="HEAD", question_type="Other"),
]
DISJOINT = {"train": ["b.jpg"], "val": ["c.jpg"], "test": ["a.jpg"]}


def write(root: Path, train: Any = TRAIN, test: Any = TEST, disjoint: Any = DISJOINT) -> Path:
    folder = root / "vqa-rad"
    (folder / "images").mkdir(parents=True, exist_ok=True)
    for name in "abc":
        (folder / "images" / f"{name}.jpg").write_bytes(b"never opened")
    for name, content in (("trainset", train), ("testset", test), ("image_disjoint", disjoint)):
        (folder / f"{name}.json").write_text(json.dumps(content), encoding="utf-8")
    return root


def questions(records: list[Record]) -> list[Record]:
    return [record for record in records if record.task == "vqa"]


def captions(records: list[Record]) -> dict[str, str]:
    return {r.image.id: r.answer for r in records if r.task == "caption"}


def test_rows_become_records(tmp_path: Path) -> None:
    first, second, *_ = vqa_rad.read(write(tmp_path), "train")
    assert (first.id, first.answer, first.answer_type) == ("vqa_rad/1", "No", "closed")
    assert (first.question_type, first.task, first.licence) == ("presence", "vqa", "CC0-1.0")
    assert first.image.source == tmp_path / "vqa-rad" / "images" / "a.jpg"
    assert (second.answer, second.answer_type, second.image.organ) == ("3", "open", "head")


def test_questions_on_one_image_share_its_record(tmp_path: Path) -> None:
    records = vqa_rad.read(write(tmp_path), "train")
    assert len({id(r.image) for r in records if r.image.id == "vqa_rad/b.jpg"}) == 1


def test_modality_is_kept_only_where_the_answers_agree(tmp_path: Path) -> None:
    images = {r.image.id: r.image for r in vqa_rad.read(write(tmp_path), "train")}
    assert images["vqa_rad/b.jpg"].modality == "mri"
    assert images["vqa_rad/b.jpg"].labels == {"plane": "axial"}
    assert images["vqa_rad/c.jpg"].modality is None


@pytest.mark.parametrize(
    ("answer", "modality"),
    [
        ("Chest xray", "xray"),
        ("CXR", "xray"),
        ("X-ray plain film", "xray"),
        ("MRI/FLAIR", "mri"),
        ("T2 weighted", "mri"),
        ("Contrast CT with GI and IV contrast", "ct"),
        ("ultrasound", "ultrasound"),
        ("yes", None),
        ("With contrast", None),
        ("infarct", None),
    ],
)
def test_modality_of_an_answer(tmp_path: Path, answer: str, modality: str | None) -> None:
    root = write(tmp_path, train=[row(1, answer=answer, question_type="MODALITY")])
    assert vqa_rad.read(root, "train")[0].image.modality == modality


def test_train_captions_hold_no_fact_from_a_test_answer(tmp_path: Path) -> None:
    root = write(tmp_path)
    assert captions(vqa_rad.read(root, "train")) == {
        "vqa_rad/a.jpg": "An image of the chest.",
        "vqa_rad/b.jpg": "An axial MRI of the head.",
        "vqa_rad/c.jpg": "An image of the abdomen.",
    }
    test = vqa_rad.read(root, "test")
    assert not captions(test)
    assert test[0].image.modality == "xray"


def test_disjoint_splits_take_rows_of_both_files_once(tmp_path: Path) -> None:
    root = write(tmp_path, test=[*TEST, TRAIN[0]])
    ids = {
        part: [r.id for r in questions(vqa_rad.read(root, f"disjoint_{part}"))]
        for part in ("train", "validation", "test")
    }
    assert ids == {
        "train": ["vqa_rad/2", "vqa_rad/3", "vqa_rad/4", "vqa_rad/7"],
        "validation": ["vqa_rad/5"],
        "test": ["vqa_rad/1", "vqa_rad/6"],
    }


def test_byte_order_mark_and_crlf_are_accepted(tmp_path: Path) -> None:
    path = write(tmp_path) / "vqa-rad" / "trainset.json"
    text = json.dumps(TRAIN, indent=1).replace("\n", "\r\n")
    path.write_bytes(b"\xef\xbb\xbf" + text.encode())
    assert len(questions(vqa_rad.read(tmp_path, "train"))) == len(TRAIN)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (row(9, "gone.jpg"), "row 2: image file 'gone.jpg' is missing"),
        (row(9, answer=" "), "row 2: empty answer"),
        (row(9, answer=None), "row 2: empty answer"),
        (row(9, question=""), "row 2: empty question"),
        (row(9, answer_type="HALF"), "row 2: answer_type 'HALF' must be OPEN or CLOSED"),
        ({"qid": 9}, "row 2: field 'image_name' is missing"),
        ("text", "row 2: field 'qid' is missing"),
        (row(1), "id 'vqa_rad/1' occurs twice"),
    ],
)
def test_bad_row_is_named(tmp_path: Path, bad: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        vqa_rad.read(write(tmp_path, train=[row(1), bad]), "train")


def test_text_that_is_not_utf8_is_named_with_its_row(tmp_path: Path) -> None:
    path = write(tmp_path) / "vqa-rad" / "trainset.json"
    path.write_bytes(b'[\n{"qid": "\xff"}]')
    with pytest.raises(DataError, match=r"trainset\.json row 2: not UTF-8 \(byte 0xff\)"):
        vqa_rad.read(tmp_path, "train")


@pytest.mark.parametrize(("content", "found"), [([], "an empty list"), ({"a": 1}, "dict")])
def test_file_without_rows_is_an_error(tmp_path: Path, content: Any, found: str) -> None:
    with pytest.raises(DataError, match=f"a list of rows is needed, found {found}"):
        vqa_rad.read(write(tmp_path, train=content), "train")


def test_broken_json_is_named_with_its_row(tmp_path: Path) -> None:
    (write(tmp_path) / "vqa-rad" / "testset.json").write_text("[\n{]")
    with pytest.raises(DataError, match=r"testset\.json row 2: not JSON"):
        vqa_rad.read(tmp_path, "test")


@pytest.mark.parametrize(
    ("disjoint", "message"),
    [
        ({**DISJOINT, "test": ["a.jpg", "b.jpg"]}, "'b.jpg' stands in train and test"),
        ({**DISJOINT, "val": []}, "image 'c.jpg' stands in no part"),
        ({"train": []}, "lists named train, val, test are needed"),
    ],
)
def test_bad_disjoint_file_is_refused(tmp_path: Path, disjoint: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        vqa_rad.read(write(tmp_path, disjoint=disjoint), "disjoint_train")


def test_bad_rows_are_left_out_and_counted_where_they_may_be(tmp_path: Path) -> None:
    root = write(tmp_path, train=[*TRAIN, row(9, "gone.jpg"), row(8, answer=""), row(1)])
    bad = BadRows("skip")
    assert len(questions(vqa_rad.read(root, "train", bad))) == len(TRAIN)
    assert [reason.partition(": ")[0].rpartition("/")[2] for reason in bad.reasons] == [
        "trainset.json row 6",
        "trainset.json row 7",
        "trainset.json row 8",
    ]


def write_osf(root: Path) -> Path:
    """The one file of OSF: test rows by phrase type, framed questions in a column."""
    rows = [
        {**raw, "phrase_type": kind, "question_rephrase": "NULL", "question_frame": frame}
        for raw, kind, frame in zip(
            [*TRAIN, *TEST],
            ["freeform", "para", *["freeform"] * 3, "test_freeform", "test_para"],
            ["NULL"] * 4 + ["Which modality?", "NULL", " Is this normal?"],
            strict=True,
        )
    ]
    folder = write(root) / "vqa-rad"
    for name in ("trainset.json", "testset.json"):
        (folder / name).unlink()
    (folder / "VQA_RAD Dataset Public.json").write_text(json.dumps(rows), encoding="utf-8-sig")
    return root


def test_the_osf_file_alone_gives_the_standard_split(tmp_path: Path) -> None:
    root = write_osf(tmp_path)
    assert [r.id for r in vqa_rad.read(root, "test")] == ["vqa_rad/6", "vqa_rad/7"]
    train = questions(vqa_rad.read(root, "train"))
    framed = {r.id: (r.question, r.answer) for r in train if r.id.endswith("/frame")}
    assert len(train) == len(TRAIN) + 2
    assert framed == {
        "vqa_rad/5/frame": ("Which modality?", "CT or MRI"),
        "vqa_rad/7/frame": ("Is this normal?", "No"),
    }


def test_the_real_osf_file_alone_has_the_published_counts(shared: Path, tmp_path: Path) -> None:
    real, copy = shared / "data" / "vqa-rad", tmp_path / "vqa-rad"
    copy.mkdir()
    for name in ("VQA_RAD Dataset Public.json", "images"):
        (copy / name).symlink_to(real / name)

    def rows(root: Path, split: str) -> Counter[tuple[str, str, str]]:
        found = questions(vqa_rad.read(root, split))
        return Counter((r.image.id, r.question.lower(), r.answer.lower()) for r in found)

    assert sum(rows(tmp_path, "train").values()) == 3064
    for split in ("train", "test"):
        assert rows(tmp_path, split) == rows(shared / "data", split)


def test_missing_files_are_named_with_the_fix(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no vqa-rad/trainset\.json under .*--data or \$MEDMOE"):
        vqa_rad.read(tmp_path, "train")
    (write(tmp_path) / "vqa-rad" / "testset.json").unlink()
    with pytest.raises(DataError, match=r"no testset\.json in .*add that file"):
        vqa_rad.read(tmp_path, "train")


def test_unknown_split_lists_the_choices(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"unknown split of vqa_rad 'tset'.*did you mean 'test'"):
        vqa_rad.read(write(tmp_path), "tset")


def test_real_standard_split_has_the_published_counts(shared: Path) -> None:
    train = questions(vqa_rad.read(shared / "data", "train"))
    test = vqa_rad.read(shared / "data", "test")
    assert (len(train), len(test)) == (3064, 451)
    assert Counter(record.answer_type for record in test) == {"open": 179, "closed": 272}
    train_images = {record.image.id for record in train}
    test_images = {record.image.id for record in test}
    assert len(test_images) == 203
    assert test_images <= train_images


def test_real_disjoint_splits_share_no_image_and_lose_no_question(shared: Path) -> None:
    parts = {
        part: questions(vqa_rad.read(shared / "data", f"disjoint_{part}"))
        for part in ("train", "validation", "test")
    }
    images = {part: {r.image.id for r in records} for part, records in parts.items()}
    assert {part: len(names) for part, names in images.items()} == {
        "train": 220,
        "validation": 31,
        "test": 63,
    }
    assert len(set().union(*images.values())) == 314
    assert sum(map(len, parts.values())) == 3064 + 451


def test_built_in_disjoint_split_is_the_one_of_the_file(shared: Path, tmp_path: Path) -> None:
    real = shared / "data" / "vqa-rad"
    copy = tmp_path / "vqa-rad"
    copy.mkdir()
    for name in ("trainset.json", "testset.json", "images"):
        (copy / name).symlink_to(real / name)
    for part in ("train", "validation", "test"):
        here = vqa_rad.read(tmp_path, f"disjoint_{part}")
        there = vqa_rad.read(shared / "data", f"disjoint_{part}")
        assert [record.id for record in here] == [record.id for record in there]
