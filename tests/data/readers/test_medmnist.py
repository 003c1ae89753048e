"""The twelve MedMNIST sets: official labels, any size, ChestMNIST as fourteen questions."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from medmoe.data.readers import npz
from medmoe.data.readers.medmnist import SETS
from medmoe.errors import DataError

#: Number of official labels.
CLASSES = {
    "pathmnist": 9,
    "chestmnist": 14,
    "dermamnist": 7,
    "octmnist": 4,
    "pneumoniamnist": 2,
    "retinamnist": 5,
    "breastmnist": 2,
    "bloodmnist": 8,
    "tissuemnist": 8,
    "organamnist": 11,
    "organcmnist": 11,
    "organsmnist": 11,
}
COLOUR = ("pathmnist", "dermamnist", "retinamnist", "bloodmnist")


def write(root: Path, name: str, side: int = 28, labels: np.ndarray | None = None) -> Path:
    count = CLASSES[name]
    if labels is None:
        labels = np.arange(count)[:, None]
        if name == "chestmnist":
            labels = np.eye(14)
    shape = (len(labels), side, side, 3) if name in COLOUR else (len(labels), side, side)
    arrays = {}
    for part in ("train", "val", "test"):
        arrays[f"{part}_images"] = np.full(shape, side, np.uint8)
        arrays[f"{part}_labels"] = labels.astype(np.uint8)
    np.savez(root / f"{name}{'' if side == 28 else f'_{side}'}.npz", **arrays)
    return root


def test_all_twelve_sets_are_there() -> None:
    assert set(SETS) == set(CLASSES)


@pytest.mark.parametrize("name", sorted(set(CLASSES) - {"chestmnist"}))
def test_labels_are_options_in_the_official_order(tmp_path: Path, name: str) -> None:
    records = SETS[name].read(write(tmp_path, name), "test")
    assert len(records) == CLASSES[name]
    assert tuple(r.answer for r in records) == records[0].options == SETS[name].options
    assert len(set(records[0].options)) == CLASSES[name]
    assert not any("," in option for option in records[0].options)  # they are listed with commas
    assert {r.task for r in records} == {"classification"}
    assert {r.image.modality for r in records} == {SETS[name].modality}


def test_chestmnist_asks_each_finding_of_each_image(tmp_path: Path) -> None:
    labels = np.zeros((2, 14))
    labels[1, [0, 6]] = 1
    records = SETS["chestmnist"].read(write(tmp_path, "chestmnist", labels=labels), "validation")
    assert len(records) == 28
    assert len({r.image.id for r in records}) == 2
    assert len({r.id for r in records}) == 28
    yes = [(r.image.id, r.question_type) for r in records if r.answer == "yes"]
    assert yes == [
        ("chestmnist/validation/1", "atelectasis"),
        ("chestmnist/validation/1", "pneumonia"),
    ]
    assert records[0].question == "Does this chest X-ray show atelectasis?"
    assert records[0].options == ("no", "yes")


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (np.full((3, 14), 2), "row 1 of test_labels: labels must be 0 or 1"),
        (np.zeros((3, 13)), r"3 images need \(3, 14\) integers"),
    ],
)
def test_bad_flags_are_refused(tmp_path: Path, labels: np.ndarray, message: str) -> None:
    with pytest.raises(DataError, match=message):
        SETS["chestmnist"].read(write(tmp_path, "chestmnist", labels=labels), "test")


def test_the_size_of_the_paper_goes_first_then_the_largest(tmp_path: Path) -> None:
    for side in (64, 224):
        write(tmp_path, "breastmnist", side)
    sides = []
    for _ in range(2):
        source = SETS["breastmnist"].read(tmp_path, "test")[0].image.source
        assert isinstance(source, np.ndarray)
        sides.append(source.shape[0])
        write(tmp_path, "breastmnist", 28)
    assert sides == [224, 28]


def test_a_large_array_is_mapped_from_the_cache_and_reads_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = write(tmp_path, "pathmnist", 64)
    monkeypatch.setenv("MEDMOE_CACHE", str(tmp_path / "cache"))
    whole = SETS["pathmnist"].read(root, "test")
    monkeypatch.setattr(npz, "MAPPED_BYTES", 1000)
    for _ in ("unpacked", "found there"):
        mapped = SETS["pathmnist"].read(root, "test")
        assert isinstance(mapped[0].image.source, np.memmap)
        assert [r.answer for r in mapped] == [r.answer for r in whole]
        pairs = [(a.image.source, b.image.source) for a, b in zip(mapped, whole, strict=True)]
        assert all(np.array_equal(a, b) for a, b in pairs)
    (unpacked,) = (tmp_path / "cache" / "arrays").iterdir()  # the images alone, and no leftovers
    assert unpacked.suffix == ".npy"
    # Another file under the same name is another array.
    write(tmp_path, "pathmnist", 64, labels=np.arange(9)[:5, None])
    assert len(SETS["pathmnist"].read(root, "test")) == 5


def test_an_array_that_finds_no_room_is_refused_with_the_fix(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = write(tmp_path, "pathmnist", 64)
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "arrays").write_text("no folder")
    monkeypatch.setenv("MEDMOE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(npz, "MAPPED_BYTES", 1000)
    with pytest.raises(DataError, match=r"cannot unpack test_images.npy .* set MEDMOE_CACHE"):
        SETS["pathmnist"].read(root, "test")
