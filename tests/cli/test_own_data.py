"""A user's own data at the command line: what is wrong is one line, how it was read is said."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.experiments.own_set import write_classes, write_pictures

from medmoe.cli.main import main

HEADER = "image,question,answer,modality"


def table(folder: Path, *rows: str, header: str = HEADER) -> Path:
    """Write ``data.csv`` of twelve good rows with others behind them: the first is row 14."""
    write_pictures(folder / "images", range(12))
    good = [f"images/{n:03d}.png,Is there a mass?,{('yes', 'no')[n % 2]},ct" for n in range(12)]
    if header != HEADER:
        good = []
    path = folder / "data.csv"
    path.write_text("\n".join([header, *good, *rows]) + "\n", encoding="utf-8")
    return path


def wrong_column(folder: Path) -> Path:
    row = "images/000.png,Is there a mass?,yes,ct"
    return table(folder, row, header="image,question,anwser,modality")


def missing_picture(folder: Path) -> Path:
    return table(folder, "images/gone.png,Is there a mass?,yes,ct")


def outside(folder: Path) -> Path:
    write_pictures(folder.parent, [500])
    return table(folder, "../500.png,Is there a mass?,yes,ct")


def contradiction(folder: Path) -> Path:
    return table(folder, "images/000.png,Is there a mass?,no,ct")


def one_class(folder: Path) -> Path:
    write_classes(folder)
    shutil.rmtree(folder / "benign")
    return folder


def one_label(folder: Path) -> Path:
    rows = [f"images/{n:03d}.png,benign" for n in range(3)]
    return table(folder, *rows, header="image,label")


def not_parted(folder: Path) -> Path:
    rows = [f"images/{n:03d}.png,Is it?,yes,{('train', 'test')[n % 2]}" for n in range(8)]
    return table(folder, *rows, header="image,question,answer,split")


WRONG = [
    (wrong_column, "data.csv row 1: unknown column 'anwser'", "did you mean 'answer'?"),
    (missing_picture, "data.csv row 14: image file 'images/gone.png' is missing", "add it"),
    (outside, "data.csv row 14: image file '../500.png' lies outside", "--allow-outside"),
    (contradiction, "data.csv row 14: answers 'no' where row 2 answers 'yes'", "correct one"),
    (one_class, "own: one class only ('malignant tumour')", "add pictures of another"),
    (one_label, "data.csv: one class only ('benign')", "add pictures of another"),
]
VERBS: dict[str, Callable[[Path, Path], list[str]]] = {
    "audit": lambda path, out: ["data", "audit", str(path), "--out", str(out)],
    "train": lambda path, out: ["train", "tiny_real", "--records", str(path), "--out", str(out)],
    "demo": lambda path, out: ["demo", "--records", str(path), "--out", str(out)],
}


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize(("make", "where", "fix"), WRONG, ids=[row[0].__name__ for row in WRONG])
def test_what_is_wrong_is_one_line_with_file_row_and_fix(
    make: Callable[[Path], Path],
    where: str,
    fix: str,
    verb: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = make(tmp_path / "own")
    out = tmp_path / "out"
    assert main(VERBS[verb](path, out)) == 2
    line = capsys.readouterr().err
    assert line.startswith("medmoe: error: ")
    assert line.count("\n") == 1
    assert where in line
    assert fix in line
    assert not out.exists() or not any(out.iterdir())


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--domains", "ct,foto"], "--domains: unknown domain 'foto'"),
        (["--modality", "x-rai"], "unknown modality 'x-rai'; choose one of: angiography, ct"),
        (["--records", "vqa_rad"], "--records vqa_rad: name its part too, e.g. vqa_rad/train"),
        (["--records", "gone.csv"], "gone.csv: no such file or folder; give a table or a folder"),
    ],
)
@pytest.mark.parametrize("verb", ["train", "demo"])
def test_what_no_picture_could_have_is_one_line(
    verb: str, words: list[str], line: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = table(tmp_path / "own")
    out = tmp_path / "out"
    assert main([*VERBS[verb](path, out), *words]) == 2
    assert line in capsys.readouterr().err
    assert not out.exists()


def test_a_part_that_is_not_there_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = not_parted(tmp_path / "own")
    assert main(["data", "info", f"{path}:validation"]) == 2
    line = capsys.readouterr().err
    assert f"{path}: has train, test and no validation part; add it, or name no split" in line
    assert line.count("\n") == 1
    assert main(["data", "info", str(path)]) == 0
    assert "has train, test and no validation part; add it" in capsys.readouterr().out


def test_a_picture_outside_is_read_where_that_is_allowed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = outside(tmp_path / "own")
    assert main(["data", "info", str(path), "--allow-outside"]) == 0
    assert "left out" not in capsys.readouterr().out


def test_a_row_that_repeats_another_is_said_and_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = table(tmp_path / "own", "images/000.png,Is there a mass?,yes,ct")
    assert main(["data", "info", str(path)]) == 0
    out = capsys.readouterr().out
    assert f"{path} row 14: the same as row 2; left out" in out
    assert sum(int(line.split()[1]) for line in out.splitlines() if " rows on " in line) == 12


def windows(text: str) -> bytes:
    return text.replace("mass", "Größe").encode("cp1252")


def semicolons(text: str) -> bytes:
    return text.replace(",", ";").encode()


def excel(text: str) -> bytes:
    return text.encode("utf-8-sig")


def backslashes(text: str) -> bytes:
    return text.replace("images/", "images\\").encode()


@pytest.mark.parametrize(
    ("written", "said"),
    [
        (windows, "Windows-1252"),
        (semicolons, "semicolons"),
        (excel, "byte-order mark"),
        (backslashes, r"\ in paths is read as /"),
    ],
)
def test_what_spreadsheets_write_is_read_and_said(
    written: Callable[[str], bytes],
    said: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = table(tmp_path / "own")
    path.write_bytes(written(path.read_text(encoding="utf-8")))
    assert main(["data", "info", str(path)]) == 0
    out = capsys.readouterr().out
    assert said in out
    assert sum(int(line.split()[1]) for line in out.splitlines() if " rows on " in line) == 12
    assert main(["data", "audit", str(path), "--out", str(tmp_path / "audit")]) == 0
    assert said in capsys.readouterr().out
