"""PMC-VQA (Zhang et al. 2023): multiple-choice questions about figures of PubMed Central.

Reads the official CSV files (``train_2.csv`` and ``test_2.csv`` are the second version without
compound figures, ``test_clean.csv`` the checked test) and the folder of figures. A record carries
its four choices as options, so the question lists them; the answer is the text of the right one.
The set names no modality.
"""

from __future__ import annotations

from pathlib import Path

from medmoe.data.bad_rows import BadRows, collector
from medmoe.data.readers import common, tables
from medmoe.data.schema import ImageRecord, Record
from medmoe.errors import DataError

NAME = "pmc_vqa"
_FILES = {
    "train": "train.csv",
    "test": "test.csv",
    "test_clean": "test_clean.csv",
    "train_2": "train_2.csv",
    "test_2": "test_2.csv",
}
SPLITS = tuple(_FILES)
MARKERS = ("pmc-vqa/train.csv", "pmc-vqa/test.csv", "pmc-vqa/test_clean.csv", "pmc-vqa/test_2.csv")
LICENCE = "CC-BY-SA-4.0"
SOURCE = common.Source(
    "https://github.com/xiaoman-zhang/PMC-VQA",
    "pmc-vqa",
    hub="RadGenome/PMC-VQA",
    files=("*.csv", "images.zip"),
    archives=("images.zip",),
)
_FOLDERS = ("images", "figures", "images/images", "figures/figures", "images_2")
_LETTERS = "ABCD"


def read(root: Path, split: str, bad: BadRows | None = None) -> list[Record]:
    """Return the questions of a split.

    Args:
        root: The data folder, which holds ``pmc-vqa/``.
        split: One of `SPLITS`.
        bad: Receives the bad rows; without it the first one is an error.

    Raises:
        DataError: A file is missing, or a row is malformed (file and row are named).
    """
    common.check_split(NAME, split, SPLITS)
    bad = collector(bad)
    folder = common.require(root, MARKERS[0], NAME, *MARKERS[1:]).parent
    path = common.require_part(folder, _FILES[split], NAME)
    figures = _figures(folder)
    images: dict[str, ImageRecord] = {}
    records = []
    for number, (where, row) in enumerate(tables.rows(path, bad), 1):
        with bad.row():
            records.append(_record(row, where, figures, split, number, images))
    return common.some(records, path)


def _figures(folder: Path) -> dict[str, Path]:
    """Return figure name -> file over all folders that archives are unpacked to."""
    paths: dict[str, Path] = {}
    for name in _FOLDERS:
        if (folder / name).is_dir():
            paths |= {file: folder / name / file for file in common.file_names(folder / name)}
    if not paths:
        raise DataError(
            f"{folder}: no folder of images, looked for {', '.join(_FOLDERS)}; unpack images.zip"
        )
    return paths


def _record(
    row: tables.Row,
    where: str,
    figures: dict[str, Path],
    split: str,
    number: int,
    images: dict[str, ImageRecord],
) -> Record:
    choices = [f"Choice {letter}" for letter in _LETTERS]
    text = common.fields(row, ("Figure_path", "Question", *choices), where)
    options = tuple(_choice(text[f"Choice {c}"], c, where) for c in _LETTERS)
    name = text["Figure_path"]
    if name not in figures:
        raise DataError(f"{where}: image file {name!r} is missing; add it")
    image = images.setdefault(name, ImageRecord(f"{NAME}/{name}", figures[name]))
    return Record(
        id=f"{NAME}/{split}/{number}",
        image=image,
        question=text["Question"],
        answer=_answer(row, options, where),
        answer_type="closed",
        question_type="multiple_choice",
        task="vqa",
        dataset=NAME,
        split=split,
        licence=LICENCE,
        options=options,
        place=where,
    )


def _choice(text: str, letter: str, where: str) -> str:
    """Return a choice without its letter (`` B:Focal uptake `` is ``Focal uptake``)."""
    _, mark, rest = text.partition(":")
    kept = rest if mark and text.startswith(f"{letter}:") else text
    if not kept.strip():
        raise DataError(f"{where}: empty Choice {letter}; fill it in or remove the row")
    return kept.strip()


def _answer(row: tables.Row, options: tuple[str, ...], where: str) -> str:
    """Return the text of the right choice: by its letter, which either of two columns holds."""
    for column in ("Answer_label", "Answer"):
        letter = str(row.get(column) or "").strip().upper()
        if len(letter) == 1 and letter in _LETTERS:
            return options[_LETTERS.index(letter)]
    answer = str(row.get("Answer") or "").strip()
    if answer not in options:
        raise DataError(f"{where}: answer {answer!r} must be one of the choices or their letters")
    return answer
