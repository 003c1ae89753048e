"""PneumoniaMNIST, MedNIST and LC25000: miniatures of their layouts, bad files, real counts."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from medmoe.data.readers.lc25000 import SET as lc25000
from medmoe.data.readers.medmnist import SETS
from medmoe.data.readers.mednist import SET as mednist
from medmoe.errors import DataError

pneumoniamnist = SETS["pneumoniamnist"]
CLASSES = np.array(["AbdomenCT", "BreastMRI", "CXR", "ChestCT", "Hand", "HeadCT"])


def write_pneumonia(root: Path, **changes: Any) -> Path:
    arrays: dict[str, Any] = {}
    for part, labels in (("train", [1, 0, 1]), ("val", [0]), ("test", [1, 0])):
        arrays[f"{part}_images"] = np.full((len(labels), 28, 28), len(labels), np.uint8)
        arrays[f"{part}_labels"] = np.array(labels, np.uint8)[:, None]
    arrays.update(changes)
    np.savez(root / "pneumoniamnist.npz", **{k: v for k, v in arrays.items() if v is not None})
    return root


def write_mednist(root: Path, **changes: Any) -> Path:
    arrays = {
        "images": np.zeros((60, 64, 64), np.uint8),
        "labels": np.arange(60, dtype=np.uint8) % 6,
        "classes": CLASSES,
        **changes,
    }
    np.savez(root / "mednist-6k.npz", **arrays)
    return root


def write_tiles(root: Path, count: int = 30) -> Path:
    for folder in ("lung_aca", "lung_n", "lung_scc"):
        (root / "lc25000-lung" / folder).mkdir(parents=True)
        for number in range(count):
            path = root / "lc25000-lung" / folder / f"{folder}{number}.jpeg"
            path.write_bytes(b"never opened")
    return root


def test_pneumonia_rows_become_classification_records(tmp_path: Path) -> None:
    records = pneumoniamnist.read(write_pneumonia(tmp_path), "test")
    assert [record.answer for record in records] == ["pneumonia", "normal"]
    first = records[0]
    assert (first.task, first.answer_type, first.image.modality) == (
        "classification",
        "closed",
        "xray",
    )
    assert first.question == "Does this chest X-ray show pneumonia?"
    assert first.options == ("normal", "pneumonia")
    assert isinstance(first.image.source, np.ndarray)
    assert first.image.source.shape == (28, 28)
    assert int(first.image.source[0, 0]) == 2


def test_image_ids_differ_over_the_splits(tmp_path: Path) -> None:
    root = write_pneumonia(tmp_path)
    ids = [r.image.id for s in pneumoniamnist.SPLITS for r in pneumoniamnist.read(root, s)]
    assert len(set(ids)) == len(ids) == 6


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"test_labels": np.array([[1], [2]], np.uint8)}, "row 2 of test_labels: label 2 must be"),
        ({"test_labels": np.array([[1]], np.uint8)}, "2 images need 2 integers"),
        ({"test_labels": np.array([[0.5], [1.0]])}, "2 images need 2 integers"),
        ({"test_images": np.zeros((2, 28, 28))}, "test_images is float64"),
        ({"test_images": np.zeros((2, 28), np.uint8)}, r"must be uint8 \(N, H, W\)"),
        ({"test_images": None}, "no array 'test_images', found"),
        (
            {
                "test_images": np.zeros((0, 28, 28), np.uint8),
                "test_labels": np.zeros((0, 1), np.uint8),
            },
            "test_images holds no image",
        ),
        ({"test_labels": np.array([[{}], [1]], object)}, "not a readable npz file"),
    ],
)
def test_bad_arrays_are_refused(tmp_path: Path, changes: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        pneumoniamnist.read(write_pneumonia(tmp_path, **changes), "test")


@pytest.mark.parametrize("keep", [0, 100, 2000])
def test_truncated_npz_is_refused(tmp_path: Path, keep: int) -> None:
    path = write_pneumonia(tmp_path) / "pneumoniamnist.npz"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(DataError, match="not a readable npz file"):
        pneumoniamnist.read(tmp_path, "train")


def test_mednist_splits_are_disjoint_complete_and_stable(tmp_path: Path) -> None:
    root = write_mednist(tmp_path)
    parts = {
        split: [r.id for r in mednist.read(root, split) if r.task == "classification"]
        for split in mednist.SPLITS
    }
    everything = [name for names in parts.values() for name in names]
    assert sorted(everything) == sorted(f"mednist/{i}" for i in range(60))
    assert parts["test"] == [r.id for r in mednist.read(root, "test")]
    assert all(parts.values())


def test_mednist_train_images_have_a_caption(tmp_path: Path) -> None:
    records = mednist.read(write_mednist(tmp_path), "train")
    captions = {r.answer for r in records if r.task == "caption"}
    assert captions == {
        "An abdomen CT.",
        "A breast MRI.",
        "A chest X-ray.",
        "A chest CT.",
        "A hand X-ray.",
        "A head CT.",
    }
    assert {r.task for r in mednist.read(tmp_path, "validation")} == {"classification"}


def test_mednist_class_gives_answer_and_modality(tmp_path: Path) -> None:
    records = mednist.read(write_mednist(tmp_path), "train")
    seen = {(r.answer, r.image.modality) for r in records if r.task == "classification"}
    assert seen == {
        ("abdomen CT", "ct"),
        ("breast MRI", "mri"),
        ("chest X-ray", "xray"),
        ("chest CT", "ct"),
        ("hand X-ray", "xray"),
        ("head CT", "ct"),
    }
    assert len(records[0].options) == 6


def test_unknown_mednist_class_is_refused(tmp_path: Path) -> None:
    classes = np.array(["AbdomenCT", "Foot"])
    with pytest.raises(DataError, match="class 'Foot' must be one of AbdomenCT"):
        mednist.read(write_mednist(tmp_path, classes=classes), "train")


def test_tiles_are_split_by_file_name(tmp_path: Path) -> None:
    root = write_tiles(tmp_path)
    parts = {s: {r.image.id for r in lc25000.read(root, s)} for s in lc25000.SPLITS}
    assert sum(map(len, parts.values())) == 90
    assert len(set().union(*parts.values())) == 90
    assert len(parts["train"]) > len(parts["validation"]) + len(parts["test"]) > 0


def test_no_tissue_score_can_be_computed_from_tiles(tmp_path: Path) -> None:
    root = write_tiles(tmp_path)
    assert {r.task for r in lc25000.read(root, "train")} == {"caption", "classification"}
    for split in ("validation", "test"):
        records = lc25000.read(root, split)
        assert {(r.task, r.image.modality) for r in records} == {("caption", "pathology")}


def test_foreign_file_and_empty_folder_of_tiles_are_refused(tmp_path: Path) -> None:
    folder = write_tiles(tmp_path, 1) / "lc25000-lung" / "lung_n"
    (folder / ".DS_Store").write_bytes(b"hidden files are no data")
    lc25000.read(tmp_path, "train")
    (folder / "notes.txt").write_bytes(b"x")
    with pytest.raises(DataError, match=r"notes\.txt: not an image"):
        lc25000.read(tmp_path, "train")
    for path in folder.iterdir():
        path.unlink()
    with pytest.raises(DataError, match="lung_n: no image in it"):
        lc25000.read(tmp_path, "train")


@pytest.mark.parametrize("reader", [pneumoniamnist, mednist, lc25000])
def test_missing_set_names_its_marker_and_the_fix(tmp_path: Path, reader: Any) -> None:
    with pytest.raises(DataError, match=rf"{reader.NAME}: no {reader.MARKERS[0]} under .*--data"):
        reader.read(tmp_path, "train")


def test_real_pneumoniamnist_has_the_published_counts(shared: Path) -> None:
    root = shared / "data"
    counts = [len(pneumoniamnist.read(root, split)) for split in pneumoniamnist.SPLITS]
    assert counts == [4708, 524, 624]
    test = Counter(record.answer for record in pneumoniamnist.read(root, "test"))
    assert test == {"pneumonia": 390, "normal": 234}


def test_real_mednist_and_tiles_are_complete(shared: Path) -> None:
    root = shared / "data"
    for reader, count in ((mednist, 6000), (lc25000, 600)):
        images = [{r.image.id for r in reader.read(root, split)} for split in reader.SPLITS]
        assert sum(map(len, images)) == len(set().union(*images)) == count
        shares = [len(part) / count for part in images]
        assert shares == pytest.approx([0.8, 0.1, 0.1], abs=0.02)
