"""A user's own table and folder of classes, as docs/your_own_data.md describes them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image
from tests.data.pictures import picture

from medmoe.data import registry
from medmoe.data.readers.folder_per_class import FolderPerClass
from medmoe.data.readers.own import Own, find
from medmoe.errors import DataError

HEADER = "image,question,answer"
FULL = (
    "image,question,answer,id,split,modality,organ,options,answer_type,question_type,licence\n"
    'a.png,"Which, if any?",cyst,7,test,CT,liver,cyst|mass,,finding,CC0-1.0\n'
    "b.png,Is it normal?,No.,8,train,X-Ray,,,,,\n"
    "b.png,What is seen?,A stent,9,train,,,,open,,\n"
)


def write(folder: Path, text: str, name: str = "scans.csv") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for seed, image in enumerate(("a.png", "b.png")):
        Image.fromarray(picture(seed, 40)).save(folder / image)
    (folder / name).write_text(text, encoding="utf-8")
    return folder / name


def test_columns_become_fields_of_the_record(tmp_path: Path) -> None:
    own = Own(write(tmp_path, FULL))
    assert own.SPLITS == ("test", "train")
    (record,) = own.read(tmp_path, "test")
    assert (record.id, record.dataset, record.licence) == ("scans/7", "scans", "CC0-1.0")
    assert (record.question, record.answer) == ("Which, if any?", "cyst")
    assert (record.options, record.answer_type) == (("cyst", "mass"), "closed")
    assert (record.image.modality, record.image.organ) == ("ct", "liver")
    assert record.image.source == tmp_path / "a.png"
    assert record.place == f"{tmp_path / 'scans.csv'} row 2"


def test_what_is_left_out_has_a_sound_default(tmp_path: Path) -> None:
    first, second = Own(write(tmp_path, FULL)).read(tmp_path, "train")
    assert (first.answer_type, first.question_type) == ("closed", "yes_no")
    assert (second.answer_type, second.question_type) == ("open", "what")
    assert (first.licence, first.task, first.image.modality) == ("unknown", "vqa", "xray")
    assert first.image is second.image


def test_jsonl_gives_the_same_records_as_csv(tmp_path: Path) -> None:
    rows = [
        {"image": "a.png", "question": "Which?", "answer": "cyst", "options": ["cyst", "mass"]},
        {"image": "b.png", "question": "What?", "answer": "x", "references": ["y", "z"]},
    ]
    lines = "\n".join(map(json.dumps, rows)) + "\n\n"
    by_json = Own(write(tmp_path, lines, "scans.jsonl")).read(tmp_path, "train")
    table = (
        "image,question,answer,options,references\n"
        "a.png,Which?,cyst,cyst|mass,\nb.png,What?,x,,y|z\n"
    )
    by_csv = Own(write(tmp_path, table)).read(tmp_path, "train")
    assert [(r.question, r.options, r.references) for r in by_json] == [
        (r.question, r.options, r.references) for r in by_csv
    ]


def test_rows_in_chat_form_are_read_without_our_columns(tmp_path: Path) -> None:
    chat = {
        "messages": [
            {"role": "user", "content": "<image>\nIs it normal?"},
            {"role": "assistant", "content": "yes"},
        ],
        "images": ["a.png"],
    }
    (record,) = Own(write(tmp_path, json.dumps(chat), "chat.jsonl")).read(tmp_path, "train")
    assert (record.question, record.answer, record.answer_type) == (
        "Is it normal?",
        "yes",
        "closed",
    )
    assert record.image.source == tmp_path / "a.png"


def test_the_one_table_of_a_folder_is_found_by_the_folder(tmp_path: Path) -> None:
    path = write(tmp_path / "clinic", FULL, "data.csv")
    assert find(path.parent) == path
    assert len(registry.read(path.parent, tmp_path, "train")) == 2
    assert registry.reader_of(str(path)).NAME == "clinic"
    write(path.parent, FULL, "other.jsonl")
    with pytest.raises(DataError, match=r"several tables \(data\.csv, other\.jsonl\)"):
        registry.reader_of(path.parent)


def test_a_path_that_is_no_data_says_what_is_wanted(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"neither a table .* nor a folder .*your_own_data\.md"):
        registry.reader_of(tmp_path)
    with pytest.raises(DataError, match="no such file or folder"):
        registry.reader_of(tmp_path / "gone.csv")
    with pytest.raises(DataError, match=r"unknown data set 'vqarad'.*did you mean 'vqa_rad'"):
        registry.reader_of("vqarad")


def test_a_split_that_no_row_names_lists_those_that_are(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="unknown split of scans 'val'; choose one of: test, train"):
        Own(write(tmp_path, FULL)).read(tmp_path, "val")


def classes(root: Path, *splits: str) -> Path:
    for split in splits or ("",):
        for name in ("lung_cancer", "normal"):
            folder = root / "tiles" / split / name
            folder.mkdir(parents=True)
            Image.fromarray(picture(len(name), 40)).save(folder / "1.png")
            (folder / ".hidden").write_bytes(b"")
    return root / "tiles"


def test_a_folder_per_class_is_a_classification_set(tmp_path: Path) -> None:
    reader = registry.reader_of(classes(tmp_path))
    assert isinstance(reader, FolderPerClass)
    assert (reader.NAME, reader.SPLITS) == ("tiles", ("train", "test"))
    records = [record for split in reader.SPLITS for record in reader.read(tmp_path, split)]
    first, second = sorted(records, key=lambda record: record.id)
    assert (first.answer, second.answer) == ("lung cancer", "normal")
    assert first.options == ("lung cancer", "normal")
    assert (first.task, first.id) == ("classification", "tiles/lung_cancer/1.png")


def test_split_folders_of_classes_are_splits(tmp_path: Path) -> None:
    reader = registry.reader_of(classes(tmp_path, "train", "val", "test"))
    assert reader.SPLITS == ("train", "validation", "test")
    assert [r.id for r in reader.read(tmp_path, "validation")] == [
        "tiles/val/lung_cancer/1.png",
        "tiles/val/normal/1.png",
    ]


def test_a_foreign_file_among_the_pictures_is_named(tmp_path: Path) -> None:
    folder = classes(tmp_path)
    (folder / "normal" / "notes.txt").write_bytes(b"x")
    with pytest.raises(DataError, match=r"notes\.txt: not an image"):
        FolderPerClass(folder).read(tmp_path, "train")
