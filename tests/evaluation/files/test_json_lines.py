"""A file of JSON lines is read whole, or refused by a line that names the place."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, TypeAdapter

from medmoe.errors import DataError
from medmoe.evaluation.files.json_lines import Number, Text, checked, read_rows


class _Answer(BaseModel):
    answer: Text
    sure: Number = 0.0


#: Each example writes the one file anew.
SAME_FILE = [HealthCheck.function_scoped_fixture]
ROWS = [{"id": "a", "prediction": "left\u2028lung\x0cödem"}, {"id": "b", "prediction": "no"}]
LINES = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS)


@pytest.mark.parametrize(
    "content",
    [
        LINES.encode(),
        b"\xef\xbb\xbf" + LINES.encode(),
        LINES.replace("\n", "\r\n").encode(),
        ("\n" + LINES + "\n  \n").encode(),
        LINES.rstrip().encode(),
        LINES.encode("utf-16"),
        json.dumps(ROWS).encode(),
        json.dumps(ROWS, indent=2, ensure_ascii=False).encode(),
    ],
    ids=[
        "plain",
        "byte order mark",
        "windows line ends",
        "empty lines",
        "no last line end",
        "UTF-16",
        "array",
        "array over lines",
    ],
)
def test_what_is_no_fault_is_read(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "p.jsonl"
    path.write_bytes(content)
    # An answer's own U+2028 or form feed ends no line.
    assert [row for _, row in read_rows(path, "predictions")] == ROWS


@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_a_csv_is_read_with_its_numbers_and_lists(tmp_path: Path, separator: str) -> None:
    path = tmp_path / "p.csv"
    cells = [
        ["ID", "prediction", "confidence", "options", "image"],
        ["1", "yes", "0.5", '"[""yes"", ""no""]"', "a"],
        ["2", "", "", "", ""],
    ]
    path.write_text("\n\n".join(separator.join(row) for row in cells) + "\n", encoding="utf-8-sig")
    assert [row for _, row in read_rows(path, "predictions")] == [
        {"id": "1", "prediction": "yes", "confidence": 0.5, "options": ["yes", "no"], "image": "a"},
        {"id": "2", "prediction": ""},
    ]


def test_a_cell_that_is_no_number_is_named(tmp_path: Path) -> None:
    (tmp_path / "p.csv").write_text("id,prediction,confidence\n1,yes,high\n")
    with pytest.raises(DataError, match=r"p\.csv row 2: confidence holds 'high'"):
        read_rows(tmp_path / "p.csv", "predictions")


def test_a_row_knows_its_line(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text('{"id": "a"}\n\n{"id": "b"}\n')
    places = [where for where, _ in read_rows(path, "predictions")]
    assert places == [f"{path} row 1", f"{path} row 3"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "holds no predictions; write one JSON object per line"),
        (b" \n\n", "holds no predictions"),
        (b'{"id": "\xc3\xa4"}\n{"id": "\xe4"}\n', r"p\.jsonl row 2: not UTF-8 \(byte 0xe4\)"),
        (b'{"id": "a"}\n{"id": "b",\n', r"p\.jsonl row 2: not JSON"),
        (b'{"id": "a"}\n["b"]\n', "row 2: list instead of an object"),
        (b'{"id": "a", "id": "b"}\n', "row 1: key 'id' stands twice"),
        (b"[" * 100_000 + b"\n", "row 1: not JSON"),
    ],
)
def test_a_fault_is_one_line_that_names_the_place(
    tmp_path: Path, content: bytes, message: str
) -> None:
    path = tmp_path / "p.jsonl"
    path.write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        read_rows(path, "predictions")
    assert "\n" not in str(caught.value)


def test_a_file_or_folder_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    for path in (tmp_path / "none.jsonl", tmp_path):
        with pytest.raises(DataError, match=f"{path}: .*give an existing file"):
            read_rows(path, "truth")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({}, "answer is missing"),
        ({"answer": 3}, "answer holds 3; it should be a valid string"),
        ({"answer": "a\ud800"}, r"answer holds 'a\\ud800'; it .*surrogates not allowed"),
    ],
)
def test_text_that_is_none_is_named(row: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=f"line 1: {message}"):
        checked(TypeAdapter(_Answer), row, "line 1")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), True, "0.5", None, 10**400])
def test_a_number_that_is_none_is_named(value: object) -> None:
    with pytest.raises(DataError, match=r"line 1: sure holds .*; it should be a .* number"):
        checked(TypeAdapter(_Answer), {"answer": "yes", "sure": value}, "line 1")


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(start=st.sampled_from([b"", b"\xef\xbb\xbf", LINES.encode()]), rest=st.binary(max_size=40))
def test_any_bytes_are_rows_or_one_line(tmp_path: Path, start: bytes, rest: bytes) -> None:
    path = tmp_path / "p.jsonl"
    path.write_bytes(start + rest)
    with suppress(DataError):  # anything else fails
        assert all(isinstance(row, dict) for _, row in read_rows(path, "predictions"))
