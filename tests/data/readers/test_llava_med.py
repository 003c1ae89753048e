"""LLaVA-Med: captions and instructions, and pictures that are gone are counted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from medmoe.data.bad_rows import BadRows
from medmoe.data.readers.llava_med import ALIGNMENT, INSTRUCT
from medmoe.errors import DataError


def turns(*texts: str) -> list[dict[str, str]]:
    return [{"from": ("human", "gpt")[n % 2], "value": text} for n, text in enumerate(texts)]


CAPTION = {
    "id": "1",
    "image": "1.jpg",
    "conversatons": turns("Describe it.\n<image>", "A chest X-ray."),
}
CHAT = {
    "id": "2",
    "image": "1.jpg",
    "domain": {"chest_xray": True, "mri": False, "histology": False, "gross": False},
    "conversations": turns("<image>\nWhat is it?", "A chest X-ray.", "Is it normal?", "It is."),
}


def write(root: Path, name: str, rows: list[Any], inside: str = "") -> Path:
    folder = root / "llava-med"
    (folder / "images").mkdir(parents=True, exist_ok=True)
    (folder / "images" / "1.jpg").write_bytes(b"never opened")
    (folder / inside).mkdir(exist_ok=True)
    (folder / inside / name).write_text(json.dumps(rows))
    return root


def test_alignment_gives_captions_also_under_the_misspelt_key(tmp_path: Path) -> None:
    (record,) = ALIGNMENT.read(write(tmp_path, "llava_med_alignment_500k.json", [CAPTION]), "train")
    assert (record.task, record.question, record.answer) == (
        "caption",
        "Describe it.",
        "A chest X-ray.",
    )
    assert record.id == "llava_med_alignment/1"


def test_a_chat_is_one_record_with_all_its_turns(tmp_path: Path) -> None:
    name = "llava_med_instruct_60k_inline_mention.json"
    (record,) = INSTRUCT.read(write(tmp_path, name, [CHAT], "instruct"), "train")
    assert (record.question, record.answer) == ("What is it?", "A chest X-ray.")
    assert record.further == (("Is it normal?", "It is."),)
    assert record.image.modality == "xray"
    assert record.id == "llava_med_instruct/2"


@pytest.mark.parametrize("inside", ["", "alignment"])
def test_the_references_file_is_read_by_its_name(tmp_path: Path, inside: str) -> None:
    root = write(tmp_path, "llava_med_alignment_500k_filter.json", [CAPTION], inside)
    assert [r.id for r in ALIGNMENT.read(root, "train")] == ["llava_med_alignment/1"]
    # The reference's own folder, ``data/``, is what holds them there.
    (inner,) = ALIGNMENT.read(root / "llava-med", "train")
    assert isinstance(inner.image.source, Path)
    assert inner.image.source.resolve() == root / "llava-med" / "images" / "1.jpg"


def test_missing_pictures_are_counted_and_no_error(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    gone = [{**CAPTION, "id": str(n), "image": f"{n}.jpg"} for n in range(2, 5)]
    root = write(tmp_path, "llava_med_alignment_500k.json", [CAPTION, *gone])
    counted = BadRows("fail")
    assert len(ALIGNMENT.read(root, "train", counted)) == 1
    counted.settle()
    assert list(counted.known_faults.values()) == [3]
    assert "image not there: 3 rows" in caplog.text


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"conversatons": turns("a", "b", "c")}, "row 2: messages must be one of user"),
        (
            {"conversatons": [*turns("a", "b")[::-1]]},
            r"row 2: messages must be .* found \[assistant, user\]",
        ),
        ({"conversatons": turns("<image>", "b")}, "row 2: empty question"),
        ({"id": ""}, "row 2: empty id"),
    ],
)
def test_bad_row_is_named(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    root = write(tmp_path, "llava_med_alignment_500k.json", [CAPTION, {**CAPTION, **changes}])
    with pytest.raises(DataError, match=message):
        ALIGNMENT.read(root, "train")


def test_no_picture_at_all_is_an_error(tmp_path: Path) -> None:
    root = write(tmp_path, "llava_med_alignment_500k.json", [{**CAPTION, "image": "2.jpg"}])
    with pytest.raises(DataError, match="no usable row in it"):
        ALIGNMENT.read(root, "train")
