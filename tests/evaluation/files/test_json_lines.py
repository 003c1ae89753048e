"""A file of JSON lines is read whole, or refused by a line that names the place."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from medmoe.errors import DataError
from medmoe.evaluation.files.json_lines import number, read_rows, text_of

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
    ],
    ids=["plain", "byte order mark", "windows line ends", "empty lines", "no last line end"],
)
def test_what_is_no_fault_is_read(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "p.jsonl"
    path.write_bytes(content)
    # An answer's own U+2028 or form feed ends no line.
    assert [row for _, row in read_rows(path, "predictions")] == ROWS


def test_a_row_knows_its_line(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text('{"id": "a"}\n\n{"id": "b"}\n')
    assert [where for where, _ in read_rows(path, "predictions")] == [
        "p.jsonl line 1",
        "p.jsonl line 3",
    ]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "holds no predictions; write one JSON object per line"),
        (b" \n\n", "holds no predictions"),
        (b'{"id": "a"}\n{"id": "\xe4"}\n', r"p\.jsonl line 2 is not UTF-8 \(byte 0xe4\)"),
        ('{"id": "a"}\n'.encode("utf-16"), r"p\.jsonl is UTF-16 or UTF-32; save it as UTF-8"),
        (b'{"id": "a"}\n{"id": "b",\n', r"p\.jsonl line 2 is no JSON"),
        (b'{"id": "a"}\n["b"]\n', "line 2 is no JSON object"),
        (b'{"id": "a", "id": "b"}\n', "line 1 holds a key twice: 'id'"),
        (b"[" * 100_000 + b"\n", "line 1 is (nested too deeply|no JSON)"),
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
        with pytest.raises(DataError, match=r"cannot read truth from .*give a UTF-8 file"):
            read_rows(path, "truth")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({}, "answer is missing"),
        ({"answer": 3}, "answer holds 3; write it as a string"),
        ({"answer": "a\ud800"}, r"answer holds half a character \('\\ud800'\)"),
    ],
)
def test_text_that_is_none_is_named(row: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=f"line 1: {message}"):
        text_of(row, "answer", "line 1")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), True, "0.5", None, 10**400])
def test_a_number_that_is_none_is_named(value: object) -> None:
    with pytest.raises(DataError, match=r"line 1: confidence holds .*; write a finite number"):
        number(value, "confidence", "line 1")


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(start=st.sampled_from([b"", b"\xef\xbb\xbf", LINES.encode()]), rest=st.binary(max_size=40))
def test_any_bytes_are_rows_or_one_line(tmp_path: Path, start: bytes, rest: bytes) -> None:
    path = tmp_path / "p.jsonl"
    path.write_bytes(start + rest)
    with suppress(DataError):  # anything else fails
        assert all(isinstance(row, dict) for _, row in read_rows(path, "predictions"))
