"""PathVQA and VQA-RAD in the hub's Parquet layout, and PathVQA's original folders."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tests.data.readers.parquet import png, write_hub

from medmoe.data.bad_rows import BadRows
from medmoe.data.exchange import read_rows
from medmoe.data.images import open_image
from medmoe.data.readers.path_vqa import SET as path_vqa
from medmoe.data.readers.vqa_rad import HUB as VQA_RAD_HUB
from medmoe.data.readers.vqa_rad import SET as vqa_rad
from medmoe.errors import DataError

ROWS = [
    (10, "what is seen?", "liver tissue"),
    (10, "is there necrosis?", "yes"),
    (200, "where are the nuclei?", "at the base"),
]


def test_parquet_rows_share_an_image_by_its_bytes(tmp_path: Path) -> None:
    write_hub(tmp_path / "path-vqa", "test", ROWS)
    first, second, third = path_vqa.read(tmp_path, "test")
    assert first.image is second.image
    assert third.image.id != first.image.id
    assert first.image.source == png(10)
    assert isinstance(third.image.source, bytes)
    assert open_image(third.image.source).getpixel((0, 0)) == (200, 200, 200)
    assert [r.answer_type for r in (first, second, third)] == ["open", "closed", "open"]
    assert [r.question_type for r in (first, second, third)] == ["what", "yes_no", "where"]
    assert (first.image.modality, first.id) == ("pathology", "path_vqa/test/1")


def test_the_hubs_vqa_rad_is_a_set_of_its_own_name(tmp_path: Path) -> None:
    write_hub(tmp_path / "vqa-rad", "train", ROWS)
    met = BadRows()
    records = VQA_RAD_HUB.read(tmp_path, "train", met)
    assert {r.dataset for r in records} == {"vqa_rad_hub"}
    assert [r.id for r in records] == [f"vqa_rad_hub/train/{n}" for n in (1, 2, 3)]
    assert "not the paper's" in met.notes[0]
    with pytest.raises(DataError, match=r"no vqa-rad/trainset\.json"):
        vqa_rad.read(tmp_path, "train")


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ((5, "what?", " "), "test row 2: empty answer"),
        ((5, "", "yes"), "test row 2: empty question"),
        ((None, "what?", "yes"), "test row 2: no image in the row"),
    ],
)
def test_bad_parquet_row_is_named_or_counted(tmp_path: Path, bad: Any, message: str) -> None:
    write_hub(tmp_path / "path-vqa", "test", [ROWS[0], bad])
    with pytest.raises(DataError, match=message):
        path_vqa.read(tmp_path, "test")
    skipped = BadRows("skip")
    assert len(path_vqa.read(tmp_path, "test", skipped)) == 1
    assert len(skipped.reasons) == 1


def test_a_split_or_file_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    folder = write_hub(tmp_path / "path-vqa", "test", ROWS)
    with pytest.raises(DataError, match=r"unknown split of .* 'train'; choose one of: test"):
        path_vqa.read(tmp_path, "train")
    next((folder / "data").iterdir()).write_bytes(b"no parquet")
    with pytest.raises(DataError, match="cannot be read as Parquet"):
        path_vqa.read(tmp_path, "test")


def test_a_hub_id_without_network_is_one_line() -> None:
    with pytest.raises(DataError, match="cannot be read as Parquet"):
        next(read_rows(Path("nobody/no-such-set"), "train"))


def write_original(root: Path, rows: list[Any]) -> Path:
    images, qas = root / "path-vqa" / "images" / "val", root / "path-vqa" / "qas" / "val"
    images.mkdir(parents=True)
    qas.mkdir(parents=True)
    (images / "val_0001.jpg").write_bytes(b"never opened")
    (qas / "val_qa.json").write_text(json.dumps(rows))
    return root


def test_original_folders_are_read(tmp_path: Path) -> None:
    row = {"image": "val_0001", "question": "what is it?", "answer": "fat"}
    root = write_original(tmp_path, [row, {**row, "answer": "Yes."}])
    first, second = path_vqa.read(root, "validation")
    assert first.image is second.image
    assert first.image.id == "path_vqa/validation/val_0001.jpg"
    assert (first.answer_type, second.answer_type) == ("open", "closed")


def test_a_missing_picture_of_the_original_is_named(tmp_path: Path) -> None:
    row = {"image": "val_0009", "question": "what is it?", "answer": "fat"}
    with pytest.raises(
        DataError, match=r"val_qa\.json row 1: image file 'val_0009\.jpg' is missing"
    ):
        path_vqa.read(write_original(tmp_path, [row]), "validation")


def test_pickled_questions_are_never_opened(tmp_path: Path) -> None:
    root = write_original(tmp_path, [])
    path = root / "path-vqa" / "qas" / "val" / "val_qa.json"
    path.rename(path.with_suffix(".pkl"))
    with pytest.raises(DataError, match="a pickle file can run code and is not opened"):
        path_vqa.read(root, "validation")
