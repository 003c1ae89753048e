"""SLAKE: a miniature of its folders, both languages, and the fields of the real text files."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from medmoe.data.bad_rows import BadRows
from medmoe.data.readers.slake import CHINESE, ENGLISH
from medmoe.errors import DataError


def row(qid: int, image: str = "xmlab1/source.jpg", **changes: Any) -> dict[str, Any]:
    return {
        "img_id": 1,
        "img_name": image,
        "question": "What modality is this?",
        "answer": "MRI",
        "q_lang": "en",
        "location": "Abdomen",
        "modality": "MRI",
        "answer_type": "OPEN",
        "base_type": "vqa",
        "content_type": "Modality",
        "triple": ["vhead", "_", "_"],
        "qid": qid,
        **changes,
    }


ROWS = [
    row(0),
    row(
        1, question="Is it normal?", answer="Yes", answer_type="CLOSED", content_type="Abnormality"
    ),
    row(2, question="这是什么模态?", answer="核磁共振", q_lang="zh"),
    row(3, "xmlab2/source.jpg", modality="X-Ray", location="Chest_lung", answer="X-Ray"),
]


def write(root: Path, rows: list[Any] | None = None, folder: str = "slake") -> Path:
    for name in ("xmlab1", "xmlab2"):
        (root / folder / "imgs" / name).mkdir(parents=True, exist_ok=True)
        (root / folder / "imgs" / name / "source.jpg").write_bytes(b"never opened")
    for part in ("train", "validate", "test"):
        text = json.dumps(ROWS if rows is None else rows, ensure_ascii=False)
        (root / folder / f"{part}.json").write_text(text, encoding="utf-8")
    return root


def test_validation_is_read_by_either_of_its_names(tmp_path: Path) -> None:
    root = write(tmp_path)
    first = [record.id for record in ENGLISH.read(root, "validation")]
    (root / "slake" / "validate.json").rename(root / "slake" / "validation.json")
    assert [record.id for record in ENGLISH.read(root, "validation")] == first
    (root / "slake" / "validation.json").unlink()
    with pytest.raises(DataError, match=r"validate\.json"):
        ENGLISH.read(root, "validation")


def test_languages_are_two_sets_over_the_same_images(tmp_path: Path) -> None:
    root = write(tmp_path)
    english, chinese = (reader.read(root, "test") for reader in (ENGLISH, CHINESE))
    assert [r.id for r in english] == ["slake/0", "slake/1", "slake/3"]
    assert [(r.id, r.answer, r.dataset) for r in chinese] == [
        ("slake_zh/2", "核磁共振", "slake_zh")
    ]
    assert chinese[0].image.id == english[0].image.id == "slake/xmlab1/source.jpg"


def test_fields_become_modality_organ_types_and_captions(tmp_path: Path) -> None:
    first, second, third, *captions = ENGLISH.read(write(tmp_path), "train")
    assert (first.image.modality, first.image.organ) == ("mri", "abdomen")
    assert (third.image.modality, third.image.organ) == ("xray", "chest lung")
    assert (second.answer_type, second.question_type) == ("closed", "abnormality")
    assert first.image.source == tmp_path / "slake" / "imgs" / "xmlab1" / "source.jpg"
    assert [c.answer for c in captions] == ["An MRI of the abdomen.", "An X-ray of the chest lung."]


def test_the_archives_own_folder_name_is_found_too(tmp_path: Path) -> None:
    assert len(ENGLISH.read(write(tmp_path, folder="Slake1.0"), "validation")) == 3


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (row(9, "xmlab9/source.jpg"), r"row 2: image file 'xmlab9/source\.jpg' is missing"),
        (row(9, answer=""), "row 2: empty answer"),
        (row(9, answer_type="BOTH"), "row 2: answer_type 'BOTH' must be OPEN or CLOSED"),
        ({"qid": 9}, "row 2: field 'img_name' is missing"),
        (row(0), "id 'slake/0' occurs twice"),
    ],
)
def test_bad_row_is_named_or_counted(tmp_path: Path, bad: Any, message: str) -> None:
    root = write(tmp_path, [row(0), bad])
    with pytest.raises(DataError, match=message):
        ENGLISH.read(root, "test")
    skipped = BadRows("skip")
    assert len(ENGLISH.read(root, "test", skipped)) == 1
    assert len(skipped.reasons) == 1


def test_real_text_files_have_the_published_counts(tmp_path: Path, shared: Path) -> None:
    """Empty files stand for the pictures, which are not looked at."""
    folder = tmp_path / "slake"
    folder.mkdir()
    for name in ("train", "validate"):
        (folder / f"{name}.json").symlink_to(shared / "data" / "slake-text" / f"{name}.json")
        for raw in json.loads((folder / f"{name}.json").read_text(encoding="utf-8")):
            path = folder / "imgs" / raw["img_name"]
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
    counts = {
        (reader.NAME, split): sum(r.task == "vqa" for r in reader.read(tmp_path, split))
        for reader in (ENGLISH, CHINESE)
        for split in ("train", "validation")
    }
    # 4,919 are published; the one without an answer is left out and counted.
    assert counts["slake", "train"] == 4918
    known = BadRows("fail")
    ENGLISH.read(tmp_path, "train", known)
    assert list(known.known_faults.values()) == [1]
    assert counts["slake", "validation"] == 1053
    assert counts["slake_zh", "train"] == 4916
    train = ENGLISH.read(tmp_path, "train")
    images = {r.image.id: r.image.modality for r in train}
    assert set(Counter(images.values())) == {"ct", "mri", "xray"}
