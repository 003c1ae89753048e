"""Tables as spreadsheets and programs export them: what is recognised is read, and said."""

from __future__ import annotations

from pathlib import Path

import pytest

from medmoe.data.bad_rows import BadRows
from medmoe.data.readers.tables import rows
from medmoe.errors import DataError

TEXT = "image,question,answer\na.png,Größe?,5 µm\n"
EXPECTED = [{"image": "a.png", "question": "Größe?", "answer": "5 µm"}]


def read(path: Path, content: bytes | str) -> tuple[list[dict[str, object]], str]:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    bad = BadRows()
    found = [row for _, row in rows(path, bad)]
    bad.settle()
    return found, "\n".join(bad.notes)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (TEXT.encode(), ""),
        (TEXT.encode("utf-8-sig"), "read as UTF-8 with a byte-order mark"),
        (TEXT.encode("utf-16"), "read as UTF-16-LE with a byte-order mark"),
        (TEXT.encode("utf-16-be"), "read as UTF-16-BE"),
        (TEXT.encode("utf-32"), "read as UTF-32-LE with a byte-order mark"),
        (TEXT.encode("cp1252"), "not UTF-8, read as Windows-1252"),
        (TEXT.replace(",", ";").encode(), "columns are separated by semicolons"),
        (TEXT.replace(",", "\t").encode(), "columns are separated by tabs"),
        (TEXT.replace(",", "|").encode(), "columns are separated by vertical bars"),
        (b"sep=;\r\n" + TEXT.replace(",", ";").encode("cp1252"), "Windows-1252"),
        (TEXT.replace("\n", "\r").encode(), ""),
        (TEXT.replace("\n", "\r\n").encode(), ""),
        (b"\n , ,\n" + TEXT.encode(), ""),
        (TEXT.replace("image", ",image").replace("a.png", "0,a.png").encode(), "without a name"),
        (TEXT.replace("image", "Unnamed: 0,image").replace("a.p", "0,a.p").encode(), "without a"),
        (TEXT.replace("\n", ",,\n").encode(), "2 columns without a name"),
    ],
)
def test_what_a_spreadsheet_exports_is_recognised_and_said(
    tmp_path: Path, content: bytes, said: str
) -> None:
    found, notes = read(tmp_path / "t.csv", content)
    assert found == EXPECTED
    assert said in notes
    assert bool(said) == bool(notes)


def test_tabs_are_usual_in_tsv(tmp_path: Path) -> None:
    assert read(tmp_path / "t.TSV", TEXT.replace(",", "\t")) == (EXPECTED, "")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("image,answer,answer\na.png,x,y\n", "row 1: column 'answer' is named twice"),
        ('image,answer\na.png,"yes\nb.png,no\n', "row 2: not CSV .* close quotation marks"),
        (",image\nx,a.png\n", "row 2: 'x' stands in a column without a name"),
        ("image,answer\na.png,a,b\n", "row 2: 3 fields, 2 are named in the header"),
        ("", "empty file; the first row names the columns"),
        ("image,answer\na.png,\u4e2d\u6587\n".encode("gb18030") * 3, "row 2: not UTF-8"),
    ],
)
def test_what_cannot_be_read_is_named(tmp_path: Path, content: bytes | str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read(tmp_path / "t.csv", content)


def test_rows_are_numbered_as_a_spreadsheet_does(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text('image,answer\na.png,"two\nlines"\n\nb.png,x\n')
    assert [where for where, _ in rows(path, BadRows())] == [f"{path} row 2", f"{path} row 4"]


def test_a_key_that_stands_twice_is_not_overlooked(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="row 1: key 'answer' stands twice"):
        read(tmp_path / "t.jsonl", '{"answer": "yes", "answer": "no"}')


@pytest.mark.parametrize("name", ["t.json", "t.jsonl"])
def test_a_list_and_one_object_a_line_are_both_read(tmp_path: Path, name: str) -> None:
    lines = '{"answer": "a"}\n{"answer": "b"}\n'
    expected = [{"answer": "a"}, {"answer": "b"}]
    assert read(tmp_path / name, lines)[0] == expected
    assert read(tmp_path / name, f"[{lines.strip().replace(chr(10), ', ')}]")[0] == expected
