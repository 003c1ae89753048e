"""ROCOv2: both layouts in miniature, modality by concept, the real sample."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from medmoe.data.readers.rocov2 import SET as rocov2
from medmoe.errors import DataError

CAPTIONS = 'ID,Caption\na_1,"A mass, on the left."\na_2,Chest.\na_3,Both.\n'
CONCEPTS = "ID,CUIs\na_1,C0040405;C9\na_2,C1306645\na_3,C0040405;C0032743\n"


def write(root: Path, captions: str = CAPTIONS, *, flat: bool = False) -> Path:
    folder = root / "rocov2" / ("" if flat else "train")
    images = folder / ("train_images" if flat else "images")
    images.mkdir(parents=True)
    for name in ("a_1", "a_2", "a_3"):
        (images / f"{name}.jpg").write_bytes(b"never opened")
    prefix = "train_" if flat else ""
    (folder / f"{prefix}captions.csv").write_text(captions, encoding="utf-8")
    (folder / f"{prefix}concepts_manual.csv").write_text(CONCEPTS)
    return root


@pytest.mark.parametrize("flat", [False, True])
def test_captions_and_the_one_modality_of_their_concepts(tmp_path: Path, flat: bool) -> None:
    records = rocov2.read(write(tmp_path, flat=flat), "train")
    assert [(r.answer, r.image.modality) for r in records] == [
        ("A mass, on the left.", "ct"),
        ("Chest.", "xray"),
        ("Both.", None),
    ]
    assert {r.task for r in records} == {"caption"}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("a_9,Gone.", r"row 5: image file a_9\.jpg is missing"),
        ("a_1,", "row 5: empty Caption"),
        ("a_1,Again.", "id 'rocov2/a_1/caption' occurs twice"),
    ],
)
def test_bad_row_is_named(tmp_path: Path, line: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        rocov2.read(write(tmp_path, f"{CAPTIONS}{line}\n"), "train")


def test_real_sample_is_read_whole(shared: Path) -> None:
    train = rocov2.read(shared / "data", "train")
    validation = rocov2.read(shared / "data", "validation")
    assert (len(train), len(validation)) == (600, 100)
    modalities = Counter(r.image.modality for r in (*train, *validation))
    assert {"ct", "mri", "xray", "ultrasound", "angiography"} <= set(modalities)
    # Nearly every picture has exactly one manual modality concept.
    assert modalities[None] < 70
