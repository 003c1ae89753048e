"""Bad training data: each kind that BAD_INPUTS names is reported by file and row, or counted."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from medmoe.data import registry
from medmoe.data.bad_rows import BadRows, readable
from medmoe.errors import DataError

GOOD = "a.png,Is it normal?,yes,1,ct\n"
HEADER = "image,question,answer,id,modality\n"

#: What is wrong -> the bytes of row 3, and what the report says of it.
BAD_ROWS: dict[str, tuple[bytes, str]] = {
    "missing image file": (b"gone.png,Is it?,no,2,ct\n", "image file 'gone.png' is missing"),
    "no image named": (b",Is it?,no,2,ct\n", "empty image"),
    "empty answer": (b"a.png,Is it?, ,2,ct\n", "empty answer"),
    "empty question": (b"a.png,,no,2,ct\n", "empty question"),
    "unknown modality": (b"a.png,Is it?,no,2,xry\n", "unknown modality 'xry'"),
    "duplicate id": (b"a.png,Is it?,no,1,ct\n", "id 'rows/1' occurs twice"),
    "two encodings": (b"a.png,Is it \xc3\xa9 \xe9?,no,2,ct\n", "not UTF-8 (byte 0xe9)"),
    "too few fields": (b"a.png,Is it?,no\n", "3 fields, 5 are named in the header"),
    "two modalities of one image": (b"a.png,Is it?,no,2,mri\n", "an earlier row says 'ct'"),
}


def write(folder: Path, content: bytes, name: str = "rows.csv") -> Path:
    Image.new("L", (32, 32), 90).save(folder / "a.png")
    (folder / name).write_bytes(content)
    return folder / name


@pytest.mark.parametrize("what", BAD_ROWS)
def test_bad_row_is_named_by_file_and_row(tmp_path: Path, what: str) -> None:
    raw, reason = BAD_ROWS[what]
    path = write(tmp_path, (HEADER + GOOD).encode() + raw + b"a.png,What is it?,a cyst,5,\n")
    with pytest.raises(DataError) as error:
        registry.read(path, tmp_path, "train")
    assert str(error.value).startswith(f"{path} row 3: ")
    assert reason in str(error.value)


@pytest.mark.parametrize("what", BAD_ROWS)
def test_skipping_leaves_out_that_row_alone_and_counts_it(tmp_path: Path, what: str) -> None:
    raw, reason = BAD_ROWS[what]
    path = write(tmp_path, (HEADER + GOOD).encode() + raw + b"a.png,What is it?,a cyst,5,\n")
    bad = BadRows("skip")
    records = registry.read(path, tmp_path, "train", bad)
    bad.settle()
    assert [record.id for record in records] == ["rows/1", "rows/5"]
    assert len(bad.reasons) == 1
    assert bad.reasons[0].startswith(f"{path} row 3: ")
    assert reason in bad.reasons[0]


def test_failing_names_the_first_three_rows_and_the_number_of_the_others(tmp_path: Path) -> None:
    rows = b"".join(raw for raw, _ in BAD_ROWS.values())
    bad = BadRows("fail")
    path = write(tmp_path, (HEADER + GOOD).encode() + rows)
    registry.read(path, tmp_path, "train", bad)
    assert len(bad.reasons) == len(BAD_ROWS)
    with pytest.raises(
        DataError,
        match=r"row 3: image .*row 4: empty image.*row 5: .*\(and 6 more bad rows\).*skip",
    ):
        bad.settle()


def test_unreadable_image_is_a_bad_row_of_every_question_on_it(tmp_path: Path) -> None:
    text = HEADER + GOOD + "b.png,Is it?,no,2,\nb.png,What?,x,3,\n"
    path = write(tmp_path, text.encode())
    (tmp_path / "b.png").write_bytes((tmp_path / "a.png").read_bytes()[:-20])
    bad = BadRows("skip")
    kept = readable(registry.read(path, tmp_path, "train", bad), bad)
    assert [record.id for record in kept] == ["rows/1"]
    assert [reason.partition(": ")[0] for reason in bad.reasons] == [
        f"{path} row 3",
        f"{path} row 4",
    ]
    assert all("unreadable image" in reason for reason in bad.reasons)


@pytest.mark.parametrize("content", [b"", b"\n", HEADER.encode(), HEADER.encode() + b"\n\n"])
def test_a_set_without_rows_is_an_error(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(DataError, match=r"rows\.csv: (empty file|no usable row)"):
        registry.read(write(tmp_path, content), tmp_path, "train")


def test_a_set_of_bad_rows_alone_is_an_error_also_when_they_are_skipped(tmp_path: Path) -> None:
    path = write(tmp_path, HEADER.encode() + BAD_ROWS["empty answer"][0])
    with pytest.raises(DataError, match="no usable row"):
        registry.read(path, tmp_path, "train", BadRows("skip"))


def test_byte_order_mark_and_crlf_change_nothing(tmp_path: Path) -> None:
    text = HEADER + GOOD + 'a.png,"Two\nlines?",a cyst,2,\n'
    plain = registry.read(write(tmp_path, text.encode()), tmp_path, "train")
    odd = b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode()
    again = registry.read(write(tmp_path, odd), tmp_path, "train")
    assert [(r.id, r.answer) for r in again] == [(r.id, r.answer) for r in plain]
    assert again[0].question == plain[0].question


def test_an_unknown_column_is_not_overlooked(tmp_path: Path) -> None:
    path = write(tmp_path, b"image,question,answer,modalty\na.png,Is it?,no,ct\n")
    with pytest.raises(DataError, match=r"unknown column 'modalty'.*did you mean 'modality'"):
        registry.read(path, tmp_path, "train")


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("{]", "row 2: not JSON"),
        ("[1]", "row 2: list instead of an object"),
        ("[" * 100_000, "row 2: not JSON"),
        ('{"image": "a.png", "question": "x"}', "row 2: column 'answer' is missing"),
        ('{"messages": [], "images": ["a.png"]}', "row 2: messages must be one of user"),
    ],
)
def test_bad_json_line_is_named_and_can_be_skipped(tmp_path: Path, line: str, reason: str) -> None:
    good, other = (
        json.dumps({"image": "a.png", "question": question, "answer": "no"})
        for question in ("Is it?", "Is it large?")
    )
    path = write(tmp_path, f"{good}\n{line}\n{other}\n".encode(), "rows.jsonl")
    with pytest.raises(DataError, match=reason):
        registry.read(path, tmp_path, "train")
    bad = BadRows("skip")
    assert len(registry.read(path, tmp_path, "train", bad)) == 2
    assert len(bad.reasons) == 1
