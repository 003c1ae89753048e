"""IU X-ray in R2Gen's layout, written here in small."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from medmoe.data.bad_rows import BadRows
from medmoe.data.readers.iu_xray import SET as iu_xray
from medmoe.errors import DataError

REPORT = "The heart size is normal. No pneumothorax or pleural effusion is seen."


def row(number: int, **changes: Any) -> dict[str, Any]:
    name = f"CXR{number}_IM-0942"
    views = [f"{name}/0.png", f"{name}/1.png"]
    return {"id": name, "report": REPORT, "image_path": views, "split": "test"} | changes


def write(root: Path, *more: dict[str, Any]) -> Path:
    folder = root / "iu_xray"
    for number in (1, 2):
        for view in (0, 1):
            path = folder / "images" / f"CXR{number}_IM-0942" / f"{view}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.full((40, 40), 90 * number + view, np.uint8)).save(path)
    parts = {"train": [row(2)], "val": [row(2)], "test": [row(1), *more]}
    (folder / "annotation.json").write_text(json.dumps(parts), encoding="utf-8")
    return root


def test_a_study_is_one_request_about_its_first_view(tmp_path: Path) -> None:
    (record,) = iu_xray.read(write(tmp_path), "test")
    assert (record.id, record.image.id) == (
        "iu_xray/CXR1_IM-0942",
        "iu_xray/CXR1_IM-0942/0.png",
    )
    assert (record.question, record.answer) == ("Write the report of this chest X-ray.", REPORT)
    assert (record.task, record.answer_type, record.question_type) == ("caption", "open", "report")
    assert (record.image.modality, record.image.organ) == ("xray", "chest")
    (held_out,) = iu_xray.read(tmp_path, "validation")
    assert (held_out.split, held_out.id) == ("validation", "iu_xray/CXR2_IM-0942")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"report": " "}, "test row 2: empty report"),
        ({"image_path": []}, "test row 2: no image_path in the row"),
        ({"image_path": ["gone/0.png"]}, r"test row 2: image file 'gone/0\.png' is missing"),
    ],
)
def test_a_bad_row_is_named_or_counted(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    root = write(tmp_path, row(2, **changes))
    with pytest.raises(DataError, match=message):
        iu_xray.read(root, "test")
    skipped = BadRows("skip")
    assert len(iu_xray.read(root, "test", skipped)) == 1
    assert len(skipped.reasons) == 1


def test_a_file_without_the_split_says_so(tmp_path: Path) -> None:
    root = write(tmp_path)
    (root / "iu_xray" / "annotation.json").write_text('{"train": []}', encoding="utf-8")
    with pytest.raises(DataError, match="no list 'test' in it"):
        iu_xray.read(root, "test")
