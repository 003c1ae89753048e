"""A folder with one folder of pictures per class, as people have them."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image
from tests.data.pictures import picture

from medmoe.data import registry
from medmoe.data.bad_rows import BadRows
from medmoe.data.readers.folder_per_class import FolderPerClass
from medmoe.data.readers.own import Own
from medmoe.data.schema import Record
from medmoe.errors import DataError


def tiles(root: Path, *folders: str, name: str = "1.png") -> Path:
    """Write one picture, each another one, into every folder."""
    for seed, folder in enumerate(folders):
        (root / "tiles" / folder).mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture(seed, 40)).save(root / "tiles" / folder / name, "PNG")
    return root / "tiles"


def read(path: Path) -> tuple[dict[str, list[Record]], str]:
    reader, _ = registry.parse_set(path)
    bad = BadRows()
    parts = registry.read_splits(reader, None, None, bad)
    bad.settle()
    return parts, "\n".join(bad.notes)


def classes(records: list[Record]) -> list[str]:
    return [record.answer for record in records]


def test_a_folder_per_class_is_a_classification_set(tmp_path: Path) -> None:
    path = tiles(tmp_path, "lung_cancer", "normal")
    reader, _ = registry.parse_set(path)
    assert isinstance(reader, FolderPerClass)
    assert (reader.NAME, reader.SPLITS) == ("tiles", ("train", "test"))
    parts, said = read(path)
    records = [record for found in parts.values() for record in found]
    assert sorted(classes(records)) == ["lung cancer", "normal"]
    assert {record.options for record in records} == {("lung cancer", "normal")}
    assert {record.task for record in records} == {"classification"}
    assert {record.id for record in records} == {"tiles/lung_cancer/1.png", "tiles/normal/1.png"}
    assert "no split is named: parted by picture" in said


@pytest.mark.parametrize(
    ("train", "validation", "test"),
    [("train", "val", "test"), ("Training", "valid", "testing"), ("TRAIN", "dev", "Test")],
)
def test_split_folders_may_be_spelt_in_any_usual_way(
    tmp_path: Path, train: str, validation: str, test: str
) -> None:
    names = [f"{split}/{c}" for split in (train, validation, test) for c in "ab"]
    path = tiles(tmp_path, *names)
    parts, said = read(path)
    assert {split: len(found) for split, found in parts.items()} == dict.fromkeys(
        ("train", "validation", "test"), 2
    )
    assert [r.id for r in parts["validation"]] == [
        f"tiles/{validation}/a/1.png",
        f"tiles/{validation}/b/1.png",
    ]
    assert said == ""
    reader, split = registry.parse_set(f"{path}:{validation}")
    assert [r.id for r in reader.read(Path(), split or "")] == [r.id for r in parts["validation"]]


def test_two_spellings_of_a_split_are_read_together_and_said(tmp_path: Path) -> None:
    path = tiles(tmp_path, *(f"{s}/{c}" for s in ("train", "val", "validation") for c in "ab"))
    parts, said = read(path)
    assert len(parts["validation"]) == 4
    assert "val and validation are read together, as validation" in said
    assert "no test part" in said


def test_options_are_the_classes_of_all_splits(tmp_path: Path) -> None:
    path = tiles(tmp_path, "train/a", "train/b", "train/c", "test/a", "test/zzz")
    parts, said = read(path)
    options = {record.options for found in parts.values() for record in found}
    assert options == {("a", "b", "c", "zzz")}
    assert "no training picture of class zzz" in said


def test_one_split_given_alone_says_how_to_have_the_classes_of_all(tmp_path: Path) -> None:
    path = tiles(tmp_path, *(f"{split}/{c}" for split in ("train", "test") for c in "ab"))
    _, said = read(path / "test")
    assert f"test: read alone, with its own classes as options; give {path}:test" in said


def test_numbers_are_classes_in_the_order_of_numbers(tmp_path: Path) -> None:
    parts, _ = read(tiles(tmp_path, "0", "1", "2", "10"))
    assert parts["train"][0].options == ("0", "1", "2", "10")


def test_what_systems_leave_is_ignored_and_what_is_not_read_is_named(tmp_path: Path) -> None:
    path = tiles(tmp_path, "a", "b", "__MACOSX", ".ipynb_checkpoints", "@eaDir")
    for name in ("Thumbs.db", "a/Thumbs.db", "a/.DS_Store", "a/desktop.ini", "labels.csv"):
        (path / name).write_bytes(b"x,y\n")
    (path / "empty").mkdir()
    parts, said = read(path)
    assert sorted(classes([r for found in parts.values() for r in found])) == ["a", "b"]
    names = ".ipynb_checkpoints, @eaDir, Thumbs.db, __MACOSX, a/.DS_Store and 2 more"
    assert f"files of systems are ignored: {names}" in said
    assert "not read, beside the classes: labels.csv" in said
    assert "empty: holds no picture, is no class" in said


def test_a_table_that_asks_goes_before_folders_of_pictures(tmp_path: Path) -> None:
    path = tiles(tmp_path, "images", "more")
    (path / "data.csv").write_text("image,question,answer\nimages/1.png,Is it?,yes\n")
    assert isinstance(registry.parse_set(path)[0], Own)


def test_folders_in_a_class_are_read_and_those_of_patients_part_the_set(tmp_path: Path) -> None:
    names = [f"{c}/patient{n}" for c in "ab" for n in range(6)]
    path = tiles(tmp_path, *names)
    for seed, name in enumerate(names, 50):
        Image.fromarray(picture(seed, 40)).save(path / name / "2.png")
    parts, said = read(path)
    assert "parted by patient" in said
    patients = [{r.id.split("/")[2] for r in found} for found in parts.values()]
    assert sum(map(len, patients)) == len(set().union(*patients)) == 6
    assert sum(map(len, parts.values())) == 24


@pytest.mark.parametrize(
    ("folders", "message"),
    [
        (("a b", "a_b"), "class folders 'a b', 'a_b' name one class"),
        (("train/Cancer", "train/b", "test/cancer"), "class folders 'Cancer', 'cancer'"),
        (("images",), r"one class only \('images'\); add pictures of another, or give a table"),
    ],
)
def test_folders_that_are_no_classes_are_refused(
    tmp_path: Path, folders: tuple[str, ...], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        read(tiles(tmp_path, *folders))


def test_a_foreign_file_among_the_pictures_is_named(tmp_path: Path) -> None:
    path = tiles(tmp_path, "a", "b", name="1.JPG")
    (path / "b" / "notes.txt").write_bytes(b"x")
    with pytest.raises(DataError, match=r"notes\.txt: not an image that can be read"):
        read(path)


def test_a_link_to_a_picture_elsewhere_is_refused_unless_it_is_allowed(tmp_path: Path) -> None:
    path = tiles(tmp_path, "lung_cancer", "normal")
    outside = tmp_path / "outside.png"
    Image.fromarray(picture(7, 40)).save(outside)
    (path / "normal" / "2.png").symlink_to(outside)
    with pytest.raises(DataError, match=r"normal/2\.png' lies outside .*--allow-outside"):
        read(path)
    reader, _ = registry.parse_set(path, allow_outside=True)
    parts = registry.read_splits(reader, None, None, BadRows())
    assert sum(map(len, parts.values())) == 3
