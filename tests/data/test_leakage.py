"""Near duplicates: found after resizing and compression, not invented, and right on real pairs."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from medmoe.data.leakage import MAX_DISTANCE, drop_near_duplicates, near_duplicates
from medmoe.data.schema import ImageRecord, Record

Pixels = npt.NDArray[np.uint8]


def picture(seed: int, side: int = 160) -> Pixels:
    """Return a picture of smooth blobs, in its own way for each seed."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (12, 12), dtype=np.uint8))
    return np.asarray(coarse.resize((side, side), Image.Resampling.BICUBIC))


def compressed(pixels: Pixels, size: tuple[int, int], quality: int) -> Pixels:
    buffer = io.BytesIO()
    Image.fromarray(pixels).resize(size).save(buffer, "JPEG", quality=quality)
    return np.asarray(Image.open(buffer))


def images(prefix: str, arrays: list[Pixels]) -> list[ImageRecord]:
    return [ImageRecord(id=f"{prefix}/{i}", source=a) for i, a in enumerate(arrays)]


def records(of: list[ImageRecord]) -> list[Record]:
    return [
        Record(
            id=f"{image.id}/{question}",
            image=image,
            question="?",
            answer="yes",
            answer_type="closed",
            question_type="presence",
            task="vqa",
            dataset="set",
            split="train",
            licence="CC0-1.0",
        )
        for image in of
        for question in "ab"
    ]


@pytest.mark.parametrize(
    ("size", "quality"), [((160, 160), 95), ((90, 90), 60), ((300, 240), 50), ((96, 96), 75)]
)
def test_copies_are_found_after_resizing_and_compression(
    size: tuple[int, int], quality: int
) -> None:
    left = [picture(seed) for seed in range(20)]
    right = [compressed(pixels, size, quality) for pixels in left[::-1]]
    pairs = near_duplicates(images("train", left), images("test", right))
    assert {(pair.left_id, pair.right_id) for pair in pairs} == {
        (f"train/{i}", f"test/{19 - i}") for i in range(20)
    }


def test_brighter_copy_is_found_and_exact_copy_has_distance_zero() -> None:
    pixels = picture(1)
    brighter = (pixels // 2 + 100).astype(np.uint8)
    pairs = near_duplicates(images("a", [pixels]), images("b", [brighter, pixels]))
    assert [(p.left_id, p.right_id) for p in pairs] == [("a/0", "b/1"), ("a/0", "b/0")]
    assert pairs[0].distance == 0


def test_different_pictures_are_no_pair() -> None:
    left = images("a", [picture(seed) for seed in range(40)])
    right = images("b", [picture(seed) for seed in range(100, 140)])
    assert near_duplicates(left, right) == []
    assert len(near_duplicates(left, right, max_distance=256)) == 1600


def test_mirrored_picture_is_another_picture() -> None:
    """Left and right matter in a radiograph."""
    pixels = picture(3)
    mirrored = np.ascontiguousarray(pixels[:, ::-1])
    assert near_duplicates(images("a", [pixels]), images("b", [mirrored])) == []


def test_comparison_in_blocks_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    left = images("a", [picture(seed % 9) for seed in range(25)])
    right = images("b", [picture(seed) for seed in range(9)])
    whole = near_duplicates(left, right)
    assert len(whole) == 25
    monkeypatch.setattr("medmoe.data.leakage._BLOCK", 4)
    assert near_duplicates(left, right) == whole


def test_records_on_duplicates_are_dropped_and_counted() -> None:
    train = records(images("train", [picture(seed) for seed in range(5)]))
    test = records(images("test", [compressed(picture(3), (120, 120), 70)]))
    kept, dropped = drop_near_duplicates(train, test)
    assert dropped == 2
    assert [record.id for record in kept] == [r.id for r in train if r.image.id != "train/3"]


def test_nothing_to_compare_drops_nothing() -> None:
    train = records(images("train", [picture(1)]))
    assert drop_near_duplicates(train, []) == (train, 0)
    assert drop_near_duplicates([], train) == ([], 0)


def test_real_copies_are_found_and_few_others(shared: Path) -> None:
    """The 38 known VQA-Med copies of VQA-RAD pictures, among all VQA-RAD pictures and 300 more."""
    data = shared / "data"
    overlap = json.loads((data / "vqa-med-2019" / "overlap_with_vqa_rad.json").read_text())
    known = {
        (twin["split"], twin["image"], rad)
        for rad, twins in overlap["same_picture"].items()
        for twin in twins
    }
    folders = {split: data / "vqa-med-2019" / split / "images" for split in ("train", "val")}
    paths = {folders[split] / name for split, name, _ in known}
    paths |= set(sorted(folders["train"].iterdir())[::11][:300])
    left = [ImageRecord(id=f"{p.parents[1].name}/{p.name}", source=p) for p in sorted(paths)]
    rad = sorted((data / "vqa-rad" / "images").iterdir())
    right = [ImageRecord(id=path.name, source=path) for path in rad]
    pairs = near_duplicates(left, right)
    found = {(*pair.left_id.split("/"), pair.right_id) for pair in pairs}
    assert len(known) == 38
    assert len(found & known) >= 36
    assert len(found - known) <= 2
    # Room on both sides: no known copy lies near the limit.
    assert max(pair.distance for pair in pairs) <= MAX_DISTANCE / 2
